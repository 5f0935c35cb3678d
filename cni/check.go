package cni

import (
	"context"
	"errors"

	"k8s.io/klog/v2"
)

// checkAll runs CNI's CHECK for the pods that were attached before this start, one after the other: what has happened
// to their networks meanwhile nobody else would say. A pod that is not as its ADD left it is logged and no more: the
// pod may still work, and some plugins check badly.
func (n *Networks) checkAll(ctx context.Context) {
	for id := range n.records.all() {
		if err := n.check(ctx, id); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "A pod's network is not as it was made, it is left alone", "podID", id)
		}
	}
}

// check gives way to a caller that wants the pod. Pods whose DEL failed are not looked at, nor those of lists that have
// no CHECK or are not to be checked.
func (n *Networks) check(ctx context.Context, pod string) error {
	asked, cancel := context.WithTimeout(ctx, n.pace.answer)
	defer cancel()
	yielding, yield := context.WithCancelCause(asked)
	defer yield(nil)
	unlock := n.calls.try(pod, func() { yield(errYielded) })
	if unlock == nil {
		return nil
	}
	defer unlock()
	a := n.records.get(pod)
	if a == nil || n.retries.has(pod) || !atLeast(a.list, "0.4.0") || a.list.DisableCheck {
		return nil
	}
	err := n.chain(a.list).CheckNetworkList(yielding, a.list, a.runtimeConf(pod, a.NetNS))
	if context.Cause(yielding) == errYielded {
		return nil
	}
	return err
}

var errYielded = errors.New("a caller wants the pod")
