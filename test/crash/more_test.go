package crash

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// still requires that the container runs on as it did.
func (s *subject) still() { s.wantExit(&s.ctr, true) }

func execSync() operation {
	return operation{
		from: running, found: (*subject).still, done: (*subject).still,
		do: func(s *subject) error {
			resp, err := s.Runtime.ExecSync(s.context(), &runtimeapi.ExecSyncRequest{ContainerId: s.ctr.id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 4"}})
			if err == nil && (resp.GetExitCode() != 4 || string(resp.GetStdout()) != "out\n" || string(resp.GetStderr()) != "err\n") {
				return fmt.Errorf("the command answered %v", resp)
			}
			return err
		},
	}
}

// stream reads what comes from a URL of Exec or Attach, until enough of it is there or its end. A connection that
// breaks is what it is when the daemon dies: Unavailable.
func (s *subject) stream(url string, enough func(stdout, end string) bool) error {
	dialer := websocket.Dialer{Subprotocols: []string{"v5.channel.k8s.io"}, HandshakeTimeout: time.Minute}
	conn, resp, err := dialer.Dial("ws"+strings.TrimPrefix(url, "http"), nil)
	if err != nil {
		return status.Errorf(codes.Unavailable, "connecting: %v", err)
	}
	_ = resp.Body.Close()
	defer conn.NetConn().Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	var got [4]bytes.Buffer // by channel: of stdout, 1, of the end, 3
	for !enough(got[1].String(), got[3].String()) {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return status.Errorf(codes.Unavailable, "after %q and %q: %v", got[1].String(), got[3].String(), err)
		}
		if len(message) > 0 && int(message[0]) < len(got) {
			got[message[0]].Write(message[1:])
		}
	}
	return nil
}

func session() operation {
	return operation{
		from: running, found: (*subject).still, done: (*subject).still,
		do: func(s *subject) error {
			resp, err := s.Runtime.Exec(s.context(), &runtimeapi.ExecRequest{ContainerId: s.ctr.id, Cmd: []string{"echo", "hello"}, Stdout: true, Stderr: true})
			if err != nil {
				return err
			}
			return s.stream(resp.GetUrl(), func(stdout, end string) bool {
				return stdout == "hello\n" && strings.Contains(end, "Success")
			})
		},
	}
}

func attachSession() operation {
	return operation{
		from: running, found: (*subject).still, done: (*subject).still,
		do: func(s *subject) error {
			resp, err := s.Runtime.Attach(s.context(), &runtimeapi.AttachRequest{ContainerId: s.ctr.id, Stdout: true, Stderr: true})
			if err != nil {
				return err
			}
			// Nothing tells when the session has begun; what was written before is not in it.
			ctx, stop := context.WithCancel(s.context())
			var telling sync.WaitGroup
			telling.Go(func() {
				for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
					if unix.Kill(s.ctr.pid, unix.SIGUSR2) != nil {
						return
					}
				}
			})
			defer telling.Wait()
			defer stop()
			return s.stream(resp.GetUrl(), func(stdout, _ string) bool { return strings.HasSuffix(stdout, "again\n") })
		},
	}
}

// exit is the end of the container by itself.
func exit() operation {
	exited := func(s *subject) {
		s.eventually("the container is exited", func() bool {
			got, _ := s.status(&s.ctr)
			return got.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
		})
		s.wantExit(&s.ctr, false, exitTold)
	}
	wait := func(s *subject) error {
		for {
			resp, err := s.Runtime.ContainerStatus(s.context(), &runtimeapi.ContainerStatusRequest{ContainerId: s.ctr.id})
			if err != nil || resp.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return operation{
		from: running, again: wait, found: exited, done: exited,
		do: func(s *subject) error {
			if err := unix.Kill(s.ctr.pid, unix.SIGUSR1); err != nil {
				return err
			}
			return wait(s)
		},
	}
}

func updatePod() operation {
	const after = 700
	want := func(s *subject, allowed ...string) {
		resp, err := s.Runtime.PodSandboxStatus(s.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.id, Verbose: true})
		s.must("the pod's status", err)
		if got := resp.GetInfo()["info"]; !slices.ContainsFunc(allowed, func(a string) bool { return strings.Contains(got, a) }) {
			s.t.Errorf("the pod's info %s has none of %q", got, allowed)
		}
		s.still()
	}
	text := fmt.Sprintf(`"cpu_shares":%d`, after)
	return operation{
		from: running,
		do: func(s *subject) error {
			_, err := s.Runtime.UpdatePodSandboxResources(s.context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: s.id,
				Resources: &runtimeapi.LinuxContainerResources{CpuShares: after}})
			return err
		},
		found: func(s *subject) { want(s, "") },
		done:  func(s *subject) { want(s, text) },
	}
}

// updateConfig gives the node the addresses that it has, in two steps.
func updateConfig() operation {
	set := func(s *subject, cidr string) error {
		_, err := s.Runtime.UpdateRuntimeConfig(s.context(), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
			NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	some := func(w *world) string { first, _, _ := strings.Cut(w.subnets, ","); return first }
	remembered := func(s *subject, allowed ...string) {
		body, err := os.ReadFile(filepath.Join(s.Dir, "root/cni/pod-cidr"))
		s.must("reading the node's addresses", err)
		if got := strings.TrimSpace(string(body)); !slices.Contains(allowed, got) {
			s.t.Errorf("the node's addresses are %q, not of %q", got, allowed)
		}
		s.must("giving the node all of its addresses", set(s, s.subnets))
	}
	return operation{
		from:    ready,
		prepare: func(s *subject) { s.must("giving the node some of its addresses", set(s, some(s.world))) },
		do:      func(s *subject) error { return set(s, s.subnets) },
		found:   func(s *subject) { remembered(s, some(s.world), s.subnets) },
		done:    func(s *subject) { remembered(s, s.subnets) },
	}
}

func checkpoint() operation {
	at := func(s *subject) string { return filepath.Join(s.LogDir, "checkpoint.tar") }
	archive := func(s *subject, must bool) {
		f, err := os.Open(at(s))
		if errors.Is(err, os.ErrNotExist) && !must {
			return
		}
		s.must("opening the checkpoint", err)
		defer f.Close()
		for r := tar.NewReader(f); ; {
			if _, err := r.Next(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				s.t.Errorf("the checkpoint is cut off: %v", err)
				break
			}
		}
		s.must("removing the checkpoint", os.Remove(at(s)))
		s.still()
	}
	return operation{
		from: running,
		do: func(s *subject) error {
			_, err := s.Runtime.CheckpointContainer(s.context(), &runtimeapi.CheckpointContainerRequest{ContainerId: s.ctr.id, Location: at(s)})
			return err
		},
		found: func(s *subject) { archive(s, false) },
		done:  func(s *subject) { archive(s, true) },
	}
}

// restart is the daemon's start after a kill, with all that a pod has.
func restart() operation {
	unchanged := func(s *subject) {
		s.still()
		s.foundPod()
	}
	return operation{
		from: running, start: true, found: unchanged, done: unchanged,
		do: func(s *subject) error { return s.StartDaemon(context.Background()) },
	}
}
