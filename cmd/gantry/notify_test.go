package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri"
)

// TestTakeManager: what concerns another process is not taken for this one's, and children see none of it.
func TestTakeManager(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for name, tt := range map[string]struct {
		socket, usec, pid string
		want              manager
	}{
		"none":                       {"", "", "", manager{}},
		"no watchdog":                {"/run/n", "", "", manager{"/run/n", 0}},
		"watchdog":                   {"@n", "60000000", own, manager{"@n", time.Minute}},
		"watchdog of whoever reads":  {"@n", "250000", "", manager{"@n", 250 * time.Millisecond}},
		"watchdog of another":        {"@n", "250000", "1", manager{"@n", 0}},
		"watchdog of no time":        {"@n", "0", own, manager{"@n", 0}},
		"watchdog that is no number": {"@n", "1 s", own, manager{"@n", 0}},
		"watchdog of ages":           {"@n", "9223372036854775807", own, manager{"@n", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", tt.socket)
			t.Setenv("WATCHDOG_USEC", tt.usec)
			t.Setenv("WATCHDOG_PID", tt.pid)
			if got := takeManager(); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
				if v, ok := os.LookupEnv(name); ok {
					t.Errorf("children would get %s=%s", name, v)
				}
			}
		})
	}
}

// listening is a manager, and what it hears.
func listening(t *testing.T, socket string) (m manager, hear func() string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return manager{socket: socket}, func() string {
		t.Helper()
		buf := make([]byte, 4096)
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("nothing is heard: %v", err)
		}
		return string(buf[:n])
	}
}

func TestSay(t *testing.T) {
	for _, socket := range []string{filepath.Join(t.TempDir(), "notify"), "@gantry-test-" + strconv.Itoa(os.Getpid())} {
		m, hear := listening(t, socket)
		if err := m.say("READY=1\nSTATUS=a b"); err != nil {
			t.Fatal(err)
		}
		if got := hear(); got != "READY=1\nSTATUS=a b" {
			t.Errorf("%s hears %q", socket, got)
		}
	}
	if err := (manager{}).say("READY=1"); err != nil {
		t.Errorf("without a manager: %v", err)
	}
	if err := (manager{socket: filepath.Join(t.TempDir(), "gone")}).say("READY=1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a manager that is gone: %v", err)
	}
}

// TestTell: the daemon is ready when it has answered, alive only as long as it answers, and says so before it ends.
func TestTell(t *testing.T) {
	m, hear := listening(t, filepath.Join(t.TempDir(), "notify"))
	m.watchdog = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer := make(chan error)
	hang := errors.New("no answer")
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.tell(ctx, "Serving", func(ctx context.Context) error {
			select {
			case err := <-answer:
				if !errors.Is(err, hang) {
					return err
				}
			case <-t.Context().Done():
			}
			<-ctx.Done() // which is m's patience
			return ctx.Err()
		})
	}()
	for i, step := range []struct {
		answer error
		want   string
	}{
		{errors.New("not yet"), "STATUS=Does not answer"},
		{hang, "STATUS=Does not answer"},
		{nil, "READY=1\nWATCHDOG=1\nSTATUS=Serving"},
		{nil, "WATCHDOG=1\nSTATUS=Serving"},
		{hang, "STATUS=Does not answer"},
		{nil, "WATCHDOG=1\nSTATUS=Serving"},
	} {
		answer <- step.answer
		if got := hear(); got != step.want {
			t.Fatalf("step %d: heard %q, want %q", i, got, step.want)
		}
	}
	cancel()
	select {
	case answer <- context.Canceled: // if it was just asking
	case <-done:
	}
	if got := hear(); !strings.HasPrefix(got, "STOPPING=1\n") {
		t.Errorf("at the end: %q", got)
	}
	<-done
	manager{}.tell(t.Context(), "Serving", func(context.Context) error { panic("nobody wants to know") })
}

// TestReadyIsHeard: READY=1 is said until it has been sent, or systemd would wait in vain.
func TestReadyIsHeard(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	ctx, cancel := context.WithCancel(t.Context())
	asked, listens, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		manager{socket: socket, watchdog: 40 * time.Millisecond}.tell(ctx, "Serving", func(context.Context) error {
			select {
			case asked <- struct{}{}:
			case <-listens:
			}
			return nil
		})
	}()
	<-asked
	<-asked // so the first answer has been told, to nobody
	_, hear := listening(t, socket)
	close(listens)
	if got := hear(); !strings.HasPrefix(got, "READY=1\n") {
		t.Errorf("first heard: %q", got)
	}
	cancel()
	<-done
}

// stuck is a runtime of which nobody gets a list, as when a lock is never given back.
type stuck struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	pods, containers func(context.Context)
}

func (s stuck) ListPodSandbox(ctx context.Context, _ *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	s.pods(ctx)
	return &runtimeapi.ListPodSandboxResponse{}, ctx.Err()
}

func (s stuck) ListContainers(ctx context.Context, _ *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	s.containers(ctx)
	return &runtimeapi.ListContainersResponse{}, ctx.Err()
}

// TestAnswers: a daemon that answers, and those that do not, over a real socket.
func TestAnswers(t *testing.T) {
	at := func(context.Context) {}
	never := func(ctx context.Context) { <-ctx.Done() }
	for name, tt := range map[string]struct {
		rt   stuck
		want string // in the error
	}{
		"answers":               {stuck{pods: at, containers: at}, ""},
		"no list of pods":       {stuck{pods: never, containers: at}, "listing pods"},
		"no list of containers": {stuck{pods: at, containers: never}, "listing containers"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			ctx, cancel := context.WithCancel(t.Context())
			ready, served := make(chan struct{}), make(chan error, 1)
			go func() {
				served <- cri.Serve(ctx, cri.Config{Socket: socket, Ready: func() { close(ready) }}, tt.rt, tt.rt)
			}()
			<-ready
			limit := time.Minute
			if tt.want != "" {
				limit = 100 * time.Millisecond
			}
			asked, end := context.WithTimeout(t.Context(), limit)
			defer end()
			if err := answers(asked, socket); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
	if err := answers(t.Context(), filepath.Join(t.TempDir(), "gone")); err == nil {
		t.Error("where nobody serves, somebody answers")
	}
}
