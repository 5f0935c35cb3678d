package layer

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
	"github.com/gantry-cri/gantry/test/hostile"
)

var update = flag.Bool("update", false, "write testdata/hostile.golden anew; understand every diff")

// place is a root directory with a canary beside it, which must be the same at the end.
type place struct {
	outer, root string
}

func newPlace(t testing.TB) place {
	t.Helper()
	p := place{outer: t.TempDir()}
	check(t, hostile.Canary(filepath.Join(p.outer, "canary")))
	p.watch(t)
	return p
}

// watch makes the root directory for a test and looks at everything else at its end.
func (p *place) watch(t testing.TB) {
	t.Helper()
	p.root = filepath.Join(p.outer, "root")
	check(t, os.Mkdir(p.root, 0o755))
	canary := filepath.Join(p.outer, "canary")
	before, err := hostile.Snapshot(canary)
	check(t, err)
	fds := openFiles(t)
	t.Cleanup(func() {
		after, err := hostile.Snapshot(canary)
		check(t, err)
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("canary changed: %s", d)
		}
		if n := openFiles(t); n != fds {
			t.Errorf("%d descriptors before, %d after", fds, n)
		}
		got, err := os.ReadDir(p.outer)
		check(t, err)
		for _, e := range got {
			if n := e.Name(); n == "root" || strings.HasPrefix(n, "below-") {
				check(t, os.RemoveAll(filepath.Join(p.outer, n)))
			} else if n != "canary" {
				t.Errorf("beside the root: %s", n)
			}
		}
	})
}

// layers unpacks tars on top of each other as the service does and returns the directories, the lowest first.
func (p place) layers(t testing.TB, limits Limits, below [][]byte, top []byte) ([]string, error) {
	t.Helper()
	var dirs []string
	for i, body := range append(below[:len(below):len(below)], top) {
		dir := p.root
		if i < len(below) {
			dir = filepath.Join(p.outer, fmt.Sprintf("below-%d", i))
			check(t, os.Mkdir(dir, 0o755))
		}
		if err := p.layer(t, limits, dirs, dir, body); err != nil {
			return dirs, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

func (p place) layer(t testing.TB, limits Limits, below []string, dir string, body []byte) error {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	res, err := Unpack(t.Context(), source(body, body), fd, limits)
	if err != nil || !res.Dependent() {
		return err
	}
	view := -1
	if len(below) > 0 {
		var upmost []string
		for i := range below {
			upmost = append(upmost, below[len(below)-1-i])
		}
		empty, scratch := t.TempDir(), t.TempDir()
		view, err = new(overlay.Mounter).View(append(upmost, empty), scratch)
		check(t, err)
		defer unix.Close(view)
	}
	return res.Complete(t.Context(), fd, view)
}

func TestSecurity(t *testing.T) {
	needRoot(t)
	golden := readGolden(t)
	seen := map[string]string{}
	p := newPlace(t)
	check(t, os.Remove(p.root))
	for _, c := range hostile.Cases(filepath.Join(p.outer, "canary/file")) {
		t.Run(c.ID, func(t *testing.T) {
			p.watch(t)
			dirs, err := p.layers(t, Limits{}, c.Below, c.Layer)
			if c.Refused {
				refusal(t, err, p.root)
				return
			}
			check(t, err)
			got := p.describe(t, dirs[len(dirs)-1])
			if seen[c.ID] = got; !*update && got != golden[c.ID] {
				t.Error(cmp.Diff(golden[c.ID], got))
			}
		})
	}
	if *update {
		writeGolden(t, seen)
	}
}

// The layers below an image's hostile one belong to others too.
func TestSecurityLowerLayersUnchanged(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	check(t, os.Remove(p.root))
	for _, c := range hostile.Cases(filepath.Join(p.outer, "canary/file")) {
		if len(c.Below) == 0 {
			continue
		}
		t.Run(c.ID, func(t *testing.T) {
			p.watch(t)
			last := len(c.Below) - 1
			dirs, err := p.layers(t, Limits{}, c.Below[:last], c.Below[last])
			check(t, err)
			before := snapshots(t, dirs)
			top := filepath.Join(p.outer, "below-top")
			check(t, os.Mkdir(top, 0o755))
			_ = p.layer(t, Limits{}, dirs, top, c.Layer) // may fail
			if d := cmp.Diff(before, snapshots(t, dirs)); d != "" {
				t.Error(d)
			}
		})
	}
}

func snapshots(t *testing.T, dirs []string) (list []string) {
	for _, dir := range dirs {
		s, err := hostile.Snapshot(dir)
		check(t, err)
		list = append(list, s)
	}
	return list
}

// refusal demands an error that says what kind it is and harms no log.
func refusal(t *testing.T, err error, root string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted: %v", list(t, root))
	}
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("kind of: %v", err)
	}
	if len(err.Error()) > 2000 || strings.ContainsFunc(err.Error(), unicode.IsControl) {
		t.Errorf("unfit for a log: %q", err)
	}
}

// describe lists a layer. The canary's own path in it, which is another each time, is shortened.
func (p place) describe(t *testing.T, dir string) string {
	t.Helper()
	canary := strings.TrimPrefix(p.outer, "/") + "/canary"
	var lines []string
	for _, line := range list(t, dir) {
		name := strings.TrimSuffix(line[strings.LastIndex(line, " ")+1:], "/")
		if strings.HasPrefix(canary, name+"/") && strings.HasSuffix(line, "/") {
			continue // on the way
		}
		if len(line) > 200 {
			line = fmt.Sprintf("%s… (%d bytes)", line[:100], len(line))
		}
		lines = append(lines, strings.ReplaceAll(line, canary, "CANARY"))
	}
	return strings.Join(lines, "\n")
}

const goldenFile = "testdata/hostile.golden"

func readGolden(t *testing.T) map[string]string {
	body, err := os.ReadFile(goldenFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	golden := map[string]string{}
	for _, block := range strings.Split(string(body), "== ")[min(1, len(body)):] {
		id, text, _ := strings.Cut(block, "\n")
		golden[id] = strings.TrimSuffix(text, "\n")
	}
	return golden
}

func writeGolden(t *testing.T, seen map[string]string) {
	var b strings.Builder
	for _, c := range hostile.Cases("/canary/file") {
		if text, ok := seen[c.ID]; ok {
			fmt.Fprintf(&b, "== %s\n%s\n", c.ID, text)
		}
	}
	check(t, os.WriteFile(goldenFile, []byte(b.String()), 0o644))
}
