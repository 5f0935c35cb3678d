package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A blob in doubt is taken from hosts that have not given it yet, each once; a
// small one, and one that comes in parts.
func TestDoubt(t *testing.T) {
	body, desc := large()
	for name, c := range map[string]struct {
		desc ocispec.Descriptor
		body []byte
	}{"stream": {blobDesc, blobBody}, "ranges": {desc, body}} {
		t.Run(name, func(t *testing.T) {
			hosts, config := make([]*server, 3), ""
			for i := range hosts {
				hosts[i] = newServer(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) { serveRange(w, r, c.body, all) })
				if i < 2 {
					config += fmt.Sprintf("[host.%q]\n", hosts[i].URL)
				}
			}
			config = fmt.Sprintf("server = %q\n", hosts[2].URL) + config
			r := repository(t, Client{HostsDirs: []string{hostsDir(t, "registry.example.com", config)}, Ranges: 2}, "registry.example.com", nil)
			read := func(from *server) io.ReadCloser {
				t.Helper()
				before := from.count()
				b := r.Open(t.Context(), c.desc)
				defer b.Close()
				if _, err := io.Copy(io.Discard, b); err != nil || from.count() == before {
					t.Errorf("not read from host %s, %v", from.URL, err)
				}
				return b
			}
			wrong := errors.New("something else")
			unread := r.Open(t.Context(), c.desc)
			unread.Close()
			if r.Doubt(t.Context(), unread, wrong) || r.Doubt(t.Context(), nil, wrong) {
				t.Error("a host is in doubt that has given nothing")
			}
			first, twin := read(hosts[0]), read(hosts[0])
			if !r.Doubt(t.Context(), first, wrong) || !r.Doubt(t.Context(), twin, wrong) {
				t.Error("two are left")
			}
			if !r.Doubt(t.Context(), read(hosts[1]), wrong) {
				t.Error("the registry is left")
			}
			if r.Doubt(t.Context(), read(hosts[2]), wrong) {
				t.Error("none is left")
			}
		})
	}
}
