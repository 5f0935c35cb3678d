package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is a file system in a file.
type Disk struct {
	Kind string // ext4, xfs

	loop *os.File
	at   string // where it is mounted; empty: nowhere
}

// New makes a file system of that many bytes, by mkfs with options. Its mount and the loop device go with the test.
func New(t testing.TB, kind string, size int64, options ...string) *Disk {
	t.Helper()
	mkfs := "mkfs." + kind
	if _, err := exec.LookPath(mkfs); err != nil {
		missing(t, "%v (hack/install-deps.sh installs it)", err)
	}
	image := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	if out, err := exec.CommandContext(t.Context(), mkfs, append(options, "-q", image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	d := &Disk{Kind: kind, loop: attach(t, image)}
	t.Cleanup(func() {
		d.Unmount(t)
		must(t, d.loop.Close()) // the kernel detaches the file with the last descriptor
	})
	return d
}

func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// attach makes a block device of the file.
func attach(t testing.TB, image string) *os.File {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if devices, _ := os.ReadFile("/proc/devices"); err != nil && !strings.Contains(string(devices), " loop\n") {
		t.Skipf("the kernel has no loop devices: %v", err)
	}
	if err != nil {
		missing(t, "loop devices cannot be used: %v", err)
	}
	defer control.Close()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	for range 10 { // another process may be quicker to take the free one
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			missing(t, "no free loop device: %v", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			missing(t, "the free loop device cannot be opened: %v", err)
		}
		config := &unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), config); err == nil {
			return loop
		}
		must(t, loop.Close())
		if !errors.Is(err, unix.EBUSY) {
			missing(t, "the loop device cannot be set up: %v", err)
		}
	}
	t.Fatal("every free loop device was taken by another process")
	return nil
}

// Mount mounts it at a directory, which replays the journal.
func (d *Disk) Mount(t testing.TB, dir, options string) {
	t.Helper()
	err := unix.Mount(d.loop.Name(), dir, d.Kind, 0, options)
	if errors.Is(err, unix.ENODEV) {
		t.Skipf("the kernel does not have %s", d.Kind)
	}
	if err != nil {
		t.Fatalf("mounting %s (%s): %v", d.Kind, options, err)
	}
	d.at = dir
}

// At is where it is mounted.
func (d *Disk) At() string { return d.at }

// Unmount undoes Mount, if it was done.
func (d *Disk) Unmount(t testing.TB) {
	t.Helper()
	if d.at == "" {
		return
	}
	err := unix.Unmount(d.at, 0)
	for i := 0; i < 1000 && errors.Is(err, unix.EBUSY); i++ { // somebody else looks at it
		time.Sleep(10 * time.Millisecond)
		err = unix.Unmount(d.at, 0)
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // somebody else has done it
		must(t, err)
	}
	d.at = ""
}

// Cut ends the file system at once: from now on nothing reaches the disk, neither dirty pages nor the journal.
func (d *Disk) Cut() error {
	const shutdown, noLogFlush = 0x8004587d, 2 // FS_IOC_SHUTDOWN of ext4, XFS_IOC_GOINGDOWN of xfs
	f, err := os.Open(d.at)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("shutting the file system down: %w", err)
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
