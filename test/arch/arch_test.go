package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gantry-cri/gantry"

// policy is the whole of who may import whom: "A < B" means that B may import A. A name ending in /... is the package
// and all below it. Inside one top-level folder everything may import everything that Go's internal folders let it,
// but the packages in pure. Of outside modules those are listed that have one home; the others are free.
const policy = `
	sandbox, sandbox/apparmor, sandbox/cgroup, sandbox/hostwork, sandbox/inroot, sandbox/rollback, sandbox/selinux, sandbox/supervisor, imageservice, cni < runtimeservice
	sandbox/hostpath, sandbox/hostwork, sandbox/supervisor, sandbox/supervisor/... < cmd/gantry-supervisor
	cri, cri/streaming, cri/transfer, runtimeservice, imageservice, sandbox, sandbox/..., cni < cmd/gantry
	cmd/gantry/config < cmd/gantry
	runtimeservice/ocispec < cmd/gantry/config
	cmd/..., cri/..., runtimeservice/..., imageservice/..., sandbox/..., cni/... < test/...

	google.golang.org/grpc/... < cri/..., test/...
	k8s.io/cri-api/... < cri/..., runtimeservice/..., imageservice/..., cmd/gantry, test/...
	github.com/moby/spdystream/... < cri/streaming
	github.com/gorilla/websocket < cri/streaming, test/e2e
	github.com/containernetworking/cni/... < cni/...
	github.com/containerd/containerd/v2/... < imageservice/...
	github.com/google/go-containerregistry/... < imageservice/internal/registry, test/...
	github.com/google/nftables/... < cni/..., test/harness
	github.com/vishvananda/netlink/... < cni/..., sandbox/..., test/harness, test/audit
	github.com/opencontainers/selinux/... < sandbox/selinux
	go.etcd.io/bbolt < imageservice/...
	github.com/pelletier/go-toml/v2 < cmd/gantry/config, imageservice/...
`

// pure packages do no IO, do not log and import nothing of ours: they are tables and functions.
var pure = []string{"runtimeservice/lifecycle", "runtimeservice/ocispec"}

// tools are packages of test/ that import nothing of ours: any test may use them. hostile makes what readers are fed
// with, killpoint kills processes, disk makes file systems.
var tools = []string{"test/disk", "test/hostile", "test/killpoint"}

// banned in pure packages.
var impure = []string{"os/exec", "net", "net/http", "golang.org/x/sys/unix", "k8s.io/klog/v2"}

// pkg is the part of go list's answer that is looked at.
type pkg struct {
	ImportPath, Name, Dir              string
	GoFiles, CgoFiles                  []string
	Imports, TestImports, XTestImports []string
	Module                             *struct{ Path string }
}

// name is the path below the module.
func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

func (p pkg) ours() bool { return strings.HasPrefix(p.ImportPath, module+"/") }

// list returns every package of the repository and everything that they and their tests import.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-test",
		"-json=ImportPath,Name,Dir,GoFiles,CgoFiles,Imports,TestImports,XTestImports,Module", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(p.ImportPath, " [") && !strings.HasSuffix(p.ImportPath, ".test") { // variants for testing
			all = append(all, p)
		}
	}
}

// covers says whether a name of the policy stands for a package.
func covers(pattern, name string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == tree || strings.HasPrefix(name, tree+"/")
	}
	return name == pattern
}

// edge is a line of the policy.
type edge struct{ imported, importers []string }

func readPolicy(t *testing.T, text string) []edge {
	t.Helper()
	var edges []edge
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		left, right, ok := strings.Cut(line, " < ")
		if !ok {
			t.Fatalf("policy: no < in %q", line)
		}
		edges = append(edges, edge{strings.Split(left, ", "), strings.Split(right, ", ")})
	}
	return edges
}

func anyCovers(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, name) })
}

// allowed decides one import. listed says whether the policy speaks of the imported package at all.
func allowed(edges []edge, importer, imported string) (ok, listed bool) {
	for _, e := range edges {
		if anyCovers(e.imported, imported) {
			listed = true
			ok = ok || anyCovers(e.importers, importer)
		}
	}
	return ok, listed
}

func topFolder(name string) string {
	top, _, _ := strings.Cut(name, "/")
	return top
}

