package wire

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// MaxErrorText bounds an error's text, in bytes.
const MaxErrorText = 4 << 10

// Error is an error that crosses the socket: its text and its kind. On the
// other side errors.Is finds the kind again.
type Error struct {
	Kind    string `json:"kind,omitempty"`
	Message string `json:"message"`
}

var kinds = []struct {
	name string
	kind error
}{
	{"notFound", errdefs.ErrNotFound},
	{"invalidArgument", errdefs.ErrInvalidArgument},
	{"alreadyExists", errdefs.ErrAlreadyExists},
	{"failedPrecondition", errdefs.ErrFailedPrecondition},
	{"unavailable", errdefs.ErrUnavailable},
	{"resourceExhausted", errdefs.ErrResourceExhausted},
	{"notImplemented", errdefs.ErrNotImplemented},
	{"deadlineExceeded", context.DeadlineExceeded},
	{"canceled", context.Canceled},
}

// NewError makes err fit for the wire.
func NewError(err error) *Error {
	e := &Error{Message: err.Error()}
	if len(e.Message) > MaxErrorText {
		e.Message = e.Message[:MaxErrorText]
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			e.Kind = k.name
			return e
		}
	}
	for _, spent := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN} { // the last: processes
		if errors.Is(err, spent) {
			e.Kind = "resourceExhausted"
		}
	}
	return e
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the error's kind, or nil.
func (e *Error) Unwrap() error {
	for _, k := range kinds {
		if k.name == e.Kind {
			return k.kind
		}
	}
	return nil
}
