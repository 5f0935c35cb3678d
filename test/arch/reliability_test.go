package arch

import "testing"

// The tests that docs/reliability.md names are there; a row without one says that it is not proven yet.
func TestReliabilityPage(t *testing.T) {
	tests := readTests(t)
	for _, r := range tableRows(t, "../../docs/reliability.md") {
		if len(r.cells) != 4 || r.cells[0] == "" {
			t.Errorf("line %d: want four cells, the first a fault", r.line)
			continue
		}
		named := codes(r.cells[2])
		for _, test := range named {
			if fault := tests.fault(test); fault != "" {
				t.Errorf("line %d: test %s %s", r.line, test, fault)
			}
		}
		if len(named) == 0 && r.cells[2] != "not yet" {
			t.Errorf("line %d: neither a test nor \"not yet\"", r.line)
		}
	}
}
