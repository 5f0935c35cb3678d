package kubelet

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func init() {
	cases["init containers and sidecars"] = initOrder
	cases["init container fails"] = initFails
	cases["restart Always"] = restartAlways
	cases["restart OnFailure"] = restartOnFailure
	cases["restart Never"] = restartNever
	cases["hooks"] = hooks
	cases["postStart fails"] = postStartFails
	cases["termination messages"] = terminationMessages
	cases["grace period and stop signal"] = grace
	cases["what cannot start"] = cannotStart
}

// Init containers run one after the other, each to its end; a sidecar among them has started before what follows it,
// and ends after the main container.
func initOrder(t *testing.T, n *node) {

	p := n.run(t, "init", `
restartPolicy: Never
terminationGracePeriodSeconds: 20
volumes: [{name: d, hostPath: {path: DIR}}]
initContainers:
- name: one
  image: BUSYBOX
  command: [sh, -c, "sleep 0.5; echo one >>/d/order"]
  volumeMounts: [{name: d, mountPath: /d}]
- name: sidecar
  image: BUSYBOX
  restartPolicy: Always
  command: [sh, -c, "trap 'echo sidecar ended >>/d/order; exit 0' TERM; sleep 0.5; echo sidecar >>/d/order; touch /tmp/up; while :; do sleep 1000 & wait; done"]
  startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
  volumeMounts: [{name: d, mountPath: /d}]
- name: two
  image: BUSYBOX
  command: [sh, -c, "echo two >>/d/order"]
  volumeMounts: [{name: d, mountPath: /d}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "echo main >>/d/order; sleep 1; echo main ended >>/d/order"]
  volumeMounts: [{name: d, mountPath: /d}]
`)
	s := p.untilDone("Succeeded")
	if got, want := p.file("order"), "one\nsidecar\ntwo\nmain\nmain ended\nsidecar ended\n"; got != want {
		t.Errorf("the containers ran in the order %q, want %q", got, want)
	}
	for _, name := range []string{"one", "sidecar", "two", "main"} {
		if c := s.container(name); c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 || c.State.Terminated.Reason != "Completed" || c.RestartCount != 0 {
			t.Errorf("container %s: %s, %d restarts", name, c.State, c.RestartCount)
		}
	}
}

func initFails(t *testing.T, n *node) {
	p := n.run(t, "initfails", `
restartPolicy: Never
initContainers:
- {name: bad, image: BUSYBOX, command: [sh, -c, "exit 4"]}
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, "exit 0"]}
`)
	s := p.untilDone("Failed")
	if c := s.container("bad"); c.State.Terminated == nil || c.State.Terminated.ExitCode != 4 || c.State.Terminated.Reason != "Error" {
		t.Errorf("the init container: %s", c.State)
	}
	if c := s.container("main"); c.ContainerID != "" {
		t.Errorf("the main container was made after the failed init container: %s", c.State)
	}
}

