package cri

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// toStatus gives an error its gRPC code. The text passes whole: the kubelet
// copies it into the events of the pod. An error that has a code keeps it
// (Unimplemented of the generated servers).
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	// Only the outermost: a status that is wrapped is some registry's or plugin's.
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	return status.Error(code(err), err.Error())
}

// code is the table of kinds. The kinds come before the context's errors: an
// operation that was given a kind knows better than the deadline that it hit
// underway. fs.ErrNotExist and fs.ErrExist are left out on purpose. A file of
// ours that is missing does not mean that the pod or container is, which is
// what the kubelet understands by NotFound; it would take a failed stop for done.
func code(err error) codes.Code {
	switch {
	case usedUp(err): // before all others: what failed for it may have been taken for something else
		return codes.ResourceExhausted
	case errors.Is(err, crierrors.ErrRegistryUnavailable), errors.Is(err, crierrors.ErrSignatureValidationFailed):
		// The kubelet looks for these words at the beginning of the text of a
		// failed pull, and its client takes gRPC's own words from there only
		// where the code says nothing.
		return codes.Unknown
	case errdefs.IsInvalidArgument(err):
		return codes.InvalidArgument
	case errdefs.IsNotFound(err):
		return codes.NotFound
	case errdefs.IsAlreadyExists(err):
		return codes.AlreadyExists
	case errdefs.IsPermissionDenied(err):
		return codes.PermissionDenied
	case errdefs.IsUnauthorized(err):
		return codes.Unauthenticated
	case errdefs.IsFailedPrecondition(err), errdefs.IsConflict(err):
		return codes.FailedPrecondition
	case errdefs.IsOutOfRange(err):
		return codes.OutOfRange
	case errdefs.IsNotImplemented(err):
		return codes.Unimplemented
	case errdefs.IsDataLoss(err):
		return codes.DataLoss
	case errdefs.IsResourceExhausted(err), errors.Is(err, syscall.EAGAIN): // of fork(2): processes
		return codes.ResourceExhausted
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errdefs.IsUnavailable(err):
		return codes.Unavailable
	case errdefs.IsAborted(err):
		return codes.Aborted
	case errdefs.IsInternal(err):
		return codes.Internal
	default:
		return codes.Unknown
	}
}

// usedUp says whether the node had too little of something.
func usedUp(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
