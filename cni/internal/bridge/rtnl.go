package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// answerTimeout bounds the wait for an answer of the kernel, in seconds. It answers a request within the send call
// unless another process holds the network lock for long.
const answerTimeout = 20

// rtnl is a route netlink socket. The messages of one call are sent together and answered one by one: a veth with its
// master, flags and bridge port options costs one system call to send and one per answer.
type rtnl struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

func newRTNL() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a route netlink socket: %w", err)
	}
	c := &rtnl{fd: fd, buf: make([]byte, 32<<10)}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerTimeout}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), // answers without the request in them
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing a route netlink socket: %w", err), unix.Close(fd))
	}
	return c, nil
}

func (c *rtnl) close() error { return unix.Close(c.fd) }

// do sends the requests together and returns the error of each. The kernel works on all of them in order, also
// behind one that failed.
func (c *rtnl) do(reqs ...*nl.NetlinkRequest) ([]error, error) {
	_, errs, err := c.exchange(reqs)
	return errs, err
}

// exchange also returns what the kernel sent beside the acknowledgements.
func (c *rtnl) exchange(reqs []*nl.NetlinkRequest) (data []syscall.NetlinkMessage, errs []error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.seq + 1
	var out []byte
	for _, r := range reqs {
		c.seq++
		r.Seq = c.seq
		out = append(out, r.Serialize()...)
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, nil, fmt.Errorf("asking the kernel: %w", err)
	}
	errs = make([]error, len(reqs))
	for open := len(reqs); open > 0; {
		n, err := retry(func() (int, error) { n, _, err := unix.Recvfrom(c.fd, c.buf, 0); return n, err })
		if err != nil {
			return nil, nil, fmt.Errorf("waiting for the kernel's answer: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(c.buf[:n])
		if err != nil {
			return nil, nil, fmt.Errorf("reading the kernel's answer: %w", err)
		}
		for _, m := range msgs {
			i := m.Header.Seq - first
			if i >= uint32(len(reqs)) { // the answer of a call that timed out
				continue
			}
			switch m.Header.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				errs[i] = answer(m)
				open--
			default:
				m.Data = append([]byte(nil), m.Data...)
				data = append(data, m)
			}
		}
	}
	return data, errs, nil
}

// answer is the error in an acknowledgement, with the kernel's words where it has any.
func answer(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	err := error(syscall.Errno(-code))
	const header = 4 + unix.SizeofNlMsghdr
	if m.Header.Flags&unix.NLM_F_ACK_TLVS != 0 && len(m.Data) > header {
		if attrs, perr := nl.ParseRouteAttr(m.Data[header:]); perr == nil {
			for _, a := range attrs {
				if a.Attr.Type == unix.NLMSGERR_ATTR_MSG {
					err = fmt.Errorf("%s: %w", nl.BytesToString(a.Value), err)
				}
			}
		}
	}
	return err
}

func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// inNamespace runs f on a thread that is in the network namespace. f must not start goroutines. The thread is the
// goroutine's own and ends with it when it cannot be put back.
func inNamespace(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("opening the own network namespace: %w", err)
			return
		}
		defer own.Close()
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("entering the network namespace: %w", err)
			return
		}
		err = f()
		if back := unix.Setns(int(own), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// openNamespace opens a pinned network namespace and refuses what is something else.
func openNamespace(path string) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is no network namespace", path)
	}
	return f, nil
}

func request(kind, flags int, body nl.NetlinkRequestData, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.AddData(body)
	for _, a := range attrs {
		r.AddData(a)
	}
	return r
}

func ifinfo(index int, up bool) *nl.IfInfomsg {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	if up {
		m.Flags, m.Change = unix.IFF_UP, unix.IFF_UP
	}
	return m
}

func u32(kind int, v uint32) *nl.RtAttr          { return nl.NewRtAttr(kind, nl.Uint32Attr(v)) }
func str(kind int, v string) *nl.RtAttr          { return nl.NewRtAttr(kind, nl.ZeroTerminated(v)) }
func addrAttr(kind int, a netip.Addr) *nl.RtAttr { return nl.NewRtAttr(kind, a.AsSlice()) }

func nest(kind int, children ...*nl.RtAttr) *nl.RtAttr {
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, c := range children {
		a.AddChild(c)
	}
	return a
}

// addAddress adds an address that is usable at once: duplicate address detection, which takes a second, cannot find
// anything that the leases would not.
func addAddress(index int, p netip.Prefix) *nl.NetlinkRequest {
	family := unix.AF_INET
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	m := nl.NewIfAddrmsg(family)
	m.Index, m.Prefixlen, m.Flags = uint32(index), uint8(p.Bits()), unix.IFA_F_NODAD
	attrs := []*nl.RtAttr{addrAttr(unix.IFA_LOCAL, p.Addr()), addrAttr(unix.IFA_ADDRESS, p.Addr())}
	if p.Addr().Is4() && p.Bits() < 31 {
		attrs = append(attrs, addrAttr(unix.IFA_BROADCAST, broadcast(p)))
	}
	return request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m, attrs...)
}

func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|uint32(1<<(32-p.Bits())-1))
	return netip.AddrFrom4(a)
}
