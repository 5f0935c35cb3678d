package power

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

// disk is a file system in a file.
type disk struct {
	kind  string // ext4, xfs
	dir   string // where it is mounted
	loop  *os.File
	mount bool
}

// newDisk makes the file system; mounts and the loop device go with the test.
func newDisk(t *testing.T, kind string) *disk {
	t.Helper()
	mkfs := "mkfs." + kind
	if _, err := exec.LookPath(mkfs); err != nil {
		missing(t, "%v (hack/install-deps.sh installs it)", err)
	}
	base := t.TempDir()
	image := filepath.Join(base, "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 1<<30))
	if out, err := exec.CommandContext(t.Context(), mkfs, "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	d := &disk{kind: kind, dir: filepath.Join(base, "mounted"), loop: attach(t, image)}
	t.Cleanup(func() {
		d.unmount(t)
		must(t, d.loop.Close()) // the kernel detaches the file with the last descriptor
	})
	must(t, os.Mkdir(d.dir, 0o700))
	return d
}

func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// attach makes a block device of the file.
func attach(t *testing.T, image string) *os.File {
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

// mountWith mounts it, which replays the journal.
func (d *disk) mountWith(t *testing.T, options string) {
	t.Helper()
	err := unix.Mount(d.loop.Name(), d.dir, d.kind, 0, options)
	if errors.Is(err, unix.ENODEV) {
		t.Skipf("the kernel does not have %s", d.kind)
	}
	if err != nil {
		t.Fatalf("mounting %s (%s): %v", d.kind, options, err)
	}
	d.mount = true
}

func (d *disk) unmount(t *testing.T) {
	t.Helper()
	if d.mount {
		err := unix.Unmount(d.dir, 0)
		for i := 0; i < 1000 && errors.Is(err, unix.EBUSY); i++ { // somebody else looks at it
			time.Sleep(10 * time.Millisecond)
			err = unix.Unmount(d.dir, 0)
		}
		must(t, err)
		d.mount = false
	}
}

// cut ends the file system at once: from now on nothing reaches the disk, neither dirty pages nor the journal.
func (d *disk) cut() error {
	const shutdown, noLogFlush = 0x8004587d, 2 // FS_IOC_SHUTDOWN of ext4, XFS_IOC_GOINGDOWN of xfs
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("shutting the file system down: %w", err)
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
