package hostpath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxResult bounds what a work returns, in bytes of JSON: all devices of a large host have some MiB.
const maxResult = 64 << 20

// Work is what may be done by a process of an [Opener], for the file systems
// that it asks may hang: from JSON to what becomes JSON.
type Work func(args json.RawMessage) (any, error)

// NewWork makes a Work of a function.
func NewWork[A, R any](f func(A) (R, error)) Work {
	return func(raw json.RawMessage) (any, error) {
		var args A
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, err
		}
		return f(args)
	}
}

// request is what a process is given.
type request struct {
	Work string
	Args json.RawMessage
}

// Do has a process do the work of that name, and decodes into result what it
// returns; its errors are found by errors.Is if they are of errdefs or the
// kernel's. When ctx ends first, as with [Opener.Open], its error is returned,
// and the same work with the same arguments waits with the first's process.
func (o *Opener) Do(ctx context.Context, work string, args, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("%s: %w", work, err)
	}
	text, err := json.Marshal(request{work, raw})
	if err != nil {
		return fmt.Errorf("%s: %w", work, err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		file, ours, err := o.try(ctx, job{"-do", string(text)}, work)
		if err != nil {
			return err
		}
		if !ours {
			continue
		}
		defer file.Close()
		if err := json.NewDecoder(io.NewSectionReader(file, 0, maxResult)).Decode(result); err != nil {
			return fmt.Errorf("reading what %s has found: %w", work, err)
		}
		return nil
	}
}

// ServeWork is the process of [Opener.Do]. What it returns is passed in a file in memory.
func ServeWork(text string, works map[string]Work) error {
	var r request
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return fmt.Errorf("reading what is to be done: %w", err)
	}
	work := works[r.Work]
	if work == nil {
		return pass(-1, fmt.Errorf("%q is not known to %s, which is of another version than the daemon", r.Work, os.Args[0]))
	}
	result, err := work(r.Args)
	if err != nil {
		return pass(-1, err)
	}
	data, err := json.Marshal(result)
	if err != nil {
		return pass(-1, err)
	}
	fd, err := unix.MemfdCreate("gantry-result", unix.MFD_CLOEXEC)
	if err != nil {
		return pass(-1, os.NewSyscallError("memfd_create", err))
	}
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return pass(-1, os.NewSyscallError("write", err))
		}
		data = data[max(n, 0):]
	}
	return pass(fd, nil)
}
