package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hosts reads the configuration anew, so that a change counts from the next
// pull on.
func (c *Client) hosts(ctx context.Context, domain string, auth *runtimeapi.AuthConfig) ([]docker.RegistryHost, []*http.Transport, error) {
	creds, err := parseAuth(auth, domain)
	if err != nil {
		return nil, nil, err
	}
	var transports []*http.Transport
	options := config.HostOptions{
		HostDir:     c.hostDir,
		Credentials: creds.forHost,
		UpdateClient: func(client *http.Client) error {
			if t, ok := client.Transport.(*http.Transport); ok {
				transports = append(transports, t)
				client.Transport = &boundedTransport{t}
			}
			client.CheckRedirect = checkRedirect
			return nil
		},
	}
	hosts, err := config.ConfigureHosts(ctx, options)(domain)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the configuration of registry %s: %w", domain, err)
	}
	if creds.bearer != "" {
		for i := range hosts {
			hosts[i].Authorizer = &staticBearer{creds: creds, next: hosts[i].Authorizer}
		}
	}
	return hosts, transports, nil
}

// hostDir finds the directory of a host: that of the first configured
// directory which has one for it or a _default.
func (c *Client) hostDir(host string) (string, error) {
	for _, root := range c.HostsDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		// The library would go on without a file that it cannot read, and
		// so ask the registry that the file is there to replace.
		file := filepath.Join(dir, "hosts.toml")
		body, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		var any map[string]any
		if err := toml.Unmarshal(body, &any); err != nil {
			return "", fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrFailedPrecondition)
		}
		return dir, nil
	}
	return "", fmt.Errorf("host %s: %w", host, errdefs.ErrNotFound)
}

// credentials are those of one pull. They print as nothing.
type credentials struct {
	host             string // the only one that gets them
	username, secret string
	bearer           string
}

func (credentials) String() string { return "credentials" }

// parseAuth reads the CRI's forms of credentials. Those for another registry
// than that of the image are dropped.
func parseAuth(a *runtimeapi.AuthConfig, domain string) (credentials, error) {
	c := credentials{host: endpoint(domain)}
	if a == nil {
		return c, nil
	}
	if a.ServerAddress != "" {
		host := a.ServerAddress
		if !strings.Contains(host, "://") {
			host = "https://" + host
		}
		u, err := url.Parse(host)
		if err != nil || u.Host == "" {
			return c, fmt.Errorf("server_address of the credentials is not an address: %w", errdefs.ErrInvalidArgument)
		}
		c.host = endpoint(u.Host)
	}
	switch {
	case a.RegistryToken != "":
		c.bearer = a.RegistryToken
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.Username != "" || a.Password != "":
		c.username, c.secret = a.Username, a.Password
	case a.Auth != "":
		plain, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return c, fmt.Errorf("auth of the credentials is not base64: %w", errdefs.ErrInvalidArgument)
		}
		user, secret, ok := strings.Cut(string(plain), ":")
		if !ok {
			return c, fmt.Errorf("auth of the credentials is not user:password: %w", errdefs.ErrInvalidArgument)
		}
		c.username, c.secret = user, strings.Trim(secret, "\x00")
	}
	return c, nil
}

func (c credentials) forHost(host string) (string, string, error) {
	if host != c.host {
		return "", "", nil
	}
	return c.username, c.secret, nil
}

// endpoint is the host that serves a domain. Docker's has several names.
func endpoint(domain string) string {
	switch domain {
	case "docker.io", "index.docker.io":
		return "registry-1.docker.io"
	}
	return domain
}

// staticBearer sends the registry_token of the CRI to its host.
type staticBearer struct {
	creds credentials
	next  docker.Authorizer
}

func (b *staticBearer) Authorize(ctx context.Context, req *http.Request) error {
	if req.URL.Host != b.creds.host {
		return b.next.Authorize(ctx, req)
	}
	req.Header.Set("Authorization", "Bearer "+b.creds.bearer)
	return nil
}

func (b *staticBearer) AddResponses(ctx context.Context, rs []*http.Response) error {
	if last := rs[len(rs)-1]; last.Request.URL.Host == b.creds.host {
		return fmt.Errorf("registry does not accept the registry_token: %w", errdefs.ErrPermissionDenied)
	}
	return b.next.AddResponses(ctx, rs)
}

// blobKey marks the context of a request whose body is bounded elsewhere.
type blobKey struct{}

// maxAnswer bounds everything that is not a blob: documents, tokens, errors.
const maxAnswer = 8 << 20

// boundedTransport bounds the bodies that the library reads whole.
type boundedTransport struct{ *http.Transport }

func (t *boundedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if secure, _ := req.Context().Value(secureKey{}).(bool); secure && req.URL.Scheme == "http" {
		// The realm of a token, which the registry names.
		return nil, fmt.Errorf("registry on https sends us to http://%s: %w", req.URL.Host, errdefs.ErrPermissionDenied)
	}
	resp, err := t.Transport.RoundTrip(req)
	if err != nil || req.Context().Value(blobKey{}) != nil {
		return resp, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("answer larger than %d bytes: %w", maxAnswer, errdefs.ErrDataLoss)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// secureKey marks the context of requests to a host that has https.
type secureKey struct{}

// checkRedirect follows where a registry keeps its blobs. Nothing but what
// the transfer needs goes to another origin.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fmt.Errorf("more than %d redirects: %w", len(via), errdefs.ErrFailedPrecondition)
	}
	first := via[0]
	if req.URL.Scheme == first.URL.Scheme && req.URL.Host == first.URL.Host {
		return nil
	}
	// A registry on loopback without TLS was asked by https first.
	if first.URL.Scheme == "https" && req.URL.Scheme != "https" && !docker.IsLocalhost(first.URL.Host) {
		return fmt.Errorf("redirect from https to %s://%s: %w", req.URL.Scheme, req.URL.Host, errdefs.ErrPermissionDenied)
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return fmt.Errorf("redirect of a %s to %s: %w", req.Method, req.URL.Host, errdefs.ErrPermissionDenied)
	}
	for key := range req.Header {
		switch key {
		case "Accept", "Accept-Encoding", "Range", "User-Agent":
		default:
			delete(req.Header, key) // not Del: a configured key may have any case
		}
	}
	return nil
}

// quiet keeps the library from writing lines of its own.
func quiet(ctx context.Context) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.PanicLevel)
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}
