package streaming

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// get sends a request that follows no redirect.
func get(t testing.TB, method, address string, header http.Header) (int, string) {
	t.Helper()
	req := must(http.NewRequest(method, address, nil))(t)
	req.Header = header
	req.Host = header.Get("Host")
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// Without a token of this verb there is nothing here, whoever asks and however.
func TestSecurity(t *testing.T) {
	s := serve(t, testConfig(), echo(0))
	spdy := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}
	exec := func() string { return execURL(t, s, all) }
	token := func() string { return exec()[strings.LastIndex(exec(), "/")+1:] }

	t.Run("2.7-no-token", func(t *testing.T) {
		for _, path := range []string{"", "/", "/exec", "/exec/", "//exec/x", "/exec/../exec/x", "/exec/" + strings.Repeat("A", 32), "/debug/pprof/", "/healthz", "/exec/%00", "/attach/" + token(), "/portforward/" + token(), "/Exec/" + token(), "/exec//" + token(), "/exec/" + token() + "/", "/./exec/" + token()} {
			if code, _ := get(t, http.MethodGet, s.base+path, spdy); code != http.StatusNotFound {
				t.Errorf("%s: %d", path, code)
			}
		}
	})
	t.Run("2.7-used-once", func(t *testing.T) {
		address := exec()
		if got := runSPDY(t, dialSPDY(t, address, protocolV4), "x"); got.stdout != "x" {
			t.Fatalf("stdout %q", got.stdout)
		}
		if _, resp := upgrade(t, address, http.Header{}); resp.StatusCode != http.StatusNotFound {
			t.Errorf("the second time: %s", resp.Status)
		}
	})
	t.Run("2.7-used-once-in-vain", func(t *testing.T) {
		address := exec()
		if code, _ := get(t, http.MethodGet, address, nil); code != http.StatusBadRequest {
			t.Errorf("no upgrade: %d", code)
		}
		if code, _ := get(t, http.MethodGet, address, spdy); code != http.StatusNotFound {
			t.Errorf("after that: %d", code)
		}
	})
	t.Run("2.7-other-verb", func(t *testing.T) {
		address := exec()
		if _, resp := upgrade(t, strings.Replace(address, "/exec/", "/attach/", 1), http.Header{}); resp.StatusCode != http.StatusNotFound {
			t.Errorf("exec's token on attach: %s", resp.Status)
		}
		runSPDY(t, dialSPDY(t, address, protocolV4), "") // it was not used up
	})
	// What a page in a browser can send, once it has rebound its name to this address. See ServeHTTP.
	t.Run("2.7-rebinding", func(t *testing.T) {
		foreign := http.Header{"Host": {"attacker.example"}, "Origin": {"https://attacker.example"}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
		for _, path := range []string{"/", "/exec/", "/exec/" + strings.Repeat("A", 32)} {
			if code, body := get(t, http.MethodGet, s.base+path, foreign); code != http.StatusNotFound || strings.Contains(body, "exec") {
				t.Errorf("%s: %d %s", path, code, body)
			}
		}
		// And with a token, as the kubelet passes it on from its own client.
		if _, resp := upgrade(t, exec(), http.Header{"Host": {"node.example:10250"}, "Origin": {"https://console.example"}}); resp.StatusCode != http.StatusSwitchingProtocols {
			t.Errorf("through a kubelet: %s", resp.Status)
		}
	})
	t.Run("2.7-methods", func(t *testing.T) {
		for _, method := range []string{http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodConnect, http.MethodTrace, "PRI"} {
			address := exec()
			if code, _ := get(t, method, address, spdy); code/100 != 4 {
				t.Errorf("%s: %d", method, code)
			}
		}
	})
	t.Run("CVE-2018-1002102", func(t *testing.T) { // no answer leads elsewhere
		for _, path := range []string{"", "//evil.example/", "/exec", "/exec/..", "/exec/" + token() + "/..", "/.", "/exec?x"} {
			if code, _ := get(t, http.MethodGet, s.base+path, nil); code/100 == 3 {
				t.Errorf("%s: %d", path, code)
			}
		}
	})
	t.Run("2.7-unknown-protocol", func(t *testing.T) {
		if _, resp := upgrade(t, exec(), http.Header{"X-Stream-Protocol-Version": {"v9.channel.k8s.io"}}); resp.StatusCode != http.StatusForbidden || len(resp.Header.Values("X-Accepted-Stream-Protocol-Versions")) != len(commandSPDY) {
			t.Errorf("SPDY: %s %v", resp.Status, resp.Header)
		}
		header := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}, "Sec-Websocket-Protocol": {"v9.channel.k8s.io"}}
		if code, _ := get(t, http.MethodGet, exec(), header); code != http.StatusForbidden {
			t.Errorf("WebSocket: %d", code)
		}
	})
	t.Run("2.7-long-head", func(t *testing.T) {
		if code, _ := get(t, http.MethodGet, s.base, http.Header{"X": {strings.Repeat("x", 1<<20)}}); code != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%d", code)
		}
	})
}

