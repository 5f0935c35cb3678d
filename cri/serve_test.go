package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// services doubles both services: what a test does not set is Unimplemented.
type services struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	stop   func(context.Context, *runtimeapi.StopPodSandboxRequest) error
	pull   func(context.Context) error
	list   func() ([]*runtimeapi.Image, error)
	events func(context.Context) error
	stream func(runtimeapi.RuntimeService_StreamContainersServer) error
}

func (s *services) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.stop(ctx, r)
}

func (s *services) PullImage(ctx context.Context, _ *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return &runtimeapi.PullImageResponse{ImageRef: "x"}, s.pull(ctx)
}

func (s *services) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.list()
	return &runtimeapi.ListImagesResponse{Images: list}, err
}

func (s *services) GetContainerEvents(_ *runtimeapi.GetEventsRequest, ss runtimeapi.RuntimeService_GetContainerEventsServer) error {
	return s.events(ss.Context())
}

func (s *services) StreamContainers(_ *runtimeapi.StreamContainersRequest, ss runtimeapi.RuntimeService_StreamContainersServer) error {
	return s.stream(ss)
}

// instance is a server on a socket of its own and its clients.
type instance struct {
	socket  string
	stop    context.CancelFunc
	done    chan error
	runtime runtimeapi.RuntimeServiceClient
	image   runtimeapi.ImageServiceClient
}

func startServer(t *testing.T, cfg Config, s *services) *instance {
	t.Helper()
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(t.TempDir(), "run/gantry.sock")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan struct{})
	cfg.Ready = func() { close(ready) }
	in := &instance{socket: cfg.Socket, stop: cancel, done: make(chan error, 1)}
	go func() { in.done <- Serve(ctx, cfg, s, s) }()
	select {
	case <-ready:
	case err := <-in.done:
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxSend), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	in.runtime, in.image = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	t.Cleanup(func() { cancel(); <-in.done; _ = conn.Close() })
	return in
}

// end stops the server and returns what Serve returned.
func (in *instance) end() error {
	in.stop()
	err := <-in.done
	in.done <- nil // for the clean-up
	return err
}

