package harness

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// InNamespace runs f on a thread that is in the network namespace at path, as whoever is root there may.
func InNamespace(path string, f func() error) error {
	return onThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return fmt.Errorf("opening network namespace %s: %w", path, err)
		}
		err = netns.Set(ns)
		if err == nil {
			err = f()
		}
		return errors.Join(err, ns.Close())
	})
}

// onThread runs f on a thread of its own, whose network namespace it may change. It is brought back, for the process's
// first thread would not end with its goroutine.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		node, err := netns.Get()
		if err == nil {
			err = f()
			back := netns.Set(node)
			if back == nil {
				runtime.UnlockOSThread() // else the thread ends here
			}
			err = errors.Join(err, back, node.Close())
		}
		done <- err
	}()
	return <-done
}

// Dump lists things of the kernel, such as links, again if they changed meanwhile.
func Dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// DeleteLink deletes a link of the node, as an operator may.
func DeleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("deleting link %s: %w", name, err)
	}
	return nil
}

// FlushRuleset empties the node's nftables, as an operator's firewall may when it starts.
func FlushRuleset() error {
	c, err := nftables.New()
	if err == nil {
		c.FlushRuleset()
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("flushing nftables: %w", err)
	}
	return nil
}
