package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// reference is a node whose chains are of the CNI project's own plugins.
type reference struct {
	*node
	data string // where the plugins keep their state
}

const referenceBridge = "gttref0"

// newReference needs the plugins, which CI has (hack/install-deps.sh test).
func newReference(t *testing.T) *reference {
	t.Helper()
	needRoot(t)
	i := slices.IndexFunc([]string{"/usr/lib/cni", "/opt/cni/bin"}, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "host-local"))
		return err == nil
	})
	if i < 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("no reference plugins; CI must have the package containernetworking-plugins")
		}
		t.Skip("no reference plugins in /usr/lib/cni or /opt/cni/bin")
	}
	r := &reference{data: t.TempDir()}
	r.node = newNode(t, func(c *Config) {
		c.BinDirs = append(c.BinDirs, []string{"/usr/lib/cni", "/opt/cni/bin"}[i])
	})
	sysctl(t, "net/ipv6/conf/default/accept_dad", "0") // of the bridge, whose address would come late
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(referenceBridge); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	return r
}

// sysctl sets a value of the tests' network namespace for the time of the test.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	path := "/proc/sys/" + name
	old, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(path, old, 0) })
}

// chain puts a list into force: its plugins with BRIDGE, DATA and IPAM filled in.
func (r *reference) chain(version string, plugins ...string) {
	r.t.Helper()
	list := fmt.Sprintf(`{"cniVersion":%q,"name":"reference","plugins":[%s]}`, version, strings.Join(plugins, ","))
	list = strings.NewReplacer("BRIDGE", `"type":"bridge","bridge":"`+referenceBridge+`","isGateway":true,"hairpinMode":true`,
		"IPAM4", `"type":"host-local","dataDir":"`+r.data+`","ranges":[[{"subnet":"10.214.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]`,
		"IPAM6", `"type":"host-local","dataDir":"`+r.data+`","ranges":[[{"subnet":"10.214.0.0/24"}],[{"subnet":"fd00:214::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`,
		"DATA", r.data).Replace(list)
	r.write("10-reference.conflist", list)
	eventually(r.t, "the list is in force", func() bool {
		l, err := r.list()
		return err == nil && string(l.Bytes) == list
	})
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// state is all that plugins may leave of a pod: links, rules of iptables, leases and other files, libcni's results.
func (r *reference) state() (lines []string) {
	r.t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range links {
		lines = append(lines, "link "+l.Attrs().Name)
	}
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(program).Output()
		if err != nil {
			r.t.Fatalf("%s: %v", program, err)
		}
		table := ""
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "*") {
				table = strings.TrimSpace(line)
			} else if !strings.HasPrefix(line, "#") {
				lines = append(lines, program+" "+table+" "+counters.ReplaceAllString(strings.TrimSpace(line), ""))
			}
		}
	}
	for _, dir := range []string{r.data, filepath.Join(r.cfg.StateDir, "results")} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip") {
				lines = append(lines, "file "+path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.t.Fatal(err)
		}
	}
	slices.Sort(lines)
	return lines
}

// used attaches and detaches a pod, so that what the plugins make once for the node is there, and returns the state.
func (r *reference) used() []string {
	r.t.Helper()
	pod := r.pod(PortMapping{Protocol: "tcp", HostPort: 18200, ContainerPort: 80})
	pod.Annotations = limits
	if _, err := r.Attach(r.ctx, pod); err != nil {
		r.t.Fatal(err)
	}
	r.detach(pod)
	return r.state()
}

var limits = map[string]string{"kubernetes.io/ingress-bandwidth": "40M", "kubernetes.io/egress-bandwidth": "30M"}

// leaves requires the state to be that of before.
func (r *reference) leaves(before []string) {
	r.t.Helper()
	var now []string
	same := func() bool { now = r.state(); return slices.Equal(now, before) }
	for end := time.Now().Add(time.Minute); !same() && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	for _, line := range now {
		if !slices.Contains(before, line) {
			r.t.Errorf("left behind: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(now, line) {
			r.t.Errorf("taken away: %s", line)
		}
	}
}
