package imageservice

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"k8s.io/klog/v2"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestSecurityReference has the cases of SECURITY.md 2.3: each name has one
// meaning, or none.
func TestSecurityReference(t *testing.T) {
	const digest = "@sha256:" + hex64
	for name, c := range map[string]struct{ ref, want string }{ // "" is refused
		"2.3-short":                {"a", "docker.io/library/a:latest"},
		"2.3-short-with-path":      {"a/b", "docker.io/a/b:latest"},
		"2.3-tag":                  {"a:b", "docker.io/library/a:b"},
		"2.3-two-tags":             {"a:b:c", ""},
		"2.3-docker-io":            {"docker.io/a", "docker.io/library/a:latest"},
		"2.3-index-docker-io":      {"index.docker.io/a", "docker.io/library/a:latest"},
		"2.3-library":              {"docker.io/library/a", "docker.io/library/a:latest"},
		"2.3-registry-1":           {"registry-1.docker.io/library/a", "registry-1.docker.io/library/a:latest"},
		"2.3-localhost":            {"localhost/x", "localhost/x:latest"},
		"2.3-localhost-port":       {"localhost:5000/x", "localhost:5000/x:latest"},
		"2.3-localhost-alone":      {"localhost", "docker.io/library/localhost:latest"},
		"2.3-host-port-alone":      {"localhost:5000", "docker.io/library/localhost:5000"},
		"2.3-port-99999":           {"host:99999/x", ""},
		"2.3-port-0":               {"host:0/x", ""},
		"2.3-port-leading-zero":    {"host.example.com:0443/x", ""},
		"2.3-port-empty":           {"host:/x", ""},
		"2.3-port-huge":            {"host:184467440737095516160/x", ""},
		"2.3-ipv6":                 {"[::1]:5000/x", "[::1]:5000/x:latest"},
		"2.3-ipv6-spelt-otherwise": {"[0:0::0001]:5000/x", "[::1]:5000/x:latest"},
		"2.3-ipv6-no-port":         {"[::1]/x", "[::1]/x:latest"},
		"2.3-ipv6-not-one":         {"[4:1]:5000/x", ""},
		"2.3-ipv6-of-ipv4":         {"[::ffff:7f00:1]:5000/x", ""},
		"2.3-ipv6-zone":            {"[fe80::1%25eth0]:5000/x", ""},
		"2.3-ipv6-open":            {"[::1:5000/x", ""},
		"2.3-capital-path":         {"r.example.com/Repo", ""},
		"2.3-capital-host":         {"R.Example.COM/repo", "r.example.com/repo:latest"},
		"2.3-capital-docker-io":    {"Docker.IO/a", "docker.io/library/a:latest"},
		"2.3-capital-localhost":    {"LOCALHOST:5000/a", "localhost:5000/a:latest"},
		"2.3-capital-short":        {"Busybox", ""},
		"2.3-path-256":             {"r.example.com/" + strings.Repeat("a", 256), ""},
		"2.3-path-255":             {"r.example.com/" + strings.Repeat("a", 241), "r.example.com/" + strings.Repeat("a", 241) + ":latest"},
		"2.3-tag-129":              {"a:" + strings.Repeat("b", 129), ""},
		"2.3-megabyte":             {strings.Repeat("a/", 1<<20), ""},
		"2.3-digest":               {"a" + digest, "docker.io/library/a" + digest},
		"2.3-digest-short":         {"a@sha256:abc", ""},
		"2.3-digest-capitals":      {"a@sha256:" + strings.ToUpper(hex64), ""},
		"2.3-digest-md5":           {"a@md5:" + hex64[:32], ""},
		"2.3-digest-sha512":        {"a@sha512:" + hex64 + hex64, ""},
		"2.3-digest-path":          {"a@sha256:../../" + hex64, ""},
		"2.3-tag-and-digest":       {"a:b" + digest, "docker.io/library/a" + digest},
		"2.3-two-digests":          {"a" + digest + digest, ""},
		"2.3-id":                   {"sha256:" + hex64, ""},
		"2.3-64-hex":               {hex64, ""},
		"2.3-64-hex-in-a-registry": {"r.example.com/" + hex64, "r.example.com/" + hex64 + ":latest"},
		"2.3-63-hex":               {hex64[1:], "docker.io/library/" + hex64[1:] + ":latest"},
		"2.3-homoglyph-host":       {"dоcker.io/a", ""},
		"2.3-idn-host":             {"bücher.example/a", ""},
		"2.3-punycode-host":        {"xn--bcher-kva.example/a", "xn--bcher-kva.example/a:latest"},
		"2.3-user-and-password":    {"user:p4ss@r.example.com/x", ""},
		"2.3-user":                 {"user@r.example.com/x", ""},
		"2.3-dot-dot":              {"r.example.com/../x", ""},
		"2.3-dot":                  {"r.example.com/./x", ""},
		"2.3-dot-dot-host":         {"../x", ""},
		"2.3-dot-dot-tag":          {"a:../x", ""},
		"2.3-double-slash":         {"r.example.com//x", ""},
		"2.3-trailing-slash":       {"r.example.com/x/", ""},
		"2.3-absolute":             {"/x", ""},
		"2.3-percent":              {"r.example.com/%2e%2e/x", ""},
		"2.3-percent-host":         {"r%2eexample.com/x", ""},
		"2.3-space":                {"r.example.com/a b", ""},
		"2.3-leading-space":        {" a", ""},
		"2.3-newline":              {"a\n", ""},
		"2.3-nul":                  {"a\x00", ""},
		"2.3-escape":               {"a\x1b[31m", ""},
		"2.3-leading-dash":         {"-a", ""},
		"2.3-leading-dash-host":    {"-r.example.com/a", ""},
		"2.3-leading-dash-tag":     {"a:-b", ""},
		"2.3-scheme":               {"https://r.example.com/a", ""},
		"2.3-query":                {"r.example.com/a?b=c", ""},
		"2.3-fragment":             {"r.example.com/a#b", ""},
		"2.3-backslash":            {`r.example.com\a/b`, ""},
		"2.3-trailing-dot-host":    {"r.example.com./a", ""},
		"2.3-empty":                {"", ""},
		"2.3-underscore-default":   {"_default/x", ""},
	} {
		t.Run(name, func(t *testing.T) {
			named, err := parseReference(c.ref)
			if c.want == "" {
				if !errdefs.IsInvalidArgument(err) || len(err.Error()) > 1000 || strings.Contains(err.Error(), "p4ss") || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
					t.Errorf("%.80q: %v, %.300v", c.ref, named, err)
				}
				return
			}
			if err != nil || named.String() != c.want {
				t.Errorf("%q: %v, %v", c.ref, named, err)
			}
		})
	}
}

