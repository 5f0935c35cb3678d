package kubelet

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func init() {
	cases["manifest changed"] = changed
	cases["manifest removed"] = removed
	cases["log rotation"] = rotation
}

// A changed manifest is another pod: the old one ends in order before the new one starts.
func changed(t *testing.T, n *node) {
	const spec = `
volumes: [{name: d, hostPath: {path: DIR}}]
terminationGracePeriodSeconds: 20
containers:
- name: a
  image: BUSYBOX
  command: [sh, -c, "trap 'echo VERSION ends >>/d/order; exit' TERM; echo VERSION >>/d/order; while :; do sleep 1000 & wait; done"]
  volumeMounts: [{name: d, mountPath: /d}]
`
	p := n.run(t, "changed", strings.ReplaceAll(spec, "VERSION", "one"))
	p.untilReady()
	before, err := p.object()
	if err != nil {
		t.Fatal(err)
	}
	p.write(strings.ReplaceAll(spec, "VERSION", "two"))
	eventually(t, "the new pod runs", func() error {
		now, err := p.object()
		if err == nil && (now.Metadata.UID == before.Metadata.UID || !now.Status.ready()) {
			err = fmt.Errorf("%s %s", now.Metadata.UID, now.Status)
		}
		return err
	})
	for _, c := range p.containers("a") { // the old one may stay until the kubelet collects it
		old := c.GetId() == strings.TrimPrefix(before.Status.container("a").ContainerID, "gantry://")
		if old && c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("the container of the old pod is %s", c.GetState())
		}
	}
	if got := p.file("order"); got != "one\none ends\ntwo\n" {
		t.Errorf("the pods ran as %q", got)
	}
}

// A removed manifest ends the pod and everything that was made for it.
func removed(t *testing.T, n *node) {
	p := n.run(t, "removed", `
volumes: [{name: m, emptyDir: {medium: Memory}}]
terminationGracePeriodSeconds: 1
containers:
- {name: a, image: BUSYBOX, command: [sleep, "5432"], volumeMounts: [{name: m, mountPath: /m}]}
- {name: b, image: BUSYBOX, command: [sh, -c, "trap '' TERM; sleep 5432 & wait; wait"]}
`)
	p.untilReady()
	o, err := p.object()
	if err != nil {
		t.Fatal(err)
	}
	p.remove()
	eventually(t, "the pod has gone", p.gone)
	if pids := processes(t, "sleep 5432"); len(pids) > 0 {
		t.Errorf("processes of the removed pod: %v", pids)
	}
	eventually(t, "its volumes and cgroups are removed", func() error {
		left, err := filepath.Glob("/sys/fs/cgroup/*/kubepods/*/pod" + o.Metadata.UID)
		if err != nil {
			return err
		}
		more, err := filepath.Glob("/sys/fs/cgroup/kubepods/*/pod" + o.Metadata.UID)
		if left = append(left, more...); err != nil || len(left) > 0 {
			return fmt.Errorf("cgroups: %v, %v", left, err)
		}
		if _, err := os.Stat(filepath.Join(n.dir, "root/pods", o.Metadata.UID)); !os.IsNotExist(err) {
			return fmt.Errorf("the folder of its volumes: %v", err)
		}
		return nil
	})
	sandboxes, err := n.sandboxes(p.labelled(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sandboxes { // which stay, as dead containers may, until the kubelet collects them
		if s.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("sandbox %s is %s", s.GetId(), s.GetState())
		}
	}
}

// The kubelet rotates a log that has grown and has it reopened; no line is lost between the files.
func rotation(t *testing.T, n *node) {
	const lines = 4000
	p := n.run(t, "rotation", fmt.Sprintf(`
volumes: [{name: d, hostPath: {path: DIR}}]
terminationGracePeriodSeconds: 1
containers:
- name: a
  image: BUSYBOX
  command: [sh, -c, "i=0; while test $i -lt %d; do echo line $i; i=$((i+1)); test $((i %% 1000)) != 0 || sleep 2; done; echo end; sleep 1000"]
`, lines))
	p.untilReady()
	path := p.podLogs("a")
	eventually(t, "the log is rotated", func() error {
		files, err := filepath.Glob(path + ".*")
		if err == nil && !slices.ContainsFunc(files, func(f string) bool { return !strings.HasSuffix(f, ".tmp") }) {
			err = fmt.Errorf("files: %v", files)
		}
		return err
	})
	var all string
	var files []string
	eventually(t, "the container has written all", func() error {
		var err error
		if files, err = filepath.Glob(path + ".*"); err != nil {
			return err
		}
		slices.Sort(files) // by the time in their names
		all = ""
		for _, f := range append(files, path) {
			if strings.HasSuffix(f, ".tmp") || slices.Contains(files, strings.TrimSuffix(f, ".gz")) && strings.HasSuffix(f, ".gz") {
				return fmt.Errorf("%s is being compressed", f)
			}
			body, err := readLog(f)
			if err != nil {
				return err // renamed, compressed or removed at this moment
			}
			all += body
		}
		if !strings.HasSuffix(all, " end\n") {
			return fmt.Errorf("files %v without the end", files)
		}
		return nil
	})
	next := -1
	for line := range strings.Lines(all) {
		var number int
		if _, err := fmt.Sscanf(line[strings.LastIndex(line, " F ")+3:], "line %d", &number); err != nil {
			continue // the end
		}
		if next >= 0 && number != next {
			t.Fatalf("line %d follows line %d; files: %v", number, next-1, files)
		}
		next = number + 1
	}
	if next != lines || len(files) == 0 {
		t.Errorf("the files %v end with line %d, want %d", files, next-1, lines-1)
	}
}

func readLog(path string) (string, error) {
	body, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(path, ".gz") {
		return string(body), err
	}
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	body, err = io.ReadAll(r)
	return string(body), err
}
