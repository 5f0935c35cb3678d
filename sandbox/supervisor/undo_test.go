package supervisor_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// A start whose caller died before it knew is undone, also by the next supervisor when the one that had begun that is killed:
// that SIGKILL is no end of the container's own.
func TestKilledInUndo(t *testing.T) {
	w := newWorld(t)
	slow, deleting, on := filepath.Join(w.dir, "slow"), filepath.Join(w.dir, "deleting"), filepath.Join(w.dir, "on")
	w.must(os.WriteFile(slow, fmt.Appendf(nil, `#!/bin/sh
case " $* " in *" delete "*) >%s; until [ -e %s ]; do sleep 0.01; done ;; esac
exec %s "$@"
`, deleting, on, w.runtime.Path), 0o700))
	w.runtime.Path = slow
	req := w.container("sleep", "1000")
	socket, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(w.dir, "supervisor/supervisor.sock")})
	w.must(err)
	conn := wire.Conn{UnixConn: socket}
	body, err := json.Marshal(req)
	w.must(err)
	_, err = conn.Receive(&wire.Hello{})
	w.must(err)
	w.must(conn.Send(wire.Request{Version: wire.Version, Op: "run", Body: body}))
	var answer wire.Response
	_, err = conn.Receive(&answer)
	if err != nil || answer.Error != nil {
		t.Fatal(err, answer.Error)
	}
	w.must(conn.Close())
	w.eventually("its process is killed, its removal under way", func() bool { _, err := os.Stat(deleting); return err == nil })
	w.killSupervisor()
	w.must(os.WriteFile(on, nil, 0o600))
	if states, err := w.client.List(w.ctx()); err != nil || len(states) != 0 {
		t.Errorf("%+v, %v", states, err)
	}
	w.eventually("it is removed", func() bool { return len(list(filepath.Join(w.dir, "supervisor/containers"))) == 0 })
	w.watch()
	other := w.container("sh", "-c", "exit 7")
	w.run(other)
	w.exit(other.ID) // told behind any that were told before
	w.mu.Lock()
	if e, told := w.exits[req.ID]; told {
		t.Errorf("told %+v", e)
	}
	w.mu.Unlock()
	w.delete(other.ID)
}
