package server

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A handover of a program that does not tell its limits leaves those that there are.
func TestUntoldLimitsAreKept(t *testing.T) {
	var before, after unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := setNofile([2]uint64{}); err != nil {
		t.Error(err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &after); err != nil || after != before {
		t.Errorf("limits %+v, %v; they were %+v", after, err, before)
	}
}
