package arch

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Each case of docs/security.md has a test, and a record in test/guards that takes a guard away from one of its tests;
// where it has not, the page says why.
func TestSecurityPage(t *testing.T) {
	tests, guarded := readTests(t), guardedTests(t)
	seen := map[string]int{}
	for _, r := range tableRows(t, "../../docs/security.md") {
		if len(r.cells) != 4 || r.cells[0] == "" {
			t.Errorf("line %d: want four cells, the first a name", r.line)
			continue
		}
		name, why := r.cells[0], r.cells[3]
		if seen[name] != 0 {
			t.Errorf("line %d: %s is in line %d too", r.line, name, seen[name])
		}
		seen[name] = r.line
		hasGuard := false
		for _, test := range codes(r.cells[2]) {
			if fault := tests.fault(test); fault != "" {
				t.Errorf("line %d: test %s %s", r.line, test, fault)
			}
			hasGuard = hasGuard || guarded.has(test)
		}
		if !hasGuard && why == "" {
			t.Errorf("line %d: no record of test/guards names a test of %s", r.line, name)
		}
	}
}

// guards are the tests that records name, as package.TestName/sub_test.
type guards []string

// has says whether there is a record for a test, one above it or one within it.
func (g guards) has(test string) bool {
	for _, name := range g {
		if name == test || strings.HasPrefix(name, test+"/") || strings.HasPrefix(test, name+"/") {
			return true
		}
	}
	return false
}

func guardedTests(t *testing.T) (list guards) {
	t.Helper()
	files, err := filepath.Glob("../guards/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no records: %v", err)
	}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(body)) {
			if value, ok := strings.CutPrefix(line, "test: "); ok {
				pkg, test, _ := strings.Cut(strings.TrimSpace(value), " ")
				list = append(list, path.Base(pkg)+"."+strings.ReplaceAll(test, " ", "_"))
			}
		}
	}
	return list
}
