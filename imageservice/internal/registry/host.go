package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// host is one that serves a repository.
type host struct {
	scheme    string
	name      string // host and port, in canonical form
	path      string
	caps      capability
	header    http.Header
	mirror    bool
	guess     bool
	client    *http.Client
	transport *transport
	auth      *authorizer
	plain     atomic.Bool // guess turned out to be http
	down      atomic.Bool // failed during this pull, not for lack of what was asked for
}

func newHost(c hostConfig, timeout time.Duration) (*host, error) {
	t, err := newTransport(c, timeout)
	if err != nil {
		return nil, err
	}
	h := &host{
		scheme: c.scheme, name: canonical(c.host, c.scheme), path: c.path,
		caps: c.caps, header: c.header, guess: c.guess, transport: t,
	}
	h.client = &http.Client{Transport: t, CheckRedirect: h.checkRedirect}
	return h, nil
}

// currentScheme is https but for hosts that were configured or found to have
// none.
func (h *host) currentScheme() string {
	if h.plain.Load() {
		return "http"
	}
	return h.scheme
}

// is says whether a URL is of this very host.
func (h *host) is(u *url.URL) bool {
	return u.Scheme == h.currentScheme() && canonical(u.Host, u.Scheme) == h.name
}

// canonical is a host as it is compared: in lower case and without the
// scheme's own port. Without a scheme https is meant.
func canonical(host, scheme string) string {
	host = strings.ToLower(host)
	if scheme == "http" {
		return strings.TrimSuffix(host, ":80")
	}
	return strings.TrimSuffix(host, ":443")
}

// endpoint is the host that serves a domain. Docker's has several names.
func endpoint(domain string) string {
	switch domain {
	case "docker.io", "index.docker.io":
		return "registry-1.docker.io"
	}
	return domain
}

func isLoopback(hostport string) bool {
	name := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// transport sends what goes to a host itself with the TLS settings of that
// host. Where the host leads by a redirect or a token's realm, it sends with
// the host's CAs alone: without its client certificate, always verified, and
// never into this node or to link-local addresses, where cloud providers hand
// out a node's own credentials.
type transport struct {
	addr       string // canonical, of the host
	scheme     string
	own, other *http.Transport
	outside    net.Dialer // of other
	loopback   bool       // the host is on this node, and may lead there
}

func newTransport(c hostConfig, timeout time.Duration) (*transport, error) {
	t := &transport{addr: canonical(c.host, c.scheme), scheme: c.scheme, loopback: isLoopback(c.host)}
	roots, certs, err := c.certificates()
	if err != nil {
		return nil, err
	}
	dial := c.dialTimeout
	if dial == 0 {
		dial = min(30*time.Second, timeout)
	}
	base := http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		MaxIdleConnsPerHost:    32, // of layers and of their ranges
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    min(10*time.Second, timeout),
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // digests are of the bytes as they are sent
		Protocols:              new(http.Protocols),
	}
	base.Protocols.SetHTTP1(true)
	t.own, t.other = base.Clone(), base.Clone()
	t.own.DialContext = (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext
	t.outside = net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second, ControlContext: t.control}
	t.other.DialContext = t.outside.DialContext
	t.own.TLSClientConfig = &tls.Config{RootCAs: roots, Certificates: certs, InsecureSkipVerify: c.skipVerify} //nolint:gosec // as configured
	t.other.TLSClientConfig = &tls.Config{RootCAs: roots}
	return t, nil
}

func (c *hostConfig) certificates() (*x509.CertPool, []tls.Certificate, error) {
	if c.scheme != "https" {
		return nil, nil, nil
	}
	var roots *x509.CertPool // nil: those of the system
	for _, file := range c.ca {
		if roots == nil {
			var err error
			if roots, err = x509.SystemCertPool(); err != nil {
				return nil, nil, fmt.Errorf("certificates of the system: %w", err)
			}
		}
		pem, err := readFile(file, maxFile)
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			err = errors.New("no certificate in it")
		}
		if err != nil {
			return nil, nil, hostsFileError("ca "+file, err)
		}
	}
	var certs []tls.Certificate
	for _, pair := range c.client {
		var pem [2][]byte
		for i, file := range pair {
			if file == "" {
				pem[i] = pem[0]
				continue
			}
			var err error
			if pem[i], err = readFile(file, maxFile); err != nil {
				return nil, nil, hostsFileError("client "+file, err)
			}
		}
		cert, err := tls.X509KeyPair(pem[0], pem[1])
		if err != nil {
			return nil, nil, hostsFileError("client "+pair[0], err)
		}
		certs = append(certs, cert)
	}
	return roots, certs, nil
}

type proxiedKey struct{}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if canonical(req.URL.Host, req.URL.Scheme) == t.addr {
		return t.own.RoundTrip(req)
	}
	if err := t.refuses(req.URL.Hostname()); err != nil {
		return nil, err
	}
	if proxy, err := t.other.Proxy(req); err == nil && proxy != nil {
		// The proxy may be anywhere; it does the looking up.
		req = req.WithContext(context.WithValue(req.Context(), proxiedKey{}, true))
	}
	return t.other.RoundTrip(req)
}

// control sees the address that a name was resolved to.
func (t *transport) control(ctx context.Context, _, address string, _ syscall.RawConn) error {
	if ctx.Value(proxiedKey{}) != nil {
		return nil
	}
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	return t.refuses(name)
}

func (t *transport) refuses(name string) error {
	ip, err := netip.ParseAddr(name)
	ip = ip.Unmap().WithZone("")
	switch {
	case err != nil && !isLoopback(name), t.loopback && (err != nil || ip.IsLoopback()):
		return nil
	case err != nil, ip.IsLoopback(), ip.IsUnspecified(), ip.IsMulticast(), ip.IsLinkLocalUnicast():
		return fmt.Errorf("registry leads to %s, which is this node or link-local: %w", name, errdefs.ErrPermissionDenied)
	}
	return nil
}

func (t *transport) CloseIdleConnections() {
	t.own.CloseIdleConnections()
	t.other.CloseIdleConnections()
}

const maxRedirects = 5

// checkRedirect follows where a registry keeps its blobs. Nothing but what
// the transfer needs goes to another origin.
func (h *host) checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0]
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects: %w", maxRedirects, errdefs.ErrFailedPrecondition)
	}
	if req.URL.Scheme != "https" && (req.URL.Scheme != "http" || via[len(via)-1].URL.Scheme == "https") {
		return fmt.Errorf("redirect from %s to %q: %w", via[len(via)-1].URL.Scheme, abbreviate(req.URL.Scheme), errdefs.ErrPermissionDenied)
	}
	if req.URL.User != nil {
		return fmt.Errorf("redirect to %s with a user name: %w", req.URL.Host, errdefs.ErrPermissionDenied)
	}
	if first.Method != http.MethodGet && first.Method != http.MethodHead {
		return fmt.Errorf("redirect of a %s to %s: %w", first.Method, req.URL.Host, errdefs.ErrPermissionDenied)
	}
	if sameOrigin(req.URL, first.URL) {
		return nil
	}
	for key := range req.Header {
		switch key {
		case "Accept", "Accept-Encoding", "Range", "User-Agent":
		default:
			delete(req.Header, key)
		}
	}
	return nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && canonical(a.Host, a.Scheme) == canonical(b.Host, b.Scheme)
}
