package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// write makes files below dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := fs.FileMode(0o600)
		if strings.HasPrefix(name, "bin/") {
			mode = 0o700
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
}

var compare = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

func TestLoadMerges(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"bin/runsc": "#!", "bin/gantry-supervisor": "#!",
		"c[1].toml": `
run = "/run/a"
[cni]
bin_dirs = ["/one", "/two"]
[runtimes.gvisor]
path = "runsc"
options = ["--debug"]
`,
		"c[1].toml.d/20.toml":      "log_level = 4\nregistry_config_dirs = []\n",
		"c[1].toml.d/10.toml":      "log_level = 3\nshm_size = \"128MiB\"\n[cni]\nbin_dirs = [\"/three\"]\n[images]\npinned = [\"a*\"]\n[runtimes.gvisor]\nannotations = [\"dev.gvisor/*\"]\n",
		"c[1].toml.d/.30.toml":     "log_level = 9\n",
		"c[1].toml.d/readme.md":    "no TOML",
		"c[1].toml.d/30.toml.save": "log_level = 9\n",
	})
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	got, err := Load(filepath.Join(dir, "c[1].toml"), func(c *Config) { c.Root = "/flag" })
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Root, want.Run, want.Socket = "/flag", "/run/a", "/run/a/gantry.sock"
	want.Supervisor = filepath.Join(dir, "bin/gantry-supervisor")
	want.LogLevel, want.ShmSize, want.RegistryConfigDirs = 4, 128<<20, nil
	want.CNI.BinDirs, want.Images.Pinned = []string{"/three"}, []string{"a*"}
	want.Images.PreloadDir = "/flag/preload"
	want.Runtimes = map[string]Runtime{"gvisor": {
		Path: filepath.Join(dir, "bin/runsc"), Root: "/run/a/runtimes/gvisor", Options: []string{"--debug"}, Annotations: []string{"dev.gvisor/*"},
	}}
	want.DefaultRuntime = "gvisor"
	want.Network.Table = "gantry"
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
}

func TestRuntimesAreFound(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		bins []string
		want string
	}{{nil, ""}, {[]string{"crun"}, "crun"}, {[]string{"crun", "runc"}, "runc"}} {
		for _, b := range tt.bins {
			write(t, dir, map[string]string{"bin/" + b: "#!"})
		}
		c := Default()
		c.settle([]string{".", filepath.Join(dir, "bin")})
		if c.DefaultRuntime != tt.want || len(c.Runtimes) != len(tt.bins) {
			t.Errorf("with %v: %v, default %q", tt.bins, c.Runtimes, c.DefaultRuntime)
		}
		if len(tt.bins) == 0 {
			if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "neither runc nor crun is installed") {
				t.Errorf("without any runtime: %v", err)
			}
		}
	}
}

// The node starts without a runtime that is not the default one.
func TestMissingRuntimes(t *testing.T) {
	c := valid(t)
	c.Runtimes["kata"], c.Runtimes["bare"] = Runtime{Path: "/no/such"}, Runtime{Path: "bare"}
	if err := c.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
	missing := c.Missing()
	for name, want := range map[string]string{"kata": `runtimes.kata.path = "/no/such": there is no such file`, "bare": "not in PATH"} {
		if err := missing[name]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	if len(missing) != 2 {
		t.Errorf("missing: %v", missing)
	}
}

func TestTableFollowsBridge(t *testing.T) {
	for bridge, want := range map[string]string{"gantry0": "gantry", "br-1.2": "gantry_br_1_2"} {
		c := Default()
		c.Network.Bridge = bridge
		c.settle(nil)
		if c.Network.Table != want {
			t.Errorf("bridge %s: table %q, want %q", bridge, c.Network.Table, want)
		}
	}
}

func TestMissingFiles(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "no.toml"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a named file that is missing: %v", err)
	}
	if _, err := os.Stat(DefaultFile); errors.Is(err, fs.ErrNotExist) {
		if _, err := Load("", nil); err != nil {
			t.Errorf("no file: %v", err)
		}
	}
	if _, err := Load(t.TempDir(), nil); err == nil {
		t.Error("a directory is read")
	}
}

