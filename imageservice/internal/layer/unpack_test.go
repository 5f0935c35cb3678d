package layer

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestUnpack(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name      string
		entries   []entry
		want      []string
		dependent bool
	}{
		{
			name: "files and links",
			entries: []entry{dir("./"), dir("a/"), file("a/f", "x"), hard("a/g", "a/f"), hard("h", "/a/f"),
				sym("s", "/etc/passwd"), hard("t", "s"), {Header: tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}},
				{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}}},
			want: []string{`0644 0:0 a/f "x" links=3`, `0644 0:0 a/g "x" links=3`, `0644 0:0 h "x" links=3`, `0755 0:0 a/`,
				"0:0 s -> /etc/passwd", "0:0 t -> /etc/passwd", "device 1:3 0666 0:0 null", "fifo 0600 0:0 p"},
		},
		{
			name: "owners and modes, setuid after chown",
			entries: []entry{{Header: tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o6755, Uid: 100000, Gid: 70000}},
				{Header: tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}},
				{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "su", Uid: 5, Gid: 6}}},
			want: []string{`6755 100000:70000 su ""`, "1777 0:0 tmp/", "5:6 l -> su"},
		},
		{
			name:    "whiteouts",
			entries: []entry{dir("d/"), file("d/.wh.gone", ""), dir("o/"), file("o/new", "n"), file("o/.wh..wh..opq", ""), file("o/.wh..wh.plnk", "")},
			want:    []string{`0644 0:0 o/new "n"`, "0755 0:0 d/", "0755 0:0 o/ opaque=y", "device 0:0 0000 0:0 d/gone"},
		},
		{
			name: "whiteout of what the layer has, before and after it",
			entries: []entry{file(".wh.f", ""), file("f", "new"), file("g", "new"), file(".wh.g", ""),
				file(".wh.d", ""), dir("d/"), dir("e/"), file(".wh.e", "")},
			want: []string{`0644 0:0 f "new"`, `0644 0:0 g "new"`, "0755 0:0 d/ opaque=y", "0755 0:0 e/ opaque=y"},
		},
		{
			name: "a later entry takes the place of an earlier one",
			entries: []entry{dir("a/"), file("a/f", "1"), file("a/f", "2"), file("a", "file"), sym("s", "a"), dir("s/"), file("s/x", "x"),
				dir("b/"), file("b/y", ""), sym("b", "s"), file("b/z", "z")},
			want: []string{`0644 0:0 a "file"`, `0644 0:0 s/x "x"`, `0644 0:0 s/z "z"`, "0755 0:0 s/ opaque=y", "0:0 b -> s"},
		},
		{
			name: "parents that are links stay beneath the root",
			entries: []entry{dir("usr/"), dir("usr/lib/"), sym("lib", "usr/lib"), file("lib/x", "1"), sym("up", "../../.."), file("up/y", "2"),
				sym("abs", "/usr"), file("abs/lib/z", "3")},
			want: []string{`0644 0:0 usr/lib/x "1"`, `0644 0:0 usr/lib/z "3"`, `0644 0:0 y "2"`, "0755 0:0 usr/", "0755 0:0 usr/lib/",
				"0:0 abs -> /usr", "0:0 lib -> usr/lib", "0:0 up -> ../../.."},
		},
		{
			name:      "implied directory",
			entries:   []entry{file("a/b/f", "x")},
			want:      []string{`0644 0:0 a/b/f "x"`, "0755 0:0 a/", "0755 0:0 a/b/"},
			dependent: true,
		},
		{
			name:    "directory listed after its content",
			entries: []entry{file("a/f", "x"), {Header: tar.Header{Typeflag: tar.TypeDir, Name: "a", Mode: 0o700, Uid: 3}}},
			want:    []string{`0644 0:0 a/f "x"`, "0700 3:0 a/"},
		},
		{
			name:    "implied in an opaque directory",
			entries: []entry{dir("a/"), file("a/.wh..wh..opq", ""), file("a/b/c", "x")},
			want:    []string{`0644 0:0 a/b/c "x"`, "0755 0:0 a/ opaque=y", "0755 0:0 a/b/"},
		},
		{
			name:    "hard link before its target",
			entries: []entry{hard("l", "f"), file("f", "x")},
			want:    []string{`0644 0:0 f "x" links=2`, `0644 0:0 l "x" links=2`}, dependent: true,
		},
		{
			name:    "absolute names and dots",
			entries: []entry{file("/abs", "1"), file("./dot", "2"), dir("x//"), file("x//./y", "3")},
			want:    []string{`0644 0:0 abs "1"`, `0644 0:0 dot "2"`, `0644 0:0 x/y "3"`, "0755 0:0 x/"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			res, err := unpack(t, root, c.entries...)
			check(t, err)
			if res.Dependent() != c.dependent {
				t.Errorf("dependent: %v", res.Dependent())
			}
			if res.Dependent() {
				check(t, res.Complete(t.Context(), openDir(t, root), -1))
			}
			sort.Strings(c.want)
			if d := cmp.Diff(c.want, list(t, root)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	needRoot(t)
	before := openFiles(t)
	defer func() {
		if after := openFiles(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	}()
	header := func(h tar.Header) entry { return entry{Header: h} }
	pax := func(key string) entry {
		return header(tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{key: "y"}})
	}
	deep := strings.Repeat("d/", maxDepth-1)
	for name, entries := range map[string][]entry{
		"name that leaves the root":          {file("../x", "")},
		"name with dots inside":              {file("a/../../x", "")},
		"hard link that leaves the root":     {hard("x", "../../etc/passwd")},
		"hard link to itself":                {file("f", ""), hard("f", "f")},
		"hard link to a directory":           {dir("d/"), hard("l", "d")},
		"hard link to the root":              {hard("l", "/")},
		"hard link to a whiteout":            {file(".wh.f", ""), hard("l", "f")},
		"whiteout of nothing":                {file(".wh.", "")},
		"whiteout of the parent":             {file(".wh...", "")},
		"directory with a whiteout's name":   {file(".wh.d/x", "")},
		"file as a directory":                {file("f", ""), file("f/x", "")},
		"loop of links as a parent":          {sym("a", "b"), sym("b", "a"), file("a/x", "")},
		"link that multiplies":               {sym("a", "b/b"), sym("b", "a/a"), file("a/x", "")},
		"device 0:0":                         {header(tar.Header{Typeflag: tar.TypeChar, Name: "d"})},
		"device number out of range":         {header(tar.Header{Typeflag: tar.TypeBlock, Name: "d", Devmajor: 4096})},
		"owner that means nobody":            {header(tar.Header{Typeflag: tar.TypeReg, Name: "f", Uid: 1<<32 - 1})},
		"overlayfs' own xattr":               {pax("SCHILY.xattr.trusted.overlay.redirect")},
		"overlayfs' own xattr of users":      {pax("SCHILY.xattr.user.overlay.opaque")},
		"unknown type":                       {header(tar.Header{Typeflag: 'Z', Name: "f"})},
		"root that is a file":                {file("./.", "x")},
		"deeper than any path, through link": {dir(deep), sym("s", deep), file("s/x/y/z", "")},
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			root := filepath.Join(outer, "root")
			check(t, os.Mkdir(root, 0o755))
			check(t, os.WriteFile(filepath.Join(outer, "canary"), []byte("c"), 0o644))
			res, err := unpack(t, root, entries...)
			if err == nil {
				t.Fatalf("accepted: %v, %v", res, list(t, root))
			}
			if !errdefs.IsInvalidArgument(err) && !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("kind of %v", err)
			}
			if got, err := os.ReadDir(outer); err != nil || len(got) != 2 {
				t.Errorf("beside the root: %v, %v", got, err)
			}
		})
	}
}

