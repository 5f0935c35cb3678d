package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	serviceName = "gantry.v1.Transfer"
	loadMethod  = "/" + serviceName + "/Load"
	saveMethod  = "/" + serviceName + "/Save"
	pullsMethod = "/" + serviceName + "/Pulls"
	// changedKey is the trailer of Save.
	changedKey = "gantry-changed"

	maxChunk  = 1 << 20
	chunkSize = 256 << 10 // of what is sent here
	maxImages = 256       // of one Save
	maxRef    = 4096
)

// Pull is an image that is on its way. Layers and Bytes are 0 until its
// manifest is known.
type Pull struct {
	Image              string
	Started            time.Time
	Layers, LayersDone int
	Bytes, BytesDone   int64
}

// Images is the image service as far as it is served here.
type Images interface {
	// Load takes the images of an archive, which it reads to its end, and calls
	// loaded for each that is there.
	Load(ctx context.Context, r io.Reader, loaded func(id string, tags []string)) error
	// Save writes an archive of images, and calls changed for each that has
	// another id in it.
	Save(ctx context.Context, w io.Writer, images []string, gzip bool, changed func(id, newID string)) error
	// Pulls are the pulls under way.
	Pulls() []Pull
}

// Register adds the service to a server.
func Register(r grpc.ServiceRegistrar, images Images) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*Images)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Pulls", Handler: pulls}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Load", Handler: load, ClientStreams: true, ServerStreams: true},
			{StreamName: "Save", Handler: save, ServerStreams: true},
		},
	}, images)
}

func load(srv any, ss grpc.ServerStream) error {
	// The server cancels calls when it ends, but not what they wait to receive.
	r, w := io.Pipe()
	go receive(ss, w) // ends with the stream, and that with this call
	defer r.Close()
	defer context.AfterFunc(ss.Context(), func() { _ = w.CloseWithError(context.Cause(ss.Context())) })()
	var sendErr error
	err := srv.(Images).Load(ss.Context(), r, func(id string, tags []string) {
		if sendErr == nil {
			sendErr = ss.SendMsg(loadedMessage(id, tags))
		}
	})
	return errors.Join(err, sendErr)
}

// receive passes on what the client sends.
func receive(ss grpc.ServerStream, w *io.PipeWriter) {
	for {
		var chunk wrapperspb.BytesValue
		err := ss.RecvMsg(&chunk)
		if err == nil && len(chunk.Value) > maxChunk {
			err = fmt.Errorf("piece of %d bytes, more than %d: %w", len(chunk.Value), maxChunk, errdefs.ErrInvalidArgument)
		}
		if err == nil {
			_, err = w.Write(chunk.Value)
		}
		if err != nil {
			_ = w.CloseWithError(ended(ss.Context(), err)) // io.EOF is the end of the archive
			return
		}
	}
}

// ended is why a stream has ended. That its client has gone may be known from
// the stream a moment before its context ends.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && err != io.EOF {
		return cause
	}
	if status.Code(err) == codes.Canceled {
		return context.Canceled
	}
	return err
}

func save(srv any, ss grpc.ServerStream) error {
	var req structpb.Struct
	if err := ss.RecvMsg(&req); err != nil {
		return err
	}
	images, gzip, err := saveRequest(&req)
	if err != nil {
		return err
	}
	trailer := metadata.MD{}
	out := &chunkWriter{ss: ss, buf: make([]byte, 0, chunkSize)}
	err = srv.(Images).Save(ss.Context(), out, images, gzip, func(id, newID string) {
		trailer.Append(changedKey, id+" "+newID)
	})
	if err == nil {
		err = out.flush()
	}
	ss.SetTrailer(trailer)
	return err
}

// saveRequest reads the request of Save.
func saveRequest(req *structpb.Struct) (images []string, gzip bool, err error) {
	for field, value := range req.GetFields() {
		switch field {
		case "images":
			for i, v := range value.GetListValue().GetValues() {
				ref := v.GetStringValue()
				if ref == "" || len(ref) > maxRef {
					return nil, false, fmt.Errorf("images[%d] %.128q must be a name of at most %d bytes: %w", i, ref, maxRef, errdefs.ErrInvalidArgument)
				}
				images = append(images, ref)
			}
		case "gzip":
			gzip = value.GetBoolValue()
		default:
			return nil, false, fmt.Errorf("unknown field %.128q: %w", field, errdefs.ErrInvalidArgument)
		}
	}
	if len(images) == 0 || len(images) > maxImages {
		return nil, false, fmt.Errorf("images has %d names, must have 1 to %d: %w", len(images), maxImages, errdefs.ErrInvalidArgument)
	}
	return images, gzip, nil
}

// chunkWriter gathers small writes.
type chunkWriter struct {
	ss  grpc.ServerStream
	buf []byte
}

func (c *chunkWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := copy(c.buf[len(c.buf):cap(c.buf)], p)
		c.buf = c.buf[:len(c.buf)+k]
		n, p = n+k, p[k:]
		if len(c.buf) == cap(c.buf) {
			if err := c.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (c *chunkWriter) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.ss.SendMsg(&wrapperspb.BytesValue{Value: c.buf}) // marshalled when it returns
	c.buf = c.buf[:0]
	return err
}

func pulls(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	var req emptypb.Empty
	if err := decode(&req); err != nil {
		return nil, err
	}
	handler := func(context.Context, any) (any, error) {
		list := &structpb.ListValue{}
		for _, p := range srv.(Images).Pulls() {
			list.Values = append(list.Values, structpb.NewStructValue(pullMessage(p)))
		}
		return list, nil
	}
	if interceptor == nil {
		return handler(ctx, &req)
	}
	return interceptor(ctx, &req, &grpc.UnaryServerInfo{Server: srv, FullMethod: pullsMethod}, handler)
}
