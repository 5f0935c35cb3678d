package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// scripted is a node whose chain is the test plugin and a shell script, which is told what to do in ADD and otherwise
// ends well.
func scripted(t *testing.T, add string) *node {
	n := newNode(t)
	n.install("testplugin")
	n.script("script", "case $CNI_COMMAND in ADD) "+add+"\n;; esac")
	n.write("10-x.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"scripted","plugins":[
		{"type":"testplugin","log":%q,"result":%s},{"type":"script","capabilities":{"io.kubernetes.cri.pod-annotations":true}}]}`, n.log(), external))
	n.uses("scripted")
	return n
}

func (n *node) script(name, body string) {
	n.t.Helper()
	n.program(name, "#!/bin/sh\n"+body+"\n", 0o755)
}

// program puts a file into the node's plugin directory, in place of what is there, at once: the background asks for
// versions at any moment, and a program that is being written is another.
func (n *node) program(name, content string, mode os.FileMode) {
	n.t.Helper()
	path := filepath.Join(n.cfg.BinDirs[0], name)
	if err := errors.Join(os.WriteFile(path+".new", []byte(content), mode), os.Rename(path+".new", path)); err != nil {
		n.t.Fatal(err)
	}
}

// left are the processes that plugins of the node started: they have its directory in their environment.
func (n *node) left() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		environ, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(environ), "CNI_PATH="+n.cfg.BinDirs[0]) {
			var pid int
			fmt.Sscanf(f, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func (n *node) nothingRuns() {
	n.t.Helper()
	eventually(n.t, "no plugin runs", func() bool { return len(n.left()) == 0 })
}

const mebibyte = "head -c 1048576 /dev/zero | tr '\\0' ' '"

// TestMisbehavingPlugins attaches no pod: the error names the plugin, the command and the pod and can be sent by gRPC,
// what the plugin before has made is undone, and nothing runs on.
func TestMisbehavingPlugins(t *testing.T) {
	for name, c := range map[string]struct{ add, want string }{
		"error with status 0":   {`echo '{"code":7,"msg":"no luck","details":"as told"}'`, "ended well, but printed an error: no luck; as told"},
		"try again later":       {`echo '{"code":11,"msg":"not now"}'; exit 1`, "not now"},
		"huge error":            {`printf '{"code":7,"msg":"'; ` + mebibyte + ` | tr ' ' x | head -c 1000000; printf '€€"}'; exit 1`, "xxx€€"},
		"cut between bytes":     {`printf '{"code":7,"msg":"'; printf '€%.0s' $(seq 1000); printf '"}'; exit 1`, "€"},
		"error of other bytes":  {`printf '{"code":7,"msg":"\377\376 no"}'; exit 1`, "no"},
		"huge stderr":           {mebibyte + ` | tr ' ' '\377' | tail -c 1000000 >&2; echo at last >&2; exit 3`, "exit status 3"},
		"error without message": {`echo '{"code":7}'; exit 1`, `exit status 1, stdout "{\"code\":7}"`},
		"nothing printed":       {`:`, "printed no result: unexpected end of JSON input"},
		"an array":              {`echo '[]'`, "printed no result: json: cannot unmarshal array"},
		"huge number":           {`printf '{"code":'; ` + mebibyte + ` | tr ' ' 9 | head -c 100000; printf '}'`, "printed no result"},
		"many addresses":        {`printf '{"cniVersion":"1.0.0","ips":['; for i in $(seq 70); do printf '{"address":"10.9.8.%d/24"},' $i; done; echo '{"address":"10.9.9.1/24"}]}'`, "more addresses of eth0 than 64"},
		"no addresses":          {`echo '{"cniVersion":"1.0.0"}'`, "no address of eth0"},
		"no object":             {`echo null`, "no address of eth0"},
		"bad address":           {`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.8.300/24"}]}'`, "its result cannot be read: invalid CIDR address"},
		"unspecified address":   {`echo '{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}'`, "which is no pod's"},
		"no address in address": {`echo '{"cniVersion":"1.0.0","ips":[{}]}'`, "which is no pod's"},
		"interface not listed":  {`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.8.7/24","interface":3}],"interfaces":[{"name":"eth0","sandbox":"/x"}]}'`, "interface 3, which it does not list"},
		"negative interface":    {`echo '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.9.8.7/24","interface":-7}]}'`, "interface -7, which it does not list"},
		"null address, 0.3.1":   {`echo '{"cniVersion":"0.3.1","ips":[null]}'`, "has null as an address"},
		"null interface, 0.4.0": {`echo '{"cniVersion":"0.4.0","interfaces":[null]}'`, "has null as an address"},
		"null route, 0.4.0":     {`echo '{"cniVersion":"0.4.0","routes":[null]}'`, "has null as an address"},
		"unknown version":       {`echo '{"cniVersion":"9.9.9","ips":[{"address":"10.9.8.7/24"}]}'`, `cannot be read: unsupported CNI result version "9.9.9"`},
		"huge version":          {`printf '{"cniVersion":"'; ` + mebibyte + ` | tr ' ' 1 | head -c 1000000; printf '"}'`, "its result cannot be read"},
		"1 MiB and a byte":      {`printf '{"cniVersion":"1.0.0","ips":[{"address":"10.9.8.7/24"}]}'; ` + mebibyte + ` | tail -c +56`, "more than 1048576 bytes to stdout"},
		"endless stderr":        {`exec yes >&2`, "more than 1048576 bytes to stderr"},
		"killed":                {`kill -KILL $$`, "signal: killed"},
		"crashed":               {`ulimit -c 0; kill -SEGV $$`, "signal: segmentation fault"},
	} {
		t.Run(name, func(t *testing.T) {
			n := scripted(t, c.add)
			pod := n.pod()
			_, err := n.Attach(n.ctx, pod)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
			if err != nil && (len(err.Error()) > 3*maxShown || !utf8.ValidString(err.Error())) {
				t.Errorf("error of %d bytes, valid UTF-8: %v", len(err.Error()), utf8.ValidString(err.Error()))
			}
			resultOnly := strings.Contains(fmt.Sprint(err), "the plugins' result") // of the chain, not of one plugin
			if err != nil && !resultOnly && !strings.Contains(err.Error(), "CNI plugin script ADD") || !strings.Contains(fmt.Sprint(err), pod.ID) {
				t.Errorf("%v does not name the plugin, the command and the pod", err)
			}
			if errors.Is(err, errdefs.ErrUnavailable) != (name == "try again later") {
				t.Errorf("%v is unavailable: %v", err, errors.Is(err, errdefs.ErrUnavailable))
			}
			if got := fmt.Sprint(n.commands()); got != "[ADD DEL]" {
				t.Errorf("calls %s", got)
			}
			n.nothingRuns()
		})
	}
}

