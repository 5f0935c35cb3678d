package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// Version is the protocol that this build speaks; MinVersion is the oldest it still understands.
	Version, MinVersion = 4, 1
	// VersionOptions is the first with options of an OCI runtime, owners of stdio, and updates.
	VersionOptions = 2
	// VersionAttach is the first with attach, hold and restore, and with the largest size of a log.
	VersionAttach = 3
	// VersionUpgrade is the first that becomes another program when it is asked to.
	VersionUpgrade = 4
	// MaxFrame bounds a message, in bytes.
	MaxFrame = 1 << 20
	// MaxFiles bounds the descriptors beside one message.
	MaxFiles = 8
)

// Hello is the server's first message on every connection. A connection that
// ends before it was never served, so that its call may be made again.
type Hello struct {
	Version    int `json:"version"`
	MinVersion int `json:"minVersion"`
	PID        int `json:"pid"`
}

// Request is the client's one message.
type Request struct {
	Version int             `json:"version"`
	Op      string          `json:"op"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// Response is each of the server's later messages.
type Response struct {
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Conn is one end of a connection. Send may run beside Receive, neither beside itself.
type Conn struct{ *net.UnixConn }

// Inherit is a connection that has come to this program by execve(2), as a descriptor.
func Inherit(fd int) (Conn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return Conn{}, fmt.Errorf("taking over a connection: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return Conn{}, fmt.Errorf("taking over a connection: descriptor %d is no Unix socket", fd)
	}
	return Conn{conn}, nil
}

// Send writes v as one frame, with files beside it. The files stay the caller's.
func (c Conn) Send(v any, files ...*os.File) error {
	frame, err := encode(v)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			// Not f.Fd(), which would make the descriptor a blocking one.
			raw, err := f.SyscallConn()
			if err != nil {
				return fmt.Errorf("passing %s: %w", f.Name(), err)
			}
			if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return fmt.Errorf("passing %s: %w", f.Name(), err)
			}
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(frame, oob, nil)
	if err == nil && n < len(frame) {
		_, err = c.Write(frame[n:])
	}
	return err
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, 4))
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return nil, fmt.Errorf("encoding a message: %w", err)
	}
	frame := b.Bytes()
	if len(frame)-4 > MaxFrame {
		return nil, fmt.Errorf("message of %d bytes is longer than %d", len(frame)-4, MaxFrame)
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	return frame, nil
}

// Receive reads one frame into v. The files that came with it are the
// caller's. io.EOF says that the other end closed between two frames. Where only
// the files were too many, for this process too (unix.EMFILE), the whole frame
// has been read, so that the other end can be told.
func (c Conn) Receive(v any) ([]*os.File, error) {
	r := reader{conn: c.UnixConn}
	err := Decode(&r, v)
	if r.err != nil {
		err = r.err
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r.files, nil
}

// Decode reads one frame from r into v, strictly: no unknown field, nothing behind the value.
func Decode(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("message of %d bytes is longer than %d", n, MaxFrame)
	}
	var body bytes.Buffer // grows with what comes, not with what is announced
	if m, err := io.CopyN(&body, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading a message of %d bytes, got %d: %w", n, m, err)
	}
	return Unmarshal(body.Bytes(), v)
}

// Unmarshal is json.Unmarshal that refuses unknown fields.
func Unmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decoding a message: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decoding a message: something follows the value")
	}
	return nil
}

// reader reads from a socket and collects the descriptors that come along.
type reader struct {
	conn  *net.UnixConn
	files []*os.File
	err   error // of the descriptors, which ends no reading
}

func (r *reader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(p, oob) // sets MSG_CMSG_CLOEXEC
	cut := flags&unix.MSG_CTRUNC != 0
	if oobn > 0 {
		r.err = errors.Join(r.err, r.collect(oob[:oobn]))
	}
	switch {
	case r.err != nil:
	case len(r.files) > MaxFiles || cut && len(r.files) == MaxFiles:
		r.err = fmt.Errorf("more than %d descriptors beside a message: %w", MaxFiles, errdefs.ErrInvalidArgument)
	case cut: // the others had room
		r.err = fmt.Errorf("receiving descriptors, of which %d came: %w", len(r.files), unix.EMFILE)
	}
	if r.err != nil {
		r.close()
	}
	if err != nil {
		return n, err
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *reader) collect(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("receiving descriptors: %w", err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fmt.Errorf("receiving descriptors: %w", err)
		}
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), fmt.Sprintf("received %d", fd)))
		}
	}
	return nil
}

func (r *reader) close() {
	for _, f := range r.files {
		_ = f.Close()
	}
	r.files = nil
}

// ReceiveFile reads the one descriptor that an OCI runtime sends to its
// --console-socket, beside bytes of no meaning.
func ReceiveFile(conn *net.UnixConn) (*os.File, error) {
	r := reader{conn: conn}
	if _, err := r.Read(make([]byte, 4096)); err != nil || r.err != nil {
		r.close()
		return nil, errors.Join(err, r.err)
	}
	if len(r.files) != 1 {
		r.close()
		return nil, fmt.Errorf("got %d descriptors instead of one", len(r.files))
	}
	return r.files[0], nil
}

// Duplicate returns a second descriptor of an open file, the caller's to close.
// It is under the poller if the file is non-blocking.
func Duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, fmt.Errorf("duplicating %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
