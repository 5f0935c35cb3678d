package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// authority makes certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.key, a.cert = a.sign(&x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) sign(c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	c.BasicConstraintsValid = true
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert
}

func (a *authority) server(names ...string) tls.Certificate {
	c := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	key, cert := a.sign(c)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// files writes ca.pem, client.cert, client.key and client.pem (both).
func (a *authority) files(dir string) {
	a.t.Helper()
	key, cert := a.sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certPEM, keyPEM := pemOf("CERTIFICATE", cert.Raw), pemOf("PRIVATE KEY", der)
	for name, body := range map[string][]byte{
		"ca.pem": pemOf("CERTIFICATE", a.cert.Raw), "client.cert": certPEM, "client.key": keyPEM, "client.pem": append(certPEM, keyPEM...),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// secure is a server of r:v1 with TLS.
func secure(t testing.TB, conf *tls.Config, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = conf
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func contents(t testing.TB) http.Handler {
	s := newServer(t, nil)
	s.fill(t.(*testing.T))
	return s.Config.Handler
}

func TestTLS(t *testing.T) {
	own, other := newAuthority(t), newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(own.cert)
	h := contents(t)
	good := secure(t, &tls.Config{Certificates: []tls.Certificate{own.server("127.0.0.1")}}, h)
	misnamed := secure(t, &tls.Config{Certificates: []tls.Certificate{own.server("registry.example.com")}}, h)
	mutual := secure(t, &tls.Config{Certificates: []tls.Certificate{own.server("127.0.0.1")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}, h)
	for name, c := range map[string]struct {
		server   *httptest.Server
		settings string
		ok       bool
	}{
		"CA":                           {good, `ca = "ca.pem"`, true},
		"CA in a list":                 {good, `ca = ["other/ca.pem", "ca.pem"]`, true},
		"no CA":                        {good, ``, false},
		"wrong CA":                     {good, `ca = "other/ca.pem"`, false},
		"skip_verify":                  {good, `skip_verify = true`, true},
		"other name":                   {misnamed, `ca = "ca.pem"`, false},
		"other name with skip_verify":  {misnamed, `skip_verify = true`, true},
		"client pair":                  {mutual, "ca = \"ca.pem\"\nclient = [[\"client.cert\", \"client.key\"]]", true},
		"client in one file":           {mutual, "ca = \"ca.pem\"\nclient = \"client.pem\"", true},
		"client in a list":             {mutual, "ca = \"ca.pem\"\nclient = [\"client.pem\"]", true},
		"no client":                    {mutual, `ca = "ca.pem"`, false},
		"client of another authority":  {mutual, "ca = \"ca.pem\"\nclient = \"other/client.pem\"", false},
		"client certificate, wrong CA": {mutual, "ca = \"other/ca.pem\"\nclient = \"client.pem\"", false},
	} {
		t.Run(name, func(t *testing.T) {
			root := hostsDir(t, "registry.example.com", fmt.Sprintf("server = %q\n%s\n", c.server.URL, c.settings))
			dir := filepath.Join(root, "registry.example.com")
			own.files(dir)
			if err := os.Mkdir(filepath.Join(dir, "other"), 0o755); err != nil {
				t.Fatal(err)
			}
			other.files(filepath.Join(dir, "other"))
			err := fetchAll(t, repository(t, Client{HostsDirs: []string{root}}, "registry.example.com", nil))
			if c.ok != (err == nil) || (!c.ok && !errdefs.IsUnavailable(err)) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("Docker's layout", func(t *testing.T) {
		host := strings.TrimPrefix(mutual.URL, "https://")
		root := t.TempDir()
		dir := filepath.Join(root, host)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		own.files(dir)
		if err := os.Rename(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.crt")); err != nil {
			t.Fatal(err)
		}
		if err := fetchAll(t, repository(t, Client{HostsDirs: []string{root}}, host, nil)); err != nil {
			t.Error(err)
		}
	})
}

// dialTo makes a host's name lead to a server of the test.
func dialTo(r *Repository, s *httptest.Server) {
	for _, h := range r.hosts {
		to := func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.Listener.Addr().String())
		}
		h.transport.own.DialContext = to
	}
}

// An https registry whose TLS fails is never asked without, and a host that
// was not configured so gets no plain request at all.
func TestNoDowngrade(t *testing.T) {
	var asked atomic.Int32
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, string(manifestBody))
	}))
	defer plain.Close()
	r := repository(t, Client{}, "registry.example.com:5000", nil)
	dialTo(r, plain)
	if _, _, err := r.Manifest(t.Context(), "v1", nil, 1<<20); !errdefs.IsUnavailable(err) || asked.Load() != 0 {
		t.Errorf("asked %d times without TLS, %v", asked.Load(), err)
	}
	// On loopback a certificate that was configured and does not fit is an
	// error too.
	root := hostsDir(t, "_default", "ca = \"ca.pem\"\n")
	newAuthority(t).files(filepath.Join(root, "_default"))
	r = repository(t, Client{HostsDirs: []string{root}}, strings.TrimPrefix(plain.URL, "http://"), nil)
	if _, _, err := r.Manifest(t.Context(), "v1", nil, 1<<20); !errdefs.IsUnavailable(err) || asked.Load() != 0 {
		t.Errorf("asked %d times without TLS, %v", asked.Load(), err)
	}
}

// The environment's proxy is asked; it sees no credentials of a registry with
// TLS.
func TestProxy(t *testing.T) {
	if os.Getenv("GANTRY_TEST_PROXIED") == "1" {
		for _, domain := range []string{"plain.example.com", "secure.example.com"} {
			root := hostsDir(t, "plain.example.com", "server = \"http://plain.example.com\"\n")
			r := repository(t, Client{HostsDirs: []string{root}}, domain, basicAuth())
			_, _, err := r.Manifest(t.Context(), "v1", nil, 1<<20)
			fmt.Printf("%s: %v\n", domain, err)
		}
		return
	}
	var seen []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Method+" "+r.RequestURI+" "+r.Header.Get("Authorization")+r.Header.Get("Proxy-Authorization"))
		w.WriteHeader(http.StatusForbidden)
	}))
	defer proxy.Close()
	out := rerun(t, "TestProxy", "GANTRY_TEST_PROXIED=1", "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "NO_PROXY=")
	want := []string{"GET http://plain.example.com/v2/r/manifests/v1 ", "CONNECT secure.example.com:443 "}
	if len(seen) != 2 || seen[0] != want[0] || seen[1] != want[1] {
		t.Errorf("the proxy saw %q; output:\n%s", seen, out)
	}
}

// loopbackDNS answers every name with 127.0.0.1.
func loopbackDNS(t *testing.T) *net.Resolver {
	t.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			end := 12 // the question: labels, type, class
			for end < n && buf[end] != 0 {
				end += int(buf[end]) + 1
			}
			end += 5
			answer := append([]byte{buf[0], buf[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, buf[12:end]...)
			if buf[end-3] == 1 { // A
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1)
			}
			_, _ = l.WriteTo(answer, from)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", l.LocalAddr().String())
	}}
}
