package registry

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestBasicAuth(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("Authorization") != basic("user", "secret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}).fill(t)
	for name, c := range map[string]struct {
		auth *runtimeapi.AuthConfig
		ok   bool
	}{
		"user and password":   {&runtimeapi.AuthConfig{Username: "user", Password: "secret"}, true},
		"auth":                {&runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte("user:secret"))}, true},
		"this server":         {&runtimeapi.AuthConfig{Username: "user", Password: "secret", ServerAddress: s.URL + "/v2/"}, true},
		"another server":      {&runtimeapi.AuthConfig{Username: "user", Password: "secret", ServerAddress: "registry.example.com"}, false},
		"wrong password":      {&runtimeapi.AuthConfig{Username: "user", Password: "Wr0ng-password"}, false},
		"nobody":              {nil, false},
		"empty":               {&runtimeapi.AuthConfig{}, false},
		"registry token only": {&runtimeapi.AuthConfig{RegistryToken: "t0ken-of-mine"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := fetchAll(t, repository(t, Client{}, s.host(), c.auth))
			if c.ok != (err == nil) || (!c.ok && !errdefs.IsUnauthorized(err)) {
				t.Errorf("got %v", err)
			}
			for _, secret := range []string{"secret", "Wr0ng", "t0ken"} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("the error has a secret: %v", err)
				}
			}
		})
	}
	name, _ := reference.ParseNormalizedNamed(s.host() + "/r")
	for _, bad := range []*runtimeapi.AuthConfig{{Auth: "&&&"}, {Auth: "bm9jb2xvbg=="}} {
		if _, err := (&Client{}).Repository(name, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestTokenAuth(t *testing.T) {
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		ok := r.Header.Get("Authorization") == basic("user", "secret") || r.Form.Get("password") == "secret" || r.Form.Get("refresh_token") == "identity"
		if r.Method == http.MethodGet && r.Header.Get("Authorization") == "" || !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if scope := r.Form.Get("scope"); scope != "repository:r:pull" {
			t.Errorf("scope %q", scope)
		}
		fmt.Fprint(w, `{"token":"tok","access_token":"tok","expires_in":300}`)
	}))
	defer tokens.Close()
	s := newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("Authorization") != "Bearer tok" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s",scope="repository:r:pull"`, tokens.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}).fill(t)
	for name, c := range map[string]struct {
		auth *runtimeapi.AuthConfig
		ok   bool
	}{
		"password":             {&runtimeapi.AuthConfig{Username: "user", Password: "secret"}, true},
		"identity token":       {&runtimeapi.AuthConfig{IdentityToken: "identity"}, true},
		"registry token":       {&runtimeapi.AuthConfig{RegistryToken: "tok"}, true},
		"wrong registry token": {&runtimeapi.AuthConfig{RegistryToken: "other"}, false},
		"wrong password":       {&runtimeapi.AuthConfig{Username: "user", Password: "wrong"}, false},
		"nobody":               {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := fetchAll(t, repository(t, Client{}, s.host(), c.auth))
			if c.ok != (err == nil) || (!c.ok && !errdefs.IsUnauthorized(err)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEndlessToken(t *testing.T) {
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"token":"`)
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 64 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	defer tokens.Close()
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s"`, tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
	})
	if err := fetchAll(t, repository(t, Client{}, s.host(), nil)); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

// TestCredentialsStayWithTheirHost: a mirror that asks for them gets none,
// nor does the place a blob is redirected to.
func TestCredentialsStayWithTheirHost(t *testing.T) {
	challenge := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	greedy, cdn := newServer(t, challenge), newServer(t, nil).fill(t)
	origin := newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.Header.Get("Authorization") == "":
			challenge(w, r, next)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, cdn.URL+r.URL.Path, http.StatusTemporaryRedirect)
		default:
			next.ServeHTTP(w, r)
		}
	}).fill(t)
	u, _ := url.Parse(origin.URL)
	text := fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, greedy.URL)
	text += fmt.Sprintf("[host.%q.header]\nx-key = \"configured\"\n", origin.URL)
	dir := hostsDir(t, strings.ReplaceAll(u.Host, ":", "_")+"_", text)
	for _, auth := range []*runtimeapi.AuthConfig{
		{Username: "user", Password: "secret"}, {RegistryToken: "tok"},
	} {
		if err := fetchAll(t, repository(t, Client{HostsDirs: []string{dir}}, u.Host, auth)); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range map[string]*server{"mirror": greedy, "place of the blobs": cdn} {
		if s.count() == 0 || len(s.header("Authorization")) > 0 || len(s.header("X-Key")) > 0 {
			t.Errorf("%s was asked %d times and got %v %v", name, s.count(), s.header("Authorization"), s.header("X-Key"))
		}
	}
	if len(origin.header("Authorization")) == 0 || len(origin.header("X-Key")) == 0 {
		t.Error("the registry itself got none")
	}
}
