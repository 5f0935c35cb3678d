package logcopy

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Staging on a file system without space makes the container wait, not this process end (SIGBUS).
func TestStagingWithoutSpace(t *testing.T) {
	dir := disk(t, "size=320k")
	r := newRig(t)
	r.pool.Close()
	var err error
	if r.pool, err = NewPool(filepath.Join(dir, "staging")); err != nil {
		t.Fatal(err)
	}
	defer r.pool.Close()
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 288<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start(nil)
	const n = 20_000
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		_, _ = r.w.Write(numbered(0, n))
	}()
	raw, err := r.w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	full := 0
	waitFor(t, func() bool { // and stays so
		pending := 0
		_ = raw.Control(func(fd uintptr) { pending, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		if full++; pending < 64<<10 {
			full = 0
		}
		return full > 50
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	<-fed
	r.end()
	if all := r.numbers(filepath.Join(r.dir, "logs/a/b.log"), n); len(all) != n {
		t.Errorf("%d lines of %d", len(all), n)
	}
}
