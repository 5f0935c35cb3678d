package cdi

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// write puts a spec into a directory that only its owner can write to.
func write(t *testing.T, path, text string) {
	t.Helper()
	for _, err := range []error{
		os.MkdirAll(filepath.Dir(path), 0o755), os.Chmod(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644), os.Chmod(path, 0o644),
	} {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

const full = `
cdiVersion: "0.7.0"
kind: vendor.example/gpu
annotations: {note: ignored}
containerEdits:
  env: ["COMMON=1"]
  hooks: [{hookName: createContainer, path: /usr/bin/ldconfig, args: [ldconfig, -X]}]
devices:
- name: "0"
  annotations: {x: y}
  containerEdits:
    env: ["GPU=0"]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/zero, permissions: rw, fileMode: 0600, uid: 5}]
    mounts: [{hostPath: /etc, containerPath: /opt/driver, options: [ro, nosuid]}, {hostPath: tmpfs, containerPath: /cache, type: tmpfs, options: [size=1m]}]
    additionalGids: [0, 44]
- name: "1"
  containerEdits:
    deviceNodes: [{path: /dev/fifo, type: p}, {path: /dev/blk, type: b, major: 7, minor: 3}]
    hooks: [{hookName: poststop, path: /bin/true, env: ["A=b"], timeout: 3}]
`

func ptr[T any](v T) *T { return &v }

func TestEdits(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/gpu.yaml", full)
	got, err := Open([]string{dir + "/none", dir}).Edits([]string{"vendor.example/gpu=1", "vendor.example/gpu=0", "vendor.example/gpu=1"})
	if err != nil {
		t.Fatal(err)
	}
	want := Edits{
		Env: []string{"COMMON=1", "GPU=0"},
		Devices: []specs.LinuxDevice{
			{Path: "/dev/fifo", Type: "p"}, {Path: "/dev/blk", Type: "b", Major: 7, Minor: 3},
			{Path: "/dev/gpu0", Type: "c", Major: 1, Minor: 5, FileMode: ptr(fs.FileMode(0o600)), UID: ptr(uint32(5))},
		},
		Sources: map[string]string{"/dev/blk": "/dev/blk", "/dev/fifo": "/dev/fifo", "/dev/gpu0": "/dev/zero"},
		Rules: []specs.LinuxDeviceCgroup{
			{Allow: true, Type: "b", Major: ptr(int64(7)), Minor: ptr(int64(3)), Access: "rwm"},
			{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(5)), Access: "rw"},
		},
		Mounts: []specs.Mount{
			{Destination: "/opt/driver", Type: "bind", Source: "/etc", Options: []string{"rbind", "ro", "nosuid"}},
			{Destination: "/cache", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}},
		},
		Hooks: &specs.Hooks{
			CreateContainer: []specs.Hook{{Path: "/usr/bin/ldconfig", Args: []string{"ldconfig", "-X"}, Env: hookEnv}},
			Poststop:        []specs.Hook{{Path: "/bin/true", Env: []string{"A=b"}, Timeout: ptr(3)}},
		},
		GIDs: []uint32{44},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestChangesAreSeen: what is written, changed and removed counts at once.
func TestChangesAreSeen(t *testing.T) {
	low, high := t.TempDir()+"/low", t.TempDir()+"/high"
	c := Open([]string{low, high})
	env := func() string {
		e, err := c.Edits([]string{"v.x/c=d"})
		if err != nil {
			return err.Error()
		}
		return strings.Join(e.Env, " ")
	}
	spec := func(value string) string {
		return `{"cdiVersion":"0.6.0","kind":"v.x/c","devices":[{"name":"d","containerEdits":{"env":["V=` + value + `"]}}]}`
	}
	if got := env(); !strings.Contains(got, `"v.x/c=d": no such device in `+low) {
		t.Error(got)
	}
	write(t, low+"/a.json", spec("1"))
	if got := env(); got != "V=1" {
		t.Error(got)
	}
	write(t, high+"/b.json", spec("2"))
	if got := env(); got != "V=2" {
		t.Errorf("the later directory does not go before: %s", got)
	}
	write(t, high+"/b.json", spec("33"))
	if got := env(); got != "V=33" {
		t.Error(got)
	}
	write(t, high+"/c.json", spec("4"))
	if got := env(); !strings.Contains(got, "both "+high+"/b.json and "+high+"/c.json") {
		t.Error(got)
	}
	if err := errors.Join(os.Remove(high+"/b.json"), os.Remove(high+"/c.json")); err != nil {
		t.Fatal(err)
	}
	if got := env(); got != "V=1" {
		t.Error(got)
	}
}

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	edits := func(e string) string {
		return `{"cdiVersion":"1.1.0","kind":"v.x/c","devices":[{"name":"d","containerEdits":{` + e + `}}]}`
	}
	for _, tt := range []struct {
		edits string
		is    func(error) bool
		text  string
	}{
		{`"deviceNodes":[{"path":"/dev/no-such"}]`, errdefs.IsFailedPrecondition, "/dev/no-such"},
		{`"deviceNodes":[{"path":"/dev/x","hostPath":"/etc"}]`, errdefs.IsFailedPrecondition, "/etc is no device"},
		{`"deviceNodes":[{"path":"/dev/zero","type":"b"}]`, errdefs.IsFailedPrecondition, "/dev/zero is no device"},
		{`"mounts":[{"hostPath":"/no/such","containerPath":"/x"}]`, errdefs.IsFailedPrecondition, "/no/such"},
		{`"netDevices":[{"hostInterfaceName":"eth9","name":"x"}]`, errdefs.IsNotImplemented, "eth9"},
		{`"intelRdt":{"closID":"x"}`, errdefs.IsNotImplemented, "intelRdt"},
	} {
		write(t, dir+"/a.json", edits(tt.edits))
		_, err := Open([]string{dir}).Edits([]string{"v.x/c=d"})
		if !tt.is(err) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), `"v.x/c=d"`) {
			t.Errorf("%s: %v", tt.edits, err)
		}
	}
}

