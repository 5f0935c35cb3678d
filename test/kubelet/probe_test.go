package kubelet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func init() {
	cases["readiness"] = readiness
	cases["liveness"] = liveness
	cases["startup"] = startup
	cases["probes over the network"] = networkProbes
}

// Readiness follows what the probe's command sees in the container.
func readiness(t *testing.T, n *node) {
	p := n.run(t, "readiness", `
volumes: [{name: d, hostPath: {path: DIR}}]
containers:
- name: a
  image: BUSYBOX
  command: [sleep, "1000"]
  readinessProbe: {exec: {command: [cat, /d/ready]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
  volumeMounts: [{name: d, mountPath: /d}]
terminationGracePeriodSeconds: 1
`)
	gate := filepath.Join(p.dir, "ready")
	p.until("running, not ready", func(s podStatus) bool { return s.container("a").State.Running != nil && !s.ready() })
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.untilReady()
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	s := p.until("not ready again", func(s podStatus) bool { return !s.ready() })
	if c := s.container("a"); c.RestartCount != 0 || c.State.Running == nil {
		t.Errorf("a failed readiness probe touched the container: %s, %d restarts", c.State, c.RestartCount)
	}
}

// A container whose probe fails, or does not end in time, is stopped and started anew.
func liveness(t *testing.T, n *node) {
	p := n.run(t, "liveness", `
volumes: [{name: d, hostPath: {path: DIR}}]
containers:
- name: fails
  image: BUSYBOX
  command: [sh, -c, "trap 'exit 9' TERM; while :; do sleep 1000 & wait; done"]
  livenessProbe: {exec: {command: [sh, -c, "test -e /d/again || { touch /d/again; exit 1; }"]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
  volumeMounts: [{name: d, mountPath: /d}]
- name: hangs
  image: BUSYBOX
  command: [sh, -c, "trap 'exit 9' TERM; while :; do sleep 1000 & wait; done"]
  livenessProbe: {exec: {command: [sh, -c, "test -e /d/hung || { touch /d/hung; sleep 4321; }"]}, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 1}
  volumeMounts: [{name: d, mountPath: /d}]
`)
	s := p.until("restarted and running", func(s podStatus) bool {
		a, b := s.container("fails"), s.container("hangs")
		return a.RestartCount > 0 && b.RestartCount > 0 && a.State.Running != nil && b.State.Running != nil &&
			a.LastState.Terminated != nil && b.LastState.Terminated != nil // which the kubelet may tell later
	})
	for _, name := range []string{"fails", "hangs"} {
		if got := s.container(name).LastState.Terminated; got.ExitCode != 9 || got.Reason != "Error" {
			t.Errorf("container %s was stopped with %+v, want exit code 9 of its trap", name, got)
		}
	}
	if pids := processes(t, "sleep 4321"); len(pids) > 0 {
		t.Errorf("the hung probe's command still runs: %v", pids)
	}
}

// No other probe runs before the startup probe has succeeded.
func startup(t *testing.T, n *node) {
	p := n.run(t, "startup", `
volumes: [{name: d, hostPath: {path: DIR}}]
containers:
- name: a
  image: BUSYBOX
  command: [sh, -c, "sleep 1000"]
  startupProbe: {exec: {command: [cat, /d/started]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 100}
  livenessProbe: {exec: {command: [sh, -c, "echo live >>/d/probes"]}, periodSeconds: 1, timeoutSeconds: 10}
  readinessProbe: {exec: {command: [sh, -c, "echo ready >>/d/probes"]}, periodSeconds: 1, timeoutSeconds: 10}
  volumeMounts: [{name: d, mountPath: /d}]
terminationGracePeriodSeconds: 1
`)
	p.until("running, not started", func(s podStatus) bool {
		c := s.container("a")
		return c.State.Running != nil && c.Started != nil && !*c.Started
	})
	if _, err := os.Stat(filepath.Join(p.dir, "probes")); err == nil {
		t.Error("a probe ran before the startup probe had succeeded")
	}
	if err := os.WriteFile(filepath.Join(p.dir, "started"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.untilReady()
}

// The kubelet reaches a pod at the address that the runtime reports, and with hostNetwork at the node's.
func networkProbes(t *testing.T, n *node) {
	p := n.run(t, "netprobes", `
containers:
- name: web
  image: WEB
  startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 30}
  readinessProbe: {httpGet: {path: /ready, port: 80}, periodSeconds: 1, timeoutSeconds: 10}
  livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, timeoutSeconds: 10}
- name: deaf
  image: BUSYBOX
  command: [sh, -c, "trap 'exit 8' TERM; while :; do sleep 1000 & wait; done"]
  livenessProbe: {tcpSocket: {port: 81}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
`)
	p.until("web ready, deaf restarted", func(s podStatus) bool {
		return s.container("web").Ready && s.container("deaf").RestartCount > 0
	})
	if log := p.logs("web"); !strings.Contains(log, "GET /ready") {
		t.Errorf("the probe is not in the server's log:\n%s", log)
	}
	body, err := p.get("/metrics/probes")
	if err != nil || !strings.Contains(body, `prober_probe_total{container="web"`) {
		t.Errorf("the kubelet counts no probes of the container: %v\n%.300s", err, body)
	}
}