func TestShortNames(t *testing.T) {
	for _, c := range []struct{ short, ref, want string }{
		{"", "a", "docker.io/library/a:latest"},
		{"docker.io", "a", "docker.io/library/a:latest"},
		{"docker.io", "a/b:c", "docker.io/a/b:c"},
		{"none", "a", ""},
		{"none", "a/b", ""},
		{"none", "a@sha256:" + hex64, ""},
		{"none", "docker.io/a", "docker.io/library/a:latest"},
		{"none", "localhost/x", "localhost/x:latest"},
		{"none", "localhost:5000/x", "localhost:5000/x:latest"},
		{"none", "localhost:5000", ""},
		{"none", "r.example.com", ""},
		{"r.example.com:5000", "a", "r.example.com:5000/a:latest"},
		{"r.example.com:5000", "a/b@sha256:" + hex64, "r.example.com:5000/a/b@sha256:" + hex64},
		{"r.example.com:5000", "localhost/x", "localhost/x:latest"},
		{"r.example.com:5000", "localhost:5000/x", "localhost:5000/x:latest"},
		{"r.example.com:5000", "x:5000", "r.example.com:5000/x:5000"},
		{"r.example.com:5000", "s.example.com/a", "s.example.com/a:latest"},
		{"r.example.com:5000", "../a", ""},
		{"r.example.com:5000", "@x", ""},
		{"r.example.com:5000", "sha256:" + hex64, ""},
		{"localhost", "a", "localhost/a:latest"},
	} {
		s := &Service{cfg: Config{ShortNames: c.short}}
		named, err := s.reference(c.ref)
		if c.want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s, %s: %v, %v", c.short, c.ref, named, err)
			}
		} else if err != nil || named.String() != c.want {
			t.Errorf("%s, %s: %v, %v", c.short, c.ref, named, err)
		}
	}
	for short, ok := range map[string]bool{
		"": true, "none": true, "docker.io": true, "r.example.com:5000": true, "localhost": true, "[::1]:5000": true,
		"None": false, "example": false, "r.example.com/x": false, "https://r.example.com": false, "index.docker.io": false, "R.example.com": false, "a b": false,
	} {
		if err := checkShortNames(short); ok != (err == nil) {
			t.Errorf("%q: %v", short, err)
		}
		if _, err := Open(klog.NewContext(t.Context(), klog.Background()), Config{Root: "relative", ShortNames: short}); !ok && !strings.Contains(err.Error(), "short names") {
			t.Errorf("%q: %v", short, err)
		}
	}
}

// FuzzReference: the complete form of a name is its own complete form, and no
// name is another in a URL.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"a", "a:b@sha256:" + hex64, "R.Example.com:5000/a/b__c-d.e", "[::1]:5000/x", "index.docker.io/library/a", "localhost/x", "user:pass@host/x", "https://h/x", "sha256:" + hex64} {
		for _, short := range []string{"", "none", "r.example.com"} {
			f.Add(s, short)
		}
	}
	f.Fuzz(func(t *testing.T, ref, short string) {
		if checkShortNames(short) != nil {
			return
		}
		s := &Service{cfg: Config{ShortNames: short}}
		named, err := s.reference(ref)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", ref, err)
			}
			return
		}
		again, err := s.reference(named.String())
		if err != nil || again.String() != named.String() {
			t.Errorf("%q is %q, and that is %v: %v", ref, named, again, err)
		}
		domain, path := reference.Domain(named), reference.Path(named)
		if domain != strings.ToLower(domain) || (domain == "docker.io" && !strings.Contains(path, "/")) || domain == "index.docker.io" {
			t.Errorf("%q is %q", ref, named)
		}
		if !hasRegistry(ref) && short == "none" {
			t.Errorf("%q has no registry and is %q", ref, named)
		}
		u, err := url.Parse("https://" + domain + "/v2/" + path + "/manifests/" + object(named))
		if err != nil {
			t.Fatalf("%q is %q: %v", ref, named, err)
		}
		if u.Host != domain || u.User != nil || u.RawQuery != "" || u.Path != "/v2/"+path+"/manifests/"+object(named) || u.EscapedPath() != u.Path ||
			slices.Contains(strings.Split(u.Path, "/"), "..") {
			t.Errorf("%q is %q and asked at %s", ref, named, u)
		}
	})
}
