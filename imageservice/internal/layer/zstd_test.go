package layer

import (
	"bytes"
	"io"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/gantry-cri/gantry/test/hostile"
)

// noDecoders takes an empty pool: Get does not see what another processor has put into its own place of it.
func noDecoders() { decoders = new(sync.Pool) }

func readZstd(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	d, done, err := unzstd(r)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if got, err := io.ReadAll(d); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
}

// TestZstdWindowsAreUsedAgain: one layer after another takes the memory of one.
// The race detector has a pool lose every fourth.
func TestZstdWindowsAreUsedAgain(t *testing.T) {
	const layers, window = 64, 1 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	noDecoders()
	var blob bytes.Buffer
	w, err := zstd.NewWriter(&blob, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"a ", "layer"} { // a stream, whose size the header does not tell
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range layers {
		readZstd(t, bytes.NewReader(blob.Bytes()), []byte("a layer"))
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took < window || took > layers*window*3/4 {
		t.Errorf("%d layers of a window of %d bytes took %d bytes", layers, window, took)
	}
}

// TestZstdLargeWindowsGo: a decoder is not kept with one, wherever in the blob
// it is asked for and however the blob arrives.
func TestZstdLargeWindowsGo(t *testing.T) {
	small := hostile.Zstd([]byte("small"))
	for name, c := range map[string]struct {
		blob []byte
		want string
		kept bool
	}{
		"small":        {small, "small", true},
		"8 MiB":        {hostile.ZstdWindow(23), "", true},
		"16 MiB":       {hostile.ZstdWindow(24), "", false},
		"later":        {append(bytes.Clone(small), hostile.ZstdWindow(24)...), "small", false},
		"far later":    {append(bytes.Repeat(small, 30), hostile.ZstdWindow(24)...), string(bytes.Repeat([]byte("small"), 30)), false},
		"largest head": {[]byte("\x28\xb5\x2f\xfd\xc3\x70\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00"), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			for chunk, wrap := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "bytes": iotest.OneByteReader,
			} {
				kept := false
				for range 20 { // see above
					noDecoders()
					readZstd(t, wrap(bytes.NewReader(c.blob)), []byte(c.want))
					kept = kept || decoders.Get() != nil
				}
				if kept != c.kept {
					t.Errorf("%s: kept %v", chunk, kept)
				}
			}
		})
	}
}

// TestZstdWindowsInPieces: a header is found wherever a read ends.
func TestZstdWindowsInPieces(t *testing.T) {
	data := append(bytes.Repeat([]byte{0x28, 0xb5}, 50), hostile.ZstdWindow(24)...)
	data = append(data, make([]byte, 100)...)
	for first := range len(data) {
		for _, rest := range []int{1, 7, 40, len(data)} {
			var w windows
			w.look(data[:first])
			for b := data[first:]; len(b) > 0 && !w.large; b = b[min(rest, len(b)):] {
				w.look(b[:min(rest, len(b))])
			}
			if !w.large {
				t.Fatalf("not found in %d bytes and pieces of %d", first, rest)
			}
		}
	}
}
