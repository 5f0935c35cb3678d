package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/peer"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

const (
	// warnEvery is how often calls that cannot be accepted are told of.
	warnEvery = 10 * time.Second
	// maxGreeting is how many connections at a time have yet to make their request,
	// of whose descriptors and memory nobody else knows before.
	maxGreeting = 32
)

func (s *Server) accept(ctx context.Context) {
	greeting := make(chan struct{}, maxGreeting)
	var warned time.Time
	for {
		greeting <- struct{}{} // no longer than sendTimeout
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors or memory
			<-greeting
			if outOfDescriptors(err) && s.room.lend() { // accept(2) wants one before there is a call
				continue
			}
			if time.Since(warned) > warnEvery {
				s.log.Error("Cannot accept a call", "err", err)
				warned = time.Now()
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if !s.begin() {
			_ = conn.Close() // without a hello: the client tries the next server
			return
		}
		s.room.connection()
		go func() {
			defer s.end()
			s.gate.Enter()
			defer s.gate.Leave()
			s.serve(ctx, wire.Conn{UnixConn: conn}, func() { <-greeting })
			s.room.fill()
		}()
	}
}

// serve handles one connection: hello, request, answers.
func (s *Server) serve(ctx context.Context, conn wire.Conn, greeted func()) {
	defer conn.Close()
	req, files, err := greet(conn)
	greeted()
	if err != nil {
		if !errors.Is(err, io.EOF) { // who only looks whether there is a supervisor
			s.log.Error("Refused a caller", "err", err)
		}
		return
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	_ = conn.SetDeadline(time.Time{})

	c := newCall(conn, files)
	s.converse(ctx, c, func(ctx context.Context) (any, error) { return s.dispatch(ctx, req, c) })
}

// converse lets f answer a call, with a context that ends with the connection,
// which the caller closes.
func (s *Server) converse(ctx context.Context, c *call, f func(context.Context) (any, error)) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go c.listen(cancel)
	body, err := f(ctx)
	if err != nil {
		_ = c.send(wire.Response{Error: wire.NewError(err)})
		return
	}
	if body != nil {
		_ = c.answer(body)
	}
}

// greet takes the request.
func greet(conn wire.Conn) (req wire.Request, files []*os.File, err error) {
	if err := checkPeer(conn.UnixConn); err != nil {
		return req, nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(sendTimeout))
	if err := conn.Send(wire.Hello{Version: wire.Version, MinVersion: wire.MinVersion, PID: os.Getpid()}); err != nil {
		return req, nil, err
	}
	files, err = conn.Receive(&req)
	if outOfDescriptors(err) {
		err = fmt.Errorf("supervisor (process %d) has no descriptors left, raise its limit (prlimit) or remove containers: %w", os.Getpid(), err)
		_ = conn.Send(wire.Response{Error: wire.NewError(err)})
	}
	return req, files, err
}

// checkPeer refuses callers of another user.
func checkPeer(conn *net.UnixConn) error {
	cred, err := peer.Cred(conn)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d", cred.Pid, cred.Uid)
	}
	return nil
}
