package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
)

// Writer writes an OCI image layout that is at the same time a docker-archive.
type Writer struct {
	tw     *tar.Writer
	blobs  map[digest.Digest]bool
	index  []ocispec.Descriptor
	docker []dockerImage
}

// NewWriter begins an archive. It is whole after Close.
func NewWriter(w io.Writer) (*Writer, error) {
	out := &Writer{tw: tar.NewWriter(w), blobs: make(map[digest.Digest]bool), docker: []dockerImage{}}
	for _, dir := range []string{"blobs/", blobsDir} {
		if err := out.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Blob writes a blob, which has exactly size bytes, unless it is there.
func (w *Writer) Blob(d digest.Digest, size int64, r io.Reader) error {
	if w.blobs[d] {
		return nil
	}
	if err := w.file(blobsDir+d.Encoded(), size, r); err != nil {
		return err
	}
	w.blobs[d] = true
	return nil
}

func (w *Writer) file(name string, size int64, r io.Reader) error {
	if err := w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	if n, err := io.Copy(w.tw, io.LimitReader(r, size)); err != nil || n < size {
		return fmt.Errorf("writing %s: %d of %d bytes: %w", name, n, size, orUnexpected(err))
	}
	return nil
}

// Image enters an image, whose config and layers are written before. Without
// names it is one that is only found by its digest.
func (w *Writer) Image(tags []reference.NamedTagged, mediaType string, body []byte, m *manifest.Manifest) error {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if err := w.Blob(desc.Digest, desc.Size, bytes.NewReader(body)); err != nil {
		return err
	}
	d := dockerImage{Config: blobsDir + m.Config.Digest.Encoded()}
	for _, l := range m.Layers {
		d.Layers = append(d.Layers, blobsDir+l.Digest.Encoded())
	}
	if len(tags) == 0 {
		w.index = append(w.index, desc)
	}
	for _, tag := range tags {
		desc.Annotations = map[string]string{annotationName: tag.String(), ocispec.AnnotationRefName: tag.Tag()}
		w.index = append(w.index, desc)
		d.RepoTags = append(d.RepoTags, reference.FamiliarString(tag))
	}
	if !m.IsArtifact() { // Docker knows none
		w.docker = append(w.docker, d)
	}
	return nil
}

// Close writes what says which images there are, and the end.
func (w *Writer) Close() error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: w.index}
	for _, doc := range []struct {
		name  string
		value any
	}{
		{ocispec.ImageIndexFile, index},
		{dockerManifest, w.docker},
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
	} {
		body, err := json.Marshal(doc.value)
		if err != nil {
			return err
		}
		if err := w.file(doc.name, int64(len(body)), bytes.NewReader(body)); err != nil {
			return err
		}
	}
	return w.tw.Close()
}

func orUnexpected(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}
