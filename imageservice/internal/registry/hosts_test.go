package registry

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
)

func TestParseHosts(t *testing.T) {
	both := canPull | canResolve
	for name, c := range map[string]struct {
		text string
		want []hostConfig
	}{
		"empty":  {"", []hostConfig{{caps: both}}},
		"server": {`server = "registry.example.com:8443"`, []hostConfig{{scheme: "https", host: "registry.example.com:8443", path: "/v2", caps: both}}},
		"order": {"server = \"http://o\"\n[host.\"https://z\"]\n[host.\"https://z\".header]\nk = \"v\"\n[host.\"a/\"]\n[host.m]\ncapabilities=[\"Pull\"]", []hostConfig{
			{scheme: "https", host: "z", path: "/v2", caps: both, header: map[string][]string{"K": {"v"}}},
			{scheme: "https", host: "a", path: "/v2", caps: both},
			{scheme: "https", host: "m", path: "/v2", caps: canPull},
			{scheme: "http", host: "o", path: "/v2", caps: both}}},
		"dotted and inline": {"host.\"https://b\".skip_verify = true\nhost.\"https://a\" = {capabilities = [\"push\"]}", []hostConfig{
			{scheme: "https", host: "b", path: "/v2", caps: both, skipVerify: true},
			{scheme: "https", host: "a", path: "/v2"},
			{caps: both}}},
		"paths": {"[host.\"https://a/v2/proxy\"]\noverride_path = true\n[host.\"https://b/proxy/\"]\n[host.\"https://c/v2/\"]\n[host.\"https://d/x/../y\"]", []hostConfig{
			{scheme: "https", host: "a", path: "/v2/proxy", caps: both},
			{scheme: "https", host: "b", path: "/proxy/v2", caps: both},
			{scheme: "https", host: "c", path: "/v2", caps: both},
			{scheme: "https", host: "d", path: "/y/v2", caps: both},
			{caps: both}}},
		"files": {"ca = \"a.pem\"\nclient = \"c.pem\"\n[host.x]\nca = [\"/abs.pem\", \"b.pem\"]\nclient = [[\"c.cert\", \"c.key\"], \"both.pem\"]\ndial_timeout = \"3s\"", []hostConfig{
			{scheme: "https", host: "x", path: "/v2", caps: both, ca: []string{"/abs.pem", "/d/b.pem"},
				client: [][2]string{{"/d/c.cert", "/d/c.key"}, {"/d/both.pem"}}, dialTimeout: 3 * time.Second},
			{caps: both, ca: []string{"/d/a.pem"}, client: [][2]string{{"/d/c.pem"}}}}},
		"headers": {"[header]\nx-a = [\"1\", \"2\"]\n", []hostConfig{{caps: both, header: map[string][]string{"X-A": {"1", "2"}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseHosts("/d", []byte(c.text))
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v, %v\nwant %+v", got, err, c.want)
			}
		})
	}
}

// A broken file is an error that names the file and the key, and no value of
// a header.
func TestBrokenHosts(t *testing.T) {
	name, err := reference.ParseNormalizedNamed("registry.example.com/r")
	if err != nil {
		t.Fatal(err)
	}
	for text, key := range map[string]string{
		"server = ":                                  "line 1",
		"server = 3":                                 "server",
		"server = \"ftp://x\"":                       "server",
		"server = \"https://\"":                      "server",
		"server = \"https://u:p4ss@x\"":              "server",
		"server = \"https://x?tok=p4ss\"":            "server",
		"skip_verfy = true":                          "skip_verfy",
		"skip_verify = \"yes\"":                      "skip_verify",
		"[host.\"\"]":                                "host",
		"[host.x]\ncapabilities = [\"pul\"]":         `host."x".capabilities`,
		"[host.x]\ncapabilities = \"pull\"":          "capabilities",
		"[host.x]\nca = 3":                           `host."x".ca`,
		"[host.x]\nca = []":                          `host."x".ca`,
		"[host.x]\nca = [\"\"]":                      `host."x".ca`,
		"[host.x]\nclient = [[\"a\",\"b\",\"c\"]]":   `host."x".client`,
		"[host.x]\nclient = [[\"a\"]]":               `host."x".client`,
		"[host.x]\nclient = {a=1}":                   `host."x".client`,
		"[host.x]\ndial_timeout = \"-1s\"":           `host."x".dial_timeout`,
		"[host.x]\ndial_timeout = \"soon\"":          `host."x".dial_timeout`,
		"[host.x.header]\n\"a b\" = \"p4ss\"":        `host."x".header."a b"`,
		"[host.x.header]\na = \"p4ss\\r\\nb: c\"":    `host."x".header."a"`,
		"[host.x.header]\na = 3":                     `host."x".header."a"`,
		"ca = \"absent.pem\"":                        "absent.pem",
		"ca = \"hosts.toml\"":                        "hosts.toml",
		"client = \"hosts.toml\"":                    "client",
		"server = \"a\"\nserver = \"b\"":             "server",
		"x = \"" + strings.Repeat("x", 2<<20) + "\"": "more than",
	} {
		t.Run(key, func(t *testing.T) {
			dir := hostsDir(t, "registry.example.com", text)
			_, err := (&Client{HostsDirs: []string{dir}}).Repository(name, nil)
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), filepath.Join(dir, "registry.example.com")) ||
				!strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "p4ss") || len(err.Error()) > 1000 {
				t.Errorf("%q: %v", text[:min(len(text), 80)], err)
			}
		})
	}
}