func TestBadFiles(t *testing.T) {
	for text, want := range map[string][]string{
		"root = \"/x\"\n\nsokcet = \"/y\"\n":              {"x.toml:3:", `unknown key "sokcet"`, "gantry config --default"},
		"[cni]\nbin_dir = []\n[images]\nfoo = 1\n":        {"x.toml:2:", `"cni.bin_dir"`, "x.toml:4:", `"images.foo"`},
		"[runtimes.runc]\npaht = \"/x\"\n":                {"x.toml:2:", `"runtimes.runc.paht"`},
		"\nroot = 3\n":                                    {"x.toml:2:", `"root"`},
		"root = \"/a\"\nroot = \"/b\"\n":                  {"x.toml:2:", "root"},
		"[images]\npull_progress_timeout = \"soon\"\n":    {"x.toml:2:", `"images.pull_progress_timeout"`, `"soon"`},
		"shm_size = \"64 MB\"\n":                          {"x.toml:1:", `"shm_size"`, "64MiB"},
		"[network]\nsubnets = [\"10.0.0.0\"]\n":           {"x.toml:2:", `"network.subnets"`},
		"root = \n":                                       {"x.toml:1:"},
		strings.Repeat("# comment\n", maxFile/10+1) + "#": {"larger"},
	} {
		dir := t.TempDir()
		write(t, dir, map[string]string{"x.toml": text})
		_, err := Load(filepath.Join(dir, "x.toml"), nil)
		for _, part := range want {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%.60q: error %q does not say %q", text, err, part)
			}
		}
	}
}

// valid is a configuration that passes, with its programs below a directory of the test.
func valid(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{"bin/runc": "#!", "bin/gantry-supervisor": "#!", "plain": ""})
	c := Default()
	c.Runtimes = map[string]Runtime{"runc": {Path: filepath.Join(dir, "bin/runc")}}
	c.Supervisor = filepath.Join(dir, "bin/gantry-supervisor")
	c.settle(nil)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

func options(list ...string) func(*Config) {
	return func(c *Config) { c.Runtimes["a"] = Runtime{Path: "/x", Options: list} }
}

