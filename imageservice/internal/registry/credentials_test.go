package registry

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func basicAuth() *runtimeapi.AuthConfig {
	return &runtimeapi.AuthConfig{Username: "user", Password: "secret"}
}

// rerun runs one test of this binary in another environment.
func rerun(t *testing.T, test string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func dockerConfig(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKeyring(t *testing.T) {
	file := dockerConfig(t, `{"auths": {
		"https://index.docker.io/v1/": {"username": "hub", "password": "p"},
		"r.example.com": {"auth": "`+base64.StdEncoding.EncodeToString([]byte("all:p"))+`"},
		"r.example.com/team": {"username": "team", "password": "p"},
		"r.example.com/team/app": {"identitytoken": "app"},
		"r.example.com:5000": {"registrytoken": "port"},
		"*.example.org": {"username": "star", "password": "p"},
		"one.example.org": {"username": "one", "password": "p"},
		"https://only.example.com/v2/": {"username": "only", "password": "p"},
		"empty.example.com": {}
	}, "HttpHeaders": {"x": "y"}, "credHelpers": {}, "detachKeys": "z"}`)
	mine := &runtimeapi.AuthConfig{Username: "mine", Password: "p"}
	at := func(address string) *runtimeapi.AuthConfig {
		return &runtimeapi.AuthConfig{Username: "mine", Password: "p", ServerAddress: address}
	}
	for _, c := range []struct {
		image, host string // host "" is the registry itself
		auth        *runtimeapi.AuthConfig
		want        string
	}{
		{"busybox", "", nil, "hub"},
		{"index.docker.io/x/y", "", nil, "hub"},
		{"r.example.com/x", "", nil, "all"},
		{"r.example.com:443/x", "", nil, "all"},
		{"r.example.com/team", "", nil, "team"},
		{"r.example.com/team/x", "", nil, "team"},
		{"r.example.com/teams/x", "", nil, "all"},
		{"r.example.com/team/app", "", nil, "app"},
		{"r.example.com/team/app/x", "", nil, "app"},
		{"r.example.com:5000/x", "", nil, "port"},
		{"r.example.com:5001/x", "", nil, ""},
		{"two.example.org/x", "", nil, "star"},
		{"one.example.org/x", "", nil, "one"},
		{"a.b.example.org/x", "", nil, ""},
		{"example.org/x", "", nil, ""},
		{"evil-r.example.com/x", "", nil, ""},
		{"empty.example.com/x", "", nil, ""},
		// Of the pull.
		{"r.example.com/x", "", mine, "mine"},
		{"r.example.com/x", "", &runtimeapi.AuthConfig{}, "all"},
		{"r.example.com/x", "", at("r.example.com"), "mine"},
		{"r.example.com/x", "", at("https://R.example.com:443/v2/"), "mine"},
		{"r.example.com:80/x", "", at("http://r.example.com:80"), "mine"},
		{"busybox", "", at("https://index.docker.io/v1/"), "mine"},
		{"busybox", "", at("docker.io"), "mine"},
		{"r.example.com/x", "", at("s.example.com"), "all"},
		{"r.example.com/x", "", at("r.example.com:5000"), "all"},
		// To mirrors.
		{"busybox", "https://r.example.com", nil, "all"},
		{"busybox", "https://r.example.com", mine, "all"},
		{"busybox", "https://s.example.com", mine, ""},
		{"busybox", "https://s.example.com", at("s.example.com"), ""},
		{"busybox", "http://only.example.com", nil, ""},
		{"busybox", "https://only.example.com", nil, "only"},
		{"r.example.com/x", "http://r.example.com", at("https://r.example.com"), "all"},
	} {
		named, err := reference.ParseNormalizedNamed(c.image)
		if err != nil {
			t.Fatal(err)
		}
		cl := Client{DockerConfig: file}
		if c.host != "" {
			cl.HostsDirs = []string{hostsDir(t, "_default", fmt.Sprintf("[host.%q]\n", c.host))}
		}
		r, err := cl.Repository(named, c.auth)
		if err != nil {
			t.Fatal(err)
		}
		got := r.hosts[0].auth.cred
		if who := got.username + got.identity + got.bearer; who != c.want {
			t.Errorf("%s at %q with %v: %q, want %q", c.image, c.host, c.auth.GetServerAddress(), who, c.want)
		}
	}
}

// A file that cannot be used is an error that names it and the key, and has
// no value of it.
func TestBrokenDockerConfig(t *testing.T) {
	name, _ := reference.ParseNormalizedNamed("registry.example.com/r")
	try := func(file string) error {
		_, err := (&Client{DockerConfig: file}).Repository(name, nil)
		return err
	}
	for text, key := range map[string]string{
		``:                                    "not JSON",
		`{"auths": {"p4ss`:                    "not JSON",
		`[]`:                                  "array",
		`{"auths": ["p4ss"]}`:                 "auths",
		`{"auths": {"a b c": {}}}`:            "a b c",
		`{"auths": {"ftp://x": {}}}`:          "ftp://x",
		`{"auths": {"x": {"auth": "p4ss"}}}`:  `auths."x": auth is not user:password`,
		`{"auths": {"x": {"auth": "%p4ss"}}}`: `auths."x": auth is not base64`,
		`{"auths": {"x": {"username": "a:b", "password": "p4ss"}}}`:   `auths."x": user name has a colon`,
		`{"auths": {"x": {"username": "a", "password": "p4ss\r\n"}}}`: `auths."x": has a line break`,
		`{"credsStore": "p4ss"}`:                                      "credsStore",
		`{"credHelpers": {"x": "p4ss"}}`:                              "credHelpers",
		`{"auths": {}, "x": "` + strings.Repeat("x", 2<<20) + `"}`:    "more than",
		`{"auths": {}} {}`:                                            "not JSON",
	} {
		file := dockerConfig(t, text)
		if err := try(file); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), file) ||
			!strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "p4ss") {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	if err := try(filepath.Join(t.TempDir(), "absent")); err != nil {
		t.Errorf("absent: %v", err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{fifo, "/dev/zero", t.TempDir()} {
		if err := try(file); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// A mirror gets what the file has for it, and the registry what it has for
// the registry.
func TestMirrorCredentials(t *testing.T) {
	wants := func(auth string) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Header.Get("Authorization") != auth {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	mirror := newServer(t, wants(basic("mirror", "m"))).fill(t)
	origin := newServer(t, wants(basic("user", "secret"))).fill(t)
	file := dockerConfig(t, fmt.Sprintf(`{"auths": {%q: {"username": "mirror", "password": "m"}}}`, mirror.host()))
	dir := hostsDir(t, "_default", fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\n", mirror.URL))
	r := repository(t, Client{HostsDirs: []string{dir}, DockerConfig: file}, origin.host(), basicAuth())
	if err := fetchAll(t, r); err != nil {
		t.Fatal(err)
	}
	for who, s := range map[string]*server{basic("mirror", "m"): mirror, basic("user", "secret"): origin} {
		for _, got := range s.header("Authorization") {
			if got != who {
				t.Errorf("%s got %s", s.host(), got)
			}
		}
		if len(s.header("Authorization")) == 0 {
			t.Errorf("%s was not asked with credentials", s.host())
		}
	}
}

// Each error says whose credentials were used.
func TestErrorSaysWhoseCredentials(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"not with %s"}]}`, r.Header.Get("Authorization"))
	})
	file := dockerConfig(t, fmt.Sprintf(`{"auths": {%q: {"username": "file", "password": "secret"}}}`, s.host()))
	for _, c := range []struct {
		client Client
		auth   *runtimeapi.AuthConfig
		kind   func(error) bool
		words  []string
	}{
		{Client{}, nil, errdefs.IsUnauthorized, []string{"401", "UNAUTHORIZED who are you?", "no credentials"}},
		{Client{}, basicAuth(), errdefs.IsPermissionDenied, []string{"403", "DENIED not with Basic …", "credentials: those of the pull"}},
		{Client{DockerConfig: file}, nil, errdefs.IsPermissionDenied, []string{"403", "credentials: those of " + file + " for " + s.host()}},
	} {
		_, _, err := repository(t, c.client, s.host(), c.auth).Manifest(t.Context(), "v1", nil, 1<<20)
		if !c.kind(err) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), basic("user", "secret")[6:]) {
			t.Errorf("got %v", err)
		}
		for _, w := range c.words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("no %q in %v", w, err)
			}
		}
	}
}

func TestPullScope(t *testing.T) {
	a := newAuthorizer(&host{}, credential{}, "repository:a/b:pull")
	for suggested, want := range map[string]string{
		"":                                      "repository:a/b:pull",
		"repository:a/b:pull,push":              "repository:a/b:pull",
		"repository:*:pull":                     "repository:a/b:pull",
		"registry:catalog:*":                    "repository:a/b:pull",
		"repository:other/b:pull":               "repository:a/b:pull",
		"repository:proxy/a/b:pull,push,delete": "repository:proxy/a/b:pull",
		"x repository:p/q/a/b:pull":             "repository:p/q/a/b:pull",
		"repository:xa/b:pull":                  "repository:a/b:pull",
	} {
		if got := a.pullScope(suggested); got != want {
			t.Errorf("%q: %q", suggested, got)
		}
	}
}

func FuzzDockerConfig(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"auths":{"r.example.com":{"auth":"dTpw"}}}`, `{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`,
		`{"auths":{"*.example.com/a/b":{"identitytoken":"t"},"[::1]:5000":{"registrytoken":"t"}}}`, `{"credsStore":"x"}`, `{"auths":{"[*":{"auth":"dTpw"}}}`,
	} {
		f.Add([]byte(s), "r.example.com", "a/b")
	}
	f.Fuzz(func(t *testing.T, body []byte, domain, name string) {
		entries, err := parseDockerConfig(body)
		if err != nil {
			return
		}
		h := &host{scheme: "https", name: canonical(domain, "https")}
		e, ok := findEntry(entries, h, name)
		if !ok {
			return
		}
		if !strings.Contains(e.host, "*") && !strings.Contains(e.host, "[") && canonical(e.host, "https") != h.name {
			t.Errorf("credentials for %q go to %q", e.host, h.name)
		}
		if !strings.HasPrefix(name+"/", e.path+"/") && e.path != "" {
			t.Errorf("credentials for %q go to %q", e.path, name)
		}
		if e.credential.empty() || e.credential.check() != nil {
			t.Error("credentials that cannot be sent")
		}
	})
}

func FuzzAuthConfig(f *testing.F) {
	f.Add("u", "p", "", "", "", "https://index.docker.io/v1/")
	f.Add("", "", "dTpw", "", "", "r.example.com:5000")
	f.Add("", "", "", "identity", "", "http://x/")
	f.Add("", "", "", "", "token\r\nx: y", "user@host")
	f.Fuzz(func(t *testing.T, user, password, auth, identity, token, address string) {
		a := &runtimeapi.AuthConfig{Username: user, Password: password, Auth: auth, IdentityToken: identity, RegistryToken: token, ServerAddress: address}
		k, err := newKeyring(a, "", "r.example.com", "a/b")
		if err != nil {
			for _, secret := range []string{password, auth, identity, token} {
				if len(secret) > 12 && strings.Contains(err.Error(), secret) {
					t.Errorf("the error has a secret: %v", err)
				}
			}
			return
		}
		if k.pull.check() != nil {
			t.Error("credentials that cannot be sent")
		}
		if c := k.forHost(&host{scheme: "https", name: "m.example.com", mirror: true}); !c.empty() {
			t.Error("a mirror gets the pull's credentials")
		}
		c := k.forHost(&host{scheme: "https", name: "r.example.com"})
		if _, h, _, err := splitAddress(address); err == nil && address != "" && h != "r.example.com" && !c.empty() {
			t.Errorf("credentials for %q are used", address)
		}
		if s := fmt.Sprintf("%v %+v %#v", c, c, c); s != "credential credential credential" {
			t.Errorf("prints as %s", s)
		}
	})
}
