package runtimeservice

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is not done is said in a sentence, as the kind that the kubelet knows.
func TestNoCheckpoints(t *testing.T) {
	s := &Service{}
	_, pod := s.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{})
	_, restore := s.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{})
	for _, err := range []error{pod, restore} {
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "this version of gantry") {
			t.Errorf("got %v", err)
		}
	}
}

// An archive is seen once it is whole, and replaces nothing.
func TestArchiveFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.tar")
	a, err := newArchiveFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := newArchiveFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := a.WriteString("whole"); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("before the commit the folder has %v, %v", entries, err)
	}
	if err := a.commit(); err != nil {
		t.Fatal(err)
	}
	if err := b.commit(); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the second one to commit: %v", err)
	}
	if _, err := newArchiveFile(file); !errdefs.IsAlreadyExists(err) {
		t.Errorf("one that is there: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "whole" {
		t.Errorf("the archive is %q, %v", data, err)
	}
	if _, err := newArchiveFile("/"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("the root: %v", err)
	}
	if _, err := newArchiveFile(filepath.Join(file, "b")); !errdefs.IsInvalidArgument(err) || !errors.Is(err, os.ErrNotExist) && !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("in a file: %v", err)
	}
}

// Of CRIU's log the last errors are told, whatever else is in it.
func TestDumpErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dump.log")
	for log, want := range map[string]string{
		"": "", "(00.1) fine\n": "",
		"(00.1) Error (a.c:1): one\n(00.2) Error (b.c:2): two\n":            "(a.c:1): one; (b.c:2): two",
		"Error 1\nError 2\nError 3\nfine\nError 4":                          "2; 3; 4",
		"Error lost\n" + strings.Repeat("x", 100<<10) + "\nError " + "kept": "kept",
		"Error " + strings.Repeat("y", 5000) + "\n":                         strings.Repeat("y", 1024),
		"Error \xff\n": "?",
	} {
		if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := dumpErrors(file); got != want {
			t.Errorf("%.40q: got %.80q, want %.80q", log, got, want)
		}
	}
	if got := dumpErrors(file + ".none"); got != "" {
		t.Errorf("no log: %q", got)
	}
}
