package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// credential is what one host is told. It prints as nothing secret.
type credential struct {
	from               string // whose it is, for errors
	username, password string
	identity           string // OAuth2 refresh token
	bearer             string // sent as it is
}

func (c credential) String() string   { return "credential" }
func (c credential) GoString() string { return "credential" }

func (c credential) empty() bool {
	return c.username == "" && c.password == "" && c.identity == "" && c.bearer == ""
}

// check refuses what could not be sent, or would be sent as something else.
func (c credential) check() error {
	for _, s := range []string{c.username, c.password, c.identity, c.bearer} {
		if len(s) > 64<<10 {
			return errors.New("longer than 64 KiB")
		}
		if strings.ContainsAny(s, "\r\n\x00") {
			return errors.New("has a line break or NUL")
		}
	}
	if strings.Contains(c.username, ":") {
		return errors.New("user name has a colon")
	}
	return nil
}

// keyring has the credentials of one pull.
type keyring struct {
	scheme  string // that those of the pull are for; "": any
	pull    credential
	name    string
	file    string
	entries []dockerEntry
}

// newKeyring reads the pull's credentials and the Docker config file.
func newKeyring(auth *runtimeapi.AuthConfig, file, domain, name string) (*keyring, error) {
	k := &keyring{name: name, file: file}
	var err error
	if k.pull, err = parseAuth(auth); err != nil {
		return nil, fmt.Errorf("credentials of the pull: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if address := auth.GetServerAddress(); address != "" {
		scheme, host, _, err := splitAddress(address)
		if err != nil {
			return nil, fmt.Errorf("server_address of the pull's credentials is not an address: %w", errdefs.ErrInvalidArgument)
		}
		if host != canonical(endpoint(domain), scheme) {
			k.pull = credential{} // for another registry: nobody's here
		}
		k.scheme = scheme
	}
	if k.entries, err = loadDockerConfig(file); err != nil {
		return nil, err
	}
	return k, nil
}

// forHost returns what a host may be told.
func (k *keyring) forHost(h *host) credential {
	if !h.mirror && !k.pull.empty() && allowed(k.scheme, h) {
		return k.pull
	}
	e, ok := findEntry(k.entries, h, k.name)
	if !ok {
		return credential{}
	}
	c := e.credential
	c.from = fmt.Sprintf("those of %s for %s", k.file, e.key)
	return c
}

// allowed says whether credentials for a scheme may be sent to a host. Only
// https to http is a step down; a host on loopback that has no https is none.
func allowed(scheme string, h *host) bool {
	return scheme != "https" || h.scheme == "https"
}

// splitAddress reads `[scheme://]host[:port][/path]`, where the path may be
// that of the API. The host comes in canonical form.
func splitAddress(address string) (scheme, host, path string, err error) {
	text := address
	if !strings.Contains(text, "://") {
		text = "//" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", "", errors.New("not an address")
	}
	if u.Scheme != "" && u.Scheme != "https" && u.Scheme != "http" {
		return "", "", "", errors.New("neither http nor https")
	}
	path = strings.Trim(u.Path, "/")
	for _, api := range []string{"v1", "v2"} {
		if path == api {
			path = ""
		}
		path = strings.TrimPrefix(path, api+"/")
	}
	return u.Scheme, canonical(endpoint(strings.ToLower(u.Host)), u.Scheme), path, nil
}

// parseAuth reads the CRI's forms of credentials. Its errors have no value.
func parseAuth(a *runtimeapi.AuthConfig) (credential, error) {
	c := credential{from: "those of the pull"}
	var err error
	switch {
	case a.GetRegistryToken() != "":
		c.bearer = a.GetRegistryToken()
	case a.GetIdentityToken() != "":
		c.identity = a.GetIdentityToken()
	case a.GetUsername() != "" || a.GetPassword() != "":
		c.username, c.password = a.GetUsername(), a.GetPassword()
	case a.GetAuth() != "":
		c.username, c.password, err = decodeAuth(a.GetAuth())
	}
	if err == nil {
		err = c.check()
	}
	return c, err
}

// decodeAuth reads base64 of user:password, with or without padding.
func decodeAuth(auth string) (username, password string, err error) {
	plain, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(auth), "="))
	if err != nil {
		return "", "", errors.New("auth is not base64")
	}
	username, password, ok := strings.Cut(string(plain), ":")
	if !ok {
		return "", "", errors.New("auth is not user:password")
	}
	return username, strings.Trim(password, "\x00"), nil // Docker pads with NUL
}
