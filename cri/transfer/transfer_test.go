package transfer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/cri/transfer"
)

// images is the image service as a test sets it.
type images struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	load func(ctx context.Context, r io.Reader, loaded func(string, []string)) error
	save func(ctx context.Context, w io.Writer, images []string, gzip bool, changed func(string, string)) error
	list []transfer.Pull
}

func (i *images) Load(ctx context.Context, r io.Reader, loaded func(string, []string)) error {
	return i.load(ctx, r, loaded)
}

func (i *images) Save(ctx context.Context, w io.Writer, images []string, gzip bool, changed func(string, string)) error {
	return i.save(ctx, w, images, gzip, changed)
}

func (i *images) Pulls() []transfer.Pull { return i.list }

// start serves on a socket of its own, through all that package cri puts
// around a call. end stops it and waits.
func start(t *testing.T, i *images) (c *transfer.Client, socket string, end func() error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 2)
	go func() {
		done <- cri.Serve(ctx, cri.Config{Socket: socket, Ready: func() { close(ready) }, Transfer: i, StopGrace: time.Minute}, i, i)
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	c, err := transfer.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	end = func() error {
		cancel()
		err := <-done
		done <- nil
		return err
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), end()); err != nil {
			t.Error(err)
		}
	})
	return c, socket, end
}

func TestLoad(t *testing.T) {
	sum, size := "", int64(0)
	c, _, _ := start(t, &images{load: func(_ context.Context, r io.Reader, loaded func(string, []string)) error {
		h := sha256.New()
		var err error
		if size, err = io.Copy(h, r); err != nil {
			return err
		}
		sum = fmt.Sprintf("%x", h.Sum(nil))
		loaded("sha256:1", []string{"a:1", "b:1"})
		loaded("sha256:2", nil)
		return nil
	}})
	for _, n := range []int{0, 1, 256 << 10, 3<<20 + 1} {
		body := bytes.Repeat([]byte("gantry."), n/7+1)[:n]
		var got []string
		if err := c.Load(t.Context(), bytes.NewReader(body), func(l transfer.Loaded) { got = append(got, l.ID+" "+strings.Join(l.Tags, ",")) }); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%x", sha256.Sum256(body)); sum != want || size != int64(n) || !slices.Equal(got, []string{"sha256:1 a:1,b:1", "sha256:2 "}) {
			t.Errorf("%d bytes: %d bytes with digest %s, answers %q", n, size, sum, got)
		}
	}
}

// An error of the service reaches a client that is still sending; one of the
// client's own file ends the call.
func TestLoadErrors(t *testing.T) {
	c, _, _ := start(t, &images{load: func(_ context.Context, r io.Reader, _ func(string, []string)) error {
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			return err
		}
		return fmt.Errorf("entry 7 is bad: %w", errdefs.ErrInvalidArgument)
	}})
	none := func(transfer.Loaded) {}
	if err := c.Load(t.Context(), zeros{}, none); err == nil || err.Error() != "entry 7 is bad: invalid argument" {
		t.Error(err)
	}
	broken := errors.New("disk is broken")
	if err := c.Load(t.Context(), io.MultiReader(strings.NewReader("abc"), failing{broken}), none); !errors.Is(err, broken) {
		t.Error(err)
	}
	nobody, err := transfer.Dial("/no/such.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	if err := nobody.Load(t.Context(), zeros{}, none); err == nil || !strings.Contains(err.Error(), "no gantry answers on /no/such.sock") {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// idle is a sender that has nothing to send until it ends.
type idle struct{ end <-chan struct{} }

func (i idle) Read([]byte) (int, error) { <-i.end; return 0, io.EOF }

// A client that goes away and a server that ends cancel a load that waits for
// the client, at once.
func TestLoadIsCancelled(t *testing.T) {
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	i := &images{load: func(_ context.Context, r io.Reader, _ func(string, []string)) error {
		began <- struct{}{}
		_, err := io.Copy(io.Discard, r)
		ended <- err
		return err
	}}
	c, _, end := start(t, i)
	t.Run("client", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-began; cancel() }()
		if err := c.Load(ctx, idle{t.Context().Done()}, func(transfer.Loaded) {}); err == nil {
			t.Error("a cancelled load has no error")
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the service sees %v", err)
		}
	})
	t.Run("server", func(t *testing.T) {
		result := make(chan error, 1)
		go func() { result <- c.Load(t.Context(), idle{t.Context().Done()}, func(transfer.Loaded) {}) }()
		<-began
		if err := end(); err != nil { // with a grace of a minute, which the test's deadline has not
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the service sees %v", err)
		}
		if err := <-result; err == nil {
			t.Error("the client sees no error")
		}
	})
}

