package runtimeservice

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// tcpPair is two ends of a connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = dialed.Close(), accepted.Close() })
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// plain is a connection that knows no half-close.
type plain struct{ io.ReadWriteCloser }

// The end of one direction is told on, and does not end the other.
func TestForwardHalfClose(t *testing.T) {
	user, client := tcpPair(t)
	server, program := tcpPair(t)
	done := make(chan error, 1)
	go func() { done <- forward(t.Context(), server, client) }()

	_, _ = io.WriteString(user, "question")
	_ = user.CloseWrite()
	if got, err := io.ReadAll(program); string(got) != "question" || err != nil {
		t.Fatalf("the server got %q, %v", got, err)
	}
	_, _ = io.WriteString(program, "answer")
	_ = program.CloseWrite()
	if got, err := io.ReadAll(user); string(got) != "answer" || err != nil {
		t.Fatalf("the client got %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}

	// The other way round.
	user, client = tcpPair(t)
	server, program = tcpPair(t)
	go func() { done <- forward(t.Context(), server, client) }()
	_, _ = io.WriteString(program, "banner")
	_ = program.CloseWrite()
	if got, err := io.ReadAll(user); string(got) != "banner" || err != nil {
		t.Fatalf("the client got %q, %v", got, err)
	}
	time.Sleep(forwardGrace + 100*time.Millisecond) // it is no error, so no grace ends the other direction
	_, _ = io.WriteString(user, "late")
	_ = user.CloseWrite()
	if got, err := io.ReadAll(program); string(got) != "late" || err != nil {
		t.Fatalf("the server got %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whatever else ends a connection ends the forward, and is no error of it: kubectl would give up all others.
func TestForwardEnds(t *testing.T) {
	for name, end := range map[string]func(user, program *net.TCPConn){
		"server resets":                            func(_, program *net.TCPConn) { _ = program.SetLinger(0); _ = program.Close() },
		"server closes with bytes unread":          func(_, program *net.TCPConn) { _ = program.Close() },
		"client resets":                            func(user, _ *net.TCPConn) { _ = user.SetLinger(0); _ = user.Close() },
		"server is done, the client does not know": func(_, program *net.TCPConn) { _ = program.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			user, client := tcpPair(t)
			server, program := tcpPair(t)
			done := make(chan error, 1)
			go func() { done <- forward(t.Context(), server, plain{client}) }()
			_, _ = io.WriteString(user, strings.Repeat("x", 1<<16))
			_, _ = io.ReadFull(program, make([]byte, 1))
			end(user, program)
			if err := <-done; err != nil {
				t.Error(err)
			}
			if _, err := server.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the server's connection is open: %v", err)
			}
		})
	}
}

func TestForwardEndsWithContext(t *testing.T) {
	_, client := tcpPair(t)
	server, _ := tcpPair(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("the pod is stopped")
	var done sync.WaitGroup
	done.Go(func() {
		if err := forward(ctx, server, client); !errors.Is(err, stopped) {
			t.Error(err)
		}
	})
	cancel(stopped)
	done.Wait()
}