// What is logged of sessions, failed ones too, at the highest verbosity, holds no token.
func TestSecurityTokensAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	flags := flag.NewFlagSet("", flag.PanicOnError)
	klog.InitFlags(flags)
	before := klog.CaptureState()
	defer before.Restore()
	must(0, flags.Set("v", "10"))(t)
	must(0, flags.Set("logtostderr", "false"))(t)
	klog.SetOutput(&log)
	s, stop := serveUntil(t, testConfig(), echo(0))
	var tokens []string
	for _, header := range []http.Header{{}, {"X-Stream-Protocol-Version": {"v9"}}, {"X-Stream-Protocol-Version": {protocolV4}}} {
		address := execURL(t, s, all)
		tokens = append(tokens, address[strings.LastIndex(address, "/")+1:])
		conn, _ := upgrade(t, address, header)
		fmt.Fprint(conn, "no SPDY at all, but long enough")
		_ = conn.Close()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	klog.Flush()
	for _, token := range tokens {
		if strings.Contains(log.String(), token) {
			t.Errorf("token %s is in the log:\n%s", token, &log)
		}
	}
	if !strings.Contains(log.String(), "Streaming session ended") {
		t.Errorf("nothing was logged:\n%s", &log)
	}
}

// Connections that show no token are closed when there are too many, and those that do get in afterwards.
func TestSecurityNewcomers(t *testing.T) {
	s := serve(t, testConfig(), echo(0))
	var conns []net.Conn
	for range maxNewcomers {
		conns = append(conns, must(net.Dial("tcp", strings.TrimPrefix(s.base, "http://")))(t))
	}
	more := must(net.Dial("tcp", strings.TrimPrefix(s.base, "http://")))(t)
	must(0, more.SetReadDeadline(time.Now().Add(requestTimeout/2)))(t) // until which an idle one is kept at least
	if _, err := more.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many is kept: %v", err)
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	deadline := time.Now().Add(time.Minute)
	for { // until the server has seen them go
		conn := must(net.Dial("tcp", strings.TrimPrefix(s.base, "http://")))(t)
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		if answer, _ := io.ReadAll(conn); strings.Contains(string(answer), "404") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody is served any more")
		}
	}
}

func TestListen(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1:0": "http://127.0.0.1:", "[::1]:0": "http://[::1]:"} {
		cfg := testConfig()
		cfg.Address = address
		s, err := Listen(cfg)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if !strings.HasPrefix(s.base, want) || strings.HasSuffix(s.base, ":0") {
			t.Errorf("%s: %s", address, s.base)
		}
		must(0, s.Close())(t)
	}
	for _, address := range []string{"", "localhost:0", "127.0.0.1", ":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0", "127.0.0.1:65536"} {
		cfg := testConfig()
		cfg.Address = address
		if s, err := Listen(cfg); err == nil {
			t.Errorf("%q is taken: %s", address, s.base)
		}
	}
}

// authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return &authority{key, must(x509.ParseCertificate(der))(t)}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// pair makes a certificate and its key, as files.
func (a *authority) pair(t testing.TB, cert, key string, serial int64) {
	t.Helper()
	private := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key))(t)
	must(0, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))(t)
	must(0, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(private))(t)}), 0o600))(t)
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	ca := newAuthority(t)
	ca.pair(t, file("cert"), file("key"), 7)
	ca.pair(t, file("client"), file("client-key"), 8)
	must(0, os.WriteFile(file("ca"), ca.pem(), 0o600))(t)
	cfg := testConfig()
	cfg.Address = "0.0.0.0:0" // which takes TLS
	cfg.TLS = TLS{Cert: file("cert"), Key: file("key"), ClientCA: file("ca")}
	s := serve(t, cfg, echo(5))
	if !strings.HasPrefix(s.base, "https://127.0.0.1:") {
		t.Fatalf("URLs of %s", s.base)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.pem())
	client := must(tls.LoadX509KeyPair(file("client"), file("client-key")))(t)
	good := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{client}, NextProtos: []string{"h2", "http/1.1"}}
	dial := func(cfg *tls.Config) (*tls.Conn, *http.Response, error) {
		address := execURL(t, s, all)
		conn, err := tls.Dial("tcp", must(url.Parse(address))(t).Host, cfg)
		if err != nil {
			return nil, nil, err
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n\r\n", address, protocolV4)
		resp, err := readResponse(conn)
		return conn, resp, err
	}

	conn, resp, err := dial(good)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	if state := conn.ConnectionState(); state.NegotiatedProtocol != "http/1.1" || state.PeerCertificates[0].SerialNumber.Int64() != 7 {
		t.Errorf("%+v", state)
	}
	if got := runSPDY(t, newSPDYClient(t, conn), "secret"); got.stdout != "secret" || exitCode(t, got.fault) != 5 {
		t.Errorf("%+v", got)
	}
	if _, _, err := dial(&tls.Config{RootCAs: pool}); err == nil {
		t.Error("a client without a certificate is served")
	}
	old := good.Clone()
	old.MaxVersion = tls.VersionTLS11
	if _, _, err := dial(old); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	// Half of the new pair is there: the old one goes on. Then all of it.
	ca.pair(t, file("cert"), file("new-key"), 9)
	if conn, _, err := dial(good); err != nil || conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64() != 7 {
		t.Errorf("between two pairs: %v", err)
	}
	must(0, os.Rename(file("new-key"), file("key")))(t)
	if conn, _, err := dial(good); err != nil || conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64() != 9 {
		t.Errorf("after the change: %v", err)
	}
	for name, files := range map[string]TLS{
		"no key": {Cert: file("cert")}, "no cert": {Key: file("key")}, "only a CA": {ClientCA: file("ca")},
		"no such CA": {Cert: file("cert"), Key: file("key"), ClientCA: file("none")}, "a CA that is none": {Cert: file("cert"), Key: file("key"), ClientCA: file("key")},
	} {
		cfg.TLS = files
		if s, err := Listen(cfg); err == nil {
			t.Errorf("%s: %s", name, s.base)
		}
	}
}

// Clients that do not read hold up nobody else, nor the server's end for longer than its bound.
func TestSlowReaderHoldsUpItself(t *testing.T) {
	t.Parallel()
	s, stop := serveUntil(t, testConfig(), fakeRuntime{exec: func(ctx context.Context, req *runtimeapi.ExecRequest, s Streams) (int, error) {
		if req.GetContainerId() == "writes" {
			return stubborn.exec(ctx, req, s)
		}
		return echo(0).exec(ctx, req, s)
	}})
	slow := allStreams(t, s, "writes")
	ws := dialWS(t, execURL(t, s, named("writes")), protocolV5)
	for range 3 {
		if got := runSPDY(t, dialSPDY(t, execURL(t, s, all), protocolV4), strings.Repeat("x", 4<<20)); len(got.stdout) != 4<<20 {
			t.Errorf("stdout of %d bytes", len(got.stdout))
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	_, _ = slow.conn.Close(), ws.Close()
}
