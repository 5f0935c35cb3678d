package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/cri/transfer"
)

func TestImageUsage(t *testing.T) {
	for _, tt := range []struct {
		args       string
		status     int
		out, inErr string
	}{
		{"image", exitUsage, "", "Usage: gantry image COMMAND"},
		{"image --help", exitOK, "prune", ""},
		{"image lsd", exitUsage, "", `unknown command "lsd"`},
		{"image ls --help", exitOK, "--socket PATH", ""},
		{"image load --help", exitOK, "FILE|DIR|-", ""},
		{"image save --help", exitOK, "--gzip", ""},
		{"image save --help", exitOK, "\n  -o FILE ", ""},
		{"image rm --help", exitOK, "IMAGE...", ""},
		{"image prune --help", exitOK, "--dry-run", ""},
		{"image pull --help", exitOK, passwordEnv, ""},
		{"image pulls --help", exitOK, "under way", ""},
		{"image ls x", exitUsage, "", `unexpected argument "x"`},
		{"image load", exitUsage, "", "missing"},
		{"image load a b", exitUsage, "", `unexpected argument "b"`},
		{"image save a", exitError, "", "-o"},
		{"image load /no/such.tar --socket /no/such.sock", exitError, "", "/no/such.tar"},
		{"image ls --socket /no/such.sock", exitError, "", "no gantry answers on /no/such.sock"},
		{"image pull x --creds :y --socket /no/such.sock", exitError, "", "no user"},
	} {
		status, out, errOut := gantry(t, strings.Fields(tt.args)...)
		if status != tt.status || !strings.Contains(out, tt.out) || !strings.Contains(errOut, tt.inErr) {
			t.Errorf("gantry %s: status %d\n%s\n%s", tt.args, status, out, errOut)
		}
	}
}

func TestFlagsBetweenArguments(t *testing.T) {
	for _, tt := range []struct {
		args, rest, o string
		err           bool
	}{
		{"a -o x b", "a b", "x", false},
		{"-o x a b", "a b", "x", false},
		{"a b -o x", "a b", "x", false},
		{"-o x -- -a -o y", "-a -o y", "x", false},
		{"a -- -b", "a -b", "", false},
		{"a - b", "a - b", "", false},
		{"a --wrong", "", "", true},
	} {
		f := newFlags("test", "", "")
		o := f.String("o", "", "")
		rest, err := parseMixed(f, strings.Fields(tt.args))
		if (err != nil) != tt.err || !slices.Equal(rest, strings.Fields(tt.rest)) || *o != tt.o {
			t.Errorf("%s: %q, -o %q, %v", tt.args, rest, *o, err)
		}
	}
	if _, err := parseMixed(newFlags("test", "", ""), []string{"a", "--help"}); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

func TestPassword(t *testing.T) {
	c := &imageCall{ctx: t.Context(), stdin: strings.NewReader("from stdin\n"), stderr: io.Discard}
	for creds, want := range map[string]string{"u:p:q": "p:q", "u": "from stdin", "u:": ""} {
		auth, err := c.credentials(creds)
		if err != nil || auth.Username != "u" || auth.Password != want {
			t.Errorf("%s: %v, %v", creds, auth, err)
		}
	}
	t.Setenv(passwordEnv, "from the environment")
	if auth, err := c.credentials("u"); err != nil || auth.Password != "from the environment" {
		t.Errorf("%v, %v", auth, err)
	}
	if auth, err := c.credentials(""); auth != nil || err != nil {
		t.Errorf("%v, %v", auth, err)
	}
}

func TestProgressOf(t *testing.T) {
	pulls := []transfer.Pull{{Image: "docker.io/library/a:latest", Layers: 3, LayersDone: 1, Bytes: 3 << 20, BytesDone: 1 << 19}}
	if got := progressOf("a", pulls); got != "a: 1 of 3 layers, 512 KiB of 3.0 MiB" {
		t.Errorf("%q", got)
	}
	if got := progressOf("b", pulls); got != "waiting" {
		t.Errorf("%q", got)
	}
}

// A layout's directory goes to the daemon as its regular files; a link out of
// it is not followed.
func TestPackLayout(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"oci-layout", "index.json", "blobs/sha256/1", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "blobs/sha256/2")); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := packLayout(t.Context(), &buf, dir); err != nil {
		t.Fatal(err)
	}
	var names []string
	tr := tar.NewReader(&buf)
	for hdr, err := tr.Next(); err != io.EOF; hdr, err = tr.Next() {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, hdr.Name)
	}
	if !slices.Equal(names, []string{"oci-layout", "index.json", "blobs/sha256/1"}) {
		t.Errorf("%q", names)
	}
	if err := packLayout(t.Context(), io.Discard, t.TempDir()); err == nil || !strings.Contains(err.Error(), "no OCI image layout") {
		t.Error(err)
	}
}
