package registry

import (
	"errors"
	"strings"
)

// challenge is one way to be authorized that a host offers.
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

const (
	maxChallenges = 8
	maxParams     = 32
)

// parseChallenges reads WWW-Authenticate headers (RFC 9110, 11.6.1).
func parseChallenges(headers []string) ([]challenge, error) {
	var all []challenge
	for _, s := range headers {
		for s = strings.TrimLeft(s, ", \t"); s != ""; s = strings.TrimLeft(s, ", \t") {
			var word string
			if word, s = token(s); word == "" {
				return nil, errors.New("WWW-Authenticate cannot be read")
			}
			if !strings.HasPrefix(s, "=") {
				if len(all) == maxChallenges {
					return nil, errors.New("WWW-Authenticate has too many challenges")
				}
				all = append(all, challenge{scheme: strings.ToLower(word), params: make(map[string]string)})
				continue
			}
			if len(all) == 0 || len(all[len(all)-1].params) == maxParams {
				return nil, errors.New("WWW-Authenticate has too many parameters, or none of its challenge's")
			}
			var value string
			var ok bool
			if value, s, ok = tokenOrQuoted(s[1:]); !ok {
				return nil, errors.New("WWW-Authenticate cannot be read")
			}
			key := strings.ToLower(word)
			if _, twice := all[len(all)-1].params[key]; twice {
				return nil, errors.New("WWW-Authenticate has a parameter twice")
			}
			all[len(all)-1].params[key] = value
		}
	}
	return all, nil
}

func token(s string) (word, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("()<>@,;:\\\"[]?={}", r) })
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

func tokenOrQuoted(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = token(s)
		return value, rest, true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
