package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// record is one guard and the test that misses it.
type record struct {
	ID, File, Old, New string
	Package, Test      string // of the test
	source             string // file and line of the record
}

// readRecords reads all files of a directory, in order.
func readRecords(dir string) ([]record, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	var all []record
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		list, err := parse(filepath.Base(file), string(body))
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// parse reads the blocks of one file.
func parse(name, body string) ([]record, error) {
	var list []record
	var r *record
	for i, line := range strings.Split(body+"\n", "\n") {
		source := fmt.Sprintf("%s:%d", name, i+1)
		if strings.HasPrefix(line, "#") {
			continue
		}
		if strings.TrimSpace(line) == "" {
			if r != nil {
				if r.ID == "" || r.File == "" || r.Old == "" || r.Test == "" || r.Old == r.New {
					return nil, fmt.Errorf("%s: record without id, file, old, another new, or test", r.source)
				}
				list, r = append(list, *r), nil
			}
			continue
		}
		if r == nil {
			r = &record{source: source}
		}
		key, value, ok := strings.Cut(line, ":")
		if value = strings.TrimPrefix(value, " "); !ok {
			return nil, fmt.Errorf("%s: no key in %q", source, line)
		}
		if err := r.set(key, value); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
	}
	return list, nil
}

func (r *record) set(key, value string) error {
	field := map[string]*string{"id": &r.ID, "file": &r.File, "old": &r.Old, "new": &r.New}[key]
	switch {
	case key == "test" && r.Test == "":
		var ok bool
		if r.Package, r.Test, ok = strings.Cut(strings.TrimSpace(value), " "); !ok {
			return fmt.Errorf("test %q is not a package and a name", value)
		}
		return nil
	case field == nil:
		return fmt.Errorf("unknown key %q", key)
	case *field != "":
		return fmt.Errorf("%s twice", key)
	}
	*field = value
	return nil
}

// without returns the file's text with the guard taken out. root is the module's directory.
func (r *record) without(root string) ([]byte, error) {
	body, err := os.ReadFile(filepath.Join(root, r.File))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(body), r.Old); n != 1 {
		return nil, fmt.Errorf("%s: %q is %d times in %s", r.source, r.Old, n, r.File)
	}
	return []byte(strings.Replace(string(body), r.Old, r.New, 1)), nil
}
