package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

var identity = &runtimeapi.AuthConfig{IdentityToken: "refresh-me"}

var credentialCases = map[string]func(t *testing.T){
	// A blob's place elsewhere asks for credentials, as in the layer's urls.
	"CVE-2020-15157-blob-elsewhere-challenges": func(t *testing.T) {
		a := newAttacker(t, nil)
		s := newServer(t, challenging(`Basic realm="x"`, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, a.URL+"/x", http.StatusTemporaryRedirect)
		}))
		if err := pull(t, repository(t, withKey(t, s), s.host(), basicAuth())); !errdefs.IsUnauthorized(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, true)
	},
	"CVE-2020-15157-urls-are-not-asked": func(t *testing.T) {
		a := newAttacker(t, nil)
		s := newServer(t, nil)
		desc := blobDesc
		desc.URLs = []string{a.URL + "/x"}
		if _, err := repository(t, withKey(t, s), s.host(), basicAuth()).Blob(t.Context(), desc); !errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, false)
	},
	// skip_verify of a registry is not that of its token server.
	"CVE-2019-10214-token-server-not-verified": func(t *testing.T) {
		a := newAttacker(t, nil)
		selfSigned := secure(t, nil, a.Config.Handler)
		s := newServer(t, challenging(bearerAt(selfSigned.URL), func(w http.ResponseWriter, _ *http.Request) {}))
		dir := hostsDir(t, "_default", fmt.Sprintf("server = %q\nskip_verify = true\n", s.URL))
		if err := pull(t, repository(t, Client{HostsDirs: []string{dir}}, s.host(), basicAuth())); !errdefs.IsUnavailable(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, false)
	},
	"CVE-2019-10214-client-certificate-stays": func(t *testing.T) {
		dir := t.TempDir()
		newAuthority(t).files(dir)
		h, err := newHost(hostConfig{scheme: "https", host: "r.example.com", client: [][2]string{{dir + "/client.pem"}}}, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if len(h.transport.own.TLSClientConfig.Certificates) != 1 || len(h.transport.other.TLSClientConfig.Certificates) != 0 {
			t.Error("the client certificate of a host is not for that host alone")
		}
	},
	"CVE-2026-48978-realm-with-user": refusedRealm(true, func(a *attacker) string { return strings.Replace(a.URL, "://", "://user:pw@", 1) }),
	"2.4-realm-on-loopback":          refusedRealm(false, func(a *attacker) string { return a.URL }),
	"2.4-realm-on-localhost":         refusedRealm(false, func(a *attacker) string { return strings.Replace(a.URL, "127.0.0.1", "localhost", 1) }),
	"2.4-realm-mapped-loopback":      refusedRealm(false, func(a *attacker) string { return strings.Replace(a.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1) }),
	"2.4-realm-unspecified":          refusedRealm(false, func(a *attacker) string { return strings.Replace(a.URL, "127.0.0.1", "0.0.0.0", 1) }),
	"2.4-realm-metadata-server":      refusedRealm(false, func(*attacker) string { return "http://169.254.169.254/latest" }),
	"2.4-realm-link-local":           refusedRealm(false, func(*attacker) string { return "http://[fe80::1%25lo]/" }),
	"2.4-realm-unix":                 refusedRealm(true, func(*attacker) string { return "unix:///run/gantry/gantry.sock" }),
	"2.4-realm-file":                 refusedRealm(true, func(*attacker) string { return "file:///etc/shadow" }),
	"2.4-realm-no-host":              refusedRealm(true, func(*attacker) string { return "/token" }),
	"2.4-realm-without-tls": func(t *testing.T) {
		a := newAttacker(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
		ca := newAuthority(t)
		s := secureRegistry(t, ca, challenging(bearerAt(a.URL), func(w http.ResponseWriter, _ *http.Request) {}))
		r := trusting(t, ca, s, basicAuth())
		r.hosts[0].transport.loopback = true // it is the scheme that is refused
		if err := pull(t, r); !errdefs.IsPermissionDenied(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, false)
	},
	// A name that leads to loopback is found out when it is looked up.
	"2.4-realm-name-of-loopback": func(t *testing.T) {
		a := newAttacker(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
		realm := strings.Replace(a.URL, "127.0.0.1", "token.example.com", 1)
		s := newServer(t, challenging(bearerAt(realm), func(w http.ResponseWriter, _ *http.Request) {}))
		r := remote(t, s, basicAuth())
		r.hosts[0].transport.outside.Resolver = loopbackDNS(t)
		if err := pull(t, r); !errdefs.IsPermissionDenied(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, false)
	},
	// A proxy would look the name up and go there.
	"2.4-realm-through-a-proxy": func(t *testing.T) {
		a := newAttacker(t, nil)
		s := newServer(t, challenging(bearerAt("http://169.254.169.254/latest"), func(w http.ResponseWriter, _ *http.Request) {}))
		r := remote(t, s, basicAuth())
		r.hosts[0].transport.other.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(a.URL) }
		if err := pull(t, r); !errdefs.IsPermissionDenied(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, false)
	},
	"2.4-realm-redirects-get": func(t *testing.T) {
		a := newAttacker(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
		tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, a.URL, http.StatusFound) }))
		t.Cleanup(tokens.Close)
		s := newServer(t, challenging(bearerAt(tokens.URL), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
		if err := pull(t, repository(t, Client{}, s.host(), basicAuth())); !errdefs.IsPermissionDenied(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, true)
	},
	"CVE-2026-50151-post-redirected": func(t *testing.T) {
		for _, code := range []int{301, 302, 303, 307, 308} {
			a := newAttacker(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
			tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, a.URL, code) }))
			t.Cleanup(tokens.Close)
			s := newServer(t, challenging(bearerAt(tokens.URL), func(w http.ResponseWriter, _ *http.Request) {}))
			if err := pull(t, repository(t, Client{}, s.host(), identity)); err == nil {
				t.Errorf("%d: no error", code)
			}
			a.learnt(t, false)
		}
	},
	// The refresh token is for the realm, never for the registry, and what a
	// token server offers as a new one is not kept.
	"2.4-refresh-token-capture": func(t *testing.T) {
		tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"access_token":"tok","refresh_token":"captured"}`)
		}))
		t.Cleanup(tokens.Close)
		s := newServer(t, challenging(bearerAt(tokens.URL), func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) }))
		r := repository(t, Client{}, s.host(), identity)
		_ = pull(t, r)
		for _, v := range s.header("Authorization") {
			if v != "Bearer tok" {
				t.Errorf("the registry got %s", v)
			}
		}
		if r.hosts[0].auth.cred.identity != "refresh-me" {
			t.Error("the token server's token is kept")
		}
	},
	"2.4-refresh-token-for-basic": func(t *testing.T) {
		s := newServer(t, challenging(`Basic realm="x"`, func(w http.ResponseWriter, _ *http.Request) {}))
		if err := pull(t, repository(t, Client{}, s.host(), identity)); !errdefs.IsUnauthorized(err) || len(s.header("Authorization")) > 0 {
			t.Errorf("%v, the registry got %v", err, s.header("Authorization"))
		}
	},
	"2.4-scope-widened": func(t *testing.T) {
		var scopes []string
		var s *server
		s = newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if r.URL.Path == "/token" {
				scopes = append(scopes, r.URL.Query()["scope"]...)
				fmt.Fprint(w, `{"token":"tok"}`)
				return
			}
			challenging(bearerAt(s.URL+"/token?scope=registry:catalog:*")+`,scope="repository:other:pull repository:r:pull,push,delete registry:catalog:*"`,
				func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })(w, r, nil)
		})
		_ = pull(t, repository(t, Client{}, s.host(), basicAuth()))
		if len(scopes) != 1 || scopes[0] != "repository:r:pull" {
			t.Errorf("scopes %q", scopes)
		}
	},
	"2.4-401-loop": func(t *testing.T) {
		var s *server
		n := 0
		s = newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if r.URL.Path == "/token" {
				n++
				fmt.Fprintf(w, `{"token":"tok%d"}`, n)
				return
			}
			w.Header().Set("WWW-Authenticate", bearerAt(s.URL+"/token"))
			w.WriteHeader(http.StatusUnauthorized)
		})
		_, _, err := repository(t, Client{}, s.host(), basicAuth()).Manifest(t.Context(), "v1", nil, 1<<20)
		if !errdefs.IsUnauthorized(err) || s.count() > 5 {
			t.Errorf("%d requests, %v", s.count(), err)
		}
	},
	"2.4-challenge-of-10000-params": func(t *testing.T) {
		for _, format := range []string{`,p%d="x"`, `, Bearer realm="http://x/%d"`} {
			many := []byte(`Bearer realm="http://127.0.0.1:1/"`)
			for i := range 10_000 {
				many = fmt.Appendf(many, format, i)
			}
			text := string(many)
			if c, err := parseChallenges([]string{text}); err == nil {
				t.Errorf("%d challenges were read", len(c))
			}
			s := newServer(t, challenging(text, func(w http.ResponseWriter, _ *http.Request) {}))
			if err := pull(t, repository(t, Client{}, s.host(), basicAuth())); err == nil || len(err.Error()) > 1000 {
				t.Errorf("got %.200v", err)
			}
		}
	},
	"CVE-2023-45289-chain-a-b-b": chain(func(a, b *server) []string { return []string{b.URL, b.URL, b.URL} }),
	"CVE-2024-45336-chain-a-b-a-b": func(t *testing.T) {
		chain(func(a, b *server) []string { return []string{b.URL, a.URL, b.URL} })(t)
	},
	"CVE-2026-33540-signed-location-in-referer": func(t *testing.T) {
		a := newAttacker(t, nil)
		cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, a.URL, http.StatusFound) }))
		t.Cleanup(cdn.Close)
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, cdn.URL+"/x?sig=p4ss", http.StatusFound)
		})
		_ = pull(t, repository(t, Client{}, s.host(), nil))
		a.learnt(t, true)
	},
	"2.4-redirect-to-metadata-server": func(t *testing.T) {
		for _, to := range []string{"http://169.254.169.254/latest/", "http://127.0.0.1:1/", "http://[fe80::1%25lo]/", "http://localhost:1/"} {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				http.Redirect(w, r, to, http.StatusFound)
			})
			if err := pull(t, remote(t, s, nil)); !errdefs.IsPermissionDenied(err) {
				t.Errorf("%s: %v", to, err)
			}
		}
	},
	"CVE-2026-49349-redirect-with-user": func(t *testing.T) {
		a := newAttacker(t, nil)
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, strings.Replace(a.URL, "://", "://user:pw@", 1), http.StatusFound)
		})
		if err := pull(t, repository(t, Client{}, s.host(), nil)); !errdefs.IsPermissionDenied(err) {
			t.Errorf("got %v", err)
		}
		a.learnt(t, false)
	},
	// Nothing secret is logged, at the highest verbosity, nor in an error.
	"CVE-2019-13509-log": func(t *testing.T) {
		logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(10)))
		ctx := klog.NewContext(t.Context(), logger)
		var errs strings.Builder
		for _, fault := range []http.HandlerFunc{
			func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusBadGateway)
				fmt.Fprintf(w, `{"errors":[{"code":"X","message":"you are %s at http://x/?sig=p4ss-q"}]}`, r.Header.Get("Authorization"))
			},
			func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://127.0.0.1:1/x?sig=p4ss-q", http.StatusFound)
			},
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "http://[::1/x?sig=p4ss-q")
				w.WriteHeader(http.StatusFound)
			},
			func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
		} {
			mirror := newServer(t, challenging(`Basic realm="x"`, fault))
			var s *server
			s = newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path == "/token" {
					fmt.Fprint(w, `{"token":"p4ss-tok"}`)
					return
				}
				challenging(bearerAt(s.URL+"/token"), fault)(w, r, next)
			})
			file := dockerConfig(t, fmt.Sprintf(`{"auths":{%q:{"username":"u","password":"p4ss-file"}}}`, mirror.host()))
			dir := hostsDir(t, "_default", fmt.Sprintf("[host.%q]\n[host.%q.header]\nx-key = \"p4ss-key\"\n", mirror.URL, mirror.URL))
			r := repository(t, Client{HostsDirs: []string{dir}, DockerConfig: file}, s.host(), &runtimeapi.AuthConfig{Username: "u", Password: "p4ss-pull"})
			_, _, err := r.Manifest(ctx, "v1", nil, 1<<20)
			fmt.Fprintln(&errs, err)
			_, err = r.Blob(ctx, blobDesc)
			fmt.Fprintln(&errs, err)
		}
		buffer := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
		if text := buffer + errs.String(); strings.Contains(text, "p4ss") || !strings.Contains(buffer, "Registry host failed") ||
			strings.Contains(text, basic("u", "p4ss-pull")[6:]) || strings.Contains(text, basic("u", "p4ss-file")[6:]) {
			t.Errorf("log and errors:\n%s", text)
		}
	},
}

// chain has a registry redirect over several places, none of which may get
// credentials but the registry itself.
func chain(places func(a, b *server) []string) func(t *testing.T) {
	return func(t *testing.T) {
		var a, b *server
		hop := func(w http.ResponseWriter, r *http.Request) {
			var n int
			_, _ = fmt.Sscanf(r.URL.Query().Get("hop"), "%d", &n)
			if to := places(a, b); n < len(to) {
				http.Redirect(w, r, fmt.Sprintf("%s/x?hop=%d", to[n], n+1), http.StatusTemporaryRedirect)
			}
		}
		b = newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) { hop(w, r) })
		a = newServer(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Query().Get("hop") != "" {
				hop(w, r)
				return
			}
			challenging(`Basic realm="x"`, hop)(w, r, next)
		})
		_ = pull(t, repository(t, withKey(t, a), a.host(), basicAuth()))
		if b.count() < 2 || len(b.header("Authorization"))+len(b.header("X-Key"))+len(b.header("Referer")) > 0 {
			t.Errorf("%d requests arrived with %v %v %v", b.count(), b.header("Authorization"), b.header("X-Key"), b.header("Referer"))
		}
	}
}
