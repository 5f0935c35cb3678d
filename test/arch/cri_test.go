package arch

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const criPage = "../../docs/cri.md"

// What docs/cri.md may say of an RPC or a field, and whether a test has to show it.
var criStatus = map[string]bool{
	"honoured": true, "refused": true, "reported": true, "ignored": true,
	"not reported": false, "untested": false, "not yet": false,
}

// docs/cri.md has every RPC and every field of the CRI once, and the tests that it names exist.
func TestCRIPage(t *testing.T) {
	tests := readTests(t)
	rpcs, fields, windows := criNames()
	seen := map[string]int{}
	for _, r := range tableRows(t, criPage) {
		if r.part == "Behaviours" {
			continue
		}
		if len(r.cells) != 4 || len(codes(r.cells[0])) != 1 {
			t.Errorf("line %d: want four cells, the first a `name`", r.line)
			continue
		}
		name := codes(r.cells[0])[0]
		known := rpcs
		if r.sub != "" {
			name, known = r.sub+"."+name, fields
		}
		switch needsTest, ok := criStatus[r.cells[1]]; {
		case !slices.Contains(known, name):
			t.Errorf("line %d: the CRI has no %s", r.line, name)
		case seen[name] != 0:
			t.Errorf("line %d: %s is in line %d too", r.line, name, seen[name])
		case !ok:
			t.Errorf("line %d: %s: unknown status %q", r.line, name, r.cells[1])
		case needsTest && len(codes(r.cells[3])) == 0:
			t.Errorf("line %d: %s is %s, but no test shows it", r.line, name, r.cells[1])
		}
		seen[name] = r.line
		for _, test := range codes(r.cells[3]) {
			if fault := tests.fault(test); fault != "" {
				t.Errorf("line %d: test %s %s", r.line, test, fault)
			}
		}
	}
	for _, name := range slices.Concat(rpcs, fields) {
		if seen[name] == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	if got := windowsOf(t); !slices.Equal(got, windows) {
		t.Errorf("the Windows messages are\n%v, the CRI's are\n%v", got, windows)
	}
}

// criNames are the RPCs, the fields of all messages that they reach as Message.field, and the messages of Windows,
// whose fields are not looked at.
func criNames() (rpcs, fields, windows []string) {
	file := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	seen := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		if strings.HasPrefix(string(m.Name()), "Windows") {
			windows = append(windows, string(m.Name()))
		}
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if !strings.HasPrefix(string(m.Name()), "Windows") {
				fields = append(fields, string(m.Name())+"."+string(f.Name()))
			}
			if f.Message() != nil && !f.IsMap() {
				walk(f.Message())
			}
		}
	}
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for j := range methods.Len() {
			rpcs = append(rpcs, string(methods.Get(j).Name()))
			walk(methods.Get(j).Input())
			walk(methods.Get(j).Output())
		}
	}
	slices.Sort(windows)
	return rpcs, fields, windows
}

// windowsOf are the messages that the page's part about Windows names.
func windowsOf(t *testing.T) (names []string) {
	t.Helper()
	for _, word := range codes(pagePart(t, criPage, "Windows")) {
		if strings.HasPrefix(word, "Windows") {
			names = append(names, word)
		}
	}
	slices.Sort(names)
	return names
}

// The page's last table has each of the fifty behaviours once, and the tests that it names exist.
func TestBehaviours(t *testing.T) {
	const behaviours = 50
	tests := readTests(t)
	next := 1
	for _, r := range tableRows(t, criPage) {
		if r.part != "Behaviours" {
			continue
		}
		if len(r.cells) != 3 || r.cells[0] != strconv.Itoa(next) {
			t.Fatalf("line %d: want behaviour %d in three cells", r.line, next)
		}
		next++
		for _, test := range codes(r.cells[2]) {
			if fault := tests.fault(test); fault != "" {
				t.Errorf("line %d: test %s %s", r.line, test, fault)
			}
		}
	}
	if next != behaviours+1 {
		t.Errorf("%d behaviours, want %d", next-1, behaviours)
	}
}
