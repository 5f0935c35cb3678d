package bridge

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A link that is set up gets no address from the kernel. A bridge without ports stands for a veth whose carrier the
// kernel has not noticed to be missing.
func TestSetUp(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI runs this test as root")
		}
		t.Skip("makes a network namespace: needs root")
	}
	if !haveIPv6() {
		t.Skip("the kernel has no IPv6")
	}
	got := make(chan error)
	var addresses []byte
	go func() {
		runtime.LockOSThread() // which ends with the goroutine
		got <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			c, err := newRTNL()
			if err != nil {
				return err
			}
			defer c.close()
			name := str(unix.IFLA_IFNAME, "setup0")
			create := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, false), name,
				nest(unix.IFLA_LINKINFO, str(unix.IFLA_INFO_KIND, "bridge")))
			errs, err := c.do(append([]*nl.NetlinkRequest{create}, setUp(0, name)...)...)
			if err = errors.Join(append(errs, err)...); err != nil {
				return err
			}
			link, err := getLink(c, "setup0")
			if err == nil && !link.up {
				err = errors.New("the link is down")
			}
			if err == nil {
				addresses, err = os.ReadFile("/proc/thread-self/net/if_inet6")
			}
			return err
		}()
	}()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(addresses), "setup0") {
		t.Errorf("the kernel gave it an address:\n%s", addresses)
	}
}
