package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// file is one entry of a layer: a regular file unless dir, symlink or hardlink says otherwise.
type file struct {
	name     string
	mode     int64
	body     []byte
	dir      bool
	symlink  string
	hardlink string
}

func dir(name string, mode int64) file      { return file{name: name, mode: mode, dir: true} }
func text(name, body string) file           { return file{name: name, mode: 0o644, body: []byte(body)} }
func program(name string, body []byte) file { return file{name: name, mode: 0o755, body: body} }
func setuid(name string, body []byte) file  { return file{name: name, mode: 0o4755, body: body} }
func symlink(name, target string) file      { return file{name: name, mode: 0o777, symlink: target} }
func hardlink(name, target string) file     { return file{name: name, mode: 0o755, hardlink: target} }
func dirs(mode int64, names ...string) (f []file) {
	for _, n := range names {
		f = append(f, dir(n, mode))
	}
	return f
}

// newLayer returns a gzip layer of the files, in their order. Equal files give an equal digest.
func newLayer(files ...file) (v1.Layer, error) {
	body, err := tarOf(files...)
	if err != nil {
		return nil, err
	}
	return TarLayer(body, docker)
}

func tarOf(files ...file) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.body)), ModTime: time.Unix(1, 0), Typeflag: tar.TypeReg}
		switch {
		case f.dir:
			h.Typeflag = tar.TypeDir
		case f.symlink != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.symlink
		case f.hardlink != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.hardlink
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("writing %s to a layer: %w", f.name, err)
		}
		if _, err := tw.Write(f.body); err != nil {
			return nil, fmt.Errorf("writing %s to a layer: %w", f.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("closing a layer: %w", err)
	}
	return buf.Bytes(), nil
}

// bulkLayer returns a layer of n files of the given size, half of whose bytes cannot be compressed. The seed
// makes layers differ, and equal seeds make them equal from run to run.
func bulkLayer(seed uint64, n, size int, c Compression) (v1.Layer, error) {
	random := rand.NewChaCha8([32]byte{byte(seed)})
	folder := fmt.Sprintf("data%d/", seed)
	files := []file{dir(folder, 0o755)}
	for i := range n {
		body := make([]byte, size)
		if _, err := random.Read(body[:size/2]); err != nil {
			return nil, err
		}
		for j := size / 2; j < size; j++ {
			body[j] = "the quick brown fox "[j%20]
		}
		files = append(files, file{name: fmt.Sprintf("%sf%05d", folder, i), mode: 0o644, body: body})
	}
	body, err := tarOf(files...)
	if err != nil {
		return nil, err
	}
	return TarLayer(body, c)
}
