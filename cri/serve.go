package cri

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cri/transfer"
)

const (
	maxReceive = 32 << 20 // bytes of one request
	maxSend    = 64 << 20 // bytes of one answer; clients have limits of their own
	maxStreams = 1024     // calls at a time on one connection

	// DefaultDeadline is how long a call that changes something may take when
	// its client sets no deadline; the kubelet's own is two minutes.
	DefaultDeadline = 4 * time.Minute
	// DefaultStopGrace is how long [Serve] lets calls finish when it is told to end.
	DefaultStopGrace = 10 * time.Second
	// stopWait is how long cancelled calls get to return after that.
	stopWait = 5 * time.Second
)

// Config is the plain values of a server. Zero durations mean the defaults.
type Config struct {
	Socket    string        // absolute path, at most 107 bytes
	Deadline  time.Duration // see DefaultDeadline
	StopGrace time.Duration // see DefaultStopGrace
	Ready     func()        // called once, when clients can connect; may be nil
	// Transfer is served beside the CRI, see package transfer; may be nil.
	Transfer transfer.Images
}

// Serve answers the CRI on a Unix socket until ctx ends. Then streams are
// ended, other calls get StopGrace to finish, those left are cancelled, and
// Serve returns nil when all have returned, an error when some did not.
//
// A socket that a killed daemon left is replaced. One that another process
// serves is errdefs.ErrAlreadyExists, and anything at the path that is no
// socket errdefs.ErrFailedPrecondition.
func Serve(ctx context.Context, cfg Config, rs runtimeapi.RuntimeServiceServer, is runtimeapi.ImageServiceServer) error {
	if cfg.Deadline == 0 {
		cfg.Deadline = DefaultDeadline
	}
	if cfg.StopGrace == 0 {
		cfg.StopGrace = DefaultStopGrace
	}
	listener, unlock, err := listen(ctx, cfg.Socket)
	if err != nil {
		return err
	}
	defer unlock()
	e := edge{logger: klog.FromContext(ctx), deadline: cfg.Deadline, stopping: ctx}
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(e.unary),
		grpc.StreamInterceptor(e.stream),
	)
	runtimeapi.RegisterRuntimeServiceServer(server, rs)
	runtimeapi.RegisterImageServiceServer(server, is)
	if cfg.Transfer != nil {
		transfer.Register(server, cfg.Transfer)
	}
	if cfg.Ready != nil {
		cfg.Ready()
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with stop
	select {
	case err := <-served:
		return errors.Join(fmt.Errorf("serving the CRI on %s: %w", cfg.Socket, err), stop(server, cfg.StopGrace))
	case <-ctx.Done():
		if err := stop(server, cfg.StopGrace); err != nil {
			return err // Serve returns as little as the calls do
		}
		if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // which it is when stop came before Serve began
			return err
		}
		return nil
	}
}

// stop lets calls finish for grace, then cancels them.
func stop(server *grpc.Server, grace time.Duration) error {
	done := make(chan struct{})
	go func() { server.GracefulStop(); close(done) }() // ends when all calls have returned
	select {
	case <-done:
		return nil
	case <-time.After(grace):
	}
	go server.Stop() // as above
	select {
	case <-done:
		return nil
	case <-time.After(stopWait):
		return fmt.Errorf("calls have not returned %v after they were cancelled: %w", stopWait, context.DeadlineExceeded)
	}
}
