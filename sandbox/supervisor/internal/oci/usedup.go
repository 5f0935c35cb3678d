package oci

import (
	"strings"

	"golang.org/x/sys/unix"
)

// spent are the errors of which a node, or a cgroup, has too little of something,
// in the words of OCI runtimes, and of the runtimes of Go and C.
var spent = []struct {
	words string
	errno unix.Errno
}{
	{"resource temporarily unavailable", unix.EAGAIN}, // processes and threads
	{"failed to create new os thread", unix.EAGAIN},
	{"cannot allocate memory", unix.ENOMEM},
	{"too many open files", unix.EMFILE},
	{"no space left on device", unix.ENOSPC},
}

// usedUp is the first of these errors that a text tells of, or nil.
func usedUp(text string) error {
	text = strings.ToLower(text)
	for _, s := range spent {
		if strings.Contains(text, s.words) {
			return s.errno
		}
	}
	return nil
}

// usedUpLine is the first line of a text that tells of one, or "".
func usedUpLine(text string) string {
	for line := range strings.Lines(text) {
		if usedUp(line) != nil {
			return clip(line)
		}
	}
	return ""
}
