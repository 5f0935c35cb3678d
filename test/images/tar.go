package images

import (
	"bytes"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is what the blob of a layer is, by its media type.
type Compression types.MediaType

// The compressions that the OCI image specification knows, and Docker's gzip.
const (
	docker = Compression(types.DockerLayer)

	Gzip  = Compression(types.OCILayer)
	Zstd  = Compression(types.OCILayerZStd)
	Plain = Compression(types.OCIUncompressedLayer)
)

// tarLayer is a blob whose tar is known.
type tarLayer struct {
	v1.Layer
	tar    []byte
	diffID v1.Hash
}

func (l tarLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func (l tarLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.tar)), nil
}

// TarLayer returns a layer of any tar, as it is.
func TarLayer(tar []byte, c Compression) (v1.Layer, error) {
	blob, err := compress(tar, c)
	if err != nil {
		return nil, err
	}
	diffID, _, err := v1.SHA256(bytes.NewReader(tar))
	if err != nil {
		return nil, err
	}
	return tarLayer{static.NewLayer(blob, types.MediaType(c)), tar, diffID}, nil
}

func compress(tar []byte, c Compression) ([]byte, error) {
	var buf bytes.Buffer
	var w io.WriteCloser
	switch c {
	case Plain:
		return tar, nil
	case Gzip:
		w = gzip.NewWriter(&buf)
	case docker: // the catalogue's, which every test process makes anew
		var err error
		if w, err = gzip.NewWriterLevel(&buf, gzip.BestSpeed); err != nil {
			return nil, err
		}
	case Zstd:
		var err error
		if w, err = zstd.NewWriter(&buf); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("no compression %q", c)
	}
	if _, err := w.Write(tar); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// OCI returns an image of the layers, with the OCI's media types.
func OCI(layers ...v1.Layer) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	return withLayers(base, "", []string{"sh"}, layers...)
}
