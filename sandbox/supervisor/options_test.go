package supervisor_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// TestRuntimeOptions: each command of the OCI runtime has them, also those
// that a later supervisor makes.
func TestRuntimeOptions(t *testing.T) {
	w := newWorld(t)
	calls := filepath.Join(w.dir, "calls")
	spy := filepath.Join(w.dir, "spy")
	w.must(os.WriteFile(spy, []byte("#!/bin/sh\necho \"$@\" >> "+calls+"\nexec "+w.runtime.Path+" \"$@\"\n"), 0o700))
	w.runtime.Path, w.runtime.Options = spy, []string{"--debug"}
	req := w.container("sleep", "1000")
	w.run(req)
	if _, code, err := w.exec(w.ctx(), req.ID, "true"); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	w.killSupervisor()
	w.delete(req.ID)
	data, err := os.ReadFile(calls)
	w.must(err)
	for _, command := range []string{" run ", " exec ", " delete "} {
		found := false
		for line := range strings.Lines(string(data)) {
			before, _, ok := strings.Cut(line, command)
			found = found || ok && strings.HasPrefix(before, "--root "+w.runtime.Root+" ") && strings.HasSuffix(before, " --debug")
		}
		if !found {
			t.Errorf("no%swith --root and --debug among\n%s", command, data)
		}
	}
}

// TestOlderSupervisor: one of protocol version 1 is spoken to in that version,
// and never told of what it does not know.
func TestOlderSupervisor(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "supervisor.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan wire.Request, 10)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			conn := wire.Conn{UnixConn: c}
			_ = conn.Send(wire.Hello{Version: 1, MinVersion: 1, PID: os.Getpid()})
			var r wire.Request
			if _, err := conn.Receive(&r); err == nil {
				requests <- r
				_ = conn.Send(wire.Response{Body: []byte(`{"pid":7}`)})
				_, _ = conn.Receive(&struct{}{}) // the commit
			}
			_ = conn.Close()
		}
	}()
	defer func() { _ = listener.Close(); <-ended }()
	client, err := supervisor.Connect(t.Context(), supervisor.Config{Dir: dir, Binary: "/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	run := supervisor.RunRequest{ID: "c", Runtime: supervisor.Runtime{Path: "/x", Root: "/r"}, Bundle: "/b", LogMax: 1 << 20} // is not sent
	if pid, err := client.Run(t.Context(), run); err != nil || pid != 7 {
		t.Errorf("run: %d, %v", pid, err)
	}
	run.Runtime.Options = []string{"--debug"}
	if _, err := client.Run(t.Context(), run); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"--debug"`) {
		t.Errorf("run with options: %v", err)
	}
	run.Runtime.Options, run.StdioUID = nil, 100_000
	if _, err := client.Run(t.Context(), run); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "user namespaces") {
		t.Errorf("run in a user namespace: %v", err)
	}
	if err := client.Update(t.Context(), "c", []byte("{}")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "updates") {
		t.Errorf("update: %v", err)
	}
	attach := supervisor.AttachRequest{ID: "c", Attached: func(*os.File, bool) { t.Error("attached") }}
	if err := client.Attach(t.Context(), attach); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "older") {
		t.Errorf("attach: %v", err)
	}
	_ = client.Close()
	for _, op := range []string{"ping", "run"} {
		if r := <-requests; r.Op != op || r.Version != 1 || strings.Contains(string(r.Body), "options") || strings.Contains(string(r.Body), "logMax") {
			t.Errorf("request %+v, want %s", r, op)
		}
	}
	if len(requests) != 0 {
		t.Errorf("the older supervisor got %+v", <-requests)
	}
}
