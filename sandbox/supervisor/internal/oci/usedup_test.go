package oci

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A runtime that dies for want of threads is understood by the beginning of what it leaves, not shown by its end.
func TestUsedUp(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const first = "runtime/cgo: pthread_create failed: Resource temporarily unavailable"
	if _, err := w.WriteString(first + "\nSIGABRT: abort\n" + strings.Repeat("rax 0x0\n", 1000)); err != nil {
		t.Fatal(err)
	}
	e := &Error{Path: "/bin/runc", Name: "run", Code: 2, Message: ReadNow(r)}
	if e.Message != first || !errors.Is(e, unix.EAGAIN) {
		t.Errorf("understood as %v, %v", e, e.Unwrap())
	}
	for text, want := range map[string]error{
		"runtime: failed to create new OS thread (have 2 already; errno=11)": unix.EAGAIN,
		"open /x: too many open files":                                       unix.EMFILE,
		"executable file not found in $PATH":                                 nil,
	} {
		if got := usedUp(text); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}
