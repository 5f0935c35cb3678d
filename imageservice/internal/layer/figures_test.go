package layer

import (
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

// TestFiguresOfReplaced: what a later entry takes the place of is not counted.
func TestFiguresOfReplaced(t *testing.T) {
	needRoot(t)
	large := strings.Repeat("x", 100_000)
	for name, entries := range map[string][]entry{
		"nothing":                 {dir("d"), file("d/f", large), hard("h", "d/f"), sym("s", "f"), file(".wh.w", "")},
		"file by file":            {file("f", large), file("f", "x"), file("f", large)},
		"file by directory":       {file("f", large), dir("f"), file("f/f", "x")},
		"file by link":            {file("f", large), file("g", large), hard("f", "g"), sym("g", "f")},
		"directory by file":       {dir("d"), file("d/f", large), dir("d/e"), file("d/e/f", large), file("d", "x")},
		"empty directory by file": {dir("d"), file("d", "x")},
		"whiteout by directory":   {file(".wh.d", ""), dir("d"), file("d/f", large)},
		"whiteout by file":        {file(".wh.f", ""), file("f", large)},
		"link by link":            {file("f", large), hard("h", "f"), file("g", large), hard("h", "g"), hard("h", "f")},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			res, err := unpack(t, root, entries...)
			check(t, err)
			bytes, inodes, err := tree.Usage(t.Context(), root)
			check(t, err)
			if res.Inodes != inodes || res.Bytes != bytes {
				t.Errorf("%d bytes, %d inodes; there are %d, %d", res.Bytes, res.Inodes, bytes, inodes)
			}
		})
	}
	for name, entries := range map[string][]entry{
		"moved":           {file("lib/a", large), file("lib/d/a", large)},
		"moved and there": {file("lib/a", large), file("lib/d/a", large), dir("usr"), dir("usr/lib"), file("usr/lib/a", large), dir("usr/lib/d")},
	} {
		t.Run(name, func(t *testing.T) {
			lower, root := t.TempDir(), t.TempDir()
			_, err := unpack(t, lower, dir("usr"), dir("usr/lib"), sym("lib", "usr/lib"))
			check(t, err)
			res, err := unpack(t, root, entries...)
			check(t, err)
			check(t, res.Complete(t.Context(), openDir(t, root), openDir(t, lower)))
			bytes, inodes, err := tree.Usage(t.Context(), root)
			check(t, err)
			if res.Inodes != inodes || res.Bytes != bytes {
				t.Errorf("%d bytes, %d inodes; there are %d, %d", res.Bytes, res.Inodes, bytes, inodes)
			}
		})
	}
}
