package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// testNames knows the tests of the repository by the last part of their package's path.
type testNames map[string]*testPackage

type testPackage struct {
	dirs  []string        // more than one makes the short name ambiguous
	funcs map[string]bool // Test..., Fuzz...
	texts map[string]bool // every string of the test files, as t.Run would rewrite it
}

// readTests looks through every _test.go file.
func readTests(t *testing.T) testNames {
	t.Helper()
	names := testNames{}
	fset := token.NewFileSet()
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin" || d.Name() == ".git"):
			return fs.SkipDir
		case !strings.HasSuffix(file, "_test.go"):
			return nil
		}
		dir := filepath.Dir(file)
		p := names[filepath.Base(dir)]
		if p == nil {
			p = &testPackage{funcs: map[string]bool{}, texts: map[string]bool{}}
			names[filepath.Base(dir)] = p
		}
		if len(p.dirs) == 0 || p.dirs[len(p.dirs)-1] != dir {
			p.dirs = append(p.dirs, dir)
		}
		src, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		p.read(src)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (p *testPackage) read(src *ast.File) {
	ast.Inspect(src, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && (strings.HasPrefix(n.Name.Name, "Test") || strings.HasPrefix(n.Name.Name, "Fuzz")) {
				p.funcs[n.Name.Name] = true
			}
		case *ast.BasicLit:
			if s, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				p.texts[strings.ReplaceAll(s, " ", "_")] = true
			}
		}
		return true
	})
}

// fault says what is wrong with a test's name of the form package.TestX/sub test, "" if nothing is.
func (names testNames) fault(name string) string {
	pkg, test, ok := strings.Cut(name, ".")
	p := names[pkg]
	switch {
	case !ok || p == nil:
		return "is not of the form package.TestName"
	case len(p.dirs) > 1:
		return "could be in " + strings.Join(p.dirs, " or ")
	}
	parts := strings.Split(test, "/")
	if !p.funcs[parts[0]] {
		return "does not exist in " + p.dirs[0]
	}
	for _, sub := range parts[1:] {
		if !p.texts[strings.ReplaceAll(sub, " ", "_")] {
			return "has no sub-test " + sub
		}
	}
	return ""
}

// row is a line of a Markdown table, below its headings.
type row struct {
	line      int
	part, sub string // the ## and ### headings above it
	cells     []string
}

// tableRows reads the rows of all tables of a page, without their heads.
func tableRows(t *testing.T, file string) []row {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	var part, sub string
	head := 0 // lines of the table's head that are still to come
	for i, line := range strings.Split(string(body), "\n") {
		if text, ok := strings.CutPrefix(line, "## "); ok {
			part, sub = text, ""
		}
		if text, ok := strings.CutPrefix(line, "### "); ok {
			sub = text
		}
		if !strings.HasPrefix(line, "|") {
			head = 2
			continue
		}
		if head > 0 {
			head--
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, row{line: i + 1, part: part, sub: sub, cells: cells})
	}
	return rows
}

// codes are the words of a cell that stand between backquotes.
func codes(cell string) (words []string) {
	for i, s := range strings.Split(cell, "`") {
		if i%2 == 1 {
			words = append(words, s)
		}
	}
	return words
}

// pagePart is the text below a ## heading.
func pagePart(t *testing.T, file, heading string) string {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(body), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no part %s", file, heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}
