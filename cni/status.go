package cni

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// Status is nil when pods can be attached, else the reason (ErrUnavailable): of the configuration, or what a plugin
// said last when it was asked. It answers from memory.
func (n *Networks) Status() error {
	if c := n.conf.Load(); c.err != nil {
		return c.err
	}
	return *n.verdict.Load()
}

// Ask asks the plugins of the network in force and returns what Status says from then on.
func (n *Networks) Ask(ctx context.Context) error {
	c := n.conf.Load()
	if c.err != nil {
		n.verdict.Store(&c.err) // until the plugins of the next network have answered
		return c.err
	}
	list, err := n.list()
	if err == nil {
		err = n.ask(ctx, list)
	}
	if n.conf.Load() == c { // else it is another network's, and followStatus asks that one
		n.verdict.Store(&err)
	}
	return err
}

// ask is CNI's STATUS for lists that have it (1.1.0), and a look for the programs for all.
func (n *Networks) ask(ctx context.Context, list *libcni.NetworkConfigList) error {
	ctx, cancel := context.WithTimeout(ctx, n.pace.answer)
	defer cancel()
	err := n.usable(ctx, list)
	if err == nil {
		err = n.libcni.GetStatusNetworkList(ctx, list)
	}
	if err == nil {
		return nil
	}
	var said *types.Error
	if errors.As(err, &said) {
		err = fmt.Errorf("%w (code %d%s)", err, said.Code, meanings[said.Code])
	}
	return fmt.Errorf("network %s is not ready: %v: %w", list.Name, err, errdefs.ErrUnavailable)
}

// meanings are those of the codes that the specification gives STATUS.
var meanings = map[uint]string{
	types.ErrPluginNotAvailable:  ", the plugin cannot attach pods",
	types.ErrLimitedConnectivity: ", the plugin cannot attach pods, and attached ones may be cut off",
}

// usable looks for the program of every plugin: what a missing one, or one that is not for the list's version, keeps ADD
// from, it would keep DEL from undoing. And a list that has no addresses but the node's must know these.
func (n *Networks) usable(ctx context.Context, list *libcni.NetworkConfigList) error {
	if has(list, "ipRanges") && len(n.podCIDR.known()) == 0 && list.Plugins[0].Network.Type == bridge.Type {
		if cfg, err := parseBridge(list); err != nil || len(cfg.Ranges) == 0 {
			return errors.Join(err, fmt.Errorf("network %s has the node's pod CIDR for its addresses, which the kubelet has not told yet: %w", list.Name, errdefs.ErrUnavailable))
		}
	}
	for _, p := range list.Plugins {
		path, err := n.exec.FindInPath(p.Network.Type, n.cfg.BinDirs)
		if err == nil {
			err = n.exec.understands(ctx, path, list.CNIVersion)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unasked is the verdict before the first answer.
func (n *Networks) unasked() error {
	c := n.conf.Load()
	if c.list != nil && !builtIn(c.list) {
		return fmt.Errorf("network %s is not ready: its plugins have not answered yet: %w", c.list.Name, errdefs.ErrUnavailable)
	}
	return c.err
}

// atLeast tells whether the list is of a version of the specification or a later one.
func atLeast(list *libcni.NetworkConfigList, v string) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, v)
	return err == nil && ok
}

// withoutDigits makes reasons equal that differ only in a time, a port or a process id: a plugin would else have a line
// of the log each time that it is asked.
func withoutDigits(reason string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, reason)
}

// followStatus asks again and again until ctx ends: at once when the configuration changes. The verdict on the network
// before stays until there is one on the new network, so that an edit does not look like an outage to the kubelet.
func (n *Networks) followStatus(ctx context.Context) {
	logger := klog.FromContext(ctx)
	logged := ""
	for {
		err := n.Ask(ctx)
		if ctx.Err() != nil {
			return
		}
		wait, reason := n.pace.askReady, ""
		if err != nil {
			wait, reason = n.pace.askNotReady, err.Error()
		}
		if withoutDigits(reason) != withoutDigits(logged) && n.conf.Load().err == nil { // that is logged where it is read
			if logged = reason; err != nil {
				logger.Error(err, "Network is not ready")
			} else {
				logger.Info("Network is ready again")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-n.reloaded:
		case <-time.After(wait):
		}
	}
}
