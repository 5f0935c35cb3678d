package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostDir makes a directory on the host with files in it.
func (n *node) hostDir(name string, files ...string) string {
	n.t.Helper()
	dir := filepath.Join(n.LogDir, name)
	for _, f := range append(files, ".") {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755); err != nil {
			n.t.Fatal(err)
		}
		if f == "." {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f+"\n"), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	return dir
}

// The fields of a mount, and how mounts meet each other, with each OCI runtime.
func TestMounts(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			dir := n.hostDir("vol", "f", "sub/g", "tool")
			if err := os.WriteFile(filepath.Join(dir, "tool"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			other, link, fifo, missing := n.hostDir("other", "h"), filepath.Join(n.LogDir, "link"), filepath.Join(n.LogDir, "fifo"), filepath.Join(n.LogDir, "not/there")
			if err := os.Symlink("vol", link); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(fifo, 0o666); err != nil {
				t.Fatal(err)
			}
			below := filepath.Join(dir, "mounted")
			if err := os.Mkdir(below, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("below", below, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(below, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			list := []*runtimeapi.Mount{
				{ContainerPath: "/a/b/c", HostPath: other}, // before what it lies below
				{ContainerPath: "/a", HostPath: dir},
				{ContainerPath: "/link", HostPath: link, Readonly: true},
				{ContainerPath: "/fifo", HostPath: fifo},
				{ContainerPath: "/made", HostPath: missing},
				{ContainerPath: "/etc/passwd", HostPath: filepath.Join(dir, "f"), Readonly: true},
				{ContainerPath: "/etc/hosts", HostPath: filepath.Join(other, "h")},
				{ContainerPath: "/ro", HostPath: dir, Readonly: true},
				{ContainerPath: "/rro", HostPath: dir, Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/options", HostPath: dir, MountOptions: []string{"noexec", "nosuid", "nodev"}},
				{ContainerPath: "/twice", HostPath: dir},
				{ContainerPath: "/twice/.", HostPath: other},
			}
			if err := os.MkdirAll(filepath.Join(dir, "b/c"), 0o755); err != nil {
				t.Fatal(err)
			}
			c := n.runPod("pod").run("c", forever, mounts(list...))
			for script, want := range map[string]string{
				"cat /a/f /a/b/c/h /link/sub/g":                       "f\nh\nsub/g\n",
				"touch /link/x 2>&1; true":                            "touch: /link/x: Read-only file system\n",
				"test -p /fifo && echo fifo":                          "fifo\n",
				"touch /made/x && ls /made":                           "x\n",
				"cat /etc/passwd /etc/hosts":                          "f\nh\n",
				"touch /ro/x 2>&1; touch /ro/mounted/x && echo below": "touch: /ro/x: Read-only file system\nbelow\n",
				"touch /rro/x 2>&1; touch /rro/mounted/y 2>&1; true":  "touch: /rro/x: Read-only file system\ntouch: /rro/mounted/y: Read-only file system\n",
				"/a/tool; /options/tool 2>&1; true":                   "ran\nsh: /options/tool: Permission denied\n",
				"grep ' /options ' /proc/mounts | cut -d ' ' -f 4 | tr , '\\n' | grep -x -e nodev -e noexec -e nosuid | sort | tr '\\n' ' '": "nodev noexec nosuid ",
				"ls /twice": "h\n",
			} {
				resp, err := c.execSync(30, "sh", "-c", script)
				if got := string(resp.GetStdout()); err != nil || got != want {
					t.Errorf("%s: %q, want %q (%s, %v)", script, got, want, resp.GetStderr(), err)
				}
			}
			for i, m := range c.status().GetMounts() {
				if fmt.Sprint(m) != fmt.Sprint(list[i]) {
					t.Errorf("the status shows %v for %v", m, list[i])
				}
			}
		})
	}
}

// What cannot be mounted as asked is refused, and nothing is left of the container.
func TestMountsRefused(t *testing.T) {
	n := newNode(t)
	dir := n.hostDir("vol", "f")
	private := n.shared(t)
	if err := unix.Mount("", private, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	p := n.runPod("pod")
	many := make([]*runtimeapi.Mount, 4097)
	for i := range many {
		many[i] = &runtimeapi.Mount{ContainerPath: fmt.Sprintf("/m%d", i), HostPath: dir}
	}
	for name, row := range map[string]struct {
		list  []*runtimeapi.Mount
		code  codes.Code
		names string
	}{
		"4097":               {many, codes.InvalidArgument, "4097"},
		"no source":          {mountList(&runtimeapi.Mount{ContainerPath: "/m"}), codes.InvalidArgument, "host_path"},
		"relative":           {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: "etc"}), codes.InvalidArgument, "host_path"},
		"below a file":       {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir + "/f/x"}), codes.Unknown, "host_path"},
		"the root":           {mountList(&runtimeapi.Mount{ContainerPath: "/", HostPath: dir}), codes.InvalidArgument, "container_path"},
		"dots":               {mountList(&runtimeapi.Mount{ContainerPath: "/m/../..", HostPath: dir}), codes.InvalidArgument, "container_path"},
		"relative target":    {mountList(&runtimeapi.Mount{ContainerPath: "m", HostPath: dir}), codes.InvalidArgument, "container_path"},
		"/proc":              {mountList(&runtimeapi.Mount{ContainerPath: "/proc", HostPath: dir}), codes.InvalidArgument, "/proc"},
		"/proc/self/attr":    {mountList(&runtimeapi.Mount{ContainerPath: "/proc/self/attr", HostPath: dir}), codes.InvalidArgument, "/proc/self/attr"},
		"/dev/null":          {mountList(&runtimeapi.Mount{ContainerPath: "/dev/null", HostPath: dir + "/f"}), codes.InvalidArgument, "/dev/null"},
		"option":             {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, MountOptions: []string{"suid"}}), codes.InvalidArgument, "mount_options"},
		"rro and writable":   {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, RecursiveReadOnly: true}), codes.InvalidArgument, "recursive_read_only"},
		"rro and slave":      {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Readonly: true, RecursiveReadOnly: true, Propagation: 1}), codes.InvalidArgument, "recursive_read_only"},
		"slave of private":   {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: private, Propagation: 1}), codes.FailedPrecondition, "propagation"},
		"shared of private":  {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: private, Propagation: 2}), codes.FailedPrecondition, "propagation"},
		"unknown":            {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Propagation: 9}), codes.InvalidArgument, "propagation"},
		"sub path, no image": {mountList(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, ImageSubPath: "x"}), codes.InvalidArgument, "image_sub_path"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.tryCreate(p.containerConfig("c", forever, mounts(row.list...)))
			wantError(t, err, row.code, row.names)
		})
	}
}

