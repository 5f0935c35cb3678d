package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

// extras makes something, and returns what an audit would say of it.
func extras(t *testing.T, dir string, make func()) []string {
	t.Helper()
	before, err := take(dir)
	if err != nil {
		t.Fatal(err)
	}
	make()
	after, err := take(dir)
	if err != nil {
		t.Fatal(err)
	}
	return after.beyond(before)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotSeesEveryKindOfLeftover(t *testing.T) {
	Require(t)
	home := t.TempDir()
	dir, file := filepath.Join(home, "mounted"), filepath.Join(home, "file")
	must(t, os.Mkdir(dir, 0o700))
	cgroup := "/sys/fs/cgroup/pids/gantry-harness-test"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cgroup = "/sys/fs/cgroup/gantry-harness-test"
	}
	got := extras(t, home, func() {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
		must(t, os.WriteFile(filepath.Join(dir, "on-the-mount"), nil, 0o600))
		must(t, os.WriteFile(file, nil, 0o600))
		must(t, os.Mkdir(cgroup, 0o755))
		t.Cleanup(func() { must(t, os.Remove(cgroup)) })

		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "left"}}
		must(t, netlink.LinkAdd(link))
		t.Cleanup(func() { must(t, netlink.LinkDel(link)) })

		conn, err := nftables.New()
		must(t, err)
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "left"})
		set := &nftables.Set{Table: table, Name: "ports", KeyType: nftables.TypeInetService}
		must(t, conn.AddSet(set, []nftables.SetElement{{Key: []byte{0, 80}}}))
		must(t, conn.Flush())
		t.Cleanup(func() { conn.DelTable(table); must(t, conn.Flush()) })

		cmd := exec.Command("sleep", "1000")
		must(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	})
	for _, want := range []string{"mount " + dir, "file " + file, "cgroup " + cgroup, "link left (bridge)",
		"nftables table left", "nftables element 0050 in set ports of table left"} {
		if !slices.Contains(got, want) {
			t.Errorf("not seen: %s", want)
		}
	}
	if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "process ") && strings.HasSuffix(s, "sleep 1000") }) {
		t.Error("not seen: the process")
	}
	if t.Failed() {
		t.Logf("seen:\n%s", strings.Join(got, "\n"))
	}
}

// An orphan of a session of its own falls to the tests, is seen alive and is reaped when dead.
func TestOrphansAreSeenAndReaped(t *testing.T) {
	Require(t)
	find := func() (process, bool) {
		for _, p := range descendants(os.Getpid()) {
			if strings.HasSuffix(p.command, "sleep 1001") || p.zombie {
				return p, true
			}
		}
		return process{}, false
	}
	cmd := exec.Command("sh", "-c", "sleep 1001 & exit 0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(t, cmd.Run())
	p, ok := find()
	for deadline := time.Now().Add(time.Minute); !ok && time.Now().Before(deadline); p, ok = find() {
		time.Sleep(time.Millisecond) // until the orphan has become sleep
	}
	if !ok || p.parent != os.Getpid() {
		t.Fatalf("the orphan is not a child of the tests: %v %v", p, ok)
	}
	must(t, unix.Kill(p.pid, unix.SIGKILL))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		Reap()
		if _, ok := find(); !ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the dead orphan was not reaped")
		}
	}
}

func TestLastingFiles(t *testing.T) {
	Require(t)
	dir := t.TempDir()
	for path, want := range map[string]bool{
		"logs/x": true, "gantry.log": true, "root/images/blobs/x": true, "run/supervisor/supervisor.sock": true,
		"run/runtimes/runc": true, "run/runtimes/runc/0123": false, "run/pods/0123": false, "root/pods/x.json": false,
		"run/supervisor/containers/0123": false, "root/cni/networks/n/network.json": true, "root/cni/networks/n/leases/10.0.0.2": false,
	} {
		got := extras(t, dir, func() {
			must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o700))
			must(t, os.WriteFile(filepath.Join(dir, path), nil, 0o600))
		})
		if lasting := !slices.Contains(got, "file "+filepath.Join(dir, path)); lasting != want {
			t.Errorf("%s: lasting %v, want %v", path, lasting, want)
		}
		must(t, os.RemoveAll(dir))
	}
}
