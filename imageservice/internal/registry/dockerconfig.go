package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// dockerEntry is one of the file's auths.
type dockerEntry struct {
	key                string // as it is written
	scheme, host, path string // the host may have `*` in its labels
	credential         credential
}

const maxEntries = 4096

// loadDockerConfig reads the credentials of a config.json. Credential helpers
// are refused and not passed over: pulls would fail for lack of credentials,
// and nobody would know why. Gantry starts no program named by such a file.
func loadDockerConfig(file string) ([]dockerEntry, error) {
	if file == "" {
		return nil, nil
	}
	body, err := readFile(file, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var entries []dockerEntry
	if err == nil {
		entries, err = parseDockerConfig(body)
	}
	if err != nil {
		return nil, fmt.Errorf("docker config %s: %w: %w", file, err, errdefs.ErrFailedPrecondition)
	}
	return entries, nil
}

// parseDockerConfig's errors name the key and never the value.
func parseDockerConfig(body []byte) ([]dockerEntry, error) {
	var file struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			Username      string `json:"username"`
			Password      string `json:"password"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
		CredHelpers map[string]string `json:"credHelpers"`
		CredsStore  string            `json:"credsStore"`
	}
	if err := json.Unmarshal(body, &file); err != nil {
		var at *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &at):
			return nil, fmt.Errorf("not JSON at byte %d", at.Offset)
		case errors.As(err, &kind):
			return nil, fmt.Errorf("%s: JSON %s instead of %s", abbreviate(kind.Field), abbreviate(kind.Value), kind.Type)
		}
		return nil, errors.New("not JSON")
	}
	if file.CredsStore != "" {
		return nil, errors.New("credsStore: credential helpers are not supported, give the credentials in auths")
	}
	if len(file.CredHelpers) > 0 {
		return nil, errors.New("credHelpers: credential helpers are not supported, give the credentials in auths")
	}
	if len(file.Auths) > maxEntries {
		return nil, fmt.Errorf("auths: %d entries, more than %d", len(file.Auths), maxEntries)
	}
	var entries []dockerEntry
	for key, a := range file.Auths {
		e := dockerEntry{key: printable(abbreviate(key), 256)}
		var err error
		if e.scheme, e.host, e.path, err = splitAddress(key); err != nil {
			return nil, fmt.Errorf("auths.%q: %w", e.key, err)
		}
		c := &e.credential
		c.username, c.password, c.identity, c.bearer = a.Username, a.Password, a.IdentityToken, a.RegistryToken
		if a.Auth != "" {
			if c.username, c.password, err = decodeAuth(a.Auth); err != nil {
				return nil, fmt.Errorf("auths.%q: %w", e.key, err)
			}
		}
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("auths.%q: %w", e.key, err)
		}
		if !c.empty() {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, compareEntries)
	return entries, nil
}

// compareEntries puts the narrower first, as the kubelet does: the longer
// path, then a host without `*`. The key makes the order complete.
func compareEntries(a, b dockerEntry) int {
	if d := len(b.path) - len(a.path); d != 0 {
		return d
	}
	if d := strings.Count(a.host, "*") - strings.Count(b.host, "*"); d != 0 {
		return d
	}
	return strings.Compare(a.key, b.key)
}

// findEntry returns the entry for a repository at a host.
func findEntry(entries []dockerEntry, h *host, name string) (dockerEntry, bool) {
	for _, e := range entries {
		host := canonical(e.host, h.scheme)
		if !matchHost(host, h.name) || !allowed(e.scheme, h) {
			continue
		}
		if e.path == "" || name == e.path || strings.HasPrefix(name, e.path+"/") {
			return e, true
		}
	}
	return dockerEntry{}, false
}

// matchHost compares label by label; a `*` stays within its label, and the
// port must be the same.
func matchHost(pattern, name string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == name
	}
	split := func(s string) ([]string, string) {
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			host, port = s, ""
		}
		return strings.Split(host, "."), port
	}
	want, wantPort := split(pattern)
	have, havePort := split(name)
	if len(want) != len(have) || wantPort != havePort {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); !ok || err != nil {
			return false
		}
	}
	return true
}
