package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gantry-cri/gantry/cri/transfer"
)

func imageLoad(*flags) func(*imageCall) error {
	return func(c *imageCall) (err error) {
		r, size, done, err := c.archive(c.args[0])
		if err != nil {
			return err
		}
		defer closing(&err, done)
		line := newProgressLine(c.stderr)
		defer line.clear()
		counted := &countingReader{r: r}
		stop := every(200*time.Millisecond, func() {
			n := uint64(counted.n.Load())
			switch {
			case size > 0 && n >= uint64(size):
				line.show("unpacking")
			case size > 0:
				line.show(fmt.Sprintf("%s of %s", bytesText(n), bytesText(uint64(size))))
			default:
				line.show(bytesText(n))
			}
		})
		defer stop()
		var images []transfer.Loaded
		err = c.client.Load(c.ctx, counted, func(l transfer.Loaded) { images = append(images, l) })
		stop()
		line.clear()
		for _, l := range images {
			fmt.Fprintln(c.stdout, strings.TrimSpace("loaded "+l.ID+" "+plainText(strings.Join(l.Tags, " "))))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.args[0], err)
		}
		return nil
	}
}

// archive opens what is to be loaded. size is 0 when it is not known.
func (c *imageCall) archive(name string) (r io.Reader, size int64, done func() error, err error) {
	if name == "-" {
		if terminal(c.stdin) {
			return nil, 0, nil, errors.New("standard input is a terminal: give a file, or an archive on standard input")
		}
		return c.stdin, 0, func() error { return nil }, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, nil, errors.Join(err, f.Close())
	}
	if !info.IsDir() {
		return f, info.Size(), f.Close, nil
	}
	if err := f.Close(); err != nil {
		return nil, 0, nil, err
	}
	pr, pw := io.Pipe()
	packed := make(chan struct{})
	go func() { // ends when the reader is closed
		defer close(packed)
		_ = pw.CloseWithError(packLayout(c.ctx, pw, name))
	}()
	return pr, 0, func() error { err := pr.Close(); <-packed; return err }, nil
}

// packLayout makes an archive of an OCI layout's directory: the daemon is given
// what this user can read, and no path.
func packLayout(ctx context.Context, w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat("oci-layout"); err != nil {
		return fmt.Errorf("%s is no OCI image layout: %w", dir, err)
	}
	tw := tar.NewWriter(w)
	for _, top := range []string{"oci-layout", "index.json", "blobs/sha256"} {
		err := fs.WalkDir(root.FS(), top, func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			return packFile(tw, root, path)
		})
		if err != nil {
			return err
		}
	}
	return tw.Close()
}

func packFile(tw *tar.Writer, root *os.Root, path string) error {
	f, err := root.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(path), Size: info.Size(), Mode: 0o644}); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}

func imageSave(f *flags) func(*imageCall) error {
	output := f.String("o", "", "`FILE` to write, which is there when all went well; - is standard output")
	gzip := f.Bool("gzip", false, "compress layers that are made anew")
	return func(c *imageCall) error {
		if *output == "" {
			return errors.New("name the file to write with -o; - is standard output")
		}
		if *output != "-" {
			return c.saveFile(*output, *gzip)
		}
		if terminal(c.stdout) {
			return errors.New("standard output is a terminal: name a file with -o")
		}
		return c.save(c.stdout, *gzip)
	}
}

// saveFile writes beside the file first. A device or a pipe is written to.
func (c *imageCall) saveFile(path string, gzip bool) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(c.save(f, gzip), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(c.save(f, gzip), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (c *imageCall) save(w io.Writer, gzip bool) error {
	line := newProgressLine(c.stderr)
	counted := &countingWriter{w: w}
	stop := every(200*time.Millisecond, func() { line.show(bytesText(uint64(counted.n.Load()))) })
	changed, err := c.client.Save(c.ctx, counted, c.args, gzip)
	stop()
	line.clear()
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(changed)) {
		fmt.Fprintf(c.stderr, "%s is %s in the archive: its layers were not kept as they were pulled, and were made anew from their files.\n", shortID(id), shortID(changed[id]))
	}
	if len(changed) > 0 {
		fmt.Fprintln(c.stderr, "With keep_layer_blobs = true in [images], images that are pulled from then on are saved as they are, with their ids.")
	}
	return nil
}

type countingReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

type countingWriter struct {
	w io.Writer
	n atomic.Int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// every calls show until stop is called, which waits for it; a second call does nothing.
func every(interval time.Duration, show func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				show()
			}
		}
	}()
	return func() { cancel(); <-done }
}
