package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// forwardDial is how long a server in a pod may take to accept a connection.
	forwardDial = 30 * time.Second
	// forwardGrace is how long one direction may go on when the other has ended
	// in an error, or has no way to tell the client of its end. The peers end
	// both so long after either has ended.
	forwardGrace = time.Second
)

// ForwardPort connects conn with a TCP port on the loopback of a ready pod, and
// returns when both directions have ended, when ctx ends or the pod is stopped.
// The end of one direction ends that alone: a client that has sent all gets its
// answer. If conn has CloseWrite, so does a server.
//
// conn stays the caller's, who closes it afterwards: that ends a Read or Write of
// conn which may still be under way then.
func (s *streaming) ForwardPort(ctx context.Context, podSandboxID string, port uint16, conn io.ReadWriteCloser) error {
	p, err := s.index.pod(podSandboxID)
	if err != nil {
		return err
	}
	left, err := p.whileReady()
	if err != nil {
		return err
	}
	if port == 0 {
		return fmt.Errorf("pod %s/%s (%s): port %d: %w", p.key.namespace, p.key.name, p.id, port, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A socket keeps the network namespace, hence the pod's interfaces, alive.
	defer when(left, func() { cancel(fmt.Errorf("it has been stopped: %w", errdefs.ErrFailedPrecondition)) })()
	late := fmt.Errorf("no answer within %v: %w", forwardDial, context.DeadlineExceeded)
	dialing, done := context.WithTimeoutCause(ctx, forwardDial, late)
	defer done()
	server, err := s.host.DialPod(dialing, p.id, p.own, port)
	if err == nil {
		err = forward(ctx, server, conn)
	}
	if err != nil {
		return fmt.Errorf("pod %s/%s (%s): forwarding port %d: %w", p.key.namespace, p.key.name, p.id, port, err)
	}
	return nil
}

// halfCloser is what has two directions that end by themselves: TCP.
type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// forward copies both ways between a server and a client, and closes server. Its
// error is ctx's cause: how a server and a client end their connection, a reset
// included, is no failure, and kubectl gives up all of a forward's connections
// when it hears of one.
func forward(ctx context.Context, server halfCloser, client io.ReadWriteCloser) error {
	defer server.Close()
	sent, answered := make(chan error, 1), make(chan error, 1)
	go func() { // ends with client, which the caller closes
		_, err := io.Copy(server, client)
		sent <- errors.Join(err, server.CloseWrite())
	}()
	go func() {
		_, err := io.Copy(client, server)
		if w, ok := client.(halfCloser); !ok && err == nil {
			err = errors.ErrUnsupported
		} else if err == nil {
			err = w.CloseWrite()
		}
		answered <- err
	}()
	var grace <-chan time.Time // runs when a direction has not ended well, and the other may not hear of it
	for range 2 {
		var err error
		select {
		case err = <-sent: // the server's last words may wait in the socket
		case err = <-answered:
		case <-grace:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil {
			grace = time.After(forwardGrace)
		}
	}
	return nil
}

// when calls f in the background once ch is closed, unless stop, which waits for f, is called before.
func when(ch <-chan struct{}, f func()) (stop func()) {
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ch:
			f()
		case <-stopped:
		}
	}()
	return func() {
		close(stopped)
		<-done
	}
}
