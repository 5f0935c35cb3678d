package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxAnswer is what the server sends at most in one message.
const maxAnswer = 64 << 20

// Client speaks to a gantry: this service, and the CRI. Its errors are plain
// text for a person.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	conn   *grpc.ClientConn
	socket string
}

// Dial makes a client of a socket. Whether somebody answers is seen with the
// first call.
func Dial(socket string) (*Client, error) {
	c := &Client{socket: socket}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)), grpc.WithUnaryInterceptor(c.unary))
	if err != nil {
		return nil, fmt.Errorf("socket %q: %w", socket, err)
	}
	c.conn = conn
	c.RuntimeServiceClient, c.ImageServiceClient = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) unary(ctx context.Context, method string, req, resp any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return c.plain(call(ctx, method, req, resp, cc, opts...))
}

// plain takes gRPC's words out of an error.
func (c *Client) plain(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	if s.Code() == codes.Unavailable && strings.HasPrefix(s.Message(), "connection error") {
		return fmt.Errorf("no gantry answers on %s: %s", c.socket, s.Message())
	}
	if s.Code() == codes.Unimplemented && strings.Contains(s.Message(), serviceName) {
		return fmt.Errorf("what answers on %s is not this gantry: %s", c.socket, s.Message())
	}
	return errors.New(s.Message())
}

// Loaded is an image that came out of an archive.
type Loaded struct {
	ID   string
	Tags []string
}

// Load sends an archive. loaded is called for each image that is there.
func (c *Client) Load(ctx context.Context, r io.Reader, loaded func(Loaded)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, loadMethod)
	if err != nil {
		return c.plain(err)
	}
	sent := make(chan error, 1)
	go func() { // ends with the stream, or when r has an answer for it
		err := send(stream, r)
		sent <- err
		if err != nil {
			cancel()
		}
	}()
	for {
		var m structpb.Struct
		err := stream.RecvMsg(&m)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			select {
			case reason := <-sent:
				if reason != nil {
					return reason
				}
			default:
			}
			return c.plain(err)
		}
		loaded(readLoaded(&m))
	}
}

// send sends r to its end. What the stream has against it is for the receiver.
func send(stream grpc.ClientStream, r io.Reader) error {
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if stream.SendMsg(&wrapperspb.BytesValue{Value: buf[:n]}) != nil {
				return nil
			}
		}
		switch {
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			_ = stream.CloseSend()
			return nil
		case err != nil:
			return err
		}
	}
}

// Save writes an archive of images. The ids that are others in it are returned,
// new by old.
func (c *Client) Save(ctx context.Context, w io.Writer, images []string, gzip bool) (map[string]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, saveMethod)
	if err != nil {
		return nil, c.plain(err)
	}
	if err := stream.SendMsg(saveMessage(images, gzip)); err != nil && err != io.EOF {
		return nil, c.plain(err)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, c.plain(err)
	}
	for {
		var chunk wrapperspb.BytesValue
		err := stream.RecvMsg(&chunk)
		if err == io.EOF {
			return readChanged(stream.Trailer()), nil
		}
		if err != nil {
			return nil, c.plain(err)
		}
		if _, err := w.Write(chunk.Value); err != nil {
			return nil, err
		}
	}
}

func readChanged(trailer metadata.MD) map[string]string {
	changed := make(map[string]string)
	for _, v := range trailer.Get(changedKey) {
		if id, newID, ok := strings.Cut(v, " "); ok {
			changed[id] = newID
		}
	}
	return changed
}

// Pulls are the pulls under way.
func (c *Client) Pulls(ctx context.Context) ([]Pull, error) {
	var list structpb.ListValue
	if err := c.conn.Invoke(ctx, pullsMethod, &emptypb.Empty{}, &list); err != nil {
		return nil, err // made plain by unary
	}
	var out []Pull
	for _, v := range list.GetValues() {
		out = append(out, readPull(v.GetStructValue()))
	}
	return out, nil
}
