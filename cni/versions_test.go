package cni

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestVersionIsAskedOnce has several calls wait for one answer, and others not for one that does not come to them.
func TestVersionIsAskedOnce(t *testing.T) {
	dir := t.TempDir()
	path, asked := filepath.Join(dir, "plugin"), filepath.Join(dir, "asked")
	script := "#!/bin/sh\necho asked >>" + asked + "\nwhile [ ! -e " + asked + ".go ]; do sleep 0.01; done\n" +
		`echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'` + "\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	p := &plugins{}
	times := func() int {
		lines, _ := os.ReadFile(asked)
		return strings.Count(string(lines), "asked")
	}
	var calls sync.WaitGroup
	first, cancel := context.WithCancel(t.Context())
	calls.Go(func() {
		if err := p.understands(first, path, "1.0.0"); err == nil {
			t.Error("a call that was cancelled has an answer")
		}
	})
	eventually(t, "the program is asked", func() bool { return times() == 1 })
	for range 3 {
		calls.Go(func() {
			if err := p.understands(t.Context(), path, "1.0.0"); err != nil {
				t.Error(err)
			}
		})
	}
	short, end := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer end()
	if err := p.understands(short, path, "1.0.0"); err == nil || !strings.Contains(err.Error(), "waiting for CNI plugin "+path) {
		t.Errorf("%v, want that it waited", err)
	}
	cancel() // so that another of the calls asks
	eventually(t, "the program is asked again", func() bool { return times() == 2 })
	if err := os.WriteFile(asked+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	calls.Wait()
	if err := p.understands(t.Context(), path, "1.0.0"); err != nil || times() != 2 {
		t.Errorf("%v, asked %d times, want twice", err, times())
	}
}
