package cni

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Chunks of RFC 9260, with all that a kernel between two hosts looks at.
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket is one chunk of the handshake.
func sctpPacket(chunk byte, src, dst uint16, tag uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0)      // checksum
	b = append(b, chunk, 0, 0, 20) // type, flags, length
	b = append(b, 0, 0, 0, 7)      // initiate tag
	b = append(b, 0, 1, 0, 0)      // window
	b = append(b, 0, 1, 0, 1)      // streams out and in
	b = append(b, 0, 0, 0, 1)      // first TSN
	return sctpChecksum(b)
}

func sctpChecksum(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[8:], 0)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// rawSCTP is a raw socket of the protocol in a namespace: this takes no SCTP in the kernel.
type rawSCTP struct {
	fd  int
	is4 bool
}

func openSCTP(t *testing.T, ns string, addr netip.Addr) rawSCTP {
	t.Helper()
	s := rawSCTP{is4: addr.Is4()}
	inNS(t, ns, func() (err error) {
		family := unix.AF_INET6
		if s.is4 {
			family = unix.AF_INET
		}
		if s.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(s.fd) })
		return unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	})
	return s
}

func (s rawSCTP) send(t *testing.T, to netip.Addr, packet []byte) {
	t.Helper()
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	if s.is4 {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	}
	if err := unix.Sendto(s.fd, packet, 0, sa); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next packet with who sent it, if its checksum is right.
func (s rawSCTP) receive(t *testing.T) (from netip.AddrPort, to uint16, chunk byte) {
	t.Helper()
	buf := make([]byte, 512)
	n, sa, err := unix.Recvfrom(s.fd, buf, 0)
	if err != nil {
		t.Fatalf("no SCTP packet: %v", err)
	}
	b := buf[:n]
	var addr netip.Addr
	switch sa := sa.(type) {
	case *unix.SockaddrInet4: // with the IP header
		addr, b = netip.AddrFrom4(sa.Addr), b[int(b[0]&15)*4:]
	case *unix.SockaddrInet6:
		addr = netip.AddrFrom16(sa.Addr)
	}
	if want := sctpChecksum(append([]byte(nil), b...)); string(want) != string(b) {
		t.Errorf("SCTP packet from %s has a wrong checksum", addr)
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b)), binary.BigEndian.Uint16(b[2:]), b[12]
}

// TestSCTPHostPort sends the first packets of an SCTP handshake through a host port, by raw sockets.
func TestSCTPHostPort(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established"); err != nil {
		t.Skip("this kernel's conntrack knows no SCTP, so nothing can be translated; what stands in the map is nft.TestPublish's")
	}
	n := newNode(t, dual)
	out, node, host := outside(t)
	pod := n.pod(PortMapping{Protocol: "SCTP", HostPort: 18030, ContainerPort: 81})
	result, err := n.Attach(n.ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.detach(pod) })
	for i, ip := range result.IPs {
		t.Run(fmt.Sprint("IPv", 4+2*i), func(t *testing.T) {
			client, server := openSCTP(t, out, host[i]), openSCTP(t, pod.NetNS, ip)
			client.send(t, node[i], sctpPacket(sctpInit, 18031, 18030, 0))
			from, to, chunk := server.receive(t)
			if from != at(host[i], 18031) || to != 81 || chunk != sctpInit {
				t.Errorf("the pod got chunk %d for port %d from %s, want the INIT for 81 from %s", chunk, to, from, at(host[i], 18031))
			}
			server.send(t, host[i], sctpPacket(sctpInitAck, 81, 18031, 7))
			if from, to, chunk = client.receive(t); from != at(node[i], 18030) || to != 18031 || chunk != sctpInitAck {
				t.Errorf("the client got chunk %d for port %d from %s, want the INIT ACK for 18031 from %s", chunk, to, from, at(node[i], 18030))
			}
		})
	}
}
