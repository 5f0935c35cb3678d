package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// setSysctls lets the node forward for the bridge.
func (c *Config) setSysctls() error {
	v4, v6 := c.has(true), c.has(false)
	conf := "net/ipv6/conf/" + c.Bridge + "/"
	if haveIPv6() {
		// No router advertisement of a pod may configure the node, and a bridge of IPv4 subnets opens no way to the
		// node by link-local addresses.
		if err := errors.Join(writeSysctl(conf+"accept_ra", "0"), writeSysctl(conf+"disable_ipv6", string('0'+rune(flag(!v6))))); err != nil {
			return err
		}
	}
	if v4 {
		// route_localnet: a host port answers on 127.0.0.1 too. The table's guard keeps pods from the node's loopback.
		if err := errors.Join(writeSysctl("net/ipv4/ip_forward", "1"), writeSysctl("net/ipv4/conf/"+c.Bridge+"/route_localnet", "1")); err != nil {
			return err
		}
	}
	if v6 {
		// The kernel asks for the neighbours of forwarded packets from the bridge's own link-local address: as long as it
		// looks for duplicates of that, a second or two, no other host would reach a pod.
		if err := writeSysctl(conf+"accept_dad", "0"); err != nil {
			return err
		}
		return forwardIPv6()
	}
	return nil
}

// forwardIPv6 turns IPv6 forwarding on. The kernel then stops taking its own routes from router advertisements on
// interfaces with accept_ra=1 and forgets those it has; 2 means to go on, so a node that lives on them stays reachable.
func forwardIPv6() error {
	const all = "net/ipv6/conf/all/forwarding"
	if now, err := readSysctl(all); err != nil || now == "1" {
		return err
	}
	links, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return err
	}
	for _, l := range links {
		accept := "net/ipv6/conf/" + l.Name() + "/accept_ra"
		now, err := readSysctl(accept)
		if errors.Is(err, fs.ErrNotExist) || now != "1" || l.Name() == "all" || l.Name() == "default" {
			continue
		}
		if err := writeSysctl(accept, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return writeSysctl(all, "1")
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return strings.TrimSpace(string(b)), err
}

// writeSysctl writes what is not so yet: /proc/sys may be read-only with the right values in it.
func writeSysctl(name, value string) error {
	if now, err := readSysctl(name); err != nil || now == value {
		return err
	}
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("setting %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}