func TestTimesAndXattrs(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	when := time.Date(2020, 2, 3, 4, 5, 6, 789, time.UTC)
	h := func(kind byte, name string) entry {
		return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o755, ModTime: when, Format: tar.FormatPAX, Linkname: map[byte]string{tar.TypeSymlink: "d"}[kind]}}
	}
	f := h(tar.TypeReg, "d/f")
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	f.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": capability,
		"SCHILY.xattr.user.mine":           "v",
		"SCHILY.xattr.security.selinux":    "label of another machine",
	}
	_, err := unpack(t, root, h(tar.TypeDir, "d/"), f, h(tar.TypeSymlink, "d/s"))
	check(t, err)
	for _, name := range []string{"d", "d/f", "d/s"} {
		info, err := os.Lstat(filepath.Join(root, name))
		check(t, err)
		if !info.ModTime().Equal(when) {
			t.Errorf("%s: %v", name, info.ModTime())
		}
	}
	fd := openDir(t, filepath.Join(root, "d"))
	in, err := unix.Openat(fd, "f", unix.O_RDONLY, 0)
	check(t, err)
	defer unix.Close(in)
	got, err := xattrs(in)
	check(t, err)
	sort.Slice(got, func(i, j int) bool { return got[i].name < got[j].name })
	want := []xattr{{"security.capability", capability}, {"user.mine", "v"}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(xattr{})); d != "" {
		t.Error(d)
	}
}

