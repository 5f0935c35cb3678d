package config

import (
	"strings"
	"testing"
	"time"
)

// An address that others reach takes TLS, whose files are given whole.
func TestStreaming(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Streaming)
		want   string // in the error; "" = none
	}{
		"default":      {func(*Streaming) {}, ""},
		"IPv6":         {func(s *Streaming) { s.Address = "[::1]:10010" }, ""},
		"a name":       {func(s *Streaming) { s.Address = "localhost:0" }, "streaming.address"},
		"no port":      {func(s *Streaming) { s.Address = "127.0.0.1" }, "streaming.address"},
		"open":         {func(s *Streaming) { s.Address = "0.0.0.0:10010" }, "tls_cert"},
		"open, TLS":    {func(s *Streaming) { s.Address, s.TLSCert, s.TLSKey = "0.0.0.0:10010", "/c", "/k" }, ""},
		"no key":       {func(s *Streaming) { s.TLSCert = "/c" }, "streaming.tls_key"},
		"relative":     {func(s *Streaming) { s.TLSCert, s.TLSKey = "/c", "k" }, "streaming.tls_key"},
		"only a CA":    {func(s *Streaming) { s.TLSClientCA = "/ca" }, "streaming.tls_client_ca"},
		"no idle time": {func(s *Streaming) { s.IdleTimeout = 0 }, "streaming.idle_timeout"},
		"long setup":   {func(s *Streaming) { s.CreationTimeout = Duration(2 * time.Hour) }, "streaming.creation_timeout"},
	} {
		c := valid(t)
		tt.change(&c.Streaming)
		err := c.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
