package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecurity has the cases of SECURITY.md that a hostile registry can try.
func TestSecurity(t *testing.T) {
	for _, cases := range []map[string]func(t *testing.T){credentialCases, answerCases, livenessCases} {
		for name, test := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	}
}

// attacker is a server that asks for credentials and notes all that it gets.
type attacker struct {
	*httptest.Server
	mu    sync.Mutex
	asked int
	told  []string // secrets that arrived
}

func newAttacker(t *testing.T, answer http.HandlerFunc) *attacker {
	a := &attacker{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		a.mu.Lock()
		a.asked++
		for _, key := range []string{"Authorization", "Proxy-Authorization", "Cookie", "X-Key", "Referer"} {
			for _, v := range r.Header.Values(key) {
				a.told = append(a.told, key+": "+v)
			}
		}
		for _, key := range []string{"password", "refresh_token"} {
			if v := r.Form.Get(key); v != "" {
				a.told = append(a.told, key+"="+v)
			}
		}
		n := a.asked
		a.mu.Unlock()
		if answer != nil {
			answer(w, r)
			return
		}
		challenge := `Basic realm="x"`
		if n%2 == 0 {
			challenge = fmt.Sprintf(`Bearer realm="%s/token"`, a.URL)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(a.Close)
	return a
}

// learnt fails when the attacker has got anything.
func (a *attacker) learnt(t *testing.T, wasAsked bool) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.told) > 0 || (a.asked > 0) != wasAsked {
		t.Errorf("asked %d times, told %q", a.asked, a.told)
	}
}

// challenging is a registry that wants the header, and hands the others to
// next.
func challenging(challenge string, next http.HandlerFunc) func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next(w, r)
	}
}

func bearerAt(realm string) string { return fmt.Sprintf(`Bearer realm="%s",service="s"`, realm) }

// pull asks a registry for a manifest and a blob with all that is secret.
func pull(t *testing.T, r *Repository) error {
	t.Helper()
	_, _, err := r.Manifest(t.Context(), "v1", nil, 1<<20)
	_, err2 := r.Blob(t.Context(), blobDesc)
	if err == nil {
		err = err2
	}
	return err
}

// withKey configures a header for a host on loopback.
func withKey(t *testing.T, s *server) Client {
	return Client{HostsDirs: []string{hostsDir(t, "_default", fmt.Sprintf("server = %q\n[header]\nx-key = \"configured\"\n", s.URL))}, ProgressTimeout: time.Minute}
}

// remote is a registry that is not on loopback, served by s.
func remote(t *testing.T, s *server, auth *runtimeapi.AuthConfig) *Repository {
	dir := hostsDir(t, "registry.example.com", "server = \"http://registry.example.com\"\n")
	r := repository(t, Client{HostsDirs: []string{dir}, ProgressTimeout: time.Minute}, "registry.example.com", auth)
	dialTo(r, s.Server)
	return r
}

// refusedRealm is of a registry elsewhere, or of one on loopback, which may
// lead to loopback.
func refusedRealm(loopback bool, realm func(a *attacker) string) func(t *testing.T) {
	return func(t *testing.T) {
		a := newAttacker(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
		s := newServer(t, challenging(bearerAt(realm(a)), func(w http.ResponseWriter, _ *http.Request) {}))
		r := remote(t, s, basicAuth())
		r.hosts[0].transport.loopback = loopback
		if err := pull(t, r); !errdefs.IsPermissionDenied(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, false)
	}
}