// What is in the place of the file does not make a pull wait.
func TestHostsFileIsAFile(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "registry.example.com")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "hosts.toml"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Client{HostsDirs: []string{root}}
	if _, err := c.hostConfigs("registry.example.com"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("FIFO: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "other.example.com"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.hostConfigs("other.example.com"); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("file instead of a directory: %v", err)
	}
}

// The directory of a registry is found by all of containerd's names.
func TestHostDirNames(t *testing.T) {
	for domain, names := range map[string][]string{
		"r.example.com":      {"r.example.com", "_default"},
		"r.example.com:5000": {"r.example.com_5000_", "r.example.com:5000", "_default"},
		"[::1]:5000":         {"[::1]_5000_", "[::1]:5000", "_default"},
	} {
		root := t.TempDir()
		c := Client{HostsDirs: []string{root}}
		for i := len(names) - 1; i >= 0; i-- { // the better name comes later, and counts
			text := fmt.Sprintf("server = \"https://%d.example.com\"", i)
			if err := os.Mkdir(filepath.Join(root, names[i]), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, names[i], "hosts.toml"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := c.hostConfigs(domain) // read anew
			if err != nil || got[0].host != fmt.Sprintf("%d.example.com", i) {
				t.Errorf("%s by %s: %+v, %v", domain, names[i], got, err)
			}
		}
	}
}

// Without configuration only loopback is asked without TLS.
func TestDefaultHosts(t *testing.T) {
	for domain, want := range map[string]hostConfig{
		"docker.io":          {scheme: "https", host: "registry-1.docker.io"},
		"r.example.com":      {scheme: "https", host: "r.example.com"},
		"r.example.com:80":   {scheme: "https", host: "r.example.com:80"},
		"10.0.0.1:5000":      {scheme: "https", host: "10.0.0.1:5000"},
		"localhost.evil.com": {scheme: "https", host: "localhost.evil.com"},
		"localhost:5000":     {scheme: "https", host: "localhost:5000", guess: true, skipVerify: true},
		"localhost":          {scheme: "https", host: "localhost", skipVerify: true},
		"127.0.0.1:80":       {scheme: "http", host: "127.0.0.1:80", skipVerify: true},
		"[::1]:5000":         {scheme: "https", host: "[::1]:5000", guess: true, skipVerify: true},
	} {
		got, err := (&Client{}).hostConfigs(domain)
		want.path, want.caps = "/v2", canPull|canResolve
		if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Errorf("%s: %+v, %v", domain, got, err)
		}
	}
}

func FuzzHostsTOML(f *testing.F) {
	for _, s := range []string{
		"", "server = \"https://x\"", "[host.\"https://a\"]\ncapabilities = [\"pull\"]\n[host.\"https://a\".header]\nx = [\"y\"]",
		"ca = [\"a\"]\nclient = [[\"a\", \"b\"]]\nskip_verify = true\noverride_path = true\ndial_timeout = \"1s\"",
		"host.\"x\".ca = \"y\"\n[[host]]", "[host.\"http://[::1]:5000/v2/..\"]", "host = {\"a\" = {}}", "[host.\"%zz\"]", "[header]\nAuthorization = \"secret\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		configs, err := parseHosts("/d", body)
		if err != nil {
			if len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\n\x1b\x00") {
				t.Errorf("error %q", err)
			}
			return
		}
		for i, c := range configs {
			last := i == len(configs)-1
			if (c.host == "" && !last) || (c.host != "" && (c.scheme != "https" && c.scheme != "http" || !strings.HasPrefix(c.path, "/"))) {
				t.Errorf("host %d: %+v", i, c)
			}
			if c.guess || c.dialTimeout < 0 || c.dialTimeout > maxDialTimeout {
				t.Errorf("host %d: %+v", i, c)
			}
			for _, name := range c.ca {
				if !filepath.IsAbs(name) {
					t.Errorf("ca %q", name)
				}
			}
			for key, values := range c.header {
				if checkHeader(key, values) != nil {
					t.Errorf("header %q", key)
				}
			}
			if c.host == "" {
				c.self("registry.example.com")
			}
			if c.scheme == "http" && c.host == "registry.example.com" {
				t.Errorf("host %d without TLS: %+v", i, c)
			}
		}
	})
}
