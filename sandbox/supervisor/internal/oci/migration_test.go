package oci

import (
	"os"
	"testing"
)

// What is written moves nothing, and is written where the kernel says that this process is.
func TestMigrationMovesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	m := newMigration()
	if m.procs == "" {
		t.Skip("this process' cgroup is not at a usual place")
	}
	before, err := os.ReadFile(ownCgroups)
	if err != nil {
		t.Fatal(err)
	}
	var waits []func()
	for range 10 {
		waits = append(waits, m.begin())
	}
	for _, wait := range waits {
		wait()
	}
	if m.pending != nil {
		t.Error("one is still under way")
	}
	if after, err := os.ReadFile(ownCgroups); err != nil || string(after) != string(before) {
		t.Errorf("was in\n%s, is in\n%s, %v", before, after, err)
	}
}
