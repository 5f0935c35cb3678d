package cri

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// edge is what all calls of one server share.
type edge struct {
	logger   klog.Logger
	deadline time.Duration
	stopping context.Context // ends when the server is told to stop
}

// mutating are the calls that change something: each is logged and gets a
// deadline. ExecSync is not among them for the log's sake, since every exec
// probe is one; see budget for its deadline.
var mutating = map[string]bool{
	"RunPodSandbox": true, "StopPodSandbox": true, "RemovePodSandbox": true, "UpdatePodSandboxResources": true,
	"CreateContainer": true, "StartContainer": true, "StopContainer": true, "RemoveContainer": true,
	"UpdateContainerResources": true, "ReopenContainerLog": true,
	"Exec": true, "Attach": true, "PortForward": true,
	"CheckpointContainer": true, "CheckpointPod": true, "RestorePod": true,
	"UpdateRuntimeConfig": true, "PullImage": true, "RemoveImage": true, "Load": true,
}

// unary is around every call but the streams.
func (e edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	rpc := path.Base(info.FullMethod)
	logger := e.logger.WithValues("rpc", rpc)
	ctx = klog.NewContext(ctx, logger)
	if budget := e.budget(rpc, req); budget > 0 {
		if _, has := ctx.Deadline(); !has {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, budget)
			defer cancel()
		}
	}
	began := time.Now()
	err = guard(logger, rpc, func() (err error) {
		if err := validate(req); err != nil {
			return err
		}
		resp, err = handler(ctx, req)
		return err
	})
	err = toStatus(err)
	logCall(logger, mutating[rpc], subjects(req, resp), time.Since(began), err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// budget is how long a call may take whose client has set no deadline; 0 is for
// ever. A pull has a time-out of its own that is about progress. Calls that
// wait for something as long as the client says get that on top.
func (e edge) budget(rpc string, req any) time.Duration {
	switch r := req.(type) {
	case *runtimeapi.PullImageRequest:
		return 0
	case *runtimeapi.ExecSyncRequest:
		if r.GetTimeout() <= 0 {
			return 0 // the CRI: "run forever"
		}
		return e.deadline + seconds(r.GetTimeout())
	case *runtimeapi.StopContainerRequest:
		return e.deadline + seconds(r.GetTimeout())
	case *runtimeapi.CheckpointContainerRequest:
		return e.deadline + seconds(r.GetTimeout())
	}
	if mutating[rpc] {
		return e.deadline
	}
	return 0
}

// seconds is a duration that no request can make overflow: a century at most.
func seconds(n int64) time.Duration {
	const century = 100 * 365 * 24 * 3600
	return time.Duration(min(max(n, 0), century)) * time.Second
}

// lists reports whether a stream is a list in parts, which ends by itself.
func lists(rpc string) bool { return strings.HasPrefix(rpc, "Stream") }

// stream is around the calls whose answer is a stream. They end when the server
// stops; a list also when its time is over, so that a client that has stopped
// reading does not keep what is left of it for ever.
func (e edge) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	rpc := path.Base(info.FullMethod)
	logger := e.logger.WithValues("rpc", rpc)
	ctx, cancel := context.WithCancel(klog.NewContext(ss.Context(), logger))
	defer cancel()
	if _, has := ctx.Deadline(); !has && lists(rpc) {
		ctx, cancel = context.WithTimeout(ctx, e.deadline)
		defer cancel()
	}
	defer context.AfterFunc(e.stopping, cancel)()
	began := time.Now()
	err := toStatus(guard(logger, rpc, func() error { return handler(srv, &checkedStream{ss, ctx, logger, rpc}) }))
	if e.stopping.Err() != nil && status.Code(err) == codes.Canceled {
		err = status.Error(codes.Unavailable, "gantry is stopping; connect again")
	}
	logCall(logger, mutating[rpc], nil, time.Since(began), err)
	return err
}

// checkedStream validates the request of a stream and carries its context.
type checkedStream struct {
	grpc.ServerStream
	ctx    context.Context
	logger klog.Logger
	rpc    string
}

func (s *checkedStream) Context() context.Context { return s.ctx }

func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return toStatus(validate(m))
}

// SendMsg ends with the stream's context even if the client does not read. What
// is still being sent then is cut off by gRPC when the handler returns.
func (s *checkedStream) SendMsg(m any) error {
	sent := make(chan error, 1)
	go func() { sent <- guard(s.logger, s.rpc, func() error { return s.ServerStream.SendMsg(m) }) }()
	select {
	case err := <-sent:
		return err
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// guard turns a panic of one call into its error: one bad request must not
// take the node's other pods' runtime down.
func guard(logger klog.Logger, rpc string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			logger.Error(nil, "Panic in a call", "panic", p, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, fmt.Sprintf("panic in %s: %v; the stack is in gantry's log", rpc, p))
		}
	}()
	return f()
}

// logCall writes the line of a call. What is the client's doing, or passes by
// itself, is no error of the daemon's log.
func logCall(logger klog.Logger, mutates bool, subjects []any, took time.Duration, err error) {
	if !mutates {
		logger = logger.V(4)
	}
	kv := append(subjects, "duration", took.Round(time.Microsecond))
	switch c := status.Code(err); c {
	case codes.OK:
		logger.Info("Call done", kv...)
	case codes.Unknown, codes.Internal, codes.DataLoss, codes.ResourceExhausted:
		logger.Error(err, "Call failed", append(kv, "code", c)...)
	default:
		logger.Info("Call refused", append(kv, "code", c, "reason", status.Convert(err).Message())...)
	}
}

// subjects are the keys and values that say what a call is about. Nothing else
// of a request is logged: it may hold secrets.
func subjects(req, resp any) []any {
	var kv []any
	add := func(key, value string) {
		if value != "" {
			kv = append(kv, key, clip(value))
		}
	}
	if r, ok := req.(interface {
		GetConfig() *runtimeapi.PodSandboxConfig
	}); ok {
		m := r.GetConfig().GetMetadata()
		kv = append(kv, "pod", klog.KRef(clip(m.GetNamespace()), clip(m.GetName())))
	}
	if r, ok := req.(*runtimeapi.CreateContainerRequest); ok {
		m := r.GetSandboxConfig().GetMetadata()
		kv = append(kv, "pod", klog.KRef(clip(m.GetNamespace()), clip(m.GetName())))
		add("container", r.GetConfig().GetMetadata().GetName())
		add("image", r.GetConfig().GetImage().GetImage())
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		add("image", r.GetImage().GetImage())
	}
	podID, containerID := "", ""
	for _, m := range []any{req, resp} {
		if m, ok := m.(interface{ GetPodSandboxId() string }); ok && podID == "" {
			podID = m.GetPodSandboxId()
		}
		if m, ok := m.(interface{ GetContainerId() string }); ok && containerID == "" {
			containerID = m.GetContainerId()
		}
	}
	add("podID", podID)
	add("containerID", containerID)
	return kv
}

// clip bounds what a request can write into the log.
func clip(s string) string {
	const limit = 256
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
