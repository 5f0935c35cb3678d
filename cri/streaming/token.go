package streaming

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	tokenBytes = 24 // 192 random bits: nothing is won by guessing, so guesses need no counting
	tokenText  = tokenBytes * 4 / 3
	maxTokens  = 1000
)

// tokens are the sessions that have a URL and no client yet. A token is the
// only thing that lets a client in: it is random, used once, for one verb, and
// appears in no log.
type tokens struct {
	ttl time.Duration

	mu      sync.Mutex // guards pending
	pending map[string]pending
}

// pending is a request of the CRI for which a client is expected.
type pending struct {
	verb    string
	request any
	expires time.Time
}

// issue returns a token for a request. When a thousand are unused it is
// errdefs.ErrResourceExhausted, until some are used or expire.
func (t *tokens) issue(verb string, request any) (string, error) {
	var raw [tokenBytes]byte
	_, _ = rand.Read(raw[:]) // never fails
	token := base64.RawURLEncoding.EncodeToString(raw[:])
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pending) >= maxTokens {
		for old, p := range t.pending {
			if now.After(p.expires) {
				delete(t.pending, old)
			}
		}
	}
	if len(t.pending) >= maxTokens {
		return "", fmt.Errorf("%d streaming URLs wait for a client, try again in %v: %w", maxTokens, t.ttl, errdefs.ErrResourceExhausted)
	}
	t.pending[token] = pending{verb: verb, request: request, expires: now.Add(t.ttl)}
	return token, nil
}

// redeem returns the request of a token, once. A token of another verb is not
// used up by it.
func (t *tokens) redeem(verb, token string) (request any, ok bool) {
	if len(token) != tokenText {
		return nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.pending[token]
	if !ok || p.verb != verb {
		return nil, false
	}
	delete(t.pending, token)
	return p.request, time.Now().Before(p.expires)
}