func TestSave(t *testing.T) {
	body := bytes.Repeat([]byte("gantry."), 500_000)
	c, _, _ := start(t, &images{save: func(_ context.Context, w io.Writer, images []string, gzip bool, changed func(string, string)) error {
		if !gzip || !slices.Equal(images, []string{"a", "b"}) {
			return fmt.Errorf("asked for %q, gzip %v: %w", images, gzip, errdefs.ErrInvalidArgument)
		}
		for b := range slices.Chunk(body, 100_001) {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		changed("sha256:1", "sha256:2")
		return nil
	}})
	var out bytes.Buffer
	changed, err := c.Save(t.Context(), &out, []string{"a", "b"}, true)
	if err != nil || !bytes.Equal(out.Bytes(), body) || len(changed) != 1 || changed["sha256:1"] != "sha256:2" {
		t.Errorf("%d bytes, %v, %v", out.Len(), changed, err)
	}
	for name, refs := range map[string][]string{"none": nil, "empty": {"a", ""}, "long": {strings.Repeat("a", 5000)}, "many": slices.Repeat([]string{"a"}, 257)} {
		if _, err := c.Save(t.Context(), io.Discard, refs, true); err == nil || !strings.Contains(err.Error(), "images") {
			t.Errorf("%s: %v", name, err)
		}
	}
	full := errors.New("disk is full")
	if _, err := c.Save(t.Context(), failingWriter{full}, []string{"a", "b"}, true); !errors.Is(err, full) {
		t.Error(err)
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

func TestPulls(t *testing.T) {
	want := []transfer.Pull{{Image: "r.example/a:1", Started: time.Unix(1, 2).UTC(), Layers: 3, LayersDone: 1, Bytes: 1 << 40, BytesDone: 7}, {Image: "not UTF-8: \uFFFD"}}
	sent := slices.Clone(want)
	sent[1].Image = "not UTF-8: \xff"
	c, _, _ := start(t, &images{list: sent})
	got, err := c.Pulls(t.Context())
	if err != nil || !slices.EqualFunc(got, want, func(a, b transfer.Pull) bool {
		return a.Started.Equal(b.Started) && a.Image == b.Image && a.Bytes == b.Bytes && a.BytesDone == b.BytesDone && a.Layers == b.Layers && a.LayersDone == b.LayersDone
	}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestSecurity(t *testing.T) {
	t.Run("2.7-large-piece", func(t *testing.T) {
		_, socket, _ := start(t, &images{load: func(_ context.Context, r io.Reader, _ func(string, []string)) error {
			_, err := io.Copy(io.Discard, r)
			return err
		}})
		stream := rawStream(t, socket, "Load")
		if err := stream.SendMsg(&wrapperspb.BytesValue{Value: make([]byte, 1<<20+1)}); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&structpb.Struct{}); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	})
	t.Run("2.7-panic", func(t *testing.T) {
		c, _, _ := start(t, &images{load: func(context.Context, io.Reader, func(string, []string)) error { panic("boom") }})
		for range 2 {
			if err := c.Load(t.Context(), zeros{}, func(transfer.Loaded) {}); err == nil || !strings.Contains(err.Error(), "boom") {
				t.Error(err)
			}
		}
	})
	t.Run("2.6-unknown-field", func(t *testing.T) {
		_, socket, _ := start(t, &images{})
		stream := rawStream(t, socket, "Save")
		req := &structpb.Struct{Fields: map[string]*structpb.Value{"path": structpb.NewStringValue("/etc")}}
		if err := stream.SendMsg(req); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	})
}

// rawStream speaks to the service without its client.
func rawStream(t *testing.T, socket, method string) grpc.ClientStream {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/gantry.v1.Transfer/"+method)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}
