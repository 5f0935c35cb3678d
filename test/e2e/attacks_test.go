package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// linkImage pushes an image in which the paths are links, and pulls it.
func (n *node) linkImage(name string, links map[string]string) string {
	n.t.Helper()
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	for from, to := range links {
		if err := tw.WriteHeader(&tar.Header{Name: from, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		n.t.Fatal(err)
	}
	layer, err := images.TarLayer(raw.Bytes(), images.Gzip)
	if err != nil {
		n.t.Fatal(err)
	}
	img, err := images.OCI(layer)
	if err != nil {
		n.t.Fatal(err)
	}
	ref := "gantry/" + name + ":1"
	if err := harness.Registry(n.t).Push(n.context(), ref, img); err != nil {
		n.t.Fatal(err)
	}
	return n.pull(images.Hosts[0] + "/" + ref)
}

// runtimePath is the binary of the OCI runtime.
func (n *node) runtimePath() string {
	n.t.Helper()
	resp, err := n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	var info struct{ Handlers []struct{ Path string } }
	if err := json.Unmarshal([]byte(resp.GetInfo()["config"]), &info); err != nil || len(info.Handlers) == 0 {
		n.t.Fatalf("no handlers in %v: %v", resp.GetInfo(), err)
	}
	return info.Handlers[0].Path
}

// TestAttacks tries what pods have done to other runtimes' hosts; the names are those of docs/security.md.
func TestAttacks(t *testing.T) {
	n := newNode(t)
	subtests(t, n, map[string]func(*node){
		"CVE-2020-15257": func(n *node) { // a pod on the host's network sees the host's abstract sockets
			c := n.runPod("sockets", hostNetwork).run("c", forever)
			for line := range strings.Lines(c.exec("cat", "/proc/net/unix")) {
				if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@") && strings.Contains(f[7], "gantry") {
					n.t.Errorf("abstract socket %s", f[7])
				}
			}
			err := filepath.WalkDir(filepath.Join(n.Dir, "run"), func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.Type()&fs.ModeSocket == 0 {
					return nil // what goes away meanwhile is no socket of ours
				}
				info, err := d.Info()
				dir, errDir := os.Stat(filepath.Dir(path))
				if err != nil || errDir != nil || info.Mode().Perm()&0o007 != 0 || dir.Mode().Perm() != 0o700 {
					n.t.Errorf("%s: %v in a directory of %v, %v", path, info.Mode(), dir.Mode(), err)
				}
				return nil
			})
			if err != nil {
				n.t.Error(err)
			}
		},
		"CVE-2021-41103": func(n *node) {
			n.runPod("dirs").run("c", forever)
			for _, dir := range []string{"root", "root/images", "root/pods", "root/containers", "run", "run/supervisor", "run/gantry.sock"} {
				cmd := exec.Command("ls", filepath.Join(n.Dir, dir)+"/.")
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
				if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
					n.t.Errorf("user 1000 lists %s: %s", dir, out)
				}
			}
		},
		"CVE-2024-21626": func(n *node) {
			c := n.runPod("fds").run("c", forever)
			for what, script := range map[string]string{"process 1": "ls /proc/1/fd", "exec": "exec ls /proc/self/fd"} {
				got := strings.Fields(c.exec("sh", "-c", script))
				if what == "exec" && len(got) == 4 && got[3] == "3" { // the directory that ls reads
					got = got[:3]
				}
				if strings.Join(got, " ") != "0 1 2" {
					n.t.Errorf("descriptors of %s: %v", what, got)
				}
			}
			for _, dir := range []string{"/proc/self/fd/7", "/proc/1/cwd", "/dev/fd/8", "/proc/self/fd/../fd/9"} {
				_, err := c.tryCreate(c.containerConfig("bad", "pwd", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = dir }))
				wantError(n.t, err, codes.InvalidArgument, "working_dir")
			}
		},
		"CVE-2019-10144": func(n *node) { // what is exec'd is confined as the first process is
			c := n.runPod("confined").run("c", forever, security(func(s *securityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups, s.NoNewPrivs = id(1001), id(1002), []int64{7}, true
				s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
				s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CHOWN"}}
			}), func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 901 })
			look := func(pid string) string {
				return c.exec("sh", "-c", "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/"+pid+"/status; cat /proc/"+pid+"/cgroup /proc/"+pid+"/oom_score_adj; cat /proc/"+pid+"/attr/current 2>/dev/null; grep -E 'open files|processes' /proc/"+pid+"/limits")
			}
			if first, own := look("1"), look("self"); first != own || !strings.Contains(own, "Seccomp:\t2\n") || !strings.Contains(own, "CapInh:\t0000000000000000\n") {
				n.t.Errorf("process 1:\n%s\nexec'd:\n%s", first, own)
			}
		},
		"CVE-2019-5736": func(n *node) {
			hash := func() [32]byte {
				b, err := os.ReadFile(n.runtimePath())
				if err != nil {
					n.t.Fatal(err)
				}
				return sha256.Sum256(b)
			}
			before := hash()
			p := n.runPod("exe")
			victim := p.run("victim", forever)
			// The runtime enters the container to start this; the container opens it through its own link.
			evil := p.create("c", "", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/proc/self/exe", "--version"} })
			_ = n.startErr(evil.id) // either way
			_, _ = victim.execSync(5, "/proc/self/exe", "--version")
			_, _ = victim.execSync(5, "sh", "-c", "for p in /proc/[0-9]*/exe; do echo x 2>/dev/null >$p; done")
			if hash() != before {
				n.t.Error("the OCI runtime's binary has changed")
			}
		},
		"CVE-2024-5154": func(n *node) {
			outside := filepath.Join(n.LogDir, "etc-of-the-host")
			if err := os.Mkdir(outside, 0o777); err != nil {
				n.t.Fatal(err)
			}
			p := n.runPod("etc")
			for name, links := range map[string]map[string]string{
				"etc-abs": {"etc": outside}, "etc-up": {"etc": "../../../../../../../.." + outside}, "etc-files": {"etc/mtab": outside + "/mtab", "etc/hosts": outside + "/hosts", "etc/resolv.conf": outside + "/resolv.conf"},
			} {
				image := n.linkImage(name, links)
				id, err := p.tryCreate(p.containerConfig(name, "", func(c *runtimeapi.ContainerConfig) {
					c.Image = &runtimeapi.ImageSpec{Image: image}
					c.Command, c.WorkingDir = []string{"/no"}, "/etc/made/here"
				}))
				if err == nil {
					_ = n.startErr(id) // there is no program in it
				}
				if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
					n.t.Fatalf("%s: made on the host: %v, %v", name, left, err)
				}
			}
		},
		"CVE-2026-41579": func(n *node) {
			p := n.runPod("dev")
			for _, dir := range []string{"dev", "proc", "sys"} {
				image := n.linkImage("link-"+dir, map[string]string{dir: n.LogDir})
				_, err := p.tryCreate(p.containerConfig(dir, "", func(c *runtimeapi.ContainerConfig) { c.Image = &runtimeapi.ImageSpec{Image: image} }))
				wantError(n.t, err, codes.InvalidArgument, "/"+dir)
			}
		},
		"CVE-2025-0750": func(n *node) {
			for _, bad := range []string{"../../..", "..", ".", "/", "a/b", "a\x00b", "a\nb", "-x", "--root=/", "a b", strings.Repeat("x", 300), strings.Repeat("x", 10<<10), `a\b`, "ü"} {
				for field, change := range map[string]func(*runtimeapi.PodSandboxConfig){
					"name": func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = bad }, "namespace": func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = bad },
					"uid": func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = bad },
				} {
					wantError(n.t, n.tryRunPod("names", change), codes.InvalidArgument, "metadata."+field)
				}
			}
			p := n.runPod("names")
			for _, bad := range []string{"", "..", "a/b", "a\nb", "-x", strings.Repeat("x", 10<<10)} {
				_, err := p.tryCreate(p.containerConfig("c", "true", func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = bad }))
				wantError(n.t, err, codes.InvalidArgument, "metadata.name")
			}
		},
		"CVE-2021-43784": func(n *node) {
			p := n.runPod("long")
			for _, bad := range []*runtimeapi.Mount{{HostPath: "/tmp", ContainerPath: strings.Repeat("/x", 35<<10)}, {HostPath: n.LogDir + strings.Repeat("/x", 35<<10), ContainerPath: "/x"},
				{HostPath: n.LogDir + "/part/" + strings.Repeat("x", 300), ContainerPath: "/x"}} {
				_, err := p.tryCreate(p.containerConfig("c", "true", func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{bad} }))
				wantError(n.t, err, codes.InvalidArgument, "mount")
			}
			for _, made := range []string{"x", "part"} {
				if _, err := os.Lstat(filepath.Join(n.LogDir, made)); err == nil {
					n.t.Errorf("%s was made on the host", made)
				}
			}
		},
		"CVE-2018-15664": func(n *node) { // the log's directory is exchanged for a link while the log is reopened
			p := n.runPod("race")
			c := p.run("c", "while :; do echo tick; sleep 0.01; done", func(c *runtimeapi.ContainerConfig) { c.LogPath = "c/0.log" })
			dir, outside := filepath.Join(p.config.GetLogDirectory(), "c"), filepath.Join(n.LogDir, "race-outside")
			if err := os.Mkdir(outside, 0o777); err != nil {
				n.t.Fatal(err)
			}
			link := filepath.Join(p.config.GetLogDirectory(), "link")
			if err := os.Symlink(outside, link); err != nil {
				n.t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(n.context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
				}
			}()
			for range 200 {
				_ = n.reopenErr(c.id) // half of them fail
			}
			cancel()
			<-done
			if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
				n.t.Errorf("made outside: %v, %v", left, err)
			}
		},
		"2.7-log-target": func(n *node) {
			p := n.runPod("log-target")
			logs := p.config.GetLogDirectory()
			victim := filepath.Join(n.LogDir, "victim")
			if err := os.WriteFile(victim, []byte("untouched"), 0o600); err != nil {
				n.t.Fatal(err)
			}
			for name, plant := range map[string]func(string) error{
				"link":   func(at string) error { return os.Symlink(victim, at) },
				"fifo":   func(at string) error { return unix.Mkfifo(at, 0o600) },
				"dir":    func(at string) error { return os.Mkdir(at, 0o700) },
				"device": func(at string) error { return unix.Mknod(at, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
				"hard":   func(at string) error { return os.Link(victim, at) },
			} {
				if err := plant(filepath.Join(logs, name+".log")); err != nil {
					n.t.Fatal(err)
				}
				c := p.create(name, "echo written")
				err := n.startErr(c.id)
				if err == nil {
					c.waitExit()
				}
				if err == nil {
					n.t.Errorf("a container logs to a %s", name)
				}
				if got := read(t, victim); got != "untouched" {
					n.t.Errorf("through a %s: %q", name, got)
				}
			}
		},
	})
}