func TestImportPolicy(t *testing.T) {
	edges := readPolicy(t, policy)
	for _, p := range list(t) {
		if !p.ours() {
			continue
		}
		for _, imp := range p.Imports {
			name, ours := strings.CutPrefix(imp, module+"/")
			sibling := ours && topFolder(name) == topFolder(p.name()) && topFolder(name) != "cmd"
			ok, listed := allowed(edges, p.name(), name)
			switch {
			case slices.Contains(pure, p.name()) && (ours || slices.Contains(impure, imp)):
				t.Errorf("%s is pure and imports %s", p.name(), imp)
			case ours && !ok && !sibling, !ours && listed && !ok:
				t.Errorf("%s may not import %s (see policy in this file)", p.name(), imp)
			}
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			if name, ours := strings.CutPrefix(imp, module+"/"); ours && topFolder(name) == "test" && topFolder(p.name()) != "test" && !slices.Contains(tools, name) {
				t.Errorf("%s's tests import %s: only test/ imports test/, but for %v", p.name(), imp, tools)
			}
		}
	}
}

// The modules that the repository imports directly, tests included, are a reviewed list.
func TestDirectDependencies(t *testing.T) {
	all := list(t)
	home := map[string]string{} // package -> module
	for _, p := range all {
		if p.Module != nil {
			home[p.ImportPath] = p.Module.Path
		}
	}
	var got []string
	for _, p := range all {
		if !p.ours() {
			continue
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if m := home[imp]; m != "" && m != module {
				got = append(got, m)
			}
		}
	}
	slices.Sort(got)
	got = slices.Compact(got)
	body, err := os.ReadFile("testdata/dependencies.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(body))
	for _, m := range got {
		if !slices.Contains(want, m) {
			t.Errorf("new direct dependency %s: if it is worth it, add it to testdata/dependencies.txt", m)
		}
	}
	for _, m := range want {
		if !slices.Contains(got, m) {
			t.Errorf("%s is not imported any more: take it out of testdata/dependencies.txt", m)
		}
	}
}

func TestNoReplacements(t *testing.T) {
	for _, file := range []string{"../../go.mod", "../../hack/tools/go.mod"} {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(body)) {
			if strings.HasPrefix(strings.TrimSpace(line), "replace") {
				t.Errorf("%s: %s (others could not depend on it as it is)", file, strings.TrimSpace(line))
			}
		}
	}
}

// Every package has one package comment, in doc.go; a program and a package of one file may have it there.
func TestPackageComments(t *testing.T) {
	for _, p := range list(t) {
		if !p.ours() {
			continue
		}
		var with []string
		for _, file := range slices.Concat(p.GoFiles, p.CgoFiles) {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if isComment(f.Doc) {
				with = append(with, file)
			}
		}
		if len(with) != 1 || (with[0] != "doc.go" && p.Name != "main" && len(p.GoFiles) > 1) {
			t.Errorf("%s: package comment in %v, want it in doc.go alone", p.name(), with)
		}
	}
}

func isComment(doc *ast.CommentGroup) bool { return doc != nil && strings.TrimSpace(doc.Text()) != "" }

// Long files are not wrong, but worth a look: what is the thing really?
func TestFileSizes(t *testing.T) {
	for _, p := range list(t) {
		if !p.ours() {
			continue
		}
		files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(body), "\n"); n > 600 && !strings.HasSuffix(file, "_test.go") {
				t.Logf("warning: %s has %d lines", path.Join(p.name(), filepath.Base(file)), n)
			}
		}
	}
}

func TestPolicyLanguage(t *testing.T) {
	edges := readPolicy(t, "a, b/... < c\nx < y/...\n")
	for _, row := range []struct {
		importer, imported string
		ok, listed         bool
	}{{"c", "a", true, true}, {"c", "b", true, true}, {"c", "b/d", true, true}, {"c", "a/d", false, false}, {"d", "a", false, true}, {"y/z", "x", true, true}, {"c", "bb", false, false}} {
		if ok, listed := allowed(edges, row.importer, row.imported); ok != row.ok || listed != row.listed {
			t.Errorf("%s imports %s: %v, %v", row.importer, row.imported, ok, listed)
		}
	}
}
