package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each record fits the sources as they are, and its test exists.
func TestRecords(t *testing.T) {
	const root = "../.."
	records, err := readRecords(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(records) == 0 {
		t.Fatal("no records")
	}
	seen := map[string]string{}
	for _, r := range records {
		if _, err := r.without(root); err != nil {
			t.Error(err)
		}
		if seen[r.ID] != "" {
			t.Errorf("%s: id %s is at %s too", r.source, r.ID, seen[r.ID])
		}
		seen[r.ID] = r.source
		if !hasTest(t, filepath.Join(root, r.Package), r.Test) {
			t.Errorf("%s: no test %s in %s", r.source, r.Test, r.Package)
		}
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	top, _, _ := strings.Cut(name, "/")
	def := regexp.MustCompile(`(?m)^func ` + regexp.QuoteMeta(top) + `\(`)
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if def.Match(body) {
			return true
		}
	}
	return false
}

func TestParse(t *testing.T) {
	const good = "# why\nid: a\nfile: f.go\nold: x: y\nnew: \ntest: ./p T/a b\n\n\nid: b\nfile: f.go\nold: z\nnew: w\ntest: ./p T"
	list, err := parse("x.txt", good)
	if err != nil || len(list) != 2 || list[0].Old != "x: y" || list[0].New != "" || list[0].Test != "T/a b" || list[1].source != "x.txt:9" {
		t.Errorf("%+v, %v", list, err)
	}
	for _, bad := range []string{"id: a", "id: a\nid: b", "what: x", "id", "id: a\nfile: f\nold: x\nnew: x\ntest: ./p T", "test: T"} {
		if list, err := parse("x.txt", bad); err == nil {
			t.Errorf("%q: %+v", bad, list)
		}
	}
}

// A test that fails is told from one that does not, and from code that does not compile.
func TestMissed(t *testing.T) {
	root := t.TempDir()
	for name, body := range map[string]string{
		"go.mod":    "module example.test/m\n\ngo 1.26\n",
		"m.go":      "package m\n\nfunc guard() bool { return true }\n",
		"m_test.go": "package m\n\nimport \"testing\"\n\nfunc TestGuard(t *testing.T) {\n\tt.Run(\"a b\", func(t *testing.T) {\n\t\tif !guard() {\n\t\t\tt.Fatal()\n\t\t}\n\t})\n}\n\nfunc TestOther(t *testing.T) {}\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := record{ID: "a", File: "m.go", Old: "true", New: "false", Package: ".", Test: "TestGuard/a b"}
	if err := r.missed(t.Context(), root, t.TempDir()); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*record){
		"nobody misses it":   func(r *record) { r.Test = "TestOther" },
		"a test that is not": func(r *record) { r.Test = "TestGuard/c" },
		"does not compile":   func(r *record) { r.New = "nonsense" },
		"not in the file":    func(r *record) { r.Old = "maybe" },
		"more than once":     func(r *record) { r.Old = "r" },
	} {
		wrong := r
		change(&wrong)
		if err := wrong.missed(t.Context(), root, t.TempDir()); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}
