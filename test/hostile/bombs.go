package hostile

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Endless is a blob that goes on for as long as it is read.
type Endless struct {
	ID           string
	head, repeat []byte
}

// Open returns the blob from its beginning.
func (e Endless) Open() io.Reader {
	return io.MultiReader(bytes.NewReader(e.head), &loop{of: e.repeat})
}

// loop gives whole repetitions as long as there is room for them, which makes it fast.
type loop struct {
	of   []byte
	rest []byte
}

func (l *loop) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(l.rest) == 0 {
			l.rest = l.of
		}
		m := copy(p[n:], l.rest)
		l.rest = l.rest[m:]
		n += m
	}
	return n, nil
}

// Bombs lists blobs without end. Each gives a decoder or the unpacker ever more to do, and most of them nothing to
// write.
func Bombs() []Endless {
	zeros := make([]byte, 1<<20)
	many := func(e ...Entry) []byte { return bytes.Repeat(Open(e...), 100) }
	return []Endless{
		{"2.1-empty-files", nil, many(File("f", ""))},
		{"2.1-same-directory", nil, many(Dir("d"))},
		{"2.1-root-directory", nil, many(Dir("./"))},
		{"2.1-whiteouts-of-one-name", nil, many(File(".wh.f", ""))},
		{"2.1-skipped-entries", nil, many(File(".wh..wh.x", ""))},
		{"2.1-hardlinks-to-nothing", nil, many(Hard("h", "nothing"))},
		{"2.1-global-headers", nil, many(PAX('g', Record{"comment", "x"}))},
		{"1g-pax-2GiB", nil, Open(PAX('x', Record{"comment", strings.Repeat("c", 1<<19)}))},
		{"1g-gnu-long-names", nil, many(Raw(Header{Name: "././@LongLink", Kind: 'L', GNU: true}, "name\x00"))},
		{"1g-gzip-empty-members", nil, bytes.Repeat(Gzip(nil), 1000)},
		{"2.1-gzip-1000-to-1", nil, Gzip(zeros)},
		{"2.1-zstd-skippable-frames", nil, bytes.Repeat([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"), 1000)},
		{"2.1-zstd-empty-frames", nil, bytes.Repeat(Zstd(nil), 1000)},
		{"2.1-zstd-10000-to-1", nil, Zstd(zeros)},
		{"2.1-garbage-after-end", Tar(File("f", "x")), bytes.Repeat([]byte("garbage"), 1000)},
		{"CVE-2017-14992", Gzip(Tar(File("f", "x"))), Gzip(zeros)},
		{"CVE-2017-14992-zstd", Zstd(Tar(File("f", "x"))), Zstd(zeros)},
	}
}

// ZstdWindow is a frame that asks its decoder for a window of 2^log bytes, log at least 10.
func ZstdWindow(log int) []byte {
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, byte(log-10) << 3, 0x01, 0x00, 0x00}
}

// Gzip compresses.
func Gzip(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // into memory
	}
	return buf.Bytes()
}

// Zstd compresses.
func Zstd(b []byte) []byte {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true))
	if err != nil {
		panic(err) // of the options
	}
	return w.EncodeAll(b, nil)
}
