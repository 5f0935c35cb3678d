package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI runs this test as root")
		}
		t.Skip("makes namespaces and mounts: needs root")
	}
}

func noRecord() error { return nil }

func testHost(t *testing.T) *Host {
	t.Helper()
	needRoot(t)
	h := &Host{runDir: t.TempDir()}
	for _, dir := range []string{h.podsDir(), h.containersDir()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // the audit: nothing mounted, nothing on disk
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil || strings.Contains(string(mounts), h.runDir) {
			t.Errorf("mounts left behind (%v):\n%s", err, mounts)
		}
		if left, err := os.ReadDir(h.podsDir()); err != nil || len(left) > 0 {
			t.Errorf("files left behind: %v, %v", left, err)
		}
	})
	return h
}

// inNetAndUTS runs f on a thread in the pod's namespaces.
func inNamespaces(t *testing.T, p PodPaths, f func() error) {
	t.Helper()
	errc := make(chan error, 1)
	go onSpareThread(func() {
		errc <- func() error {
			for path, kind := range map[string]int{p.Net: unix.CLONE_NEWNET, p.UTS: unix.CLONE_NEWUTS, p.IPC: unix.CLONE_NEWIPC} {
				fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return fmt.Errorf("opening %s: %w", path, err)
				}
				defer unix.Close(fd)
				if err := unix.Setns(fd, kind); err != nil {
					return fmt.Errorf("entering %s: %w", path, err)
				}
			}
			return f()
		}()
	})
	if err := <-errc; err != nil {
		t.Error(err)
	}
}

func TestPodIsMadeAndRemoved(t *testing.T) {
	h := testHost(t)
	cfg := PodConfig{
		ID: "p1", Namespaces: Namespaces{Net: true, IPC: true, UTS: true}, Hostname: "pod-one", ShmSize: 1 << 20,
		Sysctls: map[string]string{"net/ipv4/ip_unprivileged_port_start": "7", "kernel/shmmni": "99"},
		Files:   map[string][]byte{FileHostname: []byte("pod-one\n")},
	}
	sysctl := func(name string) string {
		b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	hostPort, hostName := sysctl("net.ipv4.ip_unprivileged_port_start"), sysctl("kernel.hostname")
	p, err := h.CreatePod(cfg, noRecord)
	if err != nil {
		t.Fatal(err)
	}
	inNamespaces(t, p, func() error {
		for name, want := range map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "99"} {
			if got := sysctl(name); got != want {
				return fmt.Errorf("%s is %s in the pod, want %s", name, got, want)
			}
		}
		var uts unix.Utsname
		if err := unix.Uname(&uts); err != nil || unix.ByteSliceToString(uts.Nodename[:]) != "pod-one" {
			return fmt.Errorf("hostname %q, %v", uts.Nodename, err)
		}
		return nil
	})
	if got := sysctl("net.ipv4.ip_unprivileged_port_start"); got != hostPort {
		t.Errorf("the host's sysctl became %s", got)
	}
	if got := sysctl("kernel.hostname"); got != hostName {
		t.Errorf("the host's name became %s", got)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.Shm, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != 1<<20 {
		t.Errorf("/dev/shm: %+v, %v", st, err)
	}
	if b, err := os.ReadFile(h.File("p1", FileHostname)); err != nil || string(b) != "pod-one\n" {
		t.Errorf("hostname file %q, %v", b, err)
	}
	for range 2 { // removing is idempotent
		if err := h.RemovePod("p1"); err != nil {
			t.Fatal(err)
		}
	}
}

// A pod of which only a part exists, as after a crash at any step, is removed all the same.
func TestPartsAreRemoved(t *testing.T) {
	h := testHost(t)
	for name, make := range map[string]func(dir string) error{
		"nothing":  func(string) error { return nil },
		"empty":    func(dir string) error { return os.MkdirAll(dir, 0o700) },
		"no mount": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "ns/net"), 0o700) },
		"file only": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, "ns"), 0o700), os.WriteFile(filepath.Join(dir, "ns/net"), nil, 0o400))
		},
		"shm": func(dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o700), mountShm(filepath.Join(dir, "shm"), PodConfig{ShmSize: 4096}))
		},
	} {
		if err := make(filepath.Join(h.podsDir(), "p")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := h.RemovePod("p"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFailedStepsAreUndone(t *testing.T) {
	h := testHost(t)
	for name, cfg := range map[string]PodConfig{
		"unknown sysctl": {Namespaces: Namespaces{Net: true, UTS: true}, Sysctls: map[string]string{"net/ipv4/there_is_no_such": "1"}},
		"bad value":      {Namespaces: Namespaces{Net: true, UTS: true}, Sysctls: map[string]string{"net/ipv4/ip_forward": "many"}},
		"long hostname":  {Namespaces: Namespaces{UTS: true}, Hostname: strings.Repeat("x", 65)},
		"shm too large":  {Namespaces: Namespaces{IPC: true}, ShmSize: -5},
	} {
		cfg.ID = "p"
		if _, err := h.CreatePod(cfg, noRecord); err == nil {
			t.Errorf("%s: made", name)
		}
		if err := h.RemovePod("p"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Many at once, on whatever threads: the process keeps its own namespaces.
func TestPodsInParallel(t *testing.T) {
	h := testHost(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	seen := make([]uint64, 64)
	for i := range seen {
		wg.Go(func() {
			id := fmt.Sprint("p", i)
			p, err := h.CreatePod(PodConfig{ID: id, Namespaces: Namespaces{Net: true, IPC: true, UTS: true}, Hostname: id, ShmSize: 4096}, noRecord)
			if err != nil {
				t.Error(err)
				return
			}
			var st unix.Stat_t
			if err := unix.Stat(p.Net, &st); err != nil {
				t.Error(err)
			}
			seen[i] = st.Ino
		})
	}
	wg.Wait()
	inodes := map[uint64]bool{}
	for i, ino := range seen {
		inodes[ino] = true
		if err := h.RemovePod(fmt.Sprint("p", i)); err != nil {
			t.Error(err)
		}
	}
	if len(inodes) != len(seen) {
		t.Errorf("%d pods have %d network namespaces", len(seen), len(inodes))
	}
	for _, path := range []string{"/proc/self/ns/net", "/proc/thread-self/ns/net"} {
		if after, err := os.Readlink(path); err != nil || after != before {
			t.Errorf("%s was %s, is %s, %v", path, before, after, err)
		}
	}
}

func BenchmarkPod(b *testing.B) {
	h := &Host{runDir: b.TempDir()}
	if err := os.Mkdir(h.podsDir(), 0o700); err != nil {
		b.Fatal(err)
	}
	cfg := PodConfig{ID: "p", Namespaces: Namespaces{Net: true, IPC: true, UTS: true}, Hostname: "p", ShmSize: 1 << 20}
	for b.Loop() {
		if _, err := h.CreatePod(cfg, noRecord); err != nil {
			b.Fatal(err)
		}
		if err := h.RemovePod("p"); err != nil {
			b.Fatal(err)
		}
	}
}