func TestSocketAndItsModes(t *testing.T) {
	in := startServer(t, Config{}, &services{})
	for path, want := range map[string]fs.FileMode{in.socket: fs.ModeSocket | 0o660, filepath.Dir(in.socket): fs.ModeDir | 0o700} {
		st, err := os.Lstat(path)
		if err != nil || st.Mode() != want {
			t.Errorf("%s has mode %v (%v), want %v", path, st.Mode(), err, want)
		}
	}
	if err := in.end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(in.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestAnotherInstance(t *testing.T) {
	in := startServer(t, Config{}, &services{})
	err := Serve(t.Context(), Config{Socket: in.socket}, &services{}, &services{})
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("a second instance: %v", err)
	}
	// Also when the lock file has been removed, and for a program that knows no lock.
	if err := os.Remove(in.socket + ".lock"); err != nil {
		t.Fatal(err)
	}
	err = Serve(t.Context(), Config{Socket: in.socket}, &services{}, &services{})
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second instance without the lock: %v", err)
	}
	if _, err := in.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("the first instance does not answer any more: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	startServer(t, Config{Socket: path}, &services{})
}

func TestBadSocketPaths(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]func(error) bool{
		"relative.sock":                       errdefs.IsInvalidArgument,
		"/" + strings.Repeat("x", 107):        errdefs.IsInvalidArgument,
		file:                                  errdefs.IsFailedPrecondition,
		link:                                  errdefs.IsFailedPrecondition,
		filepath.Join(file, "below-a.socket"): func(err error) bool { return err != nil },
	} {
		if err := Serve(t.Context(), Config{Socket: path}, &services{}, &services{}); !kind(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Lstat(file); err != nil {
		t.Errorf("the file in the way: %v", err)
	}
}

func TestErrorsGetCodesAndKeepTheirText(t *testing.T) {
	var fail error
	in := startServer(t, Config{}, &services{stop: func(context.Context, *runtimeapi.StopPodSandboxRequest) error { return fail }})
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{fmt.Errorf("pod x: %w", errdefs.ErrNotFound), codes.NotFound},
		{fmt.Errorf("pod x: %w", errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{fmt.Errorf("pod x: %w", errdefs.ErrUnavailable), codes.Unavailable},
		{fmt.Errorf("%w: pulling: %w", crierrors.ErrRegistryUnavailable, errdefs.ErrUnavailable), codes.Unknown},
		{fmt.Errorf("%w: pulling: %w", crierrors.ErrSignatureValidationFailed, errdefs.ErrPermissionDenied), codes.Unknown},
		{fmt.Errorf("pod x: %w", errdefs.ErrNotImplemented), codes.Unimplemented},
		{errors.Join(errors.New("one"), fmt.Errorf("two: %w", errdefs.ErrAlreadyExists)), codes.AlreadyExists},
		{fmt.Errorf("waiting: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("waiting: %w", context.Canceled), codes.Canceled},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, codes.ResourceExhausted},
		{&os.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist}, codes.Unknown},
		{fmt.Errorf("registry: %w", status.Error(codes.NotFound, "no such tag")), codes.Unknown},
		{errors.New("plain"), codes.Unknown},
	} {
		fail = tt.err
		_, err := in.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "x"})
		if status.Code(err) != tt.want {
			t.Errorf("%v: code %v, want %v", tt.err, status.Code(err), tt.want)
		}
		if tt.err != nil && status.Convert(err).Message() != tt.err.Error() {
			t.Errorf("text %q, want %q", status.Convert(err).Message(), tt.err)
		}
	}
}

func TestPanicIsOneCallsError(t *testing.T) {
	in := startServer(t, Config{}, &services{
		stop:   func(context.Context, *runtimeapi.StopPodSandboxRequest) error { panic("boom") },
		events: func(context.Context) error { panic("stream boom") },
	})
	_, err := in.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "x"})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "boom") {
		t.Errorf("panic: %v", err)
	}
	stream, err := in.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("panic in a stream: %v", err)
	}
	if _, err := in.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("after the panics: %v", err)
	}
}

func TestInvalidRequestsDoNotReachTheService(t *testing.T) {
	in := startServer(t, Config{}, &services{stop: func(context.Context, *runtimeapi.StopPodSandboxRequest) error {
		t.Error("the service was called")
		return nil
	}})
	_, err := in.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "pod_sandbox_id") {
		t.Errorf("without an id: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	var got time.Duration
	left := func(ctx context.Context) error {
		got = 0
		if d, ok := ctx.Deadline(); ok {
			got = time.Until(d)
		}
		return nil
	}
	in := startServer(t, Config{Deadline: time.Hour}, &services{
		stop: func(ctx context.Context, _ *runtimeapi.StopPodSandboxRequest) error { return left(ctx) },
		pull: left,
	})
	stop := func(ctx context.Context) {
		t.Helper()
		if _, err := in.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	stop(t.Context())
	if got <= 30*time.Minute || got > time.Hour {
		t.Errorf("without a deadline of the client it is in %v, want in an hour", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Hour)
	defer cancel()
	stop(ctx)
	if got <= 5*time.Hour {
		t.Errorf("the client's deadline is cut to %v", got)
	}
	if _, err := in.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "x"}}); err != nil || got != 0 {
		t.Errorf("a pull has a deadline in %v (%v), want none", got, err)
	}
}

