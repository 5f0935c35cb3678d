package hostport

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily  = 20
	sizeofRequest     = 56 // struct inet_diag_req_v2
	sizeofMessage     = 72 // struct inet_diag_msg
	diagTClass        = 6  // asked for, IPv6 sockets come with INET_DIAG_SKV6ONLY
	diagV6Only        = 11
	stateListen       = 1 << 10
	stateClose        = 1 << 7  // a UDP socket that is not connected
	stateBoundIdle    = 1 << 13 // bound and not listening yet; told since Linux 6.8
	unnamedFileOfProc = "socket:[%d]"
)

// server is a socket that is bound to a port and connected to nobody.
type server struct {
	at     netip.AddrPort
	v6Only bool
	inode  uint32
}

// String names the process with the socket, as far as it can be found.
func (s server) String() string {
	if s.inode == 0 {
		return fmt.Sprintf("the kernel, which listens on %s", s.at)
	}
	if pid, name := owner(s.inode); pid != 0 {
		return fmt.Sprintf("process %s (pid %d), which listens on %s", name, pid, s.at)
	}
	return fmt.Sprintf("a process that this one cannot see, which listens on %s", s.at)
}

// overlaps tells whether the server gets packets to an address, or to any of its family if it is unspecified.
func (s server) overlaps(addr netip.Addr) bool {
	own := s.at.Addr()
	if own == netip.IPv6Unspecified() {
		return addr.Is6() || !s.v6Only
	}
	return own == addr || own.Is4() == addr.Is4() && (own.IsUnspecified() || addr.IsUnspecified())
}

// listServers asks the kernel for the servers of a port.
func listServers(protocol string, at netip.AddrPort) ([]server, error) {
	number, states := byte(unix.IPPROTO_TCP), uint32(stateListen|stateBoundIdle)
	if protocol == "udp" {
		number, states = unix.IPPROTO_UDP, stateClose
	}
	families := []byte{unix.AF_INET, unix.AF_INET6} // sockets of IPv6 serve IPv4 too
	if at.Addr().Is6() {
		families = families[1:]
	}
	var found []server
	for _, family := range families {
		req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
		body := make([]byte, sizeofRequest)
		body[0], body[1], body[2] = family, number, 1<<(diagTClass-1)
		binary.NativeEndian.PutUint32(body[4:], states)
		binary.BigEndian.PutUint16(body[8:], at.Port()) // of newer kernels' filter; it is looked at again below
		req.AddRawData(body)
		msgs, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("listing the node's sockets: %w", err)
		}
		for _, m := range msgs {
			if s, ok := parseServer(m); ok && s.at.Port() == at.Port() && s.overlaps(at.Addr()) {
				found = append(found, s)
			}
		}
	}
	return found, nil
}

func parseServer(msg []byte) (s server, ok bool) {
	if len(msg) < sizeofMessage {
		return s, false
	}
	addr := netip.AddrFrom16([16]byte(msg[8:24])).Unmap()
	if msg[0] == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(msg[8:12]))
	}
	s.at = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(msg[4:]))
	s.inode = binary.NativeEndian.Uint32(msg[68:])
	attrs, err := nl.ParseRouteAttr(msg[sizeofMessage:])
	if err != nil {
		return s, false
	}
	for _, a := range attrs {
		if a.Attr.Type == diagV6Only && len(a.Value) == 1 {
			s.v6Only = a.Value[0] == 1
		}
	}
	return s, true
}

// owner finds a process that has a socket open. The kernel does not tell, so every process's files are looked at.
func owner(inode uint32) (pid int, name string) {
	want := fmt.Sprintf(unnamedFileOfProc, inode)
	procs, _ := os.ReadDir("/proc") // of what cannot be read nothing is known
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", p.Name(), "fd")
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			if target, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil && target == want {
				comm, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
				return pid, fmt.Sprintf("%q", bytes.TrimSpace(comm)) // a process chooses its name itself
			}
		}
	}
	return 0, ""
}
