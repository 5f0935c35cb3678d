package bridge

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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

// A network's record that is damaged, or no file, is set aside in the place of one before, and the network opens.
func TestDamagedRecord(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"empty":   func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"cut off": func(path string) error { return os.WriteFile(path, []byte(`{"bridge":"b0","subn`), 0o600) },
		"garbage": func(path string) error { return os.WriteFile(path, []byte("\x00\xff"), 0o600) },
		"strange": func(path string) error {
			return os.WriteFile(path, []byte(`{"bridge":"b0","subnets":{"v2":1}}`), 0o600)
		},
		"directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "in", "it"), 0o700) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "network.json")
			if err := errors.Join(put(path), os.MkdirAll(filepath.Join(path+".damaged", "older"), 0o700)); err != nil {
				t.Fatal(err)
			}
			there, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			n, err := openNetwork(t.Context(), "n", dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.pool.Close(); err != nil {
				t.Error(err)
			}
			if n.rec.Bridge != "" || n.rec.Subnets != nil {
				t.Errorf("the record is %+v", n.rec)
			}
			if aside, err := os.Lstat(path + ".damaged"); err != nil || !os.SameFile(aside, there) {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the record is there: %v", err)
			}
		})
	}
}
