package hostport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// serve binds a socket as a server until the test ends and returns its port.
func serve(t *testing.T, network, address string) uint16 {
	t.Helper()
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// TestFree binds servers and asks for addresses that overlap with theirs, and for others.
func TestFree(t *testing.T) {
	for _, c := range []struct{ network, server, taken, free string }{
		{"tcp", "127.0.0.1:0", "127.0.0.1 0.0.0.0", "127.0.0.2 :: ::1 198.51.100.7"},
		{"tcp4", "0.0.0.0:0", "127.0.0.1 0.0.0.0 198.51.100.7", ":: ::1"}, // an address that the node may get later
		{"tcp", "[::]:0", "127.0.0.1 0.0.0.0 ::1 :: 198.51.100.7 2001:db8::1", ""},
		{"tcp6", "[::]:0", "::1 :: 2001:db8::1", "127.0.0.1 0.0.0.0"},
		{"tcp", "[::1]:0", "::1 ::", "127.0.0.1 0.0.0.0 2001:db8::1"},
		{"udp", "127.0.0.1:0", "127.0.0.1 0.0.0.0", "127.0.0.2 :: 198.51.100.7"},
		{"udp", "[::]:0", "127.0.0.1 0.0.0.0 :: ::1", ""},
		{"udp6", "[::1]:0", ":: ::1", "127.0.0.1 0.0.0.0"},
	} {
		port := serve(t, c.network, c.server)
		protocol := c.network[:3]
		for _, addr := range strings.Fields(c.taken) {
			err := Free(protocol, netip.AddrPortFrom(netip.MustParseAddr(addr), port))
			want := fmt.Sprintf(`process "%s" (pid %d), which listens on %s`, comm(t), os.Getpid(),
				netip.AddrPortFrom(netip.MustParseAddrPort(c.server).Addr(), port))
			if !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of %s server %s: %v, want %q in it", addr, c.network, c.server, err, want)
			}
		}
		for _, addr := range strings.Fields(c.free) {
			if err := Free(protocol, netip.AddrPortFrom(netip.MustParseAddr(addr), port)); err != nil {
				t.Errorf("%s of %s server %s: %v, want free", addr, c.network, c.server, err)
			}
		}
		other := map[string]string{"tcp": "udp", "udp": "tcp"}[protocol]
		if err := Free(other, netip.AddrPortFrom(netip.IPv4Unspecified(), port)); err != nil {
			t.Errorf("%s of %s server: %v, want free", other, protocol, err)
		}
	}
}

func comm(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestClientsHoldNoPort has a port as that of a client, whose flows NAT leaves alone, and of a connection that ended.
func TestClientsHoldNoPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddrPort(client.LocalAddr().String())
	if err := tryBind("tcp", own); err != syscall.EADDRINUSE {
		t.Fatalf("a bind of the client's port: %v; this test shows nothing", err)
	}
	if err := Free("tcp", own); err != nil {
		t.Errorf("the port of a client: %v, want free", err)
	}

	server, err := l.Accept() // the side that closes first is in TIME_WAIT afterwards
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	client.Close()
	l.Close()
	if at := netip.MustParseAddrPort(l.Addr().String()); Free("tcp", at) != nil {
		t.Errorf("%s of a connection in TIME_WAIT: %v, want free", at, Free("tcp", at))
	}

	udp, err := (&net.Dialer{}).DialContext(context.Background(), "udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	at := netip.MustParseAddrPort(udp.LocalAddr().String())
	if err := tryBind("udp", at); err != syscall.EADDRINUSE {
		t.Fatalf("a bind of the UDP client's port: %v; this test shows nothing", err)
	}
	if err := Free("udp", at); err != nil {
		t.Errorf("the port of a UDP client: %v, want free", err)
	}
}

// TestFreeSCTP is about kernels without SCTP sockets: nobody can hold a port there. With them it binds one.
func TestFreeSCTP(t *testing.T) {
	for _, addr := range []string{"0.0.0.0", "::", "127.0.0.1"} {
		if err := Free("sctp", netip.AddrPortFrom(netip.MustParseAddr(addr), 18999)); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func BenchmarkFree(b *testing.B) {
	at := netip.MustParseAddrPort("0.0.0.0:18998")
	for b.Loop() {
		if err := Free("tcp", at); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzParseServer feeds messages of the kernel.
func FuzzParseServer(f *testing.F) {
	f.Add(make([]byte, sizeofMessage))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if s, ok := parseServer(msg); ok {
			s.overlaps(netip.IPv4Unspecified())
		}
	})
}
