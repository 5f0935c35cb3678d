package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// entry is one of a tar: a header and what follows it.
type entry struct {
	tar.Header
	body string
}

// with changes the header.
func (e entry) with(change func(*tar.Header)) entry { change(&e.Header); return e }

func (e entry) mode(m int64) entry   { return e.with(func(h *tar.Header) { h.Mode = m }) }
func (e entry) owner(u, g int) entry { return e.with(func(h *tar.Header) { h.Uid, h.Gid = u, g }) }
func (e entry) time(s, ns int64) entry {
	return e.with(func(h *tar.Header) { h.ModTime = time.Unix(s, ns) })
}
func (e entry) gnu() entry {
	return e.with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, h.ModTime.Truncate(time.Second) })
}
func (e entry) xattr(name, value string) entry {
	return e.with(func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	})
}

func of(kind byte, name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: mode, Format: tar.FormatPAX, ModTime: time.Unix(1.6e9+int64(len(name)), 123456789)}}
}

func dir(name string) entry          { return of(tar.TypeDir, name+"/", 0o755) }
func fifo(name string) entry         { return of(tar.TypeFifo, name, 0o640) }
func whiteout(name string) entry     { return of(tar.TypeReg, name, 0o600) }
func file(name, body string) entry   { e := of(tar.TypeReg, name, 0o644); e.body = body; return e }
func sym(name, target string) entry  { return of(tar.TypeSymlink, name, 0o777).link(target) }
func hard(name, target string) entry { return of(tar.TypeLink, name, 0o644).link(target) }
func (e entry) link(to string) entry { return e.with(func(h *tar.Header) { h.Linkname = to }) }
func (e entry) dev(a, b int64) entry {
	return e.with(func(h *tar.Header) { h.Devmajor, h.Devminor = a, b })
}
func char(n string, a, b int64) entry { return of(tar.TypeChar, n, 0o600).dev(a, b) }
func blk(n string, a, b int64) entry  { return of(tar.TypeBlock, n, 0o660).dev(a, b) }

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		_, err := w.Write([]byte(e.body))
		must(t, err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

// capability is what `setcap cap_net_raw+ep` writes (linux/capability.h, revision 2).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// image is a case: the layers, lowest first.
type image struct {
	name   string
	layers [][]entry
	// unlisted are the directories whose time no layer says.
	unlisted []string
	// noUmoci says why its result is not compared.
	noUmoci string
	// umociTimes are the directories whose time umoci loses.
	umociTimes []string
	// large ones are unpacked from gzip alone.
	large bool
}

// cases are images that together have everything a layer can have. Sparse files, which Go's tar cannot write, and
// real root file systems have tests of their own.
func cases() []image {
	return []image{
		{name: "kinds", layers: [][]entry{kinds()}},
		{name: "names", layers: [][]entry{longNames()}},
		{name: "owners and times", layers: [][]entry{ownersAndTimes()}},
		{name: "whiteouts", layers: whiteouts()},
		{name: "replaced", layers: replaced()},
		{name: "implied directories", unlisted: []string{"new", "new/deep"}, layers: [][]entry{
			{dir("."), dir("tmp").mode(0o1777).time(5, 5), dir("home").owner(7, 8).mode(0o2750).xattr("user.a", "b"), dir("home/u").mode(0o700), dir("gone"), file("gone/x", "")},
			{file("tmp/f", "f"), file("home/u/.profile", "p"), sym("home/u/link", "/tmp"), file("new/deep/file", "x"), whiteout("gone/.wh.x")},
		}},
		{name: "setgid directories", layers: [][]entry{
			{dir(".").mode(0o2755).owner(0, 50), dir("s").mode(0o2775).owner(0, 50), dir("s/d"), file("s/f", "f"), sym("s/l", "f"), fifo("s/p"), char("s/n", 1, 3), file("lower", "x")},
			{file("s/d/f", ""), file("s/g", ""), hard("s/hard", "lower"), dir("t").mode(0o2700).owner(1, 2), hard("t/hard", "lower")},
		}},
		{name: "through a link below", unlisted: []string{"usr/lib/new"}, umociTimes: []string{"usr/lib"}, layers: [][]entry{
			{dir("."), dir("usr"), dir("usr/lib").mode(0o711), file("usr/lib/old", "old"), file("usr/lib/gone", "gone"), sym("lib", "usr/lib"), sym("lib64", "lib"), dir("a"), sym("a/up", "../usr")},
			{file("lib/x", "x"), file("lib/old", "newer"), sym("lib/y", "x"), hard("lib/z", "lib/x")},
			{file("lib64/w", "w"), file("a/up/lib/v", "v"), file("lib/new/file", "n"), whiteout("usr/lib/.wh.gone")},
		}},
		{name: "hard links to layers below", layers: hardLinksBelow()},
		{name: "500 layers", layers: many(500), large: true, noUmoci: "it takes ten seconds for them, and tar tells as much"},
	}
}

func kinds() []entry {
	return []entry{
		dir("."), file("empty", ""), file("file", "content"), file("big", strings.Repeat("0123456789abcdef", 80_000)), dir("empty-dir"),
		file("setuid", "x").mode(0o4755), file("setgid", "x").mode(0o2711), file("none", "x").mode(0), dir("sticky").mode(0o1777), dir("sgid").mode(0o2775),
		hard("same", "file"), dir("d"), hard("d/same", "file"), hard("d/again", "d/same"), hard("setuid2", "setuid"),
		sym("abs", "/file"), sym("rel", "d/same"), sym("dangling", "nowhere/at/all"), sym("loop", "loop"), sym("up", "../../../.."), hard("rel2", "rel"),
		char("null", 1, 3), char("many", 4095, 1048575).mode(0o4666), blk("disk", 7, 200), char("zero-major", 0, 1), fifo("fifo"), hard("fifo2", "fifo"), hard("null2", "null"),
		file("capable", "x").mode(0o755).xattr("security.capability", capability), file("x", "x").xattr("user.one", "1").xattr("user.two", "\x00\xff"),
		file("owned-capable", "x").owner(5, 5).mode(0o4755).xattr("security.capability", capability), dir("xdir").xattr("user.d", "dir"),
		file("file-again", "1"), file("file-again", "second"), dir("d").mode(0o700),
	}
}

func longNames() []entry {
	long := strings.Repeat("n", 255)
	deep := strings.TrimSuffix(strings.Repeat("deep/", 120), "/")
	list := []entry{dir("."), file(long, "long"), sym("link", strings.Repeat("t", 4000)), file("gnu"+long[3:], "g").gnu(), sym("gnulink", strings.Repeat("g", 400)).gnu()}
	for i := range strings.Split(deep, "/") {
		list = append(list, dir(strings.TrimSuffix(strings.Repeat("deep/", i+1), "/")))
	}
	list = append(list, file(deep+"/file", "f"), hard("hard", deep+"/file"))
	for _, name := range []string{"ünïcödé", "日本語", "emoji-\U0001f433", " leading and trailing ", "new\nline", "tab\t", "back\\slash", "quote'\"", "-rf",
		"--option", "*", "$HOME", "...", "a..b", ".hidden", "x.wh.y", "wh.", "\x01\x7f", "~", "{}", "%s", "#", "é" /* combining */} {
		list = append(list, file(name, name))
	}
	return append(list, file("latin1-\xe9", "not UTF-8").gnu(), dir("double"), file("double//slash", ""), file("./dot", "."))
}

func ownersAndTimes() []entry {
	return []entry{
		dir(".").owner(1, 2).mode(0o711), file("nobody", "").owner(65534, 65534), file("above16", "").owner(65536, 70000), file("above21", "").owner(1<<21+1, 1<<31),
		file("most", "").owner(1<<32-2, 0), file("gnu-above21", "").owner(1<<21+7, 1<<30).gnu(), sym("link", "x").owner(70000, 3).time(9, 999999999),
		char("dev", 5, 5).owner(100000, 100001).time(77, 1), dir("dir").owner(1<<22, 1<<22).time(1234567890, 987654321), file("dir/in", "").time(1, 1),
		file("zero", "").time(0, 0), file("ns", "").time(1, 1), file("ms", "").time(1700000000, 120000000), file("before-1970", "").time(-86400, 0),
		file("after-2038", "").time(1<<32, 5), file("gnu-time", "").time(1<<31, 0).gnu(), fifo("fifo").time(3, 3), hard("ns2", "ns"),
	}
}

func whiteouts() [][]entry {
	return [][]entry{
		{dir("."), file("a", "a"), file("b", "b"), dir("d"), file("d/x", "x"), file("d/y", "y"), dir("d/sub"), file("d/sub/z", "z"), dir("opaque"), file("opaque/old", "o"),
			dir("opaque/olddir"), file("opaque/olddir/f", ""), dir("gone"), file("gone/f", ""), sym("s", "a"), char("n", 1, 5), dir("back"), file("back/1", "1"), dir("swap"), file("swap/in", "")},
		{whiteout(".wh.a"), whiteout(".wh.gone"), whiteout(".wh.s"), whiteout(".wh.n"), whiteout(".wh.never-was"), dir("d").mode(0o700), whiteout("d/.wh.x"), whiteout("d/.wh.sub"),
			dir("opaque"), file("opaque/new", "n"), whiteout("opaque/.wh..wh..opq"), whiteout(".wh.back"), whiteout(".wh.swap")},
		{file("a", "a again"), dir("back"), file("back/2", "2"), file("swap", "now a file"), dir("d/sub"), file("d/sub/new", ""), dir("opaque/olddir")},
		{whiteout("back/.wh.2"), whiteout(".wh.a"), dir("gone"), whiteout("gone/.wh..wh..opq")},
	}
}

func replaced() [][]entry {
	return [][]entry{
		{dir("."), dir("dir-file"), file("dir-file/x", ""), dir("dir-link"), file("dir-link/x", ""), dir("dir-fifo"), dir("dir-fifo/deep"), file("dir-fifo/deep/x", ""),
			file("file-dir", ""), sym("link-dir", "target"), dir("target"), file("target/keep", ""), sym("link-file", "target/keep"), fifo("fifo-dir"), char("dev-file", 1, 3),
			file("file-link", ""), dir("dir-dir").mode(0o700), file("dir-dir/keep", "k"), sym("link-link", "a"), dir("twice"), file("twice/x", "")},
		{file("dir-file", "f"), sym("dir-link", "target"), fifo("dir-fifo"), dir("file-dir"), file("file-dir/in", "i"), dir("link-dir"), file("link-dir/in", "i"), file("link-file", "own"),
			dir("fifo-dir"), file("fifo-dir/in", ""), file("dev-file", "d"), sym("file-link", "target"), dir("dir-dir").owner(3, 3).mode(0o755), sym("link-link", "b"), sym("twice", "target")},
		{dir("twice"), file("twice/y", "y"), dir("dir-file"), file("dir-file/z", "z")},
	}
}

func hardLinksBelow() [][]entry {
	return [][]entry{
		{dir("."), dir("bin").mode(0o711), file("bin/tool", "tool").mode(0o4755).owner(9, 9).xattr("user.k", "v"), sym("bin/sh", "tool"), char("null", 1, 3), fifo("pipe"),
			file("capable", "c").xattr("security.capability", capability), dir("other"), sym("alias", "bin"), file("bin/second", "2").time(99, 99)},
		{hard("tool", "bin/tool"), hard("other/sh", "bin/sh"), hard("null2", "null"), hard("pipe2", "pipe"), hard("capable2", "capable"), hard("capable3", "capable")},
		{hard("other/through", "alias/second"), file("bin/new", "n"), hard("bin/new2", "bin/new")},
	}
}

// many are small layers, each of which adds, changes and removes something.
func many(n int) [][]entry {
	layers := [][]entry{{dir("."), dir("d"), file("d/counter", "0"), file("f0", "0")}}
	for i := 1; i < n; i++ {
		l := []entry{file("d/counter", fmt.Sprint(i)), file(fmt.Sprint("f", i), fmt.Sprint(i)), dir(fmt.Sprint("d", i%7)).mode(0o700 + int64(i%8))}
		if i%20 > 0 { // else d is implied
			l = append(l, dir("d"))
		}
		if i%3 == 0 {
			l = append(l, whiteout(fmt.Sprint(".wh.f", i-2)))
		}
		layers = append(layers, l)
	}
	return layers
}
