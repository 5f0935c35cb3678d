package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
)

// authorizer makes the Authorization of requests to one host, for one
// repository.
type authorizer struct {
	host  *host
	cred  credential
	scope string
	turn  chan struct{} // held while a token is fetched
	value atomic.Pointer[string]
}

func newAuthorizer(h *host, cred credential, scope string) *authorizer {
	a := &authorizer{host: h, cred: cred, scope: scope, turn: make(chan struct{}, 1)}
	if cred.bearer != "" {
		a.set("Bearer " + cred.bearer)
	}
	return a
}

func (a *authorizer) set(v string) { a.value.Store(&v) }

// current is the Authorization to send, "" for none.
func (a *authorizer) current() string {
	if v := a.value.Load(); v != nil {
		return *v
	}
	return ""
}

// used describes the credentials for an error.
func (a *authorizer) used() string {
	if a.cred.empty() {
		return "no credentials"
	}
	return "credentials: " + a.cred.from
}

// mask takes out of a registry's text what it was told itself.
func (a *authorizer) mask(text string) string {
	_, value, _ := strings.Cut(a.current(), " ")
	for _, secret := range []string{a.cred.password, a.cred.identity, a.cred.bearer, value} {
		if len(secret) > 3 {
			text = strings.ReplaceAll(text, secret, "…")
		}
	}
	return text
}

// renew answers the challenges to a request that was sent with an
// Authorization of used. When another request has done so meanwhile, there is
// nothing to do.
func (a *authorizer) renew(ctx context.Context, fetch fetcher, used string, headers []string) error {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if a.current() != used {
		return nil
	}
	if a.cred.bearer != "" {
		return a.refused("the registry_token is not accepted")
	}
	challenges, err := parseChallenges(headers)
	if err != nil {
		return a.refused(err.Error())
	}
	if i := slices.IndexFunc(challenges, func(c challenge) bool { return c.scheme == "bearer" }); i >= 0 {
		token, err := a.token(ctx, fetch, challenges[i].params)
		if err != nil {
			return err
		}
		a.set("Bearer " + token)
		return nil
	}
	if !slices.ContainsFunc(challenges, func(c challenge) bool { return c.scheme == "basic" }) {
		return a.refused("no way of authorization that is known: Bearer, Basic")
	}
	if a.cred.username == "" || a.cred.password == "" {
		return a.refused("wants a user name and a password")
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(a.cred.username+":"+a.cred.password))
	if basic == used {
		return a.refused("user name and password are not accepted")
	}
	a.set(basic)
	return nil
}

// refusal is why a 401 is the end.
type refusal struct{ why string }

func (r refusal) Error() string { return r.why }

func (a *authorizer) refused(why string) error { return refusal{why} }

// fetcher makes one request with the bounds that hold for all.
type fetcher func(req *http.Request) (*http.Response, error)

// maxToken bounds the answer of a token server.
const maxToken = 1 << 20

// token asks the realm for a token: with an identity token by OAuth2, else by
// Docker's older form, which every token server knows.
func (a *authorizer) token(ctx context.Context, fetch fetcher, params map[string]string) (string, error) {
	realm, err := a.realm(params["realm"])
	if err != nil {
		return "", err
	}
	form := url.Values{"scope": {a.pullScope(params["scope"])}}
	if params["service"] != "" {
		form.Set("service", params["service"])
	}
	var req *http.Request
	if a.cred.identity != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", a.cred.identity)
		form.Set("client_id", "gantry")
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return "", err
		}
		req.GetBody = nil // never sent twice
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else {
		query := realm.Query()
		for k, v := range form {
			query[k] = v
		}
		realm.RawQuery = query.Encode()
		if req, err = http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil); err != nil {
			return "", err
		}
		if a.cred.username != "" || a.cred.password != "" {
			req.SetBasicAuth(a.cred.username, a.cred.password)
		}
	}
	req.Header.Set("User-Agent", userAgent)
	resp, err := fetch(req)
	if err != nil {
		return "", broken(a.host.name+": token server "+realm.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", a.statusError(resp, a.host.name+": token server "+realm.Host)
	}
	token, err := readToken(resp.Body)
	if err != nil {
		return "", broken(a.host.name+": token server "+realm.Host, err)
	}
	return token, nil
}

func readToken(r io.Reader) (string, error) {
	body, err := io.ReadAll(io.LimitReader(r, maxToken+1))
	if err != nil {
		return "", err
	}
	if len(body) > maxToken {
		return "", fmt.Errorf("answer larger than %d bytes: %w", maxToken, errdefs.ErrDataLoss)
	}
	var answer struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if json.Unmarshal(body, &answer) != nil { // its error may quote the token
		return "", fmt.Errorf("answer is not JSON: %w", errdefs.ErrDataLoss)
	}
	token := answer.Access
	if token == "" {
		token = answer.Token
	}
	if token == "" || len(token) > 48<<10 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("answer has no token that can be sent: %w", errdefs.ErrDataLoss)
	}
	return token, nil
}

// realm checks where the registry sends us for a token, with credentials.
func (a *authorizer) realm(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "":
		err = errors.New("is not an address")
	case u.Scheme != "https" && (u.Scheme != "http" || a.host.currentScheme() != "http"):
		err = fmt.Errorf("has scheme %[2]q at a registry on %[1]s", a.host.currentScheme(), abbreviate(u.Scheme))
	case u.User != nil:
		err = errors.New("has a user name")
	case u.Fragment != "":
		err = errors.New("has a fragment")
	default:
		// The transport refuses addresses of this node and link-local ones.
		return u, nil
	}
	return nil, fmt.Errorf("realm for tokens %w: %w", err, errdefs.ErrPermissionDenied)
}

// pullScope is what a token is asked for. The registry knows this repository
// by another name when it serves several registries under prefixes; more than
// such a name it does not get to say.
func (a *authorizer) pullScope(suggested string) string {
	name := strings.TrimSuffix(strings.TrimPrefix(a.scope, "repository:"), ":pull")
	for s := range strings.FieldsSeq(suggested) {
		kind, rest, _ := strings.Cut(s, ":")
		i := strings.LastIndexByte(rest, ':')
		if kind != "repository" || i < 0 || !strings.HasSuffix(rest[:i], "/"+name) {
			continue
		}
		return "repository:" + rest[:i] + ":pull"
	}
	return a.scope
}

// statusError is of an answer that is none.
func (a *authorizer) statusError(resp *http.Response, who string) error {
	hint := ""
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		hint = "; " + a.used()
	}
	return newStatusError(resp, who, hint, a.mask)
}