// TestComplete gives a layer the view of a plain directory as what is below.
func TestComplete(t *testing.T) {
	needRoot(t)
	below := []entry{
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o750, Uid: 7, Gid: 8}},
		file("etc/f", "lower"), dir("usr/"), {Header: tar.Header{Typeflag: tar.TypeDir, Name: "usr/lib/", Mode: 0o711}},
		file("usr/lib/old", "o"), sym("lib", "usr/lib"), sym("loop", "loop"), sym("out", "../../../../etc"), sym("ls", "etc/f"),
	}
	for _, c := range []struct {
		name    string
		entries []entry
		want    []string
	}{
		{"implied directory has what is below", []entry{file("etc/new", "n")},
			[]string{`0644 0:0 etc/new "n"`, "0750 7:8 etc/"}},
		{"hard link to a lower file", []entry{dir("x/"), hard("x/l", "etc/f"), hard("x/m", "x/l")},
			[]string{`0644 0:0 etc/f "lower" links=3`, `0644 0:0 x/l "lower" links=3`, `0644 0:0 x/m "lower" links=3`, "0750 7:8 etc/", "0755 0:0 x/"}},
		{"hard link to a lower link", []entry{hard("l", "ls")},
			[]string{"0:0 l -> etc/f", "0:0 ls -> etc/f"}},
		{"implied directory is a link below", []entry{file("lib/new", "n"), file("lib/sub/deep", "d")},
			[]string{`0644 0:0 usr/lib/new "n"`, `0644 0:0 usr/lib/sub/deep "d"`, "0711 0:0 usr/lib/", "0755 0:0 usr/", "0755 0:0 usr/lib/sub/"}},
		{"link below that leads out", []entry{file("out/new", "n")},
			[]string{`0644 0:0 etc/new "n"`, "0750 7:8 etc/"}},
		{"hard link through a link below", []entry{hard("l", "lib/old")},
			[]string{`0644 0:0 l "o" links=2`, `0644 0:0 usr/lib/old "o" links=2`, "0711 0:0 usr/lib/", "0755 0:0 usr/"}},
		{"listed directory hides a link below", []entry{dir("lib/"), file("lib/sub/x", "n")},
			[]string{`0644 0:0 lib/sub/x "n"`, "0755 0:0 lib/", "0755 0:0 lib/sub/"}},
		{"both places of a link below", []entry{file("lib/a", "1"), file("usr/lib/b", "2"), file("lib/b", "3")},
			[]string{`0644 0:0 usr/lib/a "1"`, `0644 0:0 usr/lib/b "2"`, "0711 0:0 usr/lib/", "0755 0:0 usr/"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lower, root := t.TempDir(), t.TempDir()
			_, err := unpack(t, lower, below...)
			check(t, err)
			before := list(t, lower)
			res, err := unpack(t, root, c.entries...)
			check(t, err)
			if !res.Dependent() {
				t.Fatal("not dependent")
			}
			check(t, res.Complete(t.Context(), openDir(t, root), openDir(t, lower)))
			sort.Strings(c.want)
			if d := cmp.Diff(c.want, list(t, root)); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(before, list(t, lower)); d != "" {
				t.Errorf("lower layer changed: %s", d)
			}
		})
	}
	for name, entries := range map[string][]entry{
		"hard link to nothing":            {hard("l", "etc/none")},
		"hard link to a lower directory":  {hard("l", "etc")},
		"hard link below an opaque place": {dir("etc/"), file("etc/.wh..wh..opq", ""), hard("l", "etc/f")},
		"implied directory is a loop":     {file("loop/x", "")},
	} {
		t.Run(name, func(t *testing.T) {
			lower, root := t.TempDir(), t.TempDir()
			_, err := unpack(t, lower, below...)
			check(t, err)
			res, err := unpack(t, root, entries...)
			check(t, err)
			if err := res.Complete(t.Context(), openDir(t, root), openDir(t, lower)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v, %v", err, list(t, root))
			}
		})
	}
}
