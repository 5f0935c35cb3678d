package guard

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRun(t *testing.T) {
	if err := Run(t.Context(), func() error { return nil }); err != nil {
		t.Error(err)
	}
	own := errors.New("own")
	if err := Run(t.Context(), func() error { return own }); err != own {
		t.Error(err)
	}
	if err := Run(t.Context(), func() error { panic("boom") }); !errdefs.IsInternal(err) {
		t.Error(err)
	}
}
