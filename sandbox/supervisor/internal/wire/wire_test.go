package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = Conn{c.(*net.UnixConn)}
		t.Cleanup(func() { _ = c.Close() })
	}
	return conns[0], conns[1]
}

func TestFilesTravel(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 900<<10) // more than the socket's buffer
	go func() {
		if err := a.Send(Request{Version: 1, Op: big}, w); err != nil {
			t.Error(err)
		}
		if err := a.Send(Request{Op: "second"}); err != nil {
			t.Error(err)
		}
		_ = w.Close()
		_ = a.Close()
	}()
	var req Request
	files, err := b.Receive(&req)
	if err != nil || len(files) != 1 || req.Op != big {
		t.Fatal(len(files), err)
	}
	_, _ = files[0].WriteString("through")
	_ = files[0].Close()
	if files, err := b.Receive(&req); err != nil || len(files) != 0 || req.Op != "second" {
		t.Errorf("%d files, %v", len(files), err)
	}
	if got, _ := io.ReadAll(r); string(got) != "through" {
		t.Errorf("got %q", got)
	}
	if _, err := b.Receive(&req); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestTooManyFilesAreClosed(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	files := make([]*os.File, MaxFiles+5)
	for i := range files {
		files[i] = w
	}
	if err := a.Send(Request{}, files...); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var req Request
	if _, err := b.Receive(&req); err == nil {
		t.Error("too many files were taken")
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a copy is open: %v", err)
	}
}

// Descriptors that found no room here are told of to who sent them, and the others closed.
func TestFilesWithoutRoom(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	big := strings.Repeat("x", 900<<10)
	go func() {
		if err := a.Send(Request{Op: big}, slices.Repeat([]*os.File{w}, MaxFiles)...); err != nil {
			t.Error(err)
		}
	}()
	var none unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	old := none
	low, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0) // the lowest that is free
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(low)
	none.Cur = uint64(low) + 1                                              // one, and what others close
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &none, nil); err != nil { // not Setrlimit, after which children would get it
		t.Fatal(err)
	}
	var req Request
	_, err = b.Receive(&req)
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || !errors.Is(NewError(err), errdefs.ErrResourceExhausted) || req.Op != big {
		t.Errorf("without room: %v", err)
	}
	if err := b.Send(Response{Error: NewError(err)}); err != nil {
		t.Error(err)
	}
	var answer Response
	if _, err := a.Receive(&answer); err != nil || answer.Error == nil {
		t.Errorf("told: %+v, %v", answer, err)
	}
	_ = w.Close()
	_ = r.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a copy is open: %v", err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for _, kind := range []error{errdefs.ErrNotFound, errdefs.ErrAlreadyExists, context.DeadlineExceeded, errdefs.ErrFailedPrecondition} {
		e := NewError(fmt.Errorf("container x: %w", kind))
		if !errors.Is(e, kind) || e.Error() != "container x: "+kind.Error() {
			t.Errorf("%v became %v", kind, e)
		}
	}
	if e := NewError(errors.New(strings.Repeat("x", 2*MaxErrorText))); len(e.Message) != MaxErrorText || e.Unwrap() != nil {
		t.Errorf("%d bytes, kind %v", len(e.Message), e.Unwrap())
	}
}

func FuzzDecode(f *testing.F) {
	frame := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	f.Add(frame(`{"version":1,"op":"run","body":{"id":"x"}}`))
	f.Add(frame(`{} {}`))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req Request
		if Decode(bytes.NewReader(data), &req) != nil {
			return
		}
		again, err := encode(req)
		if err != nil {
			return // longer than a frame once escaped
		}
		var same Request
		if err := Decode(bytes.NewReader(again), &same); err != nil || same.Op != req.Op || same.Version != req.Version {
			t.Fatalf("%+v became %+v: %v", req, same, err)
		}
	})
}
