package logcopy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))

const stamp = "2026-01-02T02:04:05.000000060Z"

func TestFormat(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	tests := []struct {
		name, data string
		end        bool
		want       string // with T for the time and stream
		used       int
	}{
		{"nothing", "", false, "", 0},
		{"nothing at the end", "", true, "", 0},
		{"a line", "a\n", false, "TFa\n", 2},
		{"empty lines", "\n\n", false, "TF\nTF\n", 2},
		{"CRLF is kept", "a\r\n", false, "TFa\r\n", 3},
		{"a beginning waits", "a\nb", false, "TFa\n", 2},
		{"a beginning at the end", "a\nb", true, "TFa\nTPb\n", 3},
		{"longest line", long + "\n", false, "TF" + long + "\n", maxLine + 1},
		{"longest line, so far", long, false, "", 0},
		{"too long by one", long + "y\n", false, "TP" + long + "\nTFy\n", maxLine + 2},
		{"too long, so far", long + "y", false, "TP" + long + "\n", maxLine},
		{"zero bytes", "\x00\n", false, "TF\x00\n", 2},
	}
	for _, tt := range tests {
		var h head
		h.set(at, "stderr")
		out, used := h.format(make([]byte, 0, outSize), []byte(tt.data), tt.end)
		want := strings.ReplaceAll(strings.ReplaceAll(tt.want, "TF", stamp+" stderr F "), "TP", stamp+" stderr P ")
		if string(out) != want || used != tt.used {
			t.Errorf("%s: used %d of %d, %.200q", tt.name, used, len(tt.data), out)
		}
	}
}

// split is what format does, in the plainest way.
func split(data []byte) (lines []string) {
	for l := range bytes.Lines(data) {
		text, whole := bytes.CutSuffix(l, []byte("\n"))
		for len(text) > maxLine {
			lines = append(lines, "P "+string(text[:maxLine]))
			text = text[maxLine:]
		}
		if whole {
			lines = append(lines, "F "+string(text))
		} else if len(text) > 0 {
			lines = append(lines, "P "+string(text))
		}
	}
	return lines
}

// However it is cut into reads and writes, the log has the same lines.
func FuzzFormat(f *testing.F) {
	f.Add([]byte("a\nb"), 3, 100)
	f.Add([]byte(strings.Repeat("x", 3*maxLine)+"\n\n"), 5000, maxLine+200)
	f.Add([]byte(strings.Repeat("x", 2*maxLine)), maxLine, maxLine+100)
	f.Fuzz(func(t *testing.T, data []byte, read, room int) {
		if read <= 0 || len(data)/read > 1000 || room < maxLine+100 || room > outSize {
			return
		}
		var h head
		h.set(at, "stdout")
		var pending []byte
		var got []string
		flush := func(end bool) {
			for {
				out, used := h.format(make([]byte, 0, room), pending, end)
				if n := h.payload(out); n != used {
					t.Fatalf("payload of %d bytes, used %d", n, used)
				}
				if used == 0 {
					return
				}
				pending = pending[used:]
				for l := range bytes.Lines(out) {
					text, ok := bytes.CutPrefix(bytes.TrimSuffix(l, []byte("\n")), []byte(stamp+" stdout "))
					if !ok {
						t.Fatalf("line %q", l)
					}
					got = append(got, string(text))
				}
			}
		}
		for rest := data; len(rest) > 0; {
			n := min(read, len(rest))
			pending = append(pending, rest[:n]...)
			rest = rest[n:]
			flush(false)
			if len(pending) > maxLine {
				t.Fatalf("%d bytes are held back", len(pending))
			}
		}
		flush(true)
		if want := split(data); len(pending) > 0 || !slices.Equal(got, want) {
			t.Fatalf("the log has %q, want %q; %d bytes are held back", got, want, len(pending))
		}
	})
}

func BenchmarkFormat(b *testing.B) {
	for _, n := range []int{1, 80, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := bytes.Repeat([]byte(strings.Repeat("x", n-1)+"\n"), 128<<10/n)
			out := make([]byte, 0, outSize)
			var h head
			h.set(at, "stdout")
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				for rest := data; len(rest) > 0; {
					_, used := h.format(out, rest, false)
					rest = rest[used:]
				}
			}
		})
	}
}
