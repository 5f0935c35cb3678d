package guard

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// Run calls f. A panic of it is logged with its stack and becomes an error.
// Whoever starts a goroutine that reads foreign bytes runs it by this.
func Run(ctx context.Context, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.FromContext(ctx).Error(nil, "Panic on an image, which is refused", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v: %w", p, errdefs.ErrInternal)
		}
	}()
	return f()
}
