package main

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// A daemon that was killed may hold its locks a moment longer, in a child that it was forking: the next one waits for
// that, and no longer than it is wanted itself.
func TestLockIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	before, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockDir(ctx, dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the lock that another has: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = before.Close() })
	after, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = after.Close()
}
