package cni

import (
	"context"
	"errors"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
)

// verbs runs plugins for libcni and lets one not know the verbs of CNI 1.1: a chain's plugins are of several ages, and
// that one has nothing to say is no error of the chain. The specification has code 4 for a command that is not known;
// STATUS and GC have no other parameter that it could mean.
type verbs struct{ *plugins }

func (v verbs) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	out, err := v.plugins.ExecPlugin(ctx, path, stdin, environ)
	var said *types.Error
	if errors.As(err, &said) && said.Code == types.ErrInvalidEnvironmentVariables &&
		slices.Contains([]string{"STATUS", "GC"}, env(environ, "CNI_COMMAND")) {
		return nil, nil
	}
	return out, err
}
