package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// loopbacks are what a forwarded connection tries: a server may listen on one only.
var loopbacks = []struct {
	network string
	addr    netip.Addr
}{{"tcp4", netip.MustParseAddr("127.0.0.1")}, {"tcp6", netip.IPv6Loopback()}}

// DialPod connects to a TCP port on the loopback addresses of the pod's network
// namespace, the host's for a pod without one. No thread is in that namespace
// for longer than a socket takes to make, and none waits for the connection.
// errdefs.ErrFailedPrecondition: the namespace is gone.
func (h *Host) DialPod(ctx context.Context, id string, own Namespaces, port uint16) (*net.TCPConn, error) {
	var netns *os.File
	if path := h.PodPaths(id, own).Net; path != "" {
		var err error
		if netns, err = openNetNS(path); err != nil {
			return nil, err
		}
		defer netns.Close()
	}
	var errs []error
	for _, l := range loopbacks {
		to := netip.AddrPortFrom(l.addr, port)
		conn, err := dialIn(ctx, netns, to)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("dial %s %s: %w", l.network, to, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 2 {
		return nil, fmt.Errorf("%w; %w", errs[0], errs[1])
	}
	return nil, errs[0]
}

// openNetNS opens a pinned network namespace. A pin that is gone, or a file
// whose mount is, is errdefs.ErrFailedPrecondition.
func openNetNS(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the pod's network namespace is gone: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the pod's network namespace: %w", err)
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, fmt.Errorf("the pod's network namespace is gone, %s is another file: %w", path, errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

// dialIn connects a socket of the network namespace, nil for the own one.
func dialIn(ctx context.Context, netns *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	fd, err := socketIn(netns, to.Addr())
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "forward "+to.String()) // non-blocking, hence with deadlines
	defer f.Close()                                      // net.FileConn makes a duplicate
	if err := connect(ctx, f, to); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if ok && conn.LocalAddr().String() != conn.RemoteAddr().String() {
		_ = tcp.SetNoDelay(true) // as package net does
		return tcp, nil
	}
	// Where nobody listens, a socket that the kernel happened to give this very port connects to itself.
	return nil, errors.Join(os.NewSyscallError("connect", unix.ECONNREFUSED), conn.Close())
}

// socketIn makes a TCP socket in a network namespace, where it stays.
func socketIn(netns *os.File, addr netip.Addr) (fd int, err error) {
	domain := unix.AF_INET
	if addr.Is6() {
		domain = unix.AF_INET6
	}
	socket := func() {
		if fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP); err != nil {
			err = fmt.Errorf("making a socket: %w", err)
		}
	}
	if netns == nil {
		socket()
		return fd, err
	}
	if nsErr := inNetNS(netns, socket); nsErr != nil {
		return -1, nsErr
	}
	return fd, err
}

// inNetNS runs f, which must not start goroutines, on a thread that is in the
// namespace meanwhile. A thread that cannot be put back ends here.
func inNetNS(netns *os.File, f func()) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("opening the own network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("entering the pod's network namespace: %w", err)
			return
		}
		f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the runtime ends the thread (runtime.LockOSThread)
		}
		done <- nil
	}()
	return <-done
}

// connect connects a non-blocking socket; ctx's end ends the attempt.
func connect(ctx context.Context, f *os.File, to netip.AddrPort) error {
	defer context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port())}
	if to.Addr().Is4() {
		sa.(*unix.SockaddrInet4).Addr = to.Addr().As4()
	} else {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	waitErr := raw.Write(func(fd uintptr) (done bool) {
		// Asked again when the socket becomes writable, which a new one is too: then
		// the kernel says what has come of the attempt.
		switch err = unix.Connect(int(fd), sa); err {
		case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
			return false
		case unix.EISCONN:
			err = nil
		}
		return true
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case waitErr != nil:
		return waitErr
	case err != nil:
		return os.NewSyscallError("connect", err)
	}
	return nil
}
