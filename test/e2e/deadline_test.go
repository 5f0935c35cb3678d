package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// script writes an executable shell script.
func script(t testing.TB, path, body string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
}

func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func untouch(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// within is the context of a client that waits no longer than d.
func (n *node) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), d)
	n.t.Cleanup(cancel)
	return ctx
}

// pods are the ids of all pods.
func (n *node) pods() []*runtimeapi.PodSandbox {
	n.t.Helper()
	resp, err := n.Runtime.ListPodSandbox(n.context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetItems()
}

// pluginNode has a CNI plugin that calls itself well-behaved, but hangs in ADD while there is a file add-hangs in its
// folder, or stops itself by SIGSTOP while there is add-stops; hangs in DEL while there is a file del-hangs, stops itself
// there while there is del-stops, and fails there while there is del-fails.
func pluginNode(t *testing.T) (n *node, folder string) {
	conf, bin := t.TempDir(), t.TempDir()
	script(t, filepath.Join(bin, "moody"), fmt.Sprintf(`cd %s
case $CNI_COMMAND in
ADD) [ ! -e add-hangs ] || exec sleep 1000
     [ ! -e add-stops ] || kill -STOP $$
     touch added-$CNI_CONTAINERID
     echo '{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.2/24"},{"address":"fd00:99::2/64"}]}';;
DEL) while [ -e del-hangs ]; do sleep 0.05; done
     [ ! -e del-stops ] || kill -STOP $$
     [ ! -e del-fails ] || { echo '{"cniVersion":"1.0.0","code":11,"msg":"the switch is away"}'; exit 1; }
     rm -f added-$CNI_CONTAINERID;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`, bin))
	if err := os.WriteFile(filepath.Join(conf, "10-moody.conflist"),
		[]byte(`{"cniVersion":"1.0.0","name":"moody","plugins":[{"type":"moody"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return &node{t: t, Instance: harness.New(t, harness.Config{CNIConf: conf, Flags: []string{"--cni-bin-dir", bin}})}, bin
}

// A caller that gives up while a CNI plugin hangs, or is stopped, leaves nothing, and may ask again.
func TestDeadlineInRunPodSandbox(t *testing.T) {
	n, plugin := pluginNode(t)
	for _, how := range []string{"add-hangs", "add-stops"} {
		config := n.podConfig(how, sharedPID)
		touch(t, filepath.Join(plugin, how))
		_, err := n.Runtime.RunPodSandbox(n.within(2*time.Second), &runtimeapi.RunPodSandboxRequest{Config: config})
		wantError(t, err, codes.DeadlineExceeded)
		if err := n.Audit(); err != nil {
			t.Error(err)
		}
		if got := n.pods(); len(got) > 0 {
			t.Errorf("%s: pods after the deadline: %v", how, got)
		}
		untouch(t, filepath.Join(plugin, how))
		p := n.runPod(how, sharedPID)
		if p.status().GetNetwork().GetIp() != "10.99.0.2" {
			t.Errorf("%s: the pod of the retry: %v", how, p.status())
		}
		if err := n.removePod(p.id); err != nil {
			t.Error(err)
		}
	}
}

// A pod whose CNI plugin is stopped in DEL can be removed later.
func TestDeadlineInStopPodSandbox(t *testing.T) {
	n, plugin := pluginNode(t)
	p := n.runPod("pod")
	touch(t, filepath.Join(plugin, "del-stops"))
	_, err := n.Runtime.StopPodSandbox(n.within(time.Second), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	wantError(t, err, codes.DeadlineExceeded)
	other := n.podConfig("other")
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: other})
	if err != nil {
		t.Fatalf("another pod meanwhile: %v", err)
	}
	untouch(t, filepath.Join(plugin, "del-stops"))
	for _, id := range []string{p.id, resp.GetPodSandboxId()} {
		if err := n.removePod(id); err != nil {
			t.Error(err)
		}
	}
}

// A pod that could be neither made nor undone is shown as one that is not ready, so that the kubelet removes it; its
// address is not forgotten.
func TestRollbackThatFailsIsFinishedByRemoval(t *testing.T) {
	for name, between := range map[string]func(*node) error{
		"at once":         func(*node) error { return nil },
		"after a restart": func(n *node) error { return n.Restart(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			n, plugin := pluginNode(t)
			config := n.podConfig("pod")
			touch(t, filepath.Join(plugin, "add-hangs"))
			touch(t, filepath.Join(plugin, "del-fails"))
			_, err := n.Runtime.RunPodSandbox(n.within(500*time.Millisecond), &runtimeapi.RunPodSandboxRequest{Config: config})
			wantError(t, err, codes.DeadlineExceeded)
			n.eventually("the pod is shown", func() bool { return len(n.pods()) == 1 })
			if err := between(n); err != nil {
				t.Fatal(err)
			}
			left := n.pods()
			if len(left) != 1 || left[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Fatalf("after a roll-back that failed there is %v", left)
			}
			if err := n.removePod(left[0].GetId()); err == nil {
				t.Error("removed although its network could not be taken away")
			}
			untouch(t, filepath.Join(plugin, "add-hangs"))
			untouch(t, filepath.Join(plugin, "del-fails"))
			again := n.runPod("pod") // with the same name, uid and attempt
			if again.id == left[0].GetId() {
				t.Error("the retry got the pod that could not be made")
			}
			if err := n.removePod(left[0].GetId()); err != nil {
				t.Errorf("removing it after the repair: %v", err)
			}
		})
	}
}

// realRunc is the runc that the instances use.
func realRunc(t testing.TB) string {
	t.Helper()
	repo, err := harness.Repository()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", "source hack/lib.sh && find_runc")
	cmd.Dir = repo
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// A caller that gives up while the OCI runtime hangs, or is stopped by SIGSTOP, leaves the container created, and may
// ask again. Whether runc has made the container by then or not makes no difference.
func TestDeadlineInStartContainer(t *testing.T) {
	dir := t.TempDir()
	wrapper, hang := filepath.Join(dir, "runc"), filepath.Join(dir, "hangs")
	script(t, wrapper, fmt.Sprintf(`runs=; for a; do [ "$a" = run ] && runs=1; done
hang() { case "$runs$(cat %[1]s 2>/dev/null)" in 1$1) sleep 1000;; 1$1-stopped) kill -STOP $$;; esac; }
hang before
%[2]s "$@" || exit
hang after
exit 0
`, hang, realRunc(t)))
	n := newNode(t, "--runtime", "slow="+wrapper, "--default-runtime", "slow")
	p := n.runPod("pod")
	for _, when := range []string{"before", "after", "before-stopped", "after-stopped"} {
		c := p.create(when, "trap exit TERM; touch /begun; "+forever)
		if err := os.WriteFile(hang, []byte(when), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := n.Runtime.StartContainer(n.within(500*time.Millisecond), &runtimeapi.StartContainerRequest{ContainerId: c.id})
		wantError(t, err, codes.DeadlineExceeded)
		untouch(t, hang)
		c.start() // waits for the roll-back
		if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s: the container of the retry is %v", when, s)
		}
		n.eventually("it heeds SIGTERM", func() bool {
			resp, err := c.execSync(10, "ls", "/begun")
			return err == nil && resp.GetExitCode() == 0
		})
		c.stop(10)
		if s := c.status(); s.GetExitCode() == 137 {
			t.Errorf("%s: stopped with %v", when, s)
		}
		c.remove()
	}
}

// A stop signal that could not be sent is sent by the next call: the grace period must not pass in silence.
func TestStopSignalIsSentAfterAFailure(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	supervisor := n.SupervisorPIDs()[0]
	if err := unix.Kill(supervisor, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	_, err := n.Runtime.StopContainer(n.within(300*time.Millisecond), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 100})
	wantError(t, err, codes.DeadlineExceeded)
	time.Sleep(200 * time.Millisecond) // the daemon's own end of the call
	if err := unix.Kill(supervisor, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.StopContainer(n.within(time.Minute), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 100}); err != nil {
		t.Errorf("the second stop: %v", err)
	}
	if s := c.status(); s.GetExitCode() == 137 {
		t.Errorf("stopped with %v", s)
	}
}
