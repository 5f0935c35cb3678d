package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// echo runs a server in the pod that sends back what it gets.
func (p *pod) echo(addresses ...string) *container {
	p.t.Helper()
	c := p.run("echo", "", withGuest, func(c *runtimeapi.ContainerConfig) {
		c.Command, c.Args = append([]string{"/nginx", "echo"}, addresses...), nil
	})
	c.eventually("it serves", func() bool { return c.logged("stdout") == "serving\n" })
	return c
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) ->`)

// forward runs crictl port-forward, and returns the address that it listens at.
func (p *pod) forward(transport string, port int) (address string, client *crictl) {
	p.t.Helper()
	client = p.crictl(false, "port-forward", "--transport", transport, p.id, fmt.Sprintf(":%d", port))
	p.eventually("crictl listens", func() bool {
		if m := forwarding.FindStringSubmatch(client.out.String()); m != nil {
			address = m[1]
		}
		return address != ""
	})
	return address, client
}

func (n *node) dialTCP(address string) *net.TCPConn {
	n.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Minute)) // of a test that hangs
	return conn.(*net.TCPConn)
}

// echoed sends a word, half-closes, and returns what comes back until the other side closes.
func (n *node) echoed(address, word string) (string, error) {
	n.t.Helper()
	conn := n.dialTCP(address)
	defer conn.Close()
	if _, err := io.WriteString(conn, word); err != nil {
		return "", err
	}
	if err := conn.CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	return string(got), err
}

// A GiB there and back, over both protocols, with the half-close in between.
func TestPortForward(t *testing.T) {
	n := newNode(t)
	n.pull(guestImage)
	p := n.runPod("pod")
	p.echo("127.0.0.1:8080")
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			p := p.in(t)
			address, client := p.forward(transport, 8080)
			conn := p.dialTCP(address)
			sent, got := sha256.New(), sha256.New()
			var sending sync.WaitGroup
			sending.Go(func() {
				_, err := io.Copy(conn, io.TeeReader(io.LimitReader(rand.Reader, 1<<30), sent))
				if err := errors.Join(err, conn.CloseWrite()); err != nil {
					t.Error(err)
				}
			})
			size, err := io.Copy(got, conn)
			sending.Wait()
			if err != nil || size != 1<<30 || string(sent.Sum(nil)) != string(got.Sum(nil)) {
				t.Errorf("%d bytes, %v, digests %x and %x", size, err, sent.Sum(nil), got.Sum(nil))
			}
			if back, err := p.echoed(address, "again"); back != "again" || err != nil {
				t.Errorf("a second connection: %q, %v", back, err)
			}
			if t.Failed() {
				t.Logf("crictl says %q", client.err.String())
			}
		})
	}
}

// A thousand connections of one session are open at a time.
func TestPortForwardParallel(t *testing.T) {
	n := newNode(t)
	n.pull(guestImage)
	p := n.runPod("pod")
	p.echo("127.0.0.1:8080")
	before := n.openFiles()
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			p := p.in(t)
			address, client := p.forward(transport, 8080)
			var connected, all sync.WaitGroup
			connected.Add(1000)
			for i := range 1000 {
				all.Go(func() {
					word := fmt.Sprintf("connection %d", i)
					back, err := func() (string, error) {
						defer connected.Done()
						conn := p.dialTCP(address)
						if _, err := io.WriteString(conn, word); err != nil {
							return "", err
						}
						back := make([]byte, len(word))
						_, err := io.ReadFull(conn, back)
						return string(back), err // and stays open
					}()
					connected.Wait()
					if back != word || err != nil {
						t.Errorf("%d: %q, %v", i, back, err)
					}
				})
			}
			all.Wait()
			if err := client.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		})
	}
	n.eventually("descriptors are as before", func() bool { return n.openFiles() <= before })
}

// Where the server may listen, and where a forward must not lead.
func TestPortForwardTargets(t *testing.T) {
	n := newNode(t)
	n.pull(guestImage)
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	hostPort := host.Addr().(*net.TCPAddr).Port

	p := n.runPod("pod")
	p.echo("[::1]:8080")
	onHost := n.runPod("host", hostNetwork)
	onHost.echo("127.0.0.1:12345")
	mapped := n.runPod("mapped", userns(100_000, 100_000))
	mapped.echo("127.0.0.1:8080")
	for _, tt := range []struct {
		pod  *pod
		port int
	}{{p, 8080}, {onHost, 12345}, {mapped, 8080}} {
		address, client := tt.pod.forward("websocket", tt.port)
		if back, err := n.echoed(address, "word"); back != "word" || err != nil {
			t.Errorf("pod %s: %q, %v; crictl says %q", tt.pod.config.GetMetadata().GetName(), back, err, client.err.String())
		}
	}
	for _, transport := range transports {
		address, client := p.forward(transport, hostPort)
		if back, err := n.echoed(address, "word"); back != "" {
			t.Errorf("a port of the host is reached from a pod: %q, %v", back, err)
		}
		client.sees(client.err, fmt.Sprintf("127.0.0.1:%d: connect: connection refused", hostPort))
		client.sees(client.err, p.id)
		client.sees(client.err, fmt.Sprintf("forwarding port %d", hostPort))
	}
}

// Forwards end with their pod, whose namespace they would keep alive.
func TestPortForwardEndsWithPod(t *testing.T) {
	n := newNode(t)
	n.pull(guestImage)
	for _, port := range []int32{0, 65536, -1} {
		_, err := n.Runtime.PortForward(n.context(), &runtimeapi.PortForwardRequest{PodSandboxId: "none", Port: []int32{port}})
		wantError(t, err, codes.InvalidArgument, fmt.Sprint(port))
	}
	_, err := n.Runtime.PortForward(n.context(), &runtimeapi.PortForwardRequest{PodSandboxId: "none"})
	wantError(t, err, codes.NotFound, "none")

	p := n.runPod("pod")
	p.echo("127.0.0.1:8080")
	address, client := p.forward("spdy", 8080)
	later, laterClient := p.forward("spdy", 8080)
	conn := p.dialTCP(address)
	if _, err := io.WriteString(conn, "word"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("after the pod's end: %q, %v", got, err)
	}
	client.sees(client.err, "it has been stopped") // whereupon crictl gives up, as kubectl does
	if back, _ := n.echoed(later, "word"); back != "" {
		t.Errorf("a connection to the stopped pod: %q", back)
	}
	laterClient.sees(laterClient.err, "not ready")
	_, err = n.Runtime.PortForward(n.context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id})
	wantError(t, err, codes.FailedPrecondition, p.id)
}
