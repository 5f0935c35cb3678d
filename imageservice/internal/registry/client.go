package registry

import (
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client is what all pulls have in common.
type Client struct {
	HostsDirs []string // certs.d directories, the first with an entry counts
	// DockerConfig is a file in the form of Docker's config.json. "" and an
	// absent file: none.
	DockerConfig string
	// ProgressTimeout is how long a transfer may stand still.
	ProgressTimeout time.Duration
	// Ranges is how many parts of a large blob are fetched at a time; 0 and 1
	// are a single stream. A blob takes 4 MiB of memory for each, and 4 more.
	Ranges int

	backoff time.Duration // of the first retry; 0 means 200 ms. Tests shorten it.
}

// Repository fetches what belongs to one name, with one caller's credentials.
type Repository struct {
	name    string // path of the repository at its registry
	domain  string
	hosts   []*host
	timeout time.Duration
	backoff time.Duration
	ranges  int

	mu      sync.Mutex
	doubted map[digest.Digest][]*host // those that answered with something else
}

// Repository prepares to fetch from the repository of a name. No request is
// made yet. The caller closes it.
func (c *Client) Repository(name reference.Named, auth *runtimeapi.AuthConfig) (*Repository, error) {
	r := &Repository{
		name:    reference.Path(name),
		domain:  reference.Domain(name),
		timeout: c.ProgressTimeout,
		backoff: c.backoff,
		ranges:  c.Ranges,
		doubted: make(map[digest.Digest][]*host),
	}
	if r.timeout <= 0 {
		r.timeout = time.Minute
	}
	if r.backoff <= 0 {
		r.backoff = 200 * time.Millisecond
	}
	keys, err := newKeyring(auth, c.DockerConfig, r.domain, r.name)
	if err != nil {
		return nil, err
	}
	configs, err := c.hostConfigs(r.domain)
	if err != nil {
		return nil, err
	}
	for _, cfg := range configs {
		h, err := newHost(cfg, r.timeout)
		if err != nil {
			r.Close()
			return nil, err
		}
		h.mirror = h.name != canonical(endpoint(r.domain), h.scheme)
		h.auth = newAuthorizer(h, keys.forHost(h), "repository:"+r.name+":pull")
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}

// Close closes the connections that are kept for the next request.
func (r *Repository) Close() {
	for _, h := range r.hosts {
		h.transport.CloseIdleConnections()
	}
}
