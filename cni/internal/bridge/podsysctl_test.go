package bridge

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Each namespace gets its own value, over more of them than one procfs serves.
func TestPodSysctls(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI runs this test as root")
		}
		t.Skip("makes network namespaces: needs root")
	}
	const name, fresh = "net/ipv4/ip_unprivileged_port_start", "1024"
	var s podSysctls
	host, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range writesPerProcfs + 3 {
		value, got := string(rune('1'+i%9)), make(chan string)
		go func() {
			runtime.LockOSThread() // which ends with the goroutine
			var body []byte
			err := unix.Unshare(unix.CLONE_NEWNET)
			if err == nil {
				if body, err = os.ReadFile("/proc/thread-self/root/proc/sys/" + name); err == nil && strings.TrimSpace(string(body)) != fresh {
					got <- "before: " + string(body)
					return
				}
			}
			if err == nil {
				err = s.write(name, value)
			}
			if err == nil {
				body, err = os.ReadFile("/proc/sys/" + name)
			}
			if err != nil {
				body = []byte(err.Error())
			}
			got <- strings.TrimSpace(string(body))
		}()
		if got := <-got; got != value {
			t.Errorf("namespace %d has %q, want %q", i, got, value)
		}
	}
	if now, err := os.ReadFile("/proc/sys/" + name); err != nil || string(now) != string(host) {
		t.Errorf("the host has %q after %q (%v)", now, host, err)
	}
	if err := s.write("net/ipv4/conf/none/arp_notify", "1"); !os.IsNotExist(err) {
		t.Errorf("a sysctl that is not there: %v", err)
	}
	s.close()
	if s.proc != 0 {
		t.Error("the procfs is open after close")
	}
}
