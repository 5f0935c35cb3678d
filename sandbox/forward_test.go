package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// podWithLoopback makes a pod with a network namespace whose loopback is up.
func podWithLoopback(t *testing.T, h *Host) (id string, own Namespaces, netns *os.File) {
	t.Helper()
	own = Namespaces{Net: true}
	paths, err := h.CreatePod(PodConfig{ID: "p", Namespaces: own}, noRecord)
	must(t, err)
	t.Cleanup(func() { must(t, h.RemovePod("p")) })
	netns, err = openNetNS(paths.Net)
	must(t, err)
	t.Cleanup(func() { _ = netns.Close() })
	must(t, inNetNS(netns, func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		ifr, _ := unix.NewIfreq("lo")
		ifr.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}))
	must(t, err)
	return "p", own, netns
}

// listenIn listens in a network namespace, on a port that the kernel chooses if that of addr is 0.
func listenIn(t *testing.T, netns *os.File, addr string, backlog int) (net.Listener, uint16) {
	t.Helper()
	to := netip.MustParseAddrPort(addr)
	fd, err := socketIn(netns, to.Addr())
	must(t, err)
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: [4]byte{127, 0, 0, 1}}
	if to.Addr().Is6() {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	must(t, errors.Join(unix.Bind(fd, sa), unix.Listen(fd, backlog)))
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close()
	l, err := net.FileListener(f)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l, netip.MustParseAddrPort(l.Addr().String()).Port()
}

// greet answers each connection with a word, until the listener closes.
func greet(t *testing.T, l net.Listener, word string) {
	var done sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); done.Wait() })
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word)
			_ = c.Close()
		}
	})
}

func heard(t *testing.T, h *Host, id string, own Namespaces, port uint16) string {
	t.Helper()
	c, err := h.DialPod(t.Context(), id, own, port)
	must(t, err)
	defer c.Close()
	said, err := io.ReadAll(c)
	must(t, err)
	return string(said)
}

// A connection is one inside the pod, to IPv4 and, where nobody listens there, IPv6.
func TestDialPod(t *testing.T) {
	h := testHost(t)
	id, own, netns := podWithLoopback(t, h)
	here, port := listenIn(t, nil, "127.0.0.1:0", 8)
	greet(t, here, "host")
	if _, err := h.DialPod(t.Context(), id, own, port); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port of the host from a pod: %v", err)
	}
	l4, _ := listenIn(t, netns, fmt.Sprintf("127.0.0.1:%d", port), 8)
	greet(t, l4, "four")
	l6, _ := listenIn(t, netns, fmt.Sprintf("[::1]:%d", port), 8)
	greet(t, l6, "six")
	if got := heard(t, h, id, own, port); got != "four" {
		t.Errorf("both listen: %q", got)
	}
	_ = l4.Close()
	if got := heard(t, h, id, own, port); got != "six" {
		t.Errorf("IPv6 listens: %q", got)
	}
	if got := heard(t, h, id, Namespaces{}, port); got != "host" {
		t.Errorf("host network: %q", got)
	}
	_ = l6.Close()
	_, err := h.DialPod(t.Context(), id, own, port)
	const refused = "dial tcp4 127.0.0.1:%d: connect: connection refused; dial tcp6 [::1]:%[1]d: connect: connection refused"
	want := fmt.Sprintf(refused, port)
	if err == nil || err.Error() != want {
		t.Errorf("nobody listens: %v, want %s", err, want)
	}
	if _, err := h.DialPod(t.Context(), "gone", own, port); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no namespace: %v", err)
	}
	path := h.PodPaths(id, own).Net
	must(t, unmount(path)) // the file remains until the pod's removal
	if _, err := h.DialPod(t.Context(), id, own, port); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("namespace without its pin: %v", err)
	}
}

// A server that does not accept holds its caller until ctx ends, and no thread in the pod's namespace meanwhile or afterwards.
func TestDialPodWaits(t *testing.T) {
	h := testHost(t)
	id, own, netns := podWithLoopback(t, h)
	_, port := listenIn(t, netns, "127.0.0.1:0", 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	const callers = 300
	var waiting sync.WaitGroup
	results := make(chan error, callers)
	for range callers {
		waiting.Go(func() {
			c, err := h.DialPod(ctx, id, own, port)
			if err == nil {
				_ = c.Close()
			}
			results <- err
		})
	}
	for range 2 { // what the backlog takes
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	for end := time.Now().Add(time.Minute); threadsAbroad(t) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d threads wait for connections in the pod's namespace", threadsAbroad(t))
		}
	}
	cancel(enough)
	waiting.Wait()
	close(results)
	for err := range results {
		if err != nil && !errors.Is(err, enough) {
			t.Error(err)
		}
	}
	if n := threadsAbroad(t); n > 0 {
		t.Errorf("%d threads are in another network namespace", n)
	}
}

// threadsAbroad counts the threads that are not in the process' network namespace.
func threadsAbroad(t *testing.T) (n int) {
	t.Helper()
	home, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns != home {
			n++
		}
	}
	return n
}

func TestDialPodParallel(t *testing.T) {
	h := testHost(t)
	id, own, netns := podWithLoopback(t, h)
	l, port := listenIn(t, netns, "127.0.0.1:0", 4096)
	greet(t, l, "word")
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() {
			c, err := h.DialPod(t.Context(), id, own, port)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if said, err := io.ReadAll(c); err != nil || string(said) != "word" {
				t.Errorf("%q, %v", said, err)
			}
		})
	}
	all.Wait()
}
