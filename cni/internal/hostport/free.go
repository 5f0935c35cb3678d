package hostport

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Free is nil when no process in the network namespace of this one serves a port on an address that overlaps with the
// one given; an unspecified address is every one of its family. Else it is ErrAlreadyExists and names the process.
// Protocol is tcp, udp or sctp. Client sockets, which have the port as their own for a connection to somewhere else,
// and connections that have ended (TIME_WAIT) hold no port: their flows are known to the kernel and not translated.
func Free(protocol string, at netip.AddrPort) error {
	err := tryBind(protocol, at)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
	case err == nil, errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EADDRNOTAVAIL):
		return nil // nobody can hold what the node does not have
	default:
		return fmt.Errorf("finding out whether host port %s/%s is free: %w", at, protocol, err)
	}
	who := "a process of the node"
	if protocol != "sctp" {
		servers, err := listServers(protocol, at)
		if err == nil && len(servers) == 0 {
			return nil
		}
		if err == nil {
			who = servers[0].String()
		}
	}
	return fmt.Errorf("host port %s/%s is taken by %s, give the pod another port or hostIP, or stop the process: %w", at, protocol, who, errdefs.ErrAlreadyExists)
}

// tryBind binds a socket as a server would.
func tryBind(protocol string, at netip.AddrPort) error {
	kind, number := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch protocol {
	case "udp":
		kind, number = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		// Asking for an SCTP socket would load the module, which must be the operator's own wish.
		if _, err := os.Stat("/proc/thread-self/net/sctp"); err != nil {
			return unix.EPROTONOSUPPORT
		}
		number = unix.IPPROTO_SCTP
	}
	family := unix.AF_INET
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, number)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if protocol == "tcp" { // connections that have ended are no conflict then; listeners are still
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	// Servers of any address count for one that the node does not have yet too.
	if family == unix.AF_INET {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1), unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1))
	if err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
}
