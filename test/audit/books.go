package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// settleTime is what goes on behind answers at most: files being deleted, the kernel taking namespaces apart.
const settleTime = 30 * time.Second

// Books waits until the instance has of every pod and container that it lists what belongs to it, and nothing that
// belongs to another: records, directories, mounts, network, cgroups. Nothing may be under way.
func Books(ctx context.Context, i *harness.Instance) error {
	for deadline := time.Now().Add(settleTime); ; time.Sleep(10 * time.Millisecond) {
		err := books(ctx, i)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// listed is what the instance answers.
type listed struct {
	pods       []string // ids, sorted, as all below
	attached   []string // pods that are ready and have a network of their own
	inits      []string // pods that are ready and have a shared PID namespace
	ports      []string // those of them that have host ports
	containers []string
	running    []string
}

func list(ctx context.Context, i *harness.Instance) (l listed, err error) {
	pods, err := i.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return l, err
	}
	containers, err := i.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return l, err
	}
	for _, p := range pods.GetItems() {
		l.pods = append(l.pods, p.GetId())
		if p.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		status, err := i.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetId()})
		if err != nil {
			return l, err
		}
		namespaces := status.GetStatus().GetLinux().GetNamespaces().GetOptions()
		if namespaces.GetNetwork() == runtimeapi.NamespaceMode_POD {
			l.attached = append(l.attached, p.GetId())
		}
		if namespaces.GetPid() == runtimeapi.NamespaceMode_POD {
			l.inits = append(l.inits, p.GetId())
		}
		if p.GetAnnotations()[HostPorts] != "" {
			l.ports = append(l.ports, p.GetId())
		}
	}
	for _, c := range containers.GetContainers() {
		l.containers = append(l.containers, c.GetId())
		if c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			l.running = append(l.running, c.GetId())
		}
	}
	for _, ids := range [][]string{l.pods, l.attached, l.ports, l.containers, l.running} {
		slices.Sort(ids)
	}
	return l, nil
}

// HostPorts is an annotation of the tests: the pod has some, which the CRI does not tell.
const HostPorts = "audit/host-ports"

func books(ctx context.Context, i *harness.Instance) error {
	l, err := list(ctx, i)
	if err != nil {
		return err
	}
	spare := regexp.MustCompile(`^spare-\d+$`) // files of records to come
	withShadows := func(ids []string) (all []string) {
		for _, id := range ids {
			all = append(all, id+".json", id+".tmp")
		}
		return all
	}
	errs := []error{
		names(i, "root/pods", spare, withShadows(l.pods)), names(i, "root/containers", spare, withShadows(l.containers)),
		names(i, "run/pods", nil, l.pods), names(i, "run/containers", nil, slices.Concat(l.containers, l.inits)),
		names(i, "run/rootfs", nil, l.containers), names(i, "root/images/containers", nil, l.containers),
		names(i, "root/checkpoints", nil, nil), names(i, "root/quarantine", nil, nil),
		same("pods with a lease", l.attached, holders(i, "root/cni/networks/*/leases", func(_ string, v json.RawMessage) (pod string, err error) {
			return pod, json.Unmarshal(v, &pod)
		})),
		same("pods with an attachment", l.attached, holders(i, "root/cni/attachments", byKey)),
		same("pods with host ports", l.ports, holders(i, "root/cni/ports", byKey)),
		links(i, len(l.attached)), mounts(i, l), cgroups(l), supervised(i, l),
	}
	return errors.Join(errs...)
}

func same(what string, want []string, got func() ([]string, error)) error {
	have, err := got()
	slices.Sort(have)
	if have = slices.Compact(have); err == nil && !slices.Equal(have, want) {
		err = fmt.Errorf("%s are %v, not %v", what, have, want)
	}
	return err
}

// names requires that a folder has these entries, and no others but those that allowed matches.
func names(i *harness.Instance, folder string, allowed *regexp.Regexp, want []string) error {
	slices.Sort(want)
	return same("entries of "+folder, want, func() (got []string, err error) {
		entries, err := os.ReadDir(filepath.Join(i.Dir, folder))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		for _, e := range entries {
			if allowed == nil || !allowed.MatchString(e.Name()) {
				got = append(got, e.Name())
			}
		}
		return got, err
	})
}

func byKey(k string, _ json.RawMessage) (string, error) { return k, nil }