// TestOddPlugins attaches with plugins that do what is allowed in ways that are rare.
func TestOddPlugins(t *testing.T) {
	if !apart(t) {
		return
	}
	const result = `{"ips":[{"address":"10.9.8.7/24"}]}`
	for name, add := range map[string]string{
		"result of no version":   "echo '" + result + "'",
		"reads nothing":          "sleep 0.1; echo '" + result + "'",
		"closes stdin":           "exec <&-; sleep 0.1; echo '" + result + "'",
		"closes stdout":          "echo '" + result + "'; exec >&- 2>&-; sleep 0.1",
		"1 MiB":                  "printf '" + result + "'; " + mebibyte + " | tail -c +36",
		"1 MiB of stderr":        mebibyte + " >&2; echo '" + result + "'",
		"leaves a process":       "sleep 1000 & echo '" + result + "'",
		"leaves a quiet process": "sleep 1000 >/dev/null 2>&1 & echo '" + result + "'",
		"more interfaces": `echo '{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"/x"},{"name":"eth0","sandbox":"/x"},{"name":"eth0"}],
			"ips":[{"address":"10.1.1.1/24","interface":0},{"address":"10.9.8.7/24","interface":1},{"address":"10.2.2.2/24","interface":2}]}'`,
	} {
		t.Run(name, func(t *testing.T) {
			n := scripted(t, add)
			pod := n.pod()
			pod.Annotations = map[string]string{"long": strings.Repeat("x", 200<<10)} // more than a pipe holds
			result, err := n.Attach(n.ctx, pod)
			if err != nil {
				t.Fatal(err)
			}
			if want := netip.MustParseAddr("10.9.8.7"); !slices.Equal(result.IPs, []netip.Addr{want}) {
				t.Errorf("addresses %v, want %v", result.IPs, want)
			}
			for _, pid := range n.left() { // it was meant to stay, but not for the next test
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			n.detach(pod)
			n.nothingRuns()
		})
	}
}

// TestPluginFiles has no pod attached, with a reason that names the file, where the program is none. Attach looks before
// the chain runs; what only the kernel can tell leaves the pod attached until the program is repaired.
func TestPluginFiles(t *testing.T) {
	for name, c := range map[string]struct {
		put  func(n *node)
		want string // "" = attaches
	}{
		"not executable":   {func(n *node) { n.program("script", "#!/bin/sh\n", 0o644) }, "script is no executable file: -rw-r--r--"},
		"directory":        {func(n *node) { n.remove("script"); n.mkdir("script") }, "script is no executable file: drwxr-xr-x"},
		"link to nothing":  {func(n *node) { n.remove("script"); n.link("nothing", "script") }, "CNI plugin script is not in"},
		"link to a script": {func(n *node) { n.script("other", "echo '"+external+"'"); n.remove("script"); n.link("other", "script") }, ""},
		"link to itself":   {func(n *node) { n.remove("script"); n.link("script", "script") }, "CNI plugin script is not in"},
	} {
		t.Run(name, func(t *testing.T) {
			n := scripted(t, "echo '"+external+"'")
			c.put(n)
			pod := n.pod()
			_, err := n.Attach(n.ctx, pod)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				n.detach(pod)
				return
			}
			if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want not found with %q", err, c.want)
			}
			if got := n.commands(); len(got) > 0 {
				t.Errorf("calls %v, want none", got)
			}
		})
	}
	t.Run("no interpreter", func(t *testing.T) {
		n := scripted(t, "echo '"+external+"'")
		n.program("script", "echo hello\n", 0o755)
		pod := n.pod()
		if _, err := n.Attach(n.ctx, pod); err == nil || !strings.Contains(err.Error(), n.cfg.BinDirs[0]+"/script: exec format error") { // of VERSION
			t.Errorf("%v, want the kernel's reason", err)
		}
		if got := n.commands(); len(got) > 0 {
			t.Errorf("calls %v, want none", got)
		}
		n.script("script", "[ $CNI_COMMAND = VERSION ] || echo '"+external+"'")
		n.attach(pod)
	})
	t.Run("other versions", func(t *testing.T) {
		n := scripted(t, "")
		versions := func(v string) string {
			return `case $CNI_COMMAND in VERSION) echo asked >>` + n.log() + `.versions; echo '{"cniVersion":"1.0.0","supportedVersions":` + v + `}';; *) echo '` + external + `';; esac`
		}
		n.script("script", versions(`["0.3.1","0.4.0"]`))
		pod := n.pod()
		asked := func() string {
			lines, err := os.ReadFile(n.log() + ".versions")
			if err != nil {
				t.Fatal(err)
			}
			return string(lines)
		}
		for range 2 {
			if _, err := n.Attach(n.ctx, pod); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "script knows the versions 0.3.1, 0.4.0 of CNI, not 1.0.0") {
				t.Errorf("%v, want failed precondition that names the versions", err)
			}
		}
		if got := n.commands(); len(got) > 0 {
			t.Errorf("calls %v, want none", got)
		}
		n.script("script", versions(`["1.0.0"]`))
		refused := asked()
		n.attach(pod)
		if asked() == refused {
			t.Error("the other program was not asked")
		}
		// Whoever looked in the moment of the replacement may have asked once more.
		eventually(t, "a program that has answered is not asked again", func() bool {
			before, pod := asked(), n.pod()
			n.attach(pod)
			n.detach(pod)
			return asked() == before
		})
	})
	t.Run("being installed", func(t *testing.T) {
		n := scripted(t, "")
		path := filepath.Join(n.cfg.BinDirs[0], "testplugin")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n.remove("testplugin")
		n.script("script", "echo '"+external+"'")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(200*time.Millisecond, func() { f.Close() })
		n.attach(n.pod())
	})
}