// The kubelet restarts what ends, backs off, and keeps one dead container beside the running one.
func restartAlways(t *testing.T, n *node) {
	p := n.run(t, "always", `
containers:
- {name: a, image: BUSYBOX, command: [sh, -c, "echo run; exit 0"]}
`)
	p.until("backing off", func(s podStatus) bool {
		w := s.container("a").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	s := p.until("restarted thrice", func(s podStatus) bool { return s.container("a").RestartCount >= 3 })
	last := s.container("a").LastState.Terminated
	if last == nil || last.ExitCode != 0 || last.Reason != "Completed" || last.StartedAt.IsZero() || last.FinishedAt.Before(last.StartedAt) {
		t.Errorf("the last run: %+v", last)
	}
	eventually(t, "dead containers are removed", func() error {
		if got := p.containers("a"); len(got) > 2 {
			return fmt.Errorf("%d containers of one name: %v", len(got), got)
		}
		return nil
	})
}

func restartOnFailure(t *testing.T, n *node) {
	p := n.run(t, "onfailure", `
restartPolicy: OnFailure
volumes: [{name: d, hostPath: {path: DIR}}]
containers:
- name: a
  image: BUSYBOX
  command: [sh, -c, "test -e /d/again || { touch /d/again; kill -9 $$; }"]
  volumeMounts: [{name: d, mountPath: /d}]
`)
	c := p.untilDone("Succeeded").container("a")
	if c.RestartCount != 1 || c.State.Terminated.ExitCode != 0 || c.State.Terminated.Reason != "Completed" {
		t.Errorf("the second run: %s, %d restarts", c.State, c.RestartCount)
	}
}

func restartNever(t *testing.T, n *node) {
	p := n.run(t, "never", `
restartPolicy: Never
containers:
- {name: good, image: BUSYBOX, command: [sh, -c, "exit 0"]}
- {name: bad, image: BUSYBOX, command: [sh, -c, "exit 3"]}
- {name: killed, image: BUSYBOX, command: [sh, -c, "kill -USR1 $$$$; sleep 10"]}
`)
	s := p.untilDone("Failed")
	for name, want := range map[string]terminated{"good": {ExitCode: 0, Reason: "Completed"}, "bad": {ExitCode: 3, Reason: "Error"}} {
		got := s.container(name).State.Terminated
		if got == nil || got.ExitCode != want.ExitCode || got.Reason != want.Reason || got.FinishedAt.Before(got.StartedAt) || got.StartedAt.IsZero() {
			t.Errorf("container %s: %+v, want %+v", name, got, want)
		}
	}
}

// hooks: postStart runs in the container; preStop before the stop signal; over HTTP the kubelet reaches the pod's address.
func hooks(t *testing.T, n *node) {
	p := n.run(t, "hooks", `
terminationGracePeriodSeconds: 20
volumes: [{name: d, hostPath: {path: DIR}}]
containers:
- name: exec
  image: BUSYBOX
  command: [sh, -c, "trap 'echo term >>/d/order; exit' TERM; while :; do sleep 1000 & wait; done"]
  lifecycle:
    postStart: {exec: {command: [sh, -c, "echo postStart in $(hostname) >>/d/order"]}}
    preStop: {exec: {command: [sh, -c, "echo preStop >>/d/order; sleep 0.2"]}}
  volumeMounts: [{name: d, mountPath: /d}]
- name: http
  image: WEB
  lifecycle:
    preStop: {httpGet: {path: /stopping, port: 80}}
`)
	p.untilReady()
	logs := p.podLogs("http")
	p.remove()
	eventually(t, "the pod has gone", p.gone)
	if got, want := p.file("order"), "postStart in hooks-node\npreStop\nterm\n"; got != want {
		t.Errorf("the hooks ran as %q, want %q", got, want)
	}
	if body, err := os.ReadFile(logs); err == nil && !strings.Contains(string(body), "GET /stopping") {
		t.Errorf("the HTTP hook is not in the server's log:\n%s", body)
	}
}

func postStartFails(t *testing.T, n *node) {
	p := n.run(t, "poststart", `
restartPolicy: Never
terminationGracePeriodSeconds: 1
containers:
- name: a
  image: BUSYBOX
  command: [sleep, "1000"]
  lifecycle: {postStart: {exec: {command: [sh, -c, "echo refused; exit 1"]}}}
`)
	c := p.untilDone("Failed").container("a")
	if c.State.Terminated.ExitCode != 137 {
		t.Errorf("a container whose postStart failed: %s, want it killed", c.State)
	}
}

func terminationMessages(t *testing.T, n *node) {
	p := n.run(t, "messages", `
restartPolicy: Never
containers:
- {name: file, image: BUSYBOX, command: [sh, -c, "echo from the log; echo from the file >/dev/termination-log; exit 1"]}
- {name: path, image: BUSYBOX, terminationMessagePath: /tmp/why, command: [sh, -c, "echo elsewhere >/tmp/why"]}
- {name: log, image: BUSYBOX, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo one; echo two; exit 1"]}
- {name: quiet, image: BUSYBOX, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo one; exit 0"]}
- {name: long, image: BUSYBOX, command: [sh, -c, "head -c 10000 /dev/zero | tr '\\0' x >/dev/termination-log"]}
`)
	s := p.untilDone("Failed")
	for name, want := range map[string]string{"file": "from the file\n", "path": "elsewhere\n", "log": "one\ntwo\n", "quiet": ""} {
		if got := s.container(name).State.Terminated.Message; got != want {
			t.Errorf("termination message of %s: %q, want %q", name, got, want)
		}
	}
	if got := s.container("long").State.Terminated.Message; !strings.HasPrefix(got, "xxxx") || len(got) > 4096 {
		t.Errorf("a long termination message has %d bytes", len(got))
	}
}

// activeDeadlineSeconds makes the kubelet stop the pod and keep it, so that each container's end can be read.
func grace(t *testing.T, n *node) {
	p := n.run(t, "grace", `
os: {name: linux}
restartPolicy: Never
activeDeadlineSeconds: 2
terminationGracePeriodSeconds: 3
containers:
- {name: obeys, image: BUSYBOX, command: [sh, -c, "trap 'exit 5' TERM; while :; do sleep 1000 & wait; done"]}
- {name: refuses, image: BUSYBOX, command: [sh, -c, "trap '' TERM; while :; do sleep 1000 & wait; done"]}
- {name: signal, image: BUSYBOX, lifecycle: {stopSignal: SIGUSR1}, command: [sh, -c, "trap 'exit 6' USR1; trap 'exit 7' TERM; while :; do sleep 1000 & wait; done"]}
`)
	s := p.until("ended", func(s podStatus) bool {
		return s.Phase == "Failed" && s.container("obeys").State.Terminated != nil && s.container("refuses").State.Terminated != nil && s.container("signal").State.Terminated != nil
	})
	for name, want := range map[string]int{"obeys": 5, "refuses": 137, "signal": 6} {
		if got := s.container(name).State.Terminated.ExitCode; got != want {
			t.Errorf("container %s ended with %d, want %d", name, got, want)
		}
	}
	obeys, refuses := s.container("obeys").State.Terminated, s.container("refuses").State.Terminated
	if late := refuses.FinishedAt.Sub(obeys.FinishedAt); late < 2*time.Second { // whole seconds in the status
		t.Errorf("the grace period of 3 s was %s long", late)
	}
	if got := s.container("signal").StopSignal; got != "SIGUSR1" {
		t.Errorf("the stop signal in the status is %q", got)
	}
	if s.Reason != "DeadlineExceeded" {
		t.Errorf("the pod's reason is %q", s.Reason)
	}
}

// What cannot start says why where the user looks.
func cannotStart(t *testing.T, n *node) {
	p := n.run(t, "cannot", `
restartPolicy: Never
containers:
- {name: command, image: BUSYBOX, command: [/no/such/command]}
- {name: image, image: "registry.k8s.io/no/such:image"}
- {name: absent, image: "registry.k8s.io/not/here:1", imagePullPolicy: Never}
- {name: root, image: BUSYBOX, securityContext: {runAsNonRoot: true}}
`)
	waiting := map[string]string{"image": "ErrImagePull ImagePullBackOff", "absent": "ErrImageNeverPull", "root": "CreateContainerConfigError"}
	s := p.until("reasons", func(s podStatus) bool {
		for name, reasons := range waiting {
			if w := s.container(name).State.Waiting; w == nil || w.Reason == "" || !strings.Contains(reasons, w.Reason) {
				return false
			}
		}
		return s.container("command").State.Terminated != nil
	})
	got := s.container("command").State.Terminated
	if got.Reason != "StartError" || got.ExitCode != 128 || !strings.Contains(got.Message, "/no/such/command") {
		t.Errorf("a command that is not there: %d %s %q", got.ExitCode, got.Reason, got.Message)
	}
	if m := s.container("image").State.Waiting.Message; !strings.Contains(m, "no/such") {
		t.Errorf("an image that is not there: %q", m)
	}
}
