package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client is what all pulls have in common.
type Client struct {
	HostsDirs []string // certs.d directories, the first with an entry counts
	// ProgressTimeout is how long a transfer may stand still.
	ProgressTimeout time.Duration
}

// Repository fetches what belongs to one name, with one caller's credentials.
type Repository struct {
	name       string // path of the repository at its registry
	domain     string
	hosts      []docker.RegistryHost
	transports []*http.Transport
	timeout    time.Duration
}

// Repository prepares to fetch from the repository of a name. No request is
// made yet. The caller closes it.
func (c *Client) Repository(ctx context.Context, name reference.Named, auth *runtimeapi.AuthConfig) (*Repository, error) {
	domain := reference.Domain(name)
	hosts, transports, err := c.hosts(quiet(ctx), domain, auth)
	if err != nil {
		return nil, err
	}
	return &Repository{
		name:       reference.Path(name),
		domain:     domain,
		hosts:      hosts,
		transports: transports,
		timeout:    c.ProgressTimeout,
	}, nil
}

// Close closes the connections that are kept for the next request.
func (r *Repository) Close() {
	for _, t := range r.transports {
		t.CloseIdleConnections()
	}
}

// Digest asks what a tag is now, without fetching it. "" when the registry
// does not say.
func (r *Repository) Digest(ctx context.Context, tag string, accept []string) (digest.Digest, error) {
	var d digest.Digest
	err := r.each(ctx, docker.HostCapabilityPull|docker.HostCapabilityResolve, func(host *docker.RegistryHost) error {
		resp, err := r.request(ctx, host, http.MethodHead, "manifests/"+tag, accept, 0)
		if err != nil {
			return err
		}
		resp.Body.Close()
		d = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		return nil
	})
	return d, err
}

// Manifest fetches the document of a tag or a digest, of at most max bytes.
// Its descriptor has the digest that the document really has.
func (r *Repository) Manifest(ctx context.Context, ref string, accept []string, max int64) (ocispec.Descriptor, []byte, error) {
	caps := docker.HostCapabilityPull
	want, err := digest.Parse(ref)
	if err != nil {
		want, caps = "", caps|docker.HostCapabilityResolve // a tag
	}
	var desc ocispec.Descriptor
	var body []byte
	err = r.each(ctx, caps, func(host *docker.RegistryHost) error {
		resp, err := r.request(ctx, host, http.MethodGet, "manifests/"+ref, accept, 0)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err = readAll(resp, max); err != nil {
			return broken(host, err)
		}
		mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
		desc = ocispec.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: digest.FromBytes(body), Size: int64(len(body))}
		expect := want
		if said := digest.Digest(resp.Header.Get("Docker-Content-Digest")); expect == "" && said.Validate() == nil && said.Algorithm() == digest.SHA256 {
			expect = said
		}
		if expect != "" && desc.Digest != expect {
			return fmt.Errorf("%s answers manifest %s instead of %s: %w", host.Host, desc.Digest, expect, errdefs.ErrDataLoss)
		}
		return nil
	})
	return desc, body, err
}

// Blob fetches a small blob whole and verifies it.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	b := r.Open(ctx, desc)
	defer b.Close()
	body, err := io.ReadAll(io.LimitReader(b, desc.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) != desc.Size || digest.FromBytes(body) != desc.Digest {
		return nil, fmt.Errorf("registry answers %d bytes with digest %s for blob %s of %d bytes: %w",
			len(body), digest.FromBytes(body), desc.Digest, desc.Size, errdefs.ErrDataLoss)
	}
	return body, nil
}

// each tries the hosts with the capability in their order until one succeeds.
// The error is that of the last, which is the registry itself, with what the
// mirrors said.
func (r *Repository) each(ctx context.Context, caps docker.HostCapabilities, try func(*docker.RegistryHost) error) error {
	err := fmt.Errorf("no host is configured for registry %s: %w", r.domain, errdefs.ErrFailedPrecondition)
	var mirrors []string
	for i := range r.hosts {
		if !r.hosts[i].Capabilities.Has(caps) {
			continue
		}
		if err = try(&r.hosts[i]); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		mirrors = append(mirrors, err.Error())
	}
	if len(mirrors) > 1 {
		return fmt.Errorf("%w (before that: %s)", err, strings.Join(mirrors[:len(mirrors)-1], "; "))
	}
	return err
}

const maxAttempts = 3

// request makes one request to one host and repeats it where that may help.
// The answer is of status 200 or, with an offset, 206.
func (r *Repository) request(ctx context.Context, host *docker.RegistryHost, method, what string, accept []string, offset int64) (*http.Response, error) {
	ctx = docker.WithScope(quiet(ctx), "repository:"+r.name+":pull")
	if host.Scheme == "https" && !docker.IsLocalhost(host.Host) {
		ctx = context.WithValue(ctx, secureKey{}, true)
	}
	var answers []*http.Response // of the current authorization
	for attempt := 1; ; attempt++ {
		resp, err := r.do(ctx, host, method, what, accept, offset)
		again := false
		switch {
		case err != nil:
			again = isTransient(err)
			err = broken(host, err)
		case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent && offset > 0:
			return resp, nil
		case resp.StatusCode == http.StatusUnauthorized:
			answers = append(answers, resp)
			if aerr := host.Authorizer.AddResponses(ctx, answers); aerr == nil && len(answers) < maxAttempts {
				resp.Body.Close()
				attempt--
				continue
			}
			err = r.statusError(host, method, what, resp)
		default:
			again = resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout || resp.StatusCode >= 500
			err = r.statusError(host, method, what, resp)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !again || attempt == maxAttempts {
			return nil, err
		}
		if serr := sleep(ctx, time.Duration(attempt*attempt)*100*time.Millisecond); serr != nil {
			return nil, serr
		}
	}
}

func (r *Repository) do(ctx context.Context, host *docker.RegistryHost, method, what string, accept []string, offset int64) (*http.Response, error) {
	u := url.URL{Scheme: host.Scheme, Host: host.Host, Path: path.Join("/", host.Path, r.name, what)}
	if host.Host != r.domain && host.Host != endpoint(r.domain) {
		u.RawQuery = url.Values{"ns": {r.domain}}.Encode() // a mirror of several registries
	}
	reqCtx := ctx
	if strings.HasPrefix(what, "blobs/") {
		reqCtx = context.WithValue(ctx, blobKey{}, true) // bounded by its reader
	}
	req, err := http.NewRequestWithContext(reqCtx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for key, values := range host.Header {
		req.Header[http.CanonicalHeaderKey(key)] = slices.Clone(values)
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "gantry")
	}
	if len(accept) > 0 {
		req.Header.Set("Accept", strings.Join(accept, ", "))
	}
	req.Header.Set("Accept-Encoding", "identity") // digests are of the bytes as they are sent
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	if err := host.Authorizer.Authorize(ctx, req); err != nil {
		return nil, err
	}
	resp, err := host.Client.Do(req)
	if err != nil {
		return nil, err
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		resp.Body.Close()
		return nil, fmt.Errorf("answer has Content-Encoding %.64q: %w", e, errdefs.ErrDataLoss)
	}
	return resp, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func readAll(resp *http.Response, max int64) ([]byte, error) {
	if resp.ContentLength > max {
		return nil, fmt.Errorf("answer of %d bytes, more than %d: %w", resp.ContentLength, max, errdefs.ErrInvalidArgument)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > max {
		return nil, fmt.Errorf("answer of more than %d bytes: %w", max, errdefs.ErrInvalidArgument)
	}
	return body, nil
}
