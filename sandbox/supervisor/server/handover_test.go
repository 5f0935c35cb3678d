package server

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
)

var update = flag.Bool("update", false, "write what this version of the handover hands over to testdata, if it is not there yet")

// What is handed over changes with its version alone, and what was once a version stays that.
func TestHandoverIsVersioned(t *testing.T) {
	var b strings.Builder
	shape(&b, "handover", reflect.TypeFor[handover]())
	shape(&b, "record", reflect.TypeFor[record]())
	fmt.Fprintf(&b, "record.version: %d\nstaging slots: %#x\n", recordVersion, uint64(logcopy.Layout))
	file := filepath.Join("testdata", fmt.Sprintf("handover-%d.txt", handoverVersion))
	if f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); *update && err == nil {
		if _, err := f.WriteString(b.String()); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: go test ./sandbox/supervisor/server -update writes it", err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("version %d of the handover is another than that of %s: raise handoverVersion and see there\n%s", handoverVersion, file, got)
	}
}

// shape writes what JSON is made of the type. That of a request does not change
// while its container runs: its fields are refused where they are not known.
func shape(b *strings.Builder, name string, typ reflect.Type) {
	fmt.Fprintf(b, "%s: %v\n", name, typ)
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		shape(b, name+"[]", typ.Elem())
	case reflect.Struct:
		if typ == reflect.TypeFor[supervisor.RunRequest]() || typ.PkgPath() == "time" {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			shape(b, name+"."+f.Tag.Get("json"), f.Type)
		}
	}
}

// Neither another version is taken, nor one with anything that this program does not know.
func TestUnknownHandoverIsRefused(t *testing.T) {
	for _, text := range []string{
		fmt.Sprintf(`{"version":%d}`, handoverVersion+1),
		fmt.Sprintf(`{"version":%d,"new":1}`, handoverVersion),
		fmt.Sprintf(`{"version":%d,"containers":[{"id":"c","new":1}]}`, handoverVersion),
		`{}`, `[]`, ``,
	} {
		file := filepath.Join(t.TempDir(), "handover")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(t.TempDir(), int(f.Fd())); err == nil {
			t.Errorf("%q is taken", text)
		}
		_ = f.Close()
	}
}

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
