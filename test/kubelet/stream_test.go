package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/moby/spdystream"
)

func init() {
	cases["exec"] = execStreams
	cases["attach"] = attachStreams
	cases["port-forward"] = forwardStreams
}

// The kubelet hands its client on to the URL that the runtime answers.
func execStreams(t *testing.T, n *node) {
	p := n.run(t, "exec", second)
	p.untilReady()
	path := p.fullName() + "/a"
	if out, err := p.ask("POST", "/run/default/"+path+"?cmd=id"); err != nil || out != "uid=0(root) gid=0(root) groups=0(root)\n" {
		t.Errorf("a command over /run: %q, %v", out, err)
	}
	for protocol, dial := range dialers {
		s := dial(t, "/exec/default/"+path+query("input=1&output=1&error=1", "sh", "-c", "cat; echo problem >&2; exit 3"))
		if _, err := io.WriteString(s.stdin, "word\n"); err != nil {
			t.Error(err)
		}
		if err := s.stdin.Close(); err != nil { // which cat waits for
			t.Error(err)
		}
		if out, stderr, code := s.stdout.all(t), s.stderr.all(t), s.exitCode(t); out != "word\n" || stderr != "problem\n" || code != "3" {
			t.Errorf("over %s: stdout %q, stderr %q, exit code %s", protocol, out, stderr, code)
		}

		s = dial(t, "/exec/default/"+path+query("input=1&output=1&tty=1", "sh", "-c", `until [ "$(stty size 2>/dev/null)" = "43 132" ]; do usleep 10000; done; read x; echo "<$x>"`))
		if _, err := io.WriteString(s.resize, `{"Width":132,"Height":43}`); err != nil {
			t.Error(err)
		}
		if _, err := io.WriteString(s.stdin, "typed\n"); err != nil {
			t.Error(err)
		}
		if out, code := s.stdout.all(t), s.exitCode(t); out != "typed\r\n<typed>\r\n" || code != "0" {
			t.Errorf("a terminal over %s: %q, exit code %s", protocol, out, code)
		}
	}
}

// Clients of attach see what the container writes from then on, as its log does, and type what it reads. One that
// leaves closes the input only of a container that is to have one client.
func attachStreams(t *testing.T, n *node) {
	const repeats = "sh, -c, \"while read x; do echo got $x; done; echo ended\""
	p := n.run(t, "attach", `
restartPolicy: Never
containers:
- {name: many, image: BUSYBOX, stdin: true, command: [`+repeats+`]}
- {name: once, image: BUSYBOX, stdin: true, stdinOnce: true, command: [`+repeats+`]}
`)
	p.untilReady()
	attach := func(protocol, container, word string) {
		t.Helper()
		s := dialers[protocol](t, "/attach/default/"+p.fullName()+"/"+container+"?input=1&output=1&error=1")
		if _, err := io.WriteString(s.stdin, word+"\n"); err != nil {
			t.Error(err)
		}
		line := s.stdout.until(t, func(got string) bool { return strings.HasSuffix(got, "\n") })
		if line != "got "+word+"\n" {
			t.Errorf("%s over %s: %q", container, protocol, line)
		}
		if err := s.stdin.Close(); err != nil {
			t.Error(err)
		}
	}
	attach("SPDY", "many", "one")
	attach("WebSocket", "many", "two")
	attach("SPDY", "once", "only")
	eventually(t, "the end of its client's input has ended the container", func() error {
		now, err := p.object()
		if err == nil && now.Status.container("once").State.Terminated == nil {
			err = fmt.Errorf("%s", now.Status)
		}
		return err
	})
	for container, want := range map[string][]string{"many": {"got one", "got two"}, "once": {"got only", "ended"}} {
		log, err := p.get("/containerLogs/default/" + p.fullName() + "/" + container)
		if got := strings.Fields(log); !slices.Equal(got, strings.Fields(strings.Join(want, " "))) || err != nil {
			t.Errorf("log of %s: %q, %v", container, log, err)
		}
	}
}

// connection is one to a port of a pod.
type connection struct {
	stream      *spdystream.Stream
	data, fault *received
}

// A pod's port answers through the kubelet, two connections beside each other, and a port where nobody listens says so.
func forwardStreams(t *testing.T, n *node) {
	p := n.run(t, "forward", `
containers:
- {name: web, image: WEB}
`)
	p.untilReady()
	for protocol, forward := range forwarders {
		c := forward(t, "/portForward/default/"+p.fullName())
		connect := func(id, port string) connection {
			header := func(kind string) http.Header {
				return http.Header{"Streamtype": {kind}, "Port": {port}, "Requestid": {id}}
			}
			fault := openStream(t, c, header("error"))
			if err := fault.Close(); err != nil { // this side writes nothing there
				t.Error(err)
			}
			data := openStream(t, c, header("data"))
			return connection{data, collect(data), collect(fault)}
		}
		ask := func(c connection) {
			t.Helper()
			if _, err := io.WriteString(c.stream, "GET / HTTP/1.0\r\n\r\n"); err != nil {
				t.Error(err)
			}
			if answer := c.data.all(t); !strings.Contains(answer, "200 OK") {
				t.Errorf("over %s: %.200q", protocol, answer)
			}
			if err := c.stream.Reset(); err != nil { // as kubectl does at the other's end
				t.Error(err)
			}
			if text := c.fault.all(t); text != "" {
				t.Errorf("over %s: error %q", protocol, text)
			}
		}
		first := connect("0", "80")
		ask(connect("1", "80"))
		ask(first)
		if text := connect("2", "81").fault.all(t); !strings.Contains(text, "refused") {
			t.Errorf("a closed port over %s: %q", protocol, text)
		}
	}
}
