package streaming

import (
	"encoding/base64"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := tokens{ttl: time.Minute, pending: map[string]pending{}}
		issue := func() string { t.Helper(); return must(tokens.issue("exec", 1))(t) }
		a, b, c := issue(), issue(), issue()
		if raw := must(base64.RawURLEncoding.DecodeString(a))(t); len(raw)*8 < 128 || a == b {
			t.Errorf("tokens %s, %s", a, b)
		}
		redeemed := func(verb, token string) bool { _, ok := tokens.redeem(verb, token); return ok }
		if redeemed("attach", a) || redeemed("", a) || redeemed("exec", "") || redeemed("exec", a[1:]) || redeemed("exec", a+"A") {
			t.Error("a token of another verb, or none, is taken")
		}
		if !redeemed("exec", a) || redeemed("exec", a) {
			t.Error("a token is good for one use")
		}
		time.Sleep(time.Minute - time.Nanosecond)
		if !redeemed("exec", b) {
			t.Error("a token has expired too soon")
		}
		time.Sleep(time.Nanosecond)
		if redeemed("exec", c) {
			t.Error("a token is good after its time")
		}
	})
}

// The 1001st is refused, blocks nobody, and room comes back by use and by time.
func TestTokensAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := tokens{ttl: time.Minute, pending: map[string]pending{}}
		var last string
		for range maxTokens {
			last = must(tokens.issue("exec", 1))(t)
		}
		if _, err := tokens.issue("exec", 1); !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("token 1001: %v", err)
		}
		if _, ok := tokens.redeem("exec", last); !ok {
			t.Error("those before are not good any more")
		}
		must(tokens.issue("exec", 1))(t)
		time.Sleep(2 * time.Minute)
		must(tokens.issue("exec", 1))(t)
		if len(tokens.pending) != 1 {
			t.Errorf("%d tokens are kept", len(tokens.pending))
		}
	})
}

// Of a hundred clients with the same token one gets in.
func TestTokensRace(t *testing.T) {
	s := serve(t, testConfig(), echo(0))
	address := execURL(t, s, all)
	var won atomic.Int32
	var clients sync.WaitGroup
	for range 100 {
		clients.Go(func() {
			if code, _ := get(t, http.MethodGet, address, nil); code != http.StatusNotFound {
				won.Add(1)
			}
		})
	}
	clients.Wait()
	if won.Load() != 1 {
		t.Errorf("%d clients were let in", won.Load())
	}
}