func mountList(m ...*runtimeapi.Mount) []*runtimeapi.Mount { return m }

// TestSecurityMounts is the cases of the catalogue about mounts that a real container shows.
func TestSecurityMounts(t *testing.T) {
	n := newNode(t)
	for id, test := range map[string]func(p *pod){
		"2.6-host-path-swapped": hostPathSwapped,
		"CVE-2021-43816":        hostFilesUntouched,
	} {
		t.Run(id, func(t *testing.T) {
			test((&node{Instance: n.Instance, t: t}).runPod(strings.ToLower(strings.ReplaceAll(id, ".", "-"))))
		})
	}
}

// hostPathSwapped: a link is followed when the container is made, and what it led to then is mounted. Who swaps it
// afterwards has no say; a directory on the way was his to swap before as well.
func hostPathSwapped(p *pod) {
	good, evil, link := p.hostDir("good", "good"), p.hostDir("evil", "evil"), filepath.Join(p.LogDir, "swapped")
	if err := os.Symlink(good, link); err != nil {
		p.t.Fatal(err)
	}
	c := p.create("c", forever, mounts(&runtimeapi.Mount{ContainerPath: "/vol", HostPath: link}))
	if err := os.Symlink(evil, link+"2"); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(link+"2", link); err != nil {
		p.t.Fatal(err)
	}
	c.start()
	if got := c.exec("ls", "/vol"); got != "good\n" {
		p.t.Errorf("mounted %q", got)
	}
}

// hostFilesUntouched: files of the host at the places of generated ones stay as they are, in mode and owner too.
func hostFilesUntouched(p *pod) {
	dir := p.hostDir("files", "hosts", "resolv.conf", "hostname")
	if err := os.Chmod(filepath.Join(dir, "hosts"), 0o640); err != nil {
		p.t.Fatal(err)
	}
	u := p.node.runPod("mapped", userns(100_000, 100_000))
	for _, pod := range []*pod{p, u} {
		var list []*runtimeapi.Mount
		for _, f := range []string{"hosts", "resolv.conf", "hostname"} {
			list = append(list, &runtimeapi.Mount{ContainerPath: "/etc/" + f, HostPath: filepath.Join(dir, f)})
		}
		pod.run("c", forever, mounts(list...))
	}
	for f, want := range map[string]os.FileMode{"hosts": 0o640, "resolv.conf": 0o755, "hostname": 0o755} {
		info, err := os.Stat(filepath.Join(dir, f))
		if err != nil || info.Mode().Perm() != want {
			p.t.Errorf("%s has the mode %v, %v", f, info.Mode(), err)
		}
	}
}
