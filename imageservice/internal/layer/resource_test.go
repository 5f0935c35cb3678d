package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/hostile"
)

// endless is the source of a bomb. stop is called once when so many bytes have been read.
type endless struct {
	io.Reader
	read, after atomic.Int64
	from        int64
	stop        func()
}

func (e *endless) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if total := e.read.Add(int64(n)); total >= e.from && total-int64(n) < e.from {
		e.stop()
	} else if total >= e.from {
		e.after.Add(int64(n))
	}
	return n, err
}

func (*endless) Close() error { return nil }

func (e *endless) source() Source {
	return Source{Open: func(context.Context) (io.ReadCloser, error) { return e, nil }, Size: 1 << 50}
}

// Every stage of the pipeline notices that nobody wants the layer any more, whatever it is busy with: no more is read
// than what the buffers hold.
func TestSecurityCancel(t *testing.T) {
	needRoot(t)
	for _, b := range hostile.Bombs() {
		t.Run(b.ID, func(t *testing.T) {
			p := newPlace(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := errors.New("stop")
			e := &endless{Reader: b.Open(), from: 200_000, stop: func() { cancel(stop) }}
			_, err := Unpack(ctx, e.source(), openDir(t, p.root), Limits{Entries: 1 << 40, Bytes: 1 << 50, memory: 1 << 40})
			if !errors.Is(err, stop) {
				t.Errorf("got %v", err)
			}
			if n := e.after.Load(); n > 4<<20 {
				t.Errorf("%d bytes read after the end of the context", n)
			}
		})
	}
	for _, form := range []string{"old", "0.1", "1.0"} {
		t.Run("1g-sparse-hole-"+form, func(t *testing.T) {
			p := newPlace(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := errors.New("stop")
			body := hostile.Tar(hostile.Sparse(form, "f", 1<<40, "data"))
			body = append(body, make([]byte, 2*bufferSize)...) // pushes it through the pipeline
			src := source(body, body)
			src.Size = 1 << 40 // what the ratio is of
			src.Open = func(context.Context) (io.ReadCloser, error) {
				time.AfterFunc(20*time.Millisecond, func() { cancel(stop) })
				return io.NopCloser(io.MultiReader(bytes.NewReader(body), stuck{ctx})), nil
			}
			_, err := Unpack(ctx, src, openDir(t, p.root), Limits{Bytes: 1 << 50})
			if !errors.Is(err, stop) {
				t.Errorf("got %v", err)
			}
			if info, err := os.Stat(filepath.Join(p.root, "f")); err == nil && info.Size() > 0 {
				t.Errorf("went through the whole hole")
			}
		})
	}
	t.Run("complete", func(t *testing.T) {
		for name, e := range map[string]hostile.Entry{"hard link": hostile.Hard("h", "f"), "directory": hostile.File("d/f", "x")} {
			p := newPlace(t)
			body := hostile.Tar(e)
			res, err := Unpack(t.Context(), source(body, body), openDir(t, p.root), Limits{})
			check(t, err)
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := errors.New("stop")
			cancel(stop)
			if err := res.Complete(ctx, openDir(t, p.root), openDir(t, t.TempDir())); !errors.Is(err, stop) {
				t.Errorf("%s: got %v", name, err)
			}
		}
	})
}

// Without a context that ends, the limits end it.
func TestSecurityLimits(t *testing.T) {
	needRoot(t)
	for _, b := range hostile.Bombs() {
		t.Run(b.ID, func(t *testing.T) {
			p := newPlace(t)
			e := &endless{Reader: b.Open()}
			src := e.source()
			src.Size = 4 << 20 // only what makes no tar can come to this end
			_, err := Unpack(t.Context(), src, openDir(t, p.root), Limits{Entries: 1000, Bytes: 2 << 20})
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsDataLoss(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSecurityResources(t *testing.T) {
	needRoot(t)
	unpackBlob := func(t *testing.T, blob, plain []byte, l Limits) error {
		p := newPlace(t)
		_, err := Unpack(t.Context(), source(blob, plain), openDir(t, p.root), l)
		return err
	}
	t.Run("2.1-ratio", func(t *testing.T) {
		zeros := hostile.Gzip(make([]byte, 1<<20))
		blob := append(hostile.Gzip(hostile.Tar(hostile.File("f", "x"))), bytes.Repeat(zeros, 1025)...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := unpackBlob(t, blob, nil, Limits{})
		runtime.ReadMemStats(&after)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("%d bytes of memory", n)
		}
	})
	t.Run("2.1-ratio-of-files", func(t *testing.T) {
		body := hostile.Tar(hostile.Sparse("1.0", "a", 1<<29, "x"), hostile.Sparse("1.0", "b", 1<<29, "x"), hostile.Sparse("1.0", "c", 1, "x"))
		if err := unpackBlob(t, body, body, Limits{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
		if err := unpackBlob(t, body, body, Limits{Ratio: 1 << 29}); err != nil {
			t.Errorf("with a larger ratio: %v", err)
		}
	})
	t.Run("2.1-zstd-window", func(t *testing.T) {
		if err := unpackBlob(t, hostile.ZstdWindow(27), nil, Limits{}); errdefs.IsInvalidArgument(err) {
			t.Errorf("128 MiB: %v", err)
		}
		for _, log := range []int{28, 31, 41} {
			if err := unpackBlob(t, hostile.ZstdWindow(log), nil, Limits{}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("2^%d: %v", log, err)
			}
		}
	})
	t.Run("2.1-nested-compression", func(t *testing.T) {
		inner := hostile.Gzip(hostile.Tar(hostile.File("f", "x")))
		if err := unpackBlob(t, hostile.Gzip(inner), inner, Limits{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("2.1-memory", func(t *testing.T) {
		for name, repeat := range map[string]func(i int) hostile.Entry{
			"directories": func(i int) hostile.Entry { return hostile.Dir(fmt.Sprint(i)) },
			"implied":     func(i int) hostile.Entry { return hostile.File(fmt.Sprintf("%d/f", i), "") },
			"symlinks":    func(i int) hostile.Entry { return hostile.Sym(fmt.Sprint(i), strings.Repeat("t", 4000)) },
			"hardlinks":   func(i int) hostile.Entry { return hostile.Hard(fmt.Sprint(i), strings.Repeat("t/", 2000)) },
		} {
			var list []hostile.Entry
			for i := range 300 {
				list = append(list, repeat(i))
			}
			body := hostile.Tar(list...)
			if err := unpackBlob(t, body, body, Limits{memory: 100_000}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("2.1-steps", func(t *testing.T) {
		deep := strings.Repeat("d/", 2000)
		list := []hostile.Entry{hostile.Dir(deep), hostile.Sym("s", deep)}
		for range 700 {
			list = append(list, hostile.File("s/f", ""))
		}
		body := hostile.Tar(list...)
		if err := unpackBlob(t, body, body, Limits{Entries: 4000}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("2.1-copied-lower-files", func(t *testing.T) {
		p := newPlace(t)
		lower := filepath.Join(p.outer, "below-0")
		check(t, os.Mkdir(lower, 0o755))
		check(t, p.layer(t, Limits{}, nil, lower, hostile.Tar(hostile.File("f", strings.Repeat("x", 100_000)))))
		err := p.layer(t, Limits{Bytes: 50_000}, []string{lower}, p.root, hostile.Tar(hostile.Hard("h", "f")))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
	})
}

// A blob cut anywhere, with the digest of what is left, ends with an error.
func TestSecurityTruncated(t *testing.T) {
	needRoot(t)
	var list []hostile.Entry
	for i := range 40 {
		list = append(list, hostile.File(fmt.Sprintf("f%d", i), strings.Repeat(fmt.Sprint(i*i), 500)))
	}
	plain := hostile.Tar(list...)
	for name, blob := range map[string][]byte{"tar": plain, "gzip": gzipStored(plain), "zstd": hostile.Zstd(plain)} {
		t.Run("CVE-2021-20291-"+name, func(t *testing.T) {
			p := newPlace(t)
			step := min(1024, len(blob)/10)
			for n := 0; n < len(blob)-1024; n += step {
				fd := openDir(t, p.root)
				if _, err := Unpack(t.Context(), source(blob[:n], plain), fd, Limits{}); err == nil {
					t.Errorf("cut after %d: accepted", n)
				}
				spoilt := bytes.Clone(blob)
				spoilt[n] ^= 0x55
				if _, err := Unpack(t.Context(), source(spoilt, plain), fd, Limits{}); err == nil {
					t.Errorf("changed at %d: accepted", n)
				}
			}
			_, err := Unpack(t.Context(), source(blob, plain), openDir(t, p.root), Limits{})
			check(t, err) // and the next pull proceeds
		})
	}
}

// gzipStored is gzip without compression.
func gzipStored(b []byte) []byte {
	out := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	for i := 0; i < len(b); i += 60_000 {
		part := b[i:min(i+60_000, len(b))]
		out = append(out, 0, byte(len(part)), byte(len(part)>>8), ^byte(len(part)), ^byte(len(part)>>8))
		out = append(out, part...)
	}
	end := hostile.Gzip(b)
	out = append(out, 1, 0, 0, 0xff, 0xff)
	return append(out, end[len(end)-8:]...)
}

// A blob has exactly the size that its descriptor says, whatever its digest.
func TestBlobSize(t *testing.T) {
	needRoot(t)
	body := hostile.Tar(hostile.File("f", "x"))
	for _, more := range []int64{-1, 1} {
		src := source(body, body)
		src.Size += more
		if _, err := Unpack(t.Context(), src, openDir(t, t.TempDir()), Limits{}); err == nil {
			t.Errorf("%+d byte: accepted", more)
		}
	}
}

// Not the tar's fault: the error is that of the transfer, so that it can be tried again.
func TestBrokenTransfer(t *testing.T) {
	needRoot(t)
	body := hostile.Tar(hostile.File("f", strings.Repeat("x", 1<<20)))
	broken := errors.New("connection reset")
	for _, n := range []int{0, 100, 512, 1000, 600_000} {
		src := source(body, body)
		src.Open = func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(body[:n]), failing{broken})), nil
		}
		if _, err := Unpack(t.Context(), src, openDir(t, t.TempDir()), Limits{}); !errors.Is(err, broken) || errdefs.IsInvalidArgument(err) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

func TestSecurityDiskFull(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		options string
		entries []hostile.Entry
	}{
		"2.1-ENOSPC-in-file": {"size=1m", []hostile.Entry{hostile.File("f", strings.Repeat("x", 4<<20))}},
		"2.1-ENOSPC-sparse":  {"size=1m", []hostile.Entry{hostile.Sparse("1.0", "f", 8<<20, strings.Repeat("x", 4<<20))}},
		"2.1-ENOSPC-inodes": {"nr_inodes=20", func() (list []hostile.Entry) {
			for i := range 50 {
				list = append(list, hostile.File(fmt.Sprint(i), ""))
			}
			return list
		}()},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			inMemory(t, p.root, c.options)
			body := hostile.Tar(c.entries...)
			fd, err := unix.Open(p.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			check(t, err)
			defer unix.Close(fd)
			if _, err := Unpack(t.Context(), source(body, body), fd, Limits{}); !errdefs.IsResourceExhausted(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// inMemory mounts a file system of its own. Unmounting it fails while anything in it is open.
func inMemory(t *testing.T, dir, options string) {
	t.Helper()
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
}

// One directory of many files and as many markers, and one file of many links: the work is as much as the entries.
func TestSecurityMany(t *testing.T) {
	needRoot(t)
	t.Run("GHSA-rp3h-jf77-q9p4", func(t *testing.T) {
		const n, files = 50_000, 20_000
		p := newPlace(t)
		inMemory(t, p.root, "")
		list := []hostile.Entry{hostile.Dir("d")}
		for i := range files {
			list = append(list, hostile.File(fmt.Sprintf("d/%d", i), ""))
		}
		body := append(hostile.Open(list...), bytes.Repeat(hostile.Open(hostile.File("d/.wh..wh..opq", "")), n)...)
		fd, err := unix.Open(p.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		check(t, err)
		defer unix.Close(fd)
		res, err := Unpack(t.Context(), source(body, body), fd, Limits{Entries: n + files + 1})
		check(t, err)
		if res.Inodes != files+2 {
			t.Errorf("%d inodes", res.Inodes)
		}
	})
	// More links than ext4 gives one file.
	t.Run("2.1-hardlink-chain", func(t *testing.T) {
		const n = 70_000
		p := newPlace(t)
		list := []hostile.Entry{hostile.File("0", "content").As(0o4755, 7, 7)}
		for i := range n {
			list = append(list, hostile.Hard(fmt.Sprint(i+1), fmt.Sprint(i)))
		}
		body := hostile.Tar(list...)
		_, err := Unpack(t.Context(), source(body, body), openDir(t, p.root), Limits{})
		check(t, err)
		links := map[uint64]uint64{}
		for i := range n + 1 {
			var st unix.Stat_t
			check(t, unix.Lstat(filepath.Join(p.root, fmt.Sprint(i)), &st))
			if links[st.Ino] = uint64(st.Nlink); st.Mode != unix.S_IFREG|0o4755 || st.Uid != 7 || st.Size != 7 || st.Mtim.Sec != 1 {
				t.Fatalf("%d: mode %o, owner %d, %d bytes", i, st.Mode, st.Uid, st.Size)
			}
		}
		var sum uint64
		for _, l := range links {
			sum += l
		}
		if sum != n+1 || len(links) > 3 {
			t.Errorf("%d files with %d links", len(links), sum)
		}
	})
}

func TestSecurityTimes(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	times := map[string]string{"negative": "-1.5", "fraction": "1.000000001", "year-0": "-62167219200", "year-2500": "16725225600", "huge": "9223372036854775807.999999999", "edge": "9223372036.999999999"}
	want := map[string]time.Time{"negative": time.Unix(-2, 5e8), "fraction": time.Unix(1, 1), "year-0": time.Unix(0, 0), "year-2500": time.Unix(0, 0), "huge": time.Unix(0, 0), "edge": time.Unix(0, 0)}
	var list []hostile.Entry
	for name, value := range times {
		list = append(list, hostile.PAX('x', hostile.Record{Key: "mtime", Value: value}), hostile.File(name, ""))
	}
	body := hostile.Tar(list...)
	_, err := Unpack(t.Context(), source(body, body), openDir(t, root), Limits{})
	check(t, err)
	for name, when := range want {
		info, err := os.Lstat(filepath.Join(root, name))
		check(t, err)
		if !info.ModTime().Equal(when) {
			t.Errorf("%s: %v instead of %v", name, info.ModTime(), when)
		}
	}
}
