package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfDirIsBounded looks at so many files and bytes, and no more.
func TestConfDirIsBounded(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxBad + 5 {
		put(fmt.Sprintf("%03d.conflist", i), "{")
	}
	put("good.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"a"}]}`)
	c, bad := readConfDir(dir)
	if c != nil || len(bad) != maxBad+1 || !strings.Contains(bad[maxBad].err.Error(), "those behind 099.conflist are not looked at") {
		t.Errorf("%v, %d bad files", c, len(bad))
	}

	for _, name := range []string{"big/1.conf", "big/2.conf"} {
		put(name, `{"type":"a","x":"`+strings.Repeat("x", maxFile*2/3)+`"}`)
	}
	if _, err := inline(dir, []byte(`{"cniVersion":"1.1.0","name":"big"}`)); err == nil || !strings.Contains(err.Error(), "big/2.conf") {
		t.Errorf("%v, want that the list is too large with its second plugin", err)
	}
}
