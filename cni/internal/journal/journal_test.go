package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// open returns what a journal accepted, as "key=value" words.
func open(t *testing.T, path string) (*Journal, string) {
	t.Helper()
	got := map[string]string{}
	j, err := Open(t.Context(), path, func(key string, value json.RawMessage) error {
		if strings.HasPrefix(key, "refused") {
			return errors.New("refused")
		}
		got[key] = string(value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	var words []string
	for _, k := range slices.Sorted(maps.Keys(got)) {
		words = append(words, k+"="+got[k])
	}
	return j, strings.Join(words, " ")
}

func TestReplay(t *testing.T) {
	for _, c := range []struct {
		name, file, want string
		damaged          bool
	}{
		{"absent", "", "", false},
		{"last line counts", `{"k":"a","v":1}` + "\n" + `{"k":"b","v":2}` + "\n" + `{"k":"a","v":3}` + "\n" + `{"k":"b"}` + "\n", "a=3", false},
		{"cut short", `{"k":"a","v":1}` + "\n" + `{"k":"a","v":2`, "a=1", false},
		{"cut short before its end", `{"k":"a","v":1}` + "\n" + `{"k":"a"}`, "a=1", false},
		{"garbage within", `{"k":"a","v":1}` + "\n\x00\x00\n" + `{"k":"b","v":2}` + "\n", "a=1 b=2", true},
		{"refused", `{"k":"refused","v":1}` + "\n" + `{"k":"b","v":2}` + "\n", "b=2", true},
		{"endless line", `{"k":"a","v":1}` + "\n" + strings.Repeat("x", maxLine+1) + "\n" + `{"k":"b","v":2}` + "\n", "a=1 b=2", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "j")
			if c.file != "" {
				if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // what was repaired stays
				if _, got := open(t, path); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
			}
			_, err := os.Stat(path + ".damaged")
			if (err == nil) != c.damaged {
				t.Errorf("set aside: %v, want %v", err == nil, c.damaged)
			}
		})
	}
}

// What is there instead of a file, and what was set aside before, whatever it was, keeps no journal from working.
func TestNoFileInItsPlace(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "in", "it"), 0o700) },
		"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"garbage":   func(path string) error { return os.WriteFile(path, []byte("x\n"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "j")
			if err := errors.Join(put(path), os.MkdirAll(filepath.Join(path+".damaged", "older"), 0o700)); err != nil {
				t.Fatal(err)
			}
			there, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			j, got := open(t, path)
			if got != "" || j.Dropped() != 1 {
				t.Errorf("got %q, %d dropped", got, j.Dropped())
			}
			if aside, err := os.Lstat(path + ".damaged"); err != nil || !os.SameFile(aside, there) {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			if err := j.Put("a", 1, true); err != nil {
				t.Error(err)
			}
			if j, got = open(t, path); got != "a=1" || j.Dropped() != 0 {
				t.Errorf("afterwards %q, %d dropped", got, j.Dropped())
			}
		})
	}
}

func TestChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "j")
	j, _ := open(t, path)
	if err := errors.Join(j.Put("z", 1, true), j.Delete("z")); err != nil || j.flushed != 0 {
		t.Fatal(err, j.flushed)
	}
	for i := range 20000 { // far beyond minGarbage
		key := fmt.Sprint(i % 7)
		if err := j.Put(key, strings.Repeat("x", 100)+fmt.Sprint(i), i == 0); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := errors.Join(j.Delete(key), j.Delete(key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > minGarbage+8192 || info.Size() != int64(j.size) {
		t.Errorf("file has %d bytes, %v", info.Size(), err)
	}
	if err := errors.Join(j.Put("a", 1, false), j.Put("b", 2, false), j.Delete("a")); err != nil {
		t.Fatal(err)
	}
	_, got := open(t, path) // not closed: the daemon was killed
	if !strings.Contains(got, "b=2") || strings.Contains(got, "a=1") {
		t.Errorf("got %q", got)
	}
}

// TestFailedWrite goes on after a write that failed and may have left half a line.
func TestFailedWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j, _ := open(t, path)
	if err := j.Put("a", 1, false); err != nil {
		t.Fatal(err)
	}
	good := j.f
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	j.f = full
	if err := j.Put("b", 2, false); err == nil {
		t.Fatal("wrote to a full disk")
	}
	if _, err := good.WriteString(`{"k":"half`); err != nil {
		t.Fatal(err)
	}
	good.Close()
	if err := j.Put("c", 3, false); err != nil {
		t.Fatal(err)
	}
	if _, got := open(t, path); got != "a=1 c=3" {
		t.Errorf("got %q", got)
	}
}

// FuzzOpen reads what may be on a disk. What was read once is read alike again.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"k":"a","v":1}` + "\n" + `{"k":"a"}` + "\n"))
	f.Add([]byte(`{"k":"a","v":{"x":[]}}` + "\n" + `{"k":"b","v":null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, first := open(t, path)
		if _, again := open(t, path); again != first {
			t.Errorf("got %q, then %q", first, again)
		}
	})
}

func BenchmarkPutDelete(b *testing.B) {
	j, err := Open(b.Context(), filepath.Join(b.TempDir(), "j"), func(string, json.RawMessage) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	value := strings.Repeat("x", 1000)
	for b.Loop() {
		if err := errors.Join(j.Put("a", value, false), j.Delete("a")); err != nil {
			b.Fatal(err)
		}
	}
}
