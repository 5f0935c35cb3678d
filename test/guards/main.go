package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guards:", err)
		os.Exit(1)
	}
}

// run goes through the records whose id contains one of the words, or all.
func run(ctx context.Context, words []string) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("finding the module: %w", err)
	}
	root := strings.TrimSpace(string(out))
	records, err := readRecords(filepath.Join(root, "test/guards"))
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "gantry-guards-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	ran, bad := 0, 0
	for _, r := range records {
		if len(words) > 0 && !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(r.ID, w) }) {
			continue
		}
		ran++
		start := time.Now()
		err := r.missed(ctx, root, tmp)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			bad++
			fmt.Printf("FAILED  %-50s %s: %v\n", r.ID, r.source, err)
			continue
		}
		fmt.Printf("missed  %-50s %s %s (%.1f s)\n", r.ID, r.Package, r.Test, time.Since(start).Seconds())
	}
	if ran == 0 {
		return errors.New("no such record")
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d records failed", bad, ran)
	}
	return nil
}

// missed takes the guard out and runs its test, which must fail.
func (r *record) missed(ctx context.Context, root, tmp string) error {
	body, err := r.without(root)
	if err != nil {
		return err
	}
	changed, overlay := filepath.Join(tmp, "changed.go"), filepath.Join(tmp, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, r.File): changed}})
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(changed, body, 0o600), os.WriteFile(overlay, text, 0o600)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-vet=off", "-timeout=3m", "-overlay", overlay, "-run", r.pattern(), r.Package)
	cmd.Dir = root
	// An end-to-end test builds the product itself; what it builds must not stay in bin/.
	cmd.Env = append(os.Environ(), "GANTRY_TEST_BIN="+filepath.Join(tmp, "bin"), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+overlay))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return fmt.Errorf("nobody misses it: %s %s: %s", r.Package, r.Test, tail(out))
	}
	// A test that failed says so, with its name; a panic and a timeout are what some guards prevent.
	top, _, _ := strings.Cut(r.Test, "/")
	if !strings.Contains(string(out), "--- FAIL: "+top) && !panicked.Match(out) {
		return fmt.Errorf("the test did not run: %s", tail(out))
	}
	return nil
}

var panicked = regexp.MustCompile(`(?m)^panic: `)

// pattern is what go test's -run takes for exactly this test.
func (r *record) pattern() string {
	parts := strings.Split(r.Test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

func tail(out []byte) string {
	s := strings.TrimSpace(string(out))
	return s[max(0, len(s)-400):]
}