func TestSecurity(t *testing.T) {
	const good = `{"cdiVersion":"0.6.0","kind":"good.x/c","devices":[{"name":"d","containerEdits":{"env":["A=1"]}}]}`
	const bad = `{"cdiVersion":"0.6.0","kind":"bad.x/c","devices":[{"name":"d","containerEdits":{"env":["A=1"]}}]}`
	t.Run("2.6-cdi-names", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir+"/a.json", good)
		c := Open([]string{dir})
		for _, name := range []string{
			"", "good.x", "good.x/c", "good.x/c=", "=d", "/c=d", "good.x/=d", "vendor.com/../x", "../c=d", "good.x/../c=d", "good.x/c=../d", "good.x/c/e=d",
			"good.x/c=d=e", "good.x/c=d,good.x/c=e", " good.x/c=d", "good.x/c=d\n", "good.x/c=d\x00", "good.x/c=-d", "-v/c=d", "good.x./c=d",
			"good.x/c=" + strings.Repeat("d", 129), strings.Repeat("v", 1<<20) + "/c=d",
		} {
			if _, err := c.Edits([]string{name}); !errdefs.IsInvalidArgument(err) || len(err.Error()) > 2000 {
				t.Errorf("%.100q: %.300v", name, err)
			}
		}
		if _, err := c.Edits(make([]string, maxNames+1)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("very many: %v", err)
		}
	})
	t.Run("2.6-cdi-broken-spec", func(t *testing.T) {
		for name, text := range map[string]string{
			"no spec": "nonsense", "empty": "", "a list": "[]", "unknown key": strings.Replace(bad, `"env"`, `"enw"`, 1),
			"newer": strings.Replace(bad, "0.6.0", "1.2.0", 1), "no version": strings.Replace(bad, "0.6.0", "", 1),
			"two": bad + "\n---\n" + bad, "kind": strings.Replace(bad, "bad.x/c", "bad.x/../c", 1),
			"relative hook": strings.Replace(bad, `"env":["A=1"]`, `"hooks":[{"hookName":"prestart","path":"sh"}]`, 1),
			"hook name":     strings.Replace(bad, `"env":["A=1"]`, `"hooks":[{"hookName":"x","path":"/bin/sh"}]`, 1),
			"null":          strings.Replace(bad, `"env":["A=1"]`, `"mounts":[null]`, 1),
			"dots":          strings.Replace(bad, `"env":["A=1"]`, `"mounts":[{"hostPath":"/a/../b","containerPath":"/x"}]`, 1),
			"device":        strings.Replace(bad, `"env":["A=1"]`, `"deviceNodes":[{"path":"/dev/x","type":"c","major":-1}]`, 1),
			"permissions":   strings.Replace(bad, `"env":["A=1"]`, `"deviceNodes":[{"path":"/dev/x","permissions":"rx"}]`, 1),
			"twice":         `{"cdiVersion":"0.6.0","kind":"bad.x/c","devices":[{"name":"d"},{"name":"d"}]}`,
			"large":         bad + strings.Repeat(" ", maxSpec),
			"aliases":       "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c]",
		} {
			dir := t.TempDir()
			write(t, dir+"/bad.json", text)
			write(t, dir+"/good.json", good)
			c := Open([]string{dir})
			if _, err := c.Edits([]string{"good.x/c=d"}); err != nil {
				t.Errorf("%s: another's device cannot be had: %v", name, err)
			}
			if _, err := c.Edits([]string{"bad.x/c=d"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), dir+"/bad.json") {
				t.Errorf("%s: %.300v", name, err)
			}
		}
	})
	t.Run("2.6-cdi-foreign-spec", func(t *testing.T) {
		outside := t.TempDir() + "/outside.json"
		write(t, outside, bad)
		for name, put := range map[string]func(path string) error{
			"link":      func(path string) error { return os.Symlink(outside, path) },
			"fifo":      func(path string) error { return unix.Mkfifo(path, 0o644) },
			"directory": func(path string) error { return os.Mkdir(path, 0o755) },
			"of another": func(path string) error {
				return errors.Join(os.WriteFile(path, []byte(bad), 0o644), os.Chown(path, 1000, 0))
			},
			"group's": func(path string) error {
				return errors.Join(os.WriteFile(path, []byte(bad), 0o644), os.Chmod(path, 0o664))
			},
			"everybody's": func(path string) error {
				return errors.Join(os.WriteFile(path, []byte(bad), 0o644), os.Chmod(path, 0o646))
			},
			"all's folder": func(path string) error {
				return errors.Join(os.WriteFile(path, []byte(bad), 0o644), os.Chmod(filepath.Dir(path), 0o777))
			},
			"other's folder": func(path string) error {
				return errors.Join(os.WriteFile(path, []byte(bad), 0o644), os.Chown(filepath.Dir(path), 1000, 0))
			},
		} {
			if os.Geteuid() != 0 && strings.Contains(name, "other") {
				t.Logf("%s: needs root to give a file away", name)
				continue
			}
			dir, goodDir := t.TempDir()+"/cdi", t.TempDir()
			write(t, goodDir+"/good.json", good)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := put(dir + "/bad.json"); err != nil {
				t.Fatal(err)
			}
			c := Open([]string{goodDir, dir})
			if _, err := c.Edits([]string{"bad.x/c=d"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := c.Edits([]string{"good.x/c=d"}); err != nil {
				t.Errorf("%s: another's device cannot be had: %v", name, err)
			}
		}
	})
	t.Run("CVE-2025-23266", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir+"/a.yaml", full)
		e, err := Open([]string{dir}).Edits([]string{"vendor.example/gpu=0"})
		if err != nil || len(e.Hooks.CreateContainer) != 1 || len(e.Hooks.CreateContainer[0].Env) == 0 {
			t.Errorf("a hook that names no environment has none: %+v, %v", e.Hooks, err)
		}
	})
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"cdiVersion":"1.0.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"deviceNodes":[null]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := parseSpec(data)
		if err != nil {
			return
		}
		for _, d := range spec.Devices {
			var out Edits
			if err := out.add(d.ContainerEdits); err != nil {
				continue
			}
			for _, m := range out.Mounts {
				if !clean(m.Destination) {
					t.Errorf("mount at %q", m.Destination)
				}
			}
		}
	})
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"v.x/c=d", "v/../c=d", "=", "a/b=c:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if kind, name, err := parseName(s); err == nil && (strings.Contains(s, "..") && strings.Contains(s, "/..") || kind+"="+name != s) {
			t.Errorf("%q is %q and %q", s, kind, name)
		}
	})
}
