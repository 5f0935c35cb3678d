package layer

import (
	"bytes"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxWindow is what `zstd --long` makes; larger ones need a flag for
	// decompression too.
	maxWindow = 128 << 20
	// keptWindow is the largest that a decoder is kept with; the levels of
	// zstd below --ultra have no larger one.
	keptWindow = 8 << 20
)

// isZstd knows frames and skippable frames.
func isZstd(b []byte) bool {
	return string(b[:4]) == frameMagic || (b[0]&0xf0 == 0x50 && b[1] == 0x2a && b[2] == 0x4d && b[3] == 0x18)
}

const frameMagic = "\x28\xb5\x2f\xfd"

// decoders are used again, for each of them holds a window, and so many as
// there are layers would be garbage at a time.
var decoders = new(sync.Pool)

func unzstd(src io.Reader) (io.Reader, func(), error) {
	d, _ := decoders.Get().(*zstd.Decoder)
	if d == nil {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
	}
	w := &windows{r: src}
	if err := d.Reset(w); err != nil {
		return nil, nil, err
	}
	return d, func() {
		if !w.large && d.Reset(nil) == nil {
			decoders.Put(d)
		}
	}, nil
}

// windows looks for frames with a window larger than keptWindow in what goes
// through: a decoder does not tell, and does not give the memory back. It takes
// data that looks like a header for one, so it errs on one side only.
type windows struct {
	r     io.Reader
	tail  []byte // the end of what has been read, shorter than maxHeader
	large bool
}

func (w *windows) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if !w.large && n > 0 {
		w.look(p[:n])
	}
	return n, err
}

// maxHeader is of a frame; zstd.HeaderMaxSize is one less.
const maxHeader = 4 + 1 + 1 + 4 + 8

func (w *windows) look(b []byte) {
	seam := append(w.tail, b[:min(len(b), maxHeader)]...) // what begins before b
	w.large = hasLarge(seam) || hasLarge(b)
	end := b
	if len(b) < maxHeader {
		end = seam
	}
	w.tail = append(w.tail[:0], end[max(0, len(end)-maxHeader+1):]...)
}

func hasLarge(b []byte) bool {
	for {
		i := bytes.Index(b, []byte(frameMagic))
		if i < 0 {
			return false
		}
		b = b[i:]
		var h zstd.Header
		// Without an error, or it is cut off here and whole in the next look.
		if h.Decode(b) == nil && (h.WindowSize > keptWindow || h.SingleSegment && h.FrameContentSize > keptWindow) {
			return true
		}
		b = b[len(frameMagic):]
	}
}
