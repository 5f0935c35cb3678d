package bridge

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// What a crash has cut off while a network's record was written goes at the next start; the record before it counts.
func TestRecordCutOff(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "network.json")
	for name, text := range map[string]string{path: `{"bridge":"b0"}`, path + ".new": `{"bridge":"b`} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n, err := openNetwork(t.Context(), "n", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.pool.Close(); err != nil {
		t.Error(err)
	}
	if n.rec.Bridge != "b0" {
		t.Errorf("the record is %+v", n.rec)
	}
	if _, err := os.Lstat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was cut off: %v", err)
	}
}
