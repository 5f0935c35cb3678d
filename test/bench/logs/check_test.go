package main

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The accounting finds what is wrong with a log, or its figures say nothing.
func TestCheck(t *testing.T) {
	const at = "2026-01-02T03:04:05.000000006Z stdout "
	var whole []string
	var d done
	for i := range 2000 {
		const inBlock = blockSize / 80
		text := fmt.Sprintf("abcdefgh %08d %04d ", i/inBlock, i%inBlock)
		text += strings.Repeat("x", 79-len(text)) + "\n"
		d.bytes += int64(len(text))
		d.sum = crc32.Update(d.sum, crc32.MakeTable(crc32.Castagnoli), []byte(text))
		whole = append(whole, at+"F "+text)
	}
	split := whole[1500]
	tests := map[string]struct {
		change func(lines []string) []string
		good   bool
	}{
		"as written": {func(l []string) []string { return l }, true},
		"in parts": {func(l []string) []string {
			return slices.Replace(l, 1500, 1501, at+"P "+split[40:60]+"\n", at+"F "+split[60:])
		}, true},
		"one is missing": {func(l []string) []string { return slices.Delete(l, 1500, 1501) }, false},
		"the last one":   {func(l []string) []string { return l[:1999] }, false},
		"the first one":  {func(l []string) []string { return l[1:] }, false},
		"twice":          {func(l []string) []string { return slices.Insert(l, 1500, l[1500]) }, false},
		"swapped":        {func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }, false},
		"torn":           {func(l []string) []string { l[7] = l[7][:70] + "\n"; return l }, false},
		"no newline":     {func(l []string) []string { l[1999] = l[1999][:119]; return l }, false},
		"another byte":   {func(l []string) []string { l[9] = l[9][:100] + "y" + l[9][101:]; return l }, false},
		"another stream": {func(l []string) []string { l[9] = strings.Replace(l[9], "stdout", "stderr", 1); return l }, false},
		"a part at last": {func(l []string) []string { return append(l, at+"P more\n") }, false},
	}
	for name, tt := range tests {
		for _, rotated := range []bool{false, true} {
			w := &writer{log: filepath.Join(t.TempDir(), "log")}
			lines := tt.change(slices.Clone(whole))
			write := func(path string, lines []string) {
				if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if rotated {
				w.rotated = 1
				write(w.log+".0", lines[:700])
				lines = lines[700:]
			}
			write(w.log, lines)
			if _, _, err := w.check(d); (err == nil) != tt.good {
				t.Errorf("%s, rotated %v: %v", name, rotated, err)
			}
		}
	}
}