// A start over directories that others can enter closes them (CVE-2024-25621), and the log tells no secrets (CVE-2019-13509).
func TestDirectoriesAreClosed(t *testing.T) {
	n := newNode(t)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	dirs := []string{"root", "run", "root/images", "run/supervisor"}
	for _, dir := range dirs {
		if err := os.Chmod(filepath.Join(n.Dir, dir), 0o755); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.runPod("pod").run("c", forever)
	for _, dir := range dirs {
		if info, err := os.Stat(filepath.Join(n.Dir, dir)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}

func TestLogTellsNoSecrets(t *testing.T) {
	n := newNode(t, "--log-level", "10")
	const secret = "s3cr3t"
	c := n.runPod("pod").run("c", "cat /proc/1/environ >&2; "+forever, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte(secret + "-env")}}
		c.Args = []string{secret + "-arg"}
	})
	c.exec("sh", "-c", "echo "+secret+"-exec")
	_, _ = c.execSync(5, "sh", "-c", "echo "+secret+"-stderr >&2; exit 1")
	for _, auth := range []*runtimeapi.AuthConfig{{Username: "u", Password: secret + "-password"}, {Auth: "dTpz" + secret + "YXV0aA=="}, {IdentityToken: secret + "-identity"}, {RegistryToken: secret + "-token"}} {
		_, _ = n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Demo}, Auth: auth})
	}
	_, err := c.tryCreate(c.containerConfig("bad", "", func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte(secret + "-bad\x00")}}
	}))
	if err == nil || strings.Contains(fmt.Sprint(err), secret) {
		t.Errorf("an environment with NUL: %v", err)
	}
	for line := range strings.Lines(n.LogTail(1 << 20)) {
		if strings.Contains(line, secret) {
			t.Errorf("the log says: %.300s", line)
		}
	}
}