func annotations(list ...string) func(*Config) {
	return func(c *Config) { c.Runtimes["a"] = Runtime{Path: "/x", Annotations: list} }
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		want   []string
	}{
		{func(c *Config) { c.Root = "var" }, []string{`root = "var"`, "absolute"}},
		{func(c *Config) { c.Root = "/" }, []string{`root = "/"`}},
		{func(c *Config) { c.Run = "/a/../b" }, []string{`run = "/a/../b"`}},
		{func(c *Config) { c.Run = c.Root }, []string{"run = ", "directory of its own"}},
		{func(c *Config) { c.Socket = "/" + strings.Repeat("s", 107) }, []string{"socket", "107"}},
		{func(c *Config) { c.CNI.BinDirs = []string{"/a", "b"} }, []string{`cni.bin_dirs[1] = "b"`}},
		{func(c *Config) { c.RegistryConfigDirs = []string{""} }, []string{"registry_config_dirs[0]"}},
		{func(c *Config) { c.Supervisor = "" }, []string{"supervisor", "install"}},
		{func(c *Config) { c.Supervisor = "/no/such" }, []string{`supervisor = "/no/such"`, "no such file"}},
		{func(c *Config) { c.Runtimes["runc"] = Runtime{Path: "/no/such"} }, []string{`runtimes.runc.path = "/no/such"`, "no such file", "install"}},
		{func(c *Config) {
			c.Runtimes["runc"] = Runtime{Path: filepath.Join(filepath.Dir(c.Supervisor), "../plain")}
		}, []string{"runtimes.runc.path", "not executable"}},
		{func(c *Config) { c.Runtimes["runc"] = Runtime{Path: "/etc"} }, []string{"not a regular file"}},
		{func(c *Config) { c.Runtimes["runc"] = Runtime{Path: "runc"} }, []string{"not in PATH"}},
		{func(c *Config) { c.Runtimes["x"] = Runtime{Path: "./x"} }, []string{`runtimes.x.path = "./x"`, "absolute"}},
		{func(c *Config) {
			c.Runtimes["a"], c.Runtimes["b"] = Runtime{Path: "/x", Root: "/r"}, Runtime{Path: "/x", Root: "/r"}
		}, []string{`runtimes.b.root = "/r"`, "root of runtime a too"}},
		{func(c *Config) { c.Runtimes["a"] = Runtime{Path: "/x", Root: "r/"} }, []string{`runtimes.a.root = "r/"`, "absolute"}},
		{options("--debug", "-debug"), []string{`runtimes.a.options = "-debug"`, "--NAME=VALUE"}},
		{options("kill"), []string{`"kill"`, "--NAME"}},
		{options("--systemd-cgroup"), []string{`"--systemd-cgroup"`, "cgroup_driver"}},
		{options("--root=/x"), []string{`"--root=/x"`, "runtimes.NAME.root"}},
		{options("--log=a\nb"), []string{"--NAME"}},
		{options(make([]string, 33)...), []string{"33", "more than 32"}},
		{annotations("a/b", "*"), []string{"runtimes.a.annotations", `"*"`, "PREFIX/*"}},
		{annotations("a/b*"), []string{`"a/b*"`}},
		{annotations("run.oci.handler"), []string{`"run.oci.handler"`, "CVE-2024-3154", "remove it"}},
		{annotations("org.systemd.property.*"), []string{`"org.systemd.property.*"`}},
		{func(c *Config) { c.CDISpecDirs = []string{"cdi"} }, []string{`cdi_spec_dirs[0] = "cdi"`}},
		{func(c *Config) { c.Runtimes["runc"] = Runtime{} }, []string{"runtimes.runc.path", "give the path"}},
		{func(c *Config) { c.Runtimes["a/b"] = c.Runtimes["runc"] }, []string{"a/b", "rename"}},
		{func(c *Config) { c.DefaultRuntime = "kata" }, []string{`default_runtime = "kata"`, "(runc)"}},
		{func(c *Config) { c.Network.Default = "yes" }, []string{`network.default = "yes"`, "none"}},
		{func(c *Config) { c.Network.Bridge = "sixteen-letters-" }, []string{"network.bridge"}},
		{func(c *Config) { c.Network.Table = "a b" }, []string{"network.table"}},
		{func(c *Config) { c.Network.Subnets = nil }, []string{"network.subnets"}},
		{func(c *Config) { c.Network.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16")} }, []string{"10.1.0.0/16"}},
		{func(c *Config) { c.Network.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/32")} }, []string{"wider"}},
		{func(c *Config) { c.Network.Subnets = append(c.Network.Subnets, c.Network.Subnets[0]) }, []string{"network.subnets"}},
		{func(c *Config) { c.Network.NonMasqueradeCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16")} }, []string{"network.non_masquerade_cidrs = 10.1.2.3/16"}},
		{func(c *Config) { c.Network.NonMasqueradeCIDRs = make([]netip.Prefix, 257) }, []string{"network.non_masquerade_cidrs = 257", "at most 256"}},
		{func(c *Config) { c.Images.MaxDownloads = 0 }, []string{"images.max_downloads = 0"}},
		{func(c *Config) { c.Images.PullProgressTimeout = Duration(5) }, []string{"images.pull_progress_timeout", "1s"}},
		{func(c *Config) { c.Images.Pinned = []string{""} }, []string{"images.pinned"}},
		{func(c *Config) { c.Images.LayerRanges = 17 }, []string{"images.layer_ranges = 17"}},
		{func(c *Config) { c.Images.ShortNames = "" }, []string{"images.short_names"}},
		{func(c *Config) { c.Images.Verify.Timeout = 0 }, []string{"images.verify.timeout", "0s"}},
		{func(c *Config) { c.Images.Limits.Layers = 501 }, []string{"images.limits.layers = 501", "500"}},
		{func(c *Config) { c.Images.PreloadDir = "p" }, []string{`images.preload_dir = "p"`}},
		{func(c *Config) { c.CgroupDriver = "v2" }, []string{`cgroup_driver = "v2"`, "kubelet"}},
		{func(c *Config) { c.LogLevel = 11 }, []string{"log_level = 11"}},
		{func(c *Config) { c.ShmSize = 1 }, []string{"shm_size = 1"}},
		{func(c *Config) { c.Root, c.LogLevel = "x", -1 }, []string{"root", "log_level"}}, // all at once
	} {
		c := valid(t)
		tt.change(&c)
		err := c.Validate()
		for _, part := range tt.want {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("error %q does not say %q", err, part)
			}
		}
	}
}

func TestPrintRoundTrips(t *testing.T) {
	full := valid(t)
	full.Root = `/it's "a" \ path`
	full.ShmSize, full.LogLevel = 1<<30+1, 0
	full.Images = Images{
		MaxDownloads: 3, PullProgressTimeout: Duration(90 * time.Second), KeepLayerBlobs: true, Pinned: []string{"x/*", "y"},
		ShortNames: "none", DockerConfig: "/d", PreloadDir: "/p", Verify: Verify{BinDir: "/v", MaxPrograms: 1, Timeout: 1},
		Limits: ImageLimits{ManifestSize: 1, IndexDepth: 2, Layers: 3, LayerEntries: 4, LayerSize: 5, LayerRatio: 6},
	}
	full.Network.NonMasqueradeCIDRs = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("::/0")}
	full.Network.Subnets = append(full.Network.Subnets, netip.MustParsePrefix("fd00:1::/64"))
	full.Runtimes["crun-x.1"] = full.Runtimes["runc"]
	settled := Default()
	settled.settle(nil)
	for _, want := range []Config{valid(t), full, settled} {
		var text strings.Builder
		if err := want.Print(&text); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		write(t, dir, map[string]string{"c.toml": text.String()})
		got, err := Load(filepath.Join(dir, "c.toml"), nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text.String())
		}
		if len(want.Runtimes) == 0 { // what is not there is looked for anew
			got.Runtimes, got.DefaultRuntime, got.Supervisor = want.Runtimes, want.DefaultRuntime, want.Supervisor
		}
		if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

func TestEveryKeyHasAComment(t *testing.T) {
	c := valid(t)
	var text strings.Builder
	if err := c.Print(&text); err != nil {
		t.Fatal(err)
	}
	before := ""
	for line := range strings.Lines(text.String()) {
		isKey := strings.Contains(line, " = ") && !strings.HasPrefix(line, "#")
		if isKey && !strings.HasPrefix(before, "# ") {
			t.Errorf("no comment above %q", line)
		}
		before = line
	}
}

func FuzzLoad(f *testing.F) {
	var text strings.Builder
	if err := Default().Print(&text); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(text.String()))
	f.Add([]byte("[runtimes.\"a\\u0000b\"]\npath = 'x'\n[[cni]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Default()
		if err := c.decode("x", data); err != nil {
			return
		}
		_ = c.Validate()
		var out strings.Builder
		if err := c.Print(&out); err != nil {
			t.Fatal(err)
		}
		again := Default()
		if err := again.decode("x", []byte(out.String())); err != nil {
			t.Fatalf("%v in\n%s", err, out.String())
		}
	})
}

// The kubelet takes the statistics of a socket with such a path from cAdvisor, which knows nothing of us.
func TestSocketIsNotCRIOs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file, nil)
	if err != nil || c.Socket == "" || strings.HasSuffix(c.Socket, "run/crio/crio.sock") {
		t.Errorf("socket %q, %v", c.Socket, err)
	}
}
