package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/harness"
)

// node is a gantry with a kubelet.
type node struct {
	*kubelet
	gantry *harness.Instance
	read   int // bytes of the kubelet's log that have been looked through
}

// The parts of the API's types that the tests look at; k8s.io/api would bring more modules than the product has.
type (
	podList struct{ Items []podObject }

	podObject struct {
		Metadata struct{ Name, Namespace, UID string }
		Status   podStatus
	}

	podStatus struct {
		Phase, PodIP, HostIP, Reason, Message string
		QOSClass                              string `json:"qosClass"`
		Conditions                            []struct{ Type, Status string }
		InitContainerStatuses                 []containerStatus
		ContainerStatuses                     []containerStatus
	}

	containerStatus struct {
		Name, Image, ImageID, ContainerID string
		Ready                             bool
		Started                           *bool
		RestartCount                      int
		State, LastState                  containerState
		StopSignal                        string
		User                              *struct {
			Linux struct {
				UID, GID           int64
				SupplementalGroups []int64
			}
		}
		VolumeMounts []struct {
			Name, MountPath, RecursiveReadOnly string
			ReadOnly                           bool
		}
	}

	containerState struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt time.Time }
		Terminated *terminated
	}

	terminated struct {
		ExitCode, Signal      int
		Reason, Message       string
		StartedAt, FinishedAt time.Time
		ContainerID           string
	}
)

func (s podStatus) container(name string) containerStatus {
	for _, list := range [][]containerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			if c.Name == name {
				return c
			}
		}
	}
	return containerStatus{Name: name}
}

func (s podStatus) ready() bool {
	for _, c := range s.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (s podStatus) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", s.Phase, s.Reason, s.Message)
	for _, list := range [][]containerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, "; %s ready=%t restarts=%d %s, before: %s", c.Name, c.Ready, c.RestartCount, c.State, c.LastState)
		}
	}
	return b.String()
}

func (s containerState) String() string {
	switch {
	case s.Waiting != nil:
		return fmt.Sprintf("waiting %s %s", s.Waiting.Reason, s.Waiting.Message)
	case s.Running != nil:
		return "running"
	case s.Terminated != nil:
		return fmt.Sprintf("terminated %d %s %q", s.Terminated.ExitCode, s.Terminated.Reason, s.Terminated.Message)
	}
	return "none"
}

// pod is a static pod of one case.
type pod struct {
	*node
	t    testing.TB
	name string
	dir  string // for host paths and what containers leave there
}

// run writes the manifest of a static pod: spec is the YAML beneath "spec:", in which BUSYBOX and the other names stand
// for the test images and DIR for a folder of the pod's own on the host. meta, if any, is beneath "metadata:".
func (n *node) run(t testing.TB, name, spec string, meta ...string) *pod {
	t.Helper()
	p := &pod{node: n, t: t, name: name, dir: n.folder(name)}
	if err := os.MkdirAll(p.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.dir, 0o777); err != nil { // whatever the umask
		t.Fatal(err)
	}
	p.write(spec, meta...)
	t.Cleanup(p.remove)
	return p
}

// folder is the folder of a pod's own on the host.
func (n *node) folder(pod string) string { return filepath.Join(n.dir, "host", pod) }

// write writes or replaces the manifest. The kubelet must never see half of one, so it is made elsewhere.
func (p *pod) write(spec string, meta ...string) {
	p.t.Helper()
	spec = names.Replace(strings.ReplaceAll(spec, "DIR", p.dir))
	body := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n%s\nspec:\n%s", p.name, indent(strings.Join(meta, "\n")), indent(spec))
	tmp := filepath.Join(p.kubelet.dir, p.name+".tmp")
	if err := os.WriteFile(tmp, []byte(body), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(tmp, p.manifest()); err != nil {
		p.t.Fatal(err)
	}
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.Trim(text, "\n"), "\n", "\n  ")
}

func (p *pod) manifest() string { return filepath.Join(p.manifests, p.name+".yaml") }

// remove removes the manifest; the kubelet ends the pod.
func (p *pod) remove() {
	if err := os.Remove(p.manifest()); err != nil && !os.IsNotExist(err) {
		p.t.Error(err)
	}
}

func (p *pod) fullName() string { return p.name + "-" + nodeName }

// object is the pod as the kubelet's API shows it.
func (p *pod) object() (podObject, error) {
	var list podList
	if err := p.getJSON("/pods", &list); err != nil {
		return podObject{}, err
	}
	for _, o := range list.Items {
		if o.Metadata.Name == p.fullName() {
			return o, nil
		}
	}
	return podObject{}, fmt.Errorf("the kubelet has no pod %s", p.fullName())
}

// until waits until the pod's status is as wanted: f returns what is missing, or "".
func (p *pod) until(what string, f func(podStatus) bool) podStatus {
	p.t.Helper()
	var last podStatus
	eventually(p.t, "pod "+p.name+": "+what, func() error {
		o, err := p.object()
		if err != nil {
			return err
		}
		last = o.Status
		if !f(last) {
			return fmt.Errorf("its status is %s", last)
		}
		return nil
	})
	return last
}

func (p *pod) untilReady() podStatus {
	p.t.Helper()
	return p.until("ready", podStatus.ready)
}

// untilDone waits until all containers have ended for good and requires the phase.
func (p *pod) untilDone(phase string) podStatus {
	p.t.Helper()
	s := p.until("done", func(s podStatus) bool { return s.Phase == "Succeeded" || s.Phase == "Failed" })
	if s.Phase != phase {
		p.t.Errorf("pod %s ended %s, want %s: %s", p.name, s.Phase, phase, s)
	}
	return s
}

// logs reads a container's log through the kubelet.
func (p *pod) logs(container string, query ...string) string {
	p.t.Helper()
	body, err := p.get(fmt.Sprintf("/containerLogs/default/%s/%s?%s", p.fullName(), container, strings.Join(query, "&")))
	if err != nil {
		p.t.Fatal(err)
	}
	return body
}

// wantLog waits until the container's log is exactly that.
func (p *pod) wantLog(container, want string) {
	p.t.Helper()
	eventually(p.t, "the log of "+container+" is complete", func() error {
		got, err := p.get(fmt.Sprintf("/containerLogs/default/%s/%s", p.fullName(), container))
		if err == nil && got != want {
			err = fmt.Errorf("it is %q, want %q", got, want)
		}
		return err
	})
}

// file reads a file that a container left in the pod's folder.
func (p *pod) file(name string) string {
	p.t.Helper()
	body, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(body)
}

// podLogs is the path of a container's first log on the host.
func (p *pod) podLogs(container string) string {
	p.t.Helper()
	o, err := p.object()
	if err != nil {
		p.t.Fatal(err)
	}
	return filepath.Join(p.gantry.LogDir, "pods", "default_"+p.fullName()+"_"+o.Metadata.UID, container, "0.log")
}