func TestBudget(t *testing.T) {
	e := edge{deadline: time.Minute}
	for _, tt := range []struct {
		rpc  string
		req  any
		want time.Duration
	}{
		{"StopContainer", &runtimeapi.StopContainerRequest{Timeout: 30}, 90 * time.Second},
		{"ExecSync", &runtimeapi.ExecSyncRequest{}, 0},
		{"ExecSync", &runtimeapi.ExecSyncRequest{Timeout: 5}, 65 * time.Second},
		{"ListContainers", &runtimeapi.ListContainersRequest{}, 0},
		{"CreateContainer", &runtimeapi.CreateContainerRequest{}, time.Minute},
	} {
		if got := e.budget(tt.rpc, tt.req); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.rpc, got, tt.want)
		}
	}
	if got := e.budget("StopContainer", &runtimeapi.StopContainerRequest{Timeout: 1<<63 - 1}); got <= 0 {
		t.Errorf("the greatest timeout gives %v", got)
	}
}

func TestLargeMessages(t *testing.T) {
	big := strings.Repeat("x", 24<<20)
	in := startServer(t, Config{}, &services{
		list: func() ([]*runtimeapi.Image, error) { return []*runtimeapi.Image{{Id: big}, {Id: big}}, nil },
		pull: func(context.Context) error { return nil },
	})
	resp, err := in.image.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(resp.GetImages()) != 2 {
		t.Errorf("48 MiB of answer: %v", err)
	}
	pull := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "x", Annotations: map[string]string{"a": big}}}
	if _, err := in.image.PullImage(t.Context(), pull); err != nil {
		t.Errorf("24 MiB of request: %v", err)
	}
	pull.Image.Annotations["b"] = big
	if _, err := in.image.PullImage(t.Context(), pull); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("48 MiB of request: %v, want ResourceExhausted", err)
	}
}

// A call that is under way finishes, a stream ends at once, and Serve returns after both.
func TestGracefulStop(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var finished atomic.Bool
	in := startServer(t, Config{StopGrace: time.Minute}, &services{
		stop: func(context.Context, *runtimeapi.StopPodSandboxRequest) error {
			close(entered)
			<-release
			finished.Store(true)
			return nil
		},
		events: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	})
	stream, err := in.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := in.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "x"}); err != nil {
			t.Errorf("the call under way: %v", err)
		}
	})
	<-entered
	in.stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v, want Unavailable", err)
	}
	close(release)
	wg.Wait()
	if err := in.end(); err != nil || !finished.Load() {
		t.Errorf("Serve: %v, call finished: %v", err, finished.Load())
	}
}

// A list in parts has a deadline, also against a client that does not read; events have none. A panic ends one stream and no more.
func TestStreams(t *testing.T) {
	ended := make(chan error, 1)
	in := startServer(t, Config{Deadline: 50 * time.Millisecond}, &services{
		stream: func(ss runtimeapi.RuntimeService_StreamContainersServer) error {
			if _, has := ss.Context().Deadline(); !has {
				t.Error("a list in parts has no deadline")
			}
			var err error
			for err == nil {
				err = ss.Send(&runtimeapi.StreamContainersResponse{Containers: []*runtimeapi.Container{{Id: strings.Repeat("x", 1<<20)}}})
			}
			ended <- err
			return err
		},
		events: func(ctx context.Context) error {
			if _, has := ctx.Deadline(); has {
				t.Error("events have a deadline")
			}
			panic("no events today")
		},
	})
	list, err := in.runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the handler gets %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the handler waits for a client that does not read")
	}
	for err == nil {
		_, err = list.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a client that reads too late gets %v", err)
	}
	events, err := in.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Recv(); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "no events today") {
		t.Errorf("a panic in a stream: %v", err)
	}
}

// A call that does not finish in the grace is cancelled.
func TestStopCancels(t *testing.T) {
	entered := make(chan struct{})
	in := startServer(t, Config{StopGrace: time.Millisecond}, &services{stop: func(ctx context.Context, _ *runtimeapi.StopPodSandboxRequest) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := in.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "x"})
		if err == nil {
			t.Error("the cancelled call succeeds")
		}
	})
	<-entered
	if err := in.end(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
