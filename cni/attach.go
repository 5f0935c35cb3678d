package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// undoTimeout bounds the DEL of a failed ADD, which runs whether the caller still waits or not.
const undoTimeout = 30 * time.Second

// maxAddresses bounds what a pod has by a plugin's result; the kubelet looks at two.
const maxAddresses = 64

// Attach gives the pod its network and its loopback. When it returns an error, or ctx ends, everything that was done
// is undone before it returns; where the undoing fails too, both errors are returned and it is tried again in the
// background and by Detach. A pod that is attached already is ErrAlreadyExists, a network without a valid configuration
// ErrUnavailable. That a plugin's STATUS says no is not looked at: it is some seconds old, the kubelet has seen it, and
// the plugin itself knows best whether it can attach by now.
func (n *Networks) Attach(ctx context.Context, pod Pod) (Result, error) {
	result, err := n.attach(ctx, pod)
	if err != nil {
		return Result{}, fmt.Errorf("attaching pod %s to its network: %w", pod.ID, err)
	}
	return result, nil
}

func (n *Networks) attach(ctx context.Context, pod Pod) (Result, error) {
	if err := pod.check(); err != nil {
		return Result{}, err
	}
	unlock, err := n.calls.lock(ctx, pod.ID)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if n.records.get(pod.ID) != nil {
		return Result{}, fmt.Errorf("it is attached already: %w", errdefs.ErrAlreadyExists)
	}
	list, err := n.list()
	if err != nil {
		return Result{}, err
	}
	if err := n.usable(ctx, list); err != nil {
		return Result{}, err
	}
	caps, err := pod.capabilities(ctx, list, n.podCIDR.known())
	if err != nil {
		return Result{}, err
	}
	if err := n.calls.begin(ctx, list.Name); err != nil {
		return Result{}, err
	}
	a := &attachment{Version: 1, NetNS: pod.NetNS, Config: string(list.Bytes), Args: pod.cniArgs(), Capabilities: caps, list: list}
	if err := n.records.put(pod.ID, a); err != nil {
		return Result{}, err
	}
	result, err := n.add(ctx, pod, a)
	if err == nil {
		err = ctx.Err() // the caller does not know of a success that comes too late
	}
	if err == nil {
		return result, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undone := n.del(undo, pod.ID, pod.NetNS); undone != nil {
		return Result{}, errors.Join(err, fmt.Errorf("undoing it: %w", undone))
	}
	// The namespace may be used again for the next try, so its interface must not wait for the namespace's end.
	return Result{}, errors.Join(err, n.bridge.RemoveLink(pod.ID))
}

// list is the configuration list in force.
func (n *Networks) list() (*libcni.NetworkConfigList, error) {
	c := n.conf.Load()
	if c.err != nil || c.list != nil {
		return c.list, c.err
	}
	return n.podCIDR.defaultNetwork()
}

func (n *Networks) add(ctx context.Context, pod Pod, a *attachment) (Result, error) {
	if a.list.Plugins[0].Network.Type != bridge.Type { // which sets the loopback up on the way
		if err := bridge.LoopbackUp(pod.NetNS); err != nil {
			return Result{}, err
		}
	}
	raw, err := n.addChain(ctx, pod.ID, a, pod.NetNS)
	if err != nil {
		return Result{}, err
	}
	return podResult(raw)
}

// podResult is what of a CNI result concerns the pod: the addresses of its interface.
func podResult(raw types.Result) (Result, error) {
	result, err := types100.GetResult(raw)
	if err != nil {
		return Result{}, fmt.Errorf("reading the plugins' result: %w", err)
	}
	var ips []netip.Addr
	for _, ip := range result.IPs {
		if ip == nil {
			continue
		}
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(result.Interfaces) || result.Interfaces[*i] == nil {
				return Result{}, fmt.Errorf("the plugins' result has an address of interface %d, which it does not list", *i)
			}
			if result.Interfaces[*i].Name != ifName || result.Interfaces[*i].Sandbox == "" {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if addr = addr.Unmap(); !ok || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
			return Result{}, fmt.Errorf("the plugins' result has address %q, which is no pod's", ip.Address.String())
		}
		if !slices.Contains(ips, addr) && len(ips) <= maxAddresses {
			ips = append(ips, addr)
		}
	}
	if len(ips) > maxAddresses {
		return Result{}, fmt.Errorf("the plugins' result has more addresses of %s than %d", ifName, maxAddresses)
	}
	if len(ips) == 0 {
		return Result{}, fmt.Errorf("the plugins' result has no address of %s", ifName)
	}
	return Result{IPs: ips}, nil
}

// Detach takes the pod's network away with the configuration and the result of its Attach. It is idempotent: a pod
// that is not attached is no error. The namespace may be gone; if it is not, the caller lets it go soon, because the
// built-in network leaves the pod's interface to it. On error the pod stays attached for another try, which is made in
// the background if nobody calls again. Until GC has been called all Detaches together take no longer than half a
// minute; those that are left then fail in this way.
func (n *Networks) Detach(ctx context.Context, pod Pod) error {
	if err := n.detach(ctx, pod.ID, pod.NetNS); err != nil {
		return fmt.Errorf("detaching pod %s from its network: %w", pod.ID, err)
	}
	return nil
}

func (n *Networks) detach(ctx context.Context, pod, netns string) error {
	ctx, done := n.start.spend(ctx) // the wait for a DEL in the background counts too
	defer done()
	unlock, err := n.calls.lock(ctx, pod)
	if err != nil {
		return err
	}
	defer unlock()
	return n.del(ctx, pod, netns)
}

// del runs the chain's DEL and removes the record, if there is one; the caller has locked the pod. The namespace is that
// of the record where netns is empty, and one that is gone is passed as empty, as the specification has it for DEL.
// What fails is tried again in the background.
func (n *Networks) del(ctx context.Context, pod, netns string) error {
	a := n.records.get(pod)
	if a == nil {
		n.retries.drop(ctx, pod)
		return nil
	}
	if netns == "" {
		netns = a.NetNS
	}
	if !isPods(netns) {
		netns = ""
	}
	err := n.delChain(ctx, pod, a, netns)
	if err == nil {
		err = n.records.delete(pod)
	}
	if err != nil {
		n.retries.add(ctx, pod, err)
		return err
	}
	n.retries.drop(ctx, pod)
	return nil
}

// isPods tells a pod's pinned namespace from the file that its pin was on, and from the node's own, whose interfaces a
// plugin would delete.
func isPods(path string) bool {
	var st unix.Statfs_t
	var ns, own unix.Stat_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC && unix.Stat(path, &ns) == nil &&
		unix.Stat("/proc/thread-self/ns/net", &own) == nil && (ns.Dev != own.Dev || ns.Ino != own.Ino)
}
