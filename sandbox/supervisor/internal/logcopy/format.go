package logcopy

import (
	"bytes"
	"time"
)

// maxLine is the longest content of one line, in bytes; what is longer is split (CRI).
const maxLine = 16 << 10

// timeFormat is RFC3339Nano with all nine digits, so that lines sort.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// head is the beginning of a line in both kinds, equal for all lines of one read.
type head struct{ full, partial []byte }

func (h *head) set(at time.Time, stream string) {
	h.full = at.UTC().AppendFormat(h.full[:0], timeFormat)
	h.full = append(append(append(h.full, ' '), stream...), " F "...)
	h.partial = append(h.partial[:0], h.full...)
	h.partial[len(h.partial)-2] = 'P'
}

// format appends data's lines to out, as far as its capacity goes, and
// returns how much of data it took. The beginning of a line is left for the
// next time, unless it is longer than maxLine or end says that nothing follows.
func (h *head) format(out, data []byte, end bool) (_ []byte, used int) {
	for used < len(data) {
		rest := data[used:]
		window := rest[:min(len(rest), maxLine+1)]
		start, content, skip := h.full, window, 0
		switch n := bytes.IndexByte(window, '\n'); {
		case n >= 0:
			content, skip = window[:n], 1
		case len(rest) > maxLine:
			start, content = h.partial, window[:maxLine]
		case end:
			start = h.partial
		default:
			return out, used
		}
		if len(out)+len(start)+len(content)+1 > cap(out) {
			return out, used
		}
		out = append(append(append(out, start...), content...), '\n')
		used += len(content) + skip
	}
	return out, used
}

// payload is how much of the output is in lines, which begin with h's.
func (h *head) payload(lines []byte) (n int) {
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n') + 1
		n += end - len(h.full)
		if lines[len(h.full)-2] == 'P' {
			n--
		}
		lines = lines[end:]
	}
	return n
}
