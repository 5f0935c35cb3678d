package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: "sha256:" + "ab", Size: 7}

// programs writes shell scripts, in the order of their names.
func programs(t *testing.T, scripts ...string) Programs {
	t.Helper()
	p := Programs{Dir: t.TempDir(), Max: 3, Timeout: time.Minute}
	for i, script := range scripts {
		if err := os.WriteFile(filepath.Join(p.Dir, fmt.Sprintf("verifier-%d", i)), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestAgrees(t *testing.T) {
	seen := filepath.Join(t.TempDir(), "seen")
	t.Setenv("SECRET", "x")
	p := programs(t, `{ echo "$@"; env | sort | grep -v -e ^PWD= -e ^SHLVL= -e ^_=; pwd; cat; } > `+seen+`; echo all right; echo noise >&2`,
		`exec 0<&-; head -c 200000 /dev/zero >&2`)
	if err := p.Check(t.Context(), "docker.io/library/app:v1", desc); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(seen)
	want := "-name docker.io/library/app:v1 -digest sha256:ab -stdin-media-type application/vnd.oci.descriptor.v1+json\nPATH=" + os.Getenv("PATH") +
		"\n/\n" + `{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:ab","size":7}`
	if err != nil || string(got) != want {
		t.Errorf("it saw %q, %v; want %q", got, err, want)
	}
	for _, none := range []Programs{{}, {Dir: filepath.Join(t.TempDir(), "absent")}, {Dir: t.TempDir()}} {
		if err := none.Check(t.Context(), "x", desc); err != nil {
			t.Errorf("%v: %v", none, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		scripts []string
		want    string
	}{
		"no":           {[]string{"exit 0", "echo no signature; exit 1"}, `verifier-1 on sha256:ab: exit status 1: "no signature"`},
		"without word": {[]string{"exit 3"}, "exit status 3"},
		"killed":       {[]string{"kill -9 $$"}, "signal: killed"},
		"endless":      {[]string{"yes"}, "says more than"},
		"deaf":         {[]string{"trap '' PIPE; head -c 100000 /dev/zero; exit 0"}, "says more than"},
		"too many":     {[]string{"", "", "", ""}, "4 image verifiers"},
		"no program":   {[]string{"exit 0", "#"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := programs(t, c.scripts...)
			switch name {
			case "no program":
				for what, spoil := range map[string]func(path string) error{
					"no executable": func(path string) error { return os.Chmod(path, 0o644) },
					"directory":     func(path string) error { _ = os.Remove(path); return os.Mkdir(path, 0o755) },
					"dangling link": func(path string) error { _ = os.Remove(path); return os.Symlink("/nonexistent", path) },
					"no format":     func(path string) error { _ = os.Remove(path); return os.WriteFile(path, []byte("\x7fELF"), 0o755) },
				} {
					file := filepath.Join(p.Dir, "verifier-1")
					if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := spoil(file); err != nil {
						t.Fatal(err)
					}
					if err := p.Check(t.Context(), "x", desc); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "verifier-1") {
						t.Errorf("%s: %v", what, err)
					}
					_ = os.Remove(file)
				}
			default:
				err := p.Check(t.Context(), "x", desc)
				if !errors.Is(err, ErrRefused) || !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 2000 {
					t.Errorf("%v", err)
				}
			}
		})
	}
	if err := (Programs{Dir: "/dev/null", Max: 1}).Check(t.Context(), "x", desc); !errors.Is(err, ErrRefused) {
		t.Errorf("a directory that is none: %v", err)
	}
}

// TestNothingIsLeft: a program that does not end goes with its children, and
// so do the children of one that does.
func TestNothingIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   string // "" for agreement
	}{
		"too slow":        {`sleep 60 & echo $! > $PIDS; sleep 60`, "took longer"},
		"leaves a child":  {`sleep 60 & echo $! > $PIDS`, ""},
		"leaves a daemon": {`setsid sh -c 'echo $$ > $PIDS; exec sleep 60' & until [ -s $PIDS ]; do :; done`, "left a process"},
	} {
		t.Run(name, func(t *testing.T) {
			pids := filepath.Join(t.TempDir(), "pids")
			p := programs(t, strings.ReplaceAll(c.script, "$PIDS", pids))
			if c.want == "took longer" {
				p.Timeout = 500 * time.Millisecond
			}
			err := p.Check(t.Context(), "x", desc)
			for c.want == "took longer" && !exists(pids) && p.Timeout < time.Minute { // so soon that it did not begin
				p.Timeout *= 4
				err = p.Check(t.Context(), "x", desc)
			}
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v", err)
			}
			child := pidIn(t, pids)
			if name == "leaves a daemon" { // it has left the group: only its hold on us ends
				_ = unix.Kill(child, unix.SIGKILL)
			}
			gone(t, child)
		})
	}
}

func TestCancelled(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	p := programs(t, "sleep 60 & echo $! > "+pids+"; mv "+pids+" "+pids+".ok; wait")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for {
			if exists(pids + ".ok") {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel(errors.New("given up"))
	}()
	if err := p.Check(ctx, "x", desc); err == nil || err.Error() != "given up" || errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
	gone(t, pidIn(t, pids+".ok"))
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func pidIn(t *testing.T, file string) int {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone waits until a process has ended; whose child it has become may reap it
// when it likes.
func gone(t *testing.T, pid int) {
	t.Helper()
	for range 6000 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d lives", pid)
}
