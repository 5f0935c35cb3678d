package cni

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const isolatedEnv = "GANTRY_TEST_OWN_NETWORK"

// isolate moves the tests into a network namespace of their own, which takes with it what plugins make for the node:
// bridges, rules, sysctls, and into a mount namespace, so that no other program has a copy of the pods' pins. As threads
// have namespaces, the program starts anew in the one that has left the machine's.
func isolate() error {
	if os.Geteuid() != 0 {
		return nil // the tests say themselves that they need root
	}
	if os.Getenv(isolatedEnv) == "" {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("making namespaces for the tests: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolatedEnv+"=1"))
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
