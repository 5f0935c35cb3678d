package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// needRoot skips a test that makes network namespaces, bridges and tables where that is not allowed. In CI it must be.
func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			tb.Fatal("needs root to make network namespaces; CI must run it as root")
		}
		tb.Skip("needs root to make network namespaces")
	}
}

// node is one Networks in a temporary place with its own bridge, subnets and table. At the end of the test nothing of
// it may be left.
type node struct {
	*Networks
	t    testing.TB
	ctx  context.Context
	cfg  Config
	made int // pods
}

// nodes makes names that differ within this process; the process id keeps two runs apart.
func newNode(tb testing.TB, change ...func(*Config)) *node {
	tb.Helper()
	n := closedNode(tb, change...)
	n.open()
	tb.Cleanup(n.audit)
	return n
}

// closedNode is a node without a daemon yet, and without the audit.
func closedNode(tb testing.TB, change ...func(*Config)) *node {
	tb.Helper()
	needRoot(tb)
	dir := tb.TempDir()
	suffix := fmt.Sprintf("%d", os.Getpid()%100000)
	n := &node{t: tb, cfg: Config{ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")},
		StateDir: filepath.Join(dir, "state"), Bridge: "gtt" + suffix, Table: "gantry-test-" + suffix,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.213.0.0/16")}}}
	for _, c := range change {
		c(&n.cfg)
	}
	n.ctx = logging(tb)
	return n
}

func logging(tb testing.TB) context.Context {
	if _, ok := tb.(*testing.B); ok {
		return klog.NewContext(context.Background(), klog.Logger{}) // logs nothing
	}
	_, ctx := ktesting.NewTestContext(tb)
	return ctx
}

func (n *node) open() {
	n.t.Helper()
	var err error
	if n.Networks, err = Open(n.ctx, n.cfg); err != nil {
		n.t.Fatal(err)
	}
}

// restart is a daemon that was killed: nothing is closed in order but what holds descriptors.
func (n *node) restart() {
	n.t.Helper()
	if err := n.Networks.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

// audit is the end of every test: no lease, record, link, bridge or table is left.
func (n *node) audit() {
	defer func() {
		if err := n.Networks.Close(); err != nil {
			n.t.Error(err)
		}
	}()
	eventually(n.t, "links of pods are gone", func() bool {
		links, err := netlink.LinkList()
		if err != nil {
			return false // it changed while it was read
		}
		bridge, err := netlink.LinkByName(n.cfg.Bridge)
		for _, l := range links {
			if err == nil && l.Attrs().MasterIndex == bridge.Attrs().Index {
				return false
			}
		}
		return true
	})
	n.restart() // what counts is what is on the disk
	if addresses, ports := n.bridge.InUse(); len(n.records.all())+addresses+ports > 0 {
		n.t.Errorf("left behind: %d records, %d leases, %d host ports", len(n.records.all()), addresses, ports)
	}
	for _, pattern := range []string{"results/*", "*.new", "*.damaged", "networks/*/*.new"} {
		if left, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, pattern)); len(left) > 0 {
			n.t.Errorf("left behind: %v", left)
		}
	}
	if err := n.Teardown(n.ctx); err != nil {
		n.t.Error(err)
	}
	if _, err := netlink.LinkByName(n.cfg.Bridge); err == nil {
		n.t.Errorf("bridge %s is left", n.cfg.Bridge)
	}
	if left := n.ifbs(); len(left) > 0 {
		n.t.Errorf("left behind: links %v", left)
	}
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		n.t.Error(err)
	}
	for _, t := range tables {
		if t.Name == n.cfg.Table {
			n.t.Errorf("table %s is left", t.Name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, "networks/*")); len(left) > 0 {
		n.t.Errorf("left behind: %v", left)
	}
}

// eventually waits for what the kernel does in the background.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Errorf("not so after a minute: %s", what)
			return
		}
	}
}

// pod makes a pod with a namespace of its own.
func (n *node) pod(ports ...PortMapping) Pod {
	n.t.Helper()
	n.made++
	name := fmt.Sprintf("pod%d", n.made)
	return n.named(name, ports...)
}

func (n *node) named(name string, ports ...PortMapping) Pod {
	n.t.Helper()
	id := sha256.Sum256([]byte(n.t.Name() + name))
	return Pod{ID: hex.EncodeToString(id[:]), Name: name, Namespace: "test", UID: "uid-" + name, NetNS: newNS(n.t), PortMappings: ports}
}

// attach attaches a pod and detaches it at the end of the test, whose namespace goes before.
func (n *node) attach(pod Pod) netip.Addr {
	n.t.Helper()
	result, err := n.Attach(n.ctx, pod)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.detach(pod) })
	return result.IPs[0]
}

func (n *node) detach(pod Pod) {
	n.t.Helper()
	if err := n.Detach(n.ctx, pod); err != nil {
		n.t.Error(err)
	}
}

// newNS pins a new network namespace below the test's directory. The pin goes at the end of the test, before the
// node's audit if the node was made before.
func newNS(tb testing.TB) string {
	tb.Helper()
	f, err := os.CreateTemp(tb.TempDir(), "netns")
	if err != nil {
		tb.Fatal(err)
	}
	path := f.Name()
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { dropNS(tb, path) })
	return path
}

// dropNS drops the pin, if it is there.
func dropNS(tb testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		tb.Error(err)
	}
}

// inNS runs f in a namespace, on a thread of its own. f must not start goroutines that need it.
func inNS(tb testing.TB, path string, f func() error) {
	tb.Helper()
	err := onThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		tb.Fatalf("in %s: %v", filepath.Base(path), err)
	}
}

// onThread runs f on a thread of its own and brings the thread back: the process's first thread does not end with a
// goroutine, it would keep a namespace alive.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer own.Close()
		err = f()
		if back := netns.Set(own); back == nil {
			runtime.UnlockOSThread()
		} else {
			err = errors.Join(err, back)
		}
		done <- err
	}()
	return <-done
}

// write makes a file of the CNI configuration.
func (n *node) write(name string, lines ...string) {
	n.t.Helper()
	if err := os.MkdirAll(n.cfg.ConfDir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.cfg.ConfDir, name), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func deleteTable(t *testing.T, name string) {
	t.Helper()
	c := &nftables.Conn{}
	c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}
