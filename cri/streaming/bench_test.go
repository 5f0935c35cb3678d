package streaming

import (
	"context"
	"io"
	"net"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkForward carries a gibibyte through a forwarded port, from a TCP
// connection on the pod's side, as far as the clients' library can.
func BenchmarkForward(b *testing.B) {
	const size = 1 << 30
	for name, dial := range dialForward {
		b.Run("from-pod/"+name, func(b *testing.B) {
			s := serve(b, testConfig(), forwardTo(b, func(conn net.Conn) { _, _ = io.CopyN(conn, zeros{}, size) }))
			b.SetBytes(size)
			for range b.N {
				data, _ := dial(b, forwardURL(b, s)).forward(b, 1, 80)
				if n, err := io.Copy(io.Discard, data); n != size || err != nil {
					b.Fatal(n, err)
				}
			}
		})
		b.Run("to-pod/"+name, func(b *testing.B) {
			got := make(chan int64, 1)
			s := serve(b, testConfig(), forwardTo(b, func(conn net.Conn) {
				n, _ := io.Copy(io.Discard, onlyReader{conn})
				got <- n
			}))
			b.SetBytes(size)
			for range b.N {
				data, _ := dial(b, forwardURL(b, s)).forward(b, 1, 80)
				if _, err := io.Copy(data, io.LimitReader(zeros{}, size)); err != nil {
					b.Fatal(err)
				}
				_ = data.Close()
				if n := <-got; n != size {
					b.Fatal(n)
				}
			}
		})
	}
}

// BenchmarkExecOutput is as BenchmarkForward of an exec's stdout.
func BenchmarkExecOutput(b *testing.B) {
	const size = 1 << 30
	s := serve(b, testConfig(), fakeRuntime{exec: func(_ context.Context, _ *runtimeapi.ExecRequest, s Streams) (int, error) {
		_, err := io.CopyN(s.Stdout, zeros{}, size)
		return 0, err
	}})
	b.SetBytes(size)
	for range b.N {
		c := dialSPDY(b, execURL(b, s, &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true}), protocolV4)
		c.stream(b, "streamType", "error")
		if n, err := io.Copy(io.Discard, c.stream(b, "streamType", "stdout")); n != size || err != nil {
			b.Fatal(n, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

type onlyReader struct{ io.Reader }

// forwardTo forwards every port to a TCP listener whose connections serve gets.
func forwardTo(b *testing.B, serve func(net.Conn)) fakeRuntime {
	b.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(b)
	b.Cleanup(func() { listener.Close() })
	go func() { // ends with listener
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serve(conn)
			_ = conn.Close()
		}
	}()
	return fakeRuntime{forward: func(_ context.Context, _ string, _ uint16, client io.ReadWriteCloser) error {
		defer client.Close()
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = io.Copy(conn, client)
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		_, err = io.Copy(client, conn)
		_ = client.(interface{ CloseWrite() error }).CloseWrite()
		if err == nil {
			<-sent
		}
		return err
	}}
}
