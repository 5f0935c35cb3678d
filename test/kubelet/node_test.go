package kubelet

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The cases wait far more than they work: all run at once, also on two processors.
	if err := flag.Set("test.parallel", "100"); err != nil {
		panic(err)
	}
	harness.Main(m)
	os.Exit(0)
}

// names are the words that manifests use.
var names = strings.NewReplacer("BUSYBOX", images.Busybox, "WEB", images.Web, "USERS", images.Users)

// cases are the pods that run beside each other.
var cases = map[string]func(*testing.T, *node){}

func TestKubelet(t *testing.T) {
	n := newNode(t)
	n.runCases(t, slices.Collect(maps.Keys(cases))...)
	n.blamesNobody(t)
	t.Run("restarts", func(t *testing.T) { restarts(t, n) })
	t.Run("everything is removed", n.emptied)
	n.blamesNobody(t)
}

// What later kubelets do by default: hear of changes by events, read lists as streams, take all statistics from the CRI.
func TestKubeletWithGates(t *testing.T) {
	n := newNode(t, "EventedPLEG", "CRIListStreaming", "PodAndContainerStatsFromCRI")
	n.runCases(t, "init containers and sidecars", "restart OnFailure", "liveness", "hooks", "out of memory", "stats and metrics", "manifest removed")
	metrics, err := n.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^kubelet_evented_pleg_connection_success_count [1-9]`).MatchString(metrics) {
		t.Error("the kubelet has not listened to events")
	}
	if log := n.gantry.LogTail(1 << 20); !strings.Contains(log, `rpc="StreamContainers"`) {
		t.Error("the kubelet has read no list as a stream")
	}
	n.blamesNobody(t)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n.options.DiskWanted = "99.9%"
	n.start(t)
	t.Run("everything is removed", n.emptied)
	n.blamesNobody(t)
}

func newNode(t *testing.T, gates ...string) *node {
	t.Helper()
	i := harness.New(t, harness.Config{Registry: harness.Registry(t)})
	n := &node{gantry: i, kubelet: startKubelet(t, i, gates...)}
	t.Cleanup(func() { n.close(t) })
	return n
}

// runCases runs cases beside each other.
func (n *node) runCases(t *testing.T, names ...string) {
	t.Run("pods", func(t *testing.T) {
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				cases[name](t, n)
			})
		}
	})
}

// emptied waits until the kubelet has removed what it made. The disk that it wants has it collect at once what else
// it collects once a minute.
func (n *node) emptied(t *testing.T) {
	eventually(t, "no container and no sandbox is left", func() error {
		ctx, cancel := criContext()
		defer cancel()
		containers, err := n.gantry.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil || len(containers.GetContainers()) > 0 {
			return fmt.Errorf("containers: %v, %w", containers.GetContainers(), err)
		}
		sandboxes, err := n.sandboxes(nil)
		if err != nil || len(sandboxes) > 0 {
			return fmt.Errorf("sandboxes: %v, %w", sandboxes, err)
		}
		return nil
	})
}

// close ends the kubelet and removes what it keeps for its next start: cgroups, and the mount that makes its root
// directory a place from which mounts spread.
func (n *node) close(t *testing.T) {
	if t.Failed() {
		t.Logf("the kubelet's log ends:\n%s", n.logTail(60))
	}
	if file := os.Getenv("KUBELET_LOG"); file != "" {
		body, _ := os.ReadFile(n.log)
		_ = os.WriteFile(file, body, 0o600)
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(filepath.Join(n.dir, "root"), unix.UMOUNT_NOFOLLOW); err != nil {
		t.Errorf("unmounting the kubelet's root directory: %v", err)
	}
	if err := removeCgroups("kubepods"); err != nil {
		t.Error(err)
	}
	// Links to the pods' logs, of which it keeps those of pods that it has not removed; the next kubelet would ask for them.
	links, _ := filepath.Glob("/var/log/containers/*.log")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, n.options.LogDir+"/") {
			_ = os.Remove(link)
		}
	}
}

// removeCgroups removes a group and those below it, empty as they must be, in every hierarchy.
func removeCgroups(name string) error {
	trees, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return err
	}
	for _, tree := range append(trees, "/sys/fs/cgroup/"+name) {
		var groups []string
		err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, path := range slices.Backward(groups) { // the lowest first
			if err := unix.Rmdir(path); err != nil {
				return fmt.Errorf("removing the cgroup %s: %w", path, err)
			}
		}
	}
	return nil
}
