package images

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const busyboxPath = "/bin/busybox"

// busyboxFiles are the files of a small root file system: busybox with a hard link for each of its programs,
// user data, and the usual directories.
func busyboxFiles(ctx context.Context) ([]file, error) {
	busybox, err := staticProgram(busyboxPath)
	if err != nil {
		return nil, fmt.Errorf("%w (install the package busybox-static: hack/install-deps.sh does)", err)
	}
	list, err := exec.CommandContext(ctx, busyboxPath, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("listing the programs of %s: %w", busyboxPath, err)
	}
	own := []file{
		program("bin/sh", shell(busybox)),
		program("bin/pgrep", []byte("#!/bin/sh\nexec pidof \"$1\"\n")),
		program("bin/ipcs", []byte("#!/bin/sh\ncat /proc/sysvipc/shm\n")),
		program("bin/busybox", busybox),
	}
	files := dirs(0o755, "bin/", "dev/", "etc/", "home/", "proc/", "run/", "sys/", "usr/", "usr/bin/", "var/", "var/www/")
	files = append(files, dir("root/", 0o700), dir("tmp/", 0o1777), symlink("var/run", "../run"),
		text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
		text("etc/group", "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"))
	taken := map[string]bool{}
	for _, f := range own {
		taken[f.name] = true
		files = append(files, f)
	}
	for _, name := range strings.Fields(string(list)) {
		if path := "bin/" + name; !taken[path] {
			files = append(files, hardlink(path, "bin/busybox"))
		}
	}
	return files, nil
}

// shell returns busybox without a built-in ls. Debian's busybox shell prefers its own programs to those in PATH,
// so in it masking /bin/ls hides nothing; critest's MaskedPaths spec, written for a shell that does not, would
// fail on every runtime. The applet table is a sorted list of names ending in NUL: a renamed entry in the same
// place ("lr" sorts where "ls" does) makes the shell look ls up in PATH, where the whole busybox is.
func shell(busybox []byte) []byte {
	return bytes.Replace(busybox, []byte("\x00ls\x00"), []byte("\x00lr\x00"), 1)
}

// staticProgram reads an executable and refuses one that needs shared libraries, which no image here has.
func staticProgram(path string) ([]byte, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("reading %s as an executable: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%s is not statically linked", path)
		}
	}
	return body, nil
}

// guestProgram compiles the guest command, which the Go build cache makes quick but for the first time, or takes the
// one that GANTRY_TEST_PREBUILT has, the folder of programs for a machine without Go.
func guestProgram(ctx context.Context) ([]byte, error) {
	if dir := os.Getenv("GANTRY_TEST_PREBUILT"); dir != "" {
		return os.ReadFile(filepath.Join(dir, "guest"))
	}
	tmp, err := os.MkdirTemp("", "gantry-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "guest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "github.com/gantry-cri/gantry/test/images/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compiling the guest program: %w", errors.Join(err, errors.New(string(msg))))
	}
	return os.ReadFile(out)
}