func (n *node) remove(name string) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.cfg.BinDirs[0], name)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) mkdir(name string) {
	n.t.Helper()
	if err := os.Mkdir(filepath.Join(n.cfg.BinDirs[0], name), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) link(target, name string) {
	n.t.Helper()
	if err := os.Symlink(target, filepath.Join(n.cfg.BinDirs[0], name)); err != nil {
		n.t.Fatal(err)
	}
}

// TestPluginInAnotherSession holds nobody: what a plugin moved out of its process group survives its end at the
// deadline, for it may be a service that is meant to, but the pod is undone and its caller has the answer.
func TestPluginInAnotherSession(t *testing.T) {
	if !apart(t) {
		return
	}
	n := scripted(t, "setsid sleep 1000 & sleep 1000")
	ctx := overdue(t, n.ctx, "it is in its session", func() bool {
		return slices.ContainsFunc(n.left(), func(pid int) bool {
			program, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			session, err := unix.Getsid(pid)
			return err == nil && session == pid && string(program) == "sleep\n"
		})
	})
	if _, err := n.Attach(ctx, n.pod()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "CNI plugin script ADD was killed") {
		t.Errorf("%v, want that it was killed at the deadline", err)
	}
	if got := fmt.Sprint(n.commands()); got != "[ADD DEL]" {
		t.Errorf("calls %s", got)
	}
	left := n.left()
	if len(left) != 1 {
		t.Errorf("processes %v, want the one in a session of its own", left)
	}
	for _, pid := range left {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	n.nothingRuns()
}

// TestHangingPluginHoldsOnlyItsPod attaches and detaches others of the same network meanwhile.
func TestHangingPluginHoldsOnlyItsPod(t *testing.T) {
	n := scripted(t, `case $CNI_ARGS in *K8S_POD_NAME=pod1\;*) sleep 1000;; esac; echo '`+external+`'`)
	ctx, cancel := context.WithCancel(n.ctx)
	first, ended := n.pod(), make(chan error, 1)
	go func() {
		_, err := n.Attach(ctx, first)
		ended <- err
	}()
	eventually(t, "the first plugin has run", func() bool { return len(n.commands()) == 1 })
	other := n.pod()
	if _, err := n.Attach(n.ctx, other); err != nil {
		t.Error(err)
	}
	n.detach(other)
	select {
	case err := <-ended:
		t.Errorf("the pod whose plugin hangs: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	n.nothingRuns()
}

// TestOddDel believes the exit status of DEL, unless the plugin says that it failed.
func TestOddDel(t *testing.T) {
	n := scripted(t, "echo '"+external+"'")
	pod := n.pod()
	if _, err := n.Attach(n.ctx, pod); err != nil {
		t.Fatal(err)
	}
	n.script("script", `echo '{"code":11,"msg":"the switch is away"}'`)
	if err := n.Detach(n.ctx, pod); err == nil || !strings.Contains(err.Error(), "CNI plugin script DEL ended well, but printed an error: the switch is away") {
		t.Errorf("%v, want the plugin's error", err)
	}
	n.script("script", `echo '}{ not json'`)
	n.detach(pod)
	n.detach(pod)
}