// holders are the pods that journals (package cni/internal/journal) name.
func holders(i *harness.Instance, pattern string, pod func(key string, value json.RawMessage) (string, error)) func() ([]string, error) {
	return func() (all []string, err error) {
		paths, err := filepath.Glob(filepath.Join(i.Dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			last := map[string]json.RawMessage{}
			body, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			for line := range bytes.Lines(body) {
				var r struct {
					K string          `json:"k"`
					V json.RawMessage `json:"v"`
				}
				if err := json.Unmarshal(line, &r); err != nil {
					return nil, fmt.Errorf("%s: %q: %w", path, line, err)
				}
				if last[r.K] = r.V; r.V == nil {
					delete(last, r.K)
				}
			}
			for k, v := range last {
				id, err := pod(k, v)
				if err != nil {
					return nil, fmt.Errorf("%s: %s: %w", path, k, err)
				}
				all = append(all, id)
			}
		}
		return all, nil
	}
}

// links requires that the bridge has as many ports as there are attached pods.
func links(i *harness.Instance, want int) error {
	all, err := harness.Dump(netlink.LinkList)
	if err != nil {
		return err
	}
	bridge, got := -1, 0
	for _, l := range all {
		if l.Attrs().Name == i.Bridge {
			bridge = l.Attrs().Index
		}
	}
	for _, l := range all {
		if l.Type() == "veth" && l.Attrs().MasterIndex == bridge {
			got++
		}
	}
	if got != want {
		return fmt.Errorf("%s has %d ports, for %d pods", i.Bridge, got, want)
	}
	return nil
}

// mounts requires that each container has its root, each attached pod its network namespace, and nobody else anything.
func mounts(i *harness.Instance, l listed) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	var roots, pins []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		path, ok := strings.CutPrefix(strings.Fields(lines.Text())[4], filepath.Join(i.Dir, "run")+"/") // proc_pid_mountinfo(5)
		if !ok {
			continue
		}
		parts := append(strings.Split(path, "/"), "", "")
		kind, id, name := parts[0], parts[1], strings.Join(parts[2:], "/")
		switch {
		case kind == "rootfs" && strings.HasPrefix(name, "rootfs/"):
			roots = append(roots, id)
		case kind == "pods" && strings.HasPrefix(name, "ns/net/"):
			pins = append(pins, id)
		}
		if (kind == "rootfs" || kind == "containers") && !slices.Contains(l.containers, id) || kind == "pods" && !slices.Contains(l.pods, id) {
			errs = append(errs, fmt.Errorf("mount of nobody's at %s", path))
		}
	}
	got := func(ids []string) func() ([]string, error) { return func() ([]string, error) { return ids, nil } }
	for _, ids := range [][]string{roots, pins} {
		slices.Sort(ids)
		if len(slices.Compact(slices.Clone(ids))) != len(ids) {
			errs = append(errs, fmt.Errorf("mounted twice, one over the other: %v", ids))
		}
	}
	return errors.Join(append(errs, same("containers with a root file system", l.containers, got(roots)), same("pods with a network namespace", l.attached, got(pins)))...)
}

// idInName finds the id that a container's cgroup is named after, with either driver.
var idInName = regexp.MustCompile(`^(?:gantry-)?([0-9a-f]{64})(?:\.scope)?$`)

// cgroups requires that those of containers are listed ones', and that those that run have theirs.
func cgroups(l listed) error {
	var errs []error
	found := map[string]bool{}
	paths, err := harness.Cgroups()
	for _, path := range paths {
		if m := idInName.FindStringSubmatch(filepath.Base(path)); m != nil {
			if found[m[1]] = true; !slices.Contains(l.containers, m[1]) && !slices.Contains(l.pods, m[1]) { // the init of a pod
				errs = append(errs, fmt.Errorf("cgroup of nobody's: %s", path))
			}
		}
	}
	for _, id := range l.running {
		if !found[id] {
			errs = append(errs, fmt.Errorf("container %s runs without a cgroup", id))
		}
	}
	return errors.Join(append(errs, err)...)
}

// supervised requires that the supervisor has what runs, and nothing that is not listed.
func supervised(i *harness.Instance, l listed) error {
	entries, err := os.ReadDir(filepath.Join(i.Dir, "run/supervisor/containers"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !slices.Contains(l.containers, e.Name()) && !slices.Contains(l.pods, e.Name()) {
			errs = append(errs, fmt.Errorf("the supervisor has %s, which is not listed", e.Name()))
		}
	}
	for _, id := range l.running {
		if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == id }) {
			errs = append(errs, fmt.Errorf("container %s runs, and the supervisor does not have it", id))
		}
	}
	return errors.Join(errs...)
}
