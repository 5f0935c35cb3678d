package hostile

import (
	"archive/tar"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Case is an image of few layers of which the last is hostile.
type Case struct {
	ID string // section of SECURITY.md and the case's name, or the published id
	// Below are the tars of the layers below, the lowest first.
	Below [][]byte
	Layer []byte // the tar
	// Refused: no image comes of it. Else it becomes one, and harms nobody.
	Refused bool
}

// Cases lists the layers whose danger is in what they say. probe is a file of a Canary, as the layer's victim would
// name it.
func Cases(probe string) []Case {
	return slices.Concat(names(probe), symlinks(probe), hardlinks(probe), devices(), modes(), duplicates(), whiteouts(),
		attributes(), headers(), published(probe))
}

func refused(id string, entries ...Entry) Case {
	return Case{ID: id, Layer: Tar(entries...), Refused: true}
}

func contained(id string, entries ...Entry) Case {
	return Case{ID: id, Layer: Tar(entries...)}
}

func (c Case) over(below ...[]Entry) Case {
	for _, entries := range below {
		c.Below = append(c.Below, Tar(entries...))
	}
	return c
}

func names(probe string) []Case {
	long := strings.Repeat("n", 255)
	return []Case{
		contained("2.1-name-absolute", File(probe, "x"), File("/abs", "x")),
		refused("2.1-name-dotdot", File("../canary/file", "x")),
		refused("2.1-name-dotdot-many", File("../../../../../../../../../../.."+probe, "x")),
		refused("2.1-name-dotdot-inside", Dir("a"), File("a/../../canary/file", "x")),
		refused("2.1-name-dotdot-end", Dir("a/..")),
		refused("2.1-name-dotdot-directory", Dir("../canary").As(0o777, 7, 7)),
		contained("2.1-name-dot", Dir("./"), File("./f", "x"), File("././g", "x")),
		contained("2.1-name-empty-directory", Raw(Header{Kind: '5'}, "")),
		refused("2.1-name-empty-file", Raw(Header{Kind: '0'}, "x")),
		contained("2.1-name-double-slash", File("//x", "x"), Dir("a//"), File("a//b", "x")),
		contained("2.1-name-file-with-slash", Raw(Header{Name: "f/", Kind: '0'}, "x")),
		refused("2.1-name-nul", PAX('x', Record{"path", "a\x00b"}), File("f", "x")),
		contained("2.1-name-255-bytes", File(long, "x")),
		refused("2.1-name-256-bytes", File(long+"n", "x")),
		refused("2.1-name-4097-bytes", File(strings.Repeat("d/", 2048)+"f", "x")),
		refused("2.1-name-deep-through-links", Dir(strings.Repeat("d/", 2047)), Sym("s", strings.Repeat("d/", 2047)), File("s/a/b/c", "x")),
		contained("2.1-name-backslash", File(`a\..\b`, "x")),
		contained("2.1-name-control-bytes", File("new\nline \x1b[31m", "x")),
		refused("2.1-name-control-bytes-in-errors", File("../new\nline \x1b[31m\x07", "x")),
		contained("2.1-name-invalid-utf8", Raw(Header{Name: "\xff\xfe\xc3(", Kind: '0'}, "x")),
		contained("2.1-name-pax-over-ustar", PAX('x', Record{"path", "safe"}), Raw(Header{Name: "../canary/file", Kind: '0'}, "x")),
		refused("2.1-name-ustar-under-pax", PAX('x', Record{"path", "../canary/file"}), Raw(Header{Name: "safe", Kind: '0'}, "x")),
		refused("2.1-name-gnu-over-pax", PAX('x', Record{"path", "safe"}), Raw(Header{Name: "././@LongLink", Kind: 'L', GNU: true}, "../canary/file\x00"),
			Raw(Header{Name: "safe", Kind: '0', GNU: true}, "x")),
		refused("2.1-name-gnu-long-1MiB", Raw(Header{Name: "././@LongLink", Kind: 'L', GNU: true}, strings.Repeat("n", 1<<20+1)), File("f", "x")),
		refused("2.1-name-gnu-sparse", Sparse("1.0", "../canary/file", 4096, "data")),
	}
}

func symlinks(probe string) []Case {
	canary := path.Dir(probe)
	chain := func(n int) (list []Entry) {
		list = append(list, Dir("l0"))
		for i := range n {
			list = append(list, Sym(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d", i)))
		}
		return append(list, File(fmt.Sprintf("l%d/f", n), "x"))
	}
	return []Case{
		contained("2.1-symlink-absolute", Sym("s", canary), File("s/file", "x")),
		contained("2.1-symlink-absolute-in-directory", Dir("d"), Sym("d/s", canary), File("d/s/file", "x")),
		contained("2.1-symlink-relative", Sym("s", "../canary"), File("s/file", "x")),
		contained("2.1-symlink-relative-in-directory", Dir("d"), Sym("d/s", "../../canary"), File("d/s/file", "x")),
		contained("2.1-symlink-chain-40", chain(40)...),
		refused("2.1-symlink-chain-256", chain(256)...),
		refused("2.1-symlink-loop", Sym("a", "b"), Sym("b", "a"), File("a/f", "x")),
		refused("2.1-symlink-loop-of-one", Sym("a", "a"), Dir("a/d")),
		refused("2.1-symlink-multiplies", Sym("a", "b/b/b/b"), Sym("b", "c/c/c/c"), Sym("c", "a/a/a/a"), File("a/f", "x")),
		contained("2.1-symlink-dangling", Sym("s", "no/where"), File("s/f", "x")),
		refused("2.1-symlink-target-4096-bytes", PAX('x', Record{"linkpath", strings.Repeat("t", 4096)}), Sym("s", "t")),
		refused("2.1-symlink-target-empty", Sym("s", "")),
		contained("2.1-symlink-parent-of-directory", Sym("s", canary), Dir("s/sub").As(0o777, 7, 7)),
		contained("2.1-symlink-parent-of-whiteout", Sym("s", canary), File("s/.wh.file", "")),
		contained("2.1-symlink-parent-of-opaque", Sym("s", canary), File("s/.wh..wh..opq", "")),
		refused("2.1-symlink-parent-of-hardlink-target", Sym("s", canary), Hard("h", "s/file")),
		contained("2.1-symlink-parent-of-device", Sym("s", canary), Device("s/null", tar.TypeChar, 1, 3)),
		contained("2.1-symlink-parent-of-symlink", Sym("s", canary), Sym("s/link", "x")),
		contained("2.1-symlink-parent-lower", File("s/file", "x")).over([]Entry{Sym("s", canary)}),
		contained("2.1-symlink-parent-lower-relative", File("d/s/file", "x")).over([]Entry{Dir("d"), Sym("d/s", "../../../../canary")}),
		contained("2.1-symlink-parent-lower-absolute", File("d/s/file", "x")).over([]Entry{Dir("d"), Sym("d/s", canary)}),
		contained("2.1-symlink-parent-lower-whiteout", File("s/.wh.file", "")).over([]Entry{Sym("s", canary)}),
		contained("2.1-symlink-parent-lower-chain", File("a/file", "x")).over([]Entry{Sym("a", "b"), Sym("c", canary)}, []Entry{Sym("b", "c")}),
		refused("2.1-symlink-parent-lower-loop", File("a/file", "x")).over([]Entry{Sym("a", "b"), Sym("b", "a")}),
		refused("2.1-symlink-parent-lower-itself", File("a/b/file", "x")).over([]Entry{Sym("a", ".gantry-moved-0/b")}),
		refused("2.1-symlink-parent-lower-hardlink-target", Hard("h", "s/file")).over([]Entry{Sym("s", canary)}),
		contained("2.1-symlink-over-directory", Dir("d"), File("d/a", "x"), Sym("d", canary), File("d/file", "x")),
		contained("2.1-directory-over-symlink", Sym("s", canary), Dir("s").As(0o777, 7, 7), File("s/file", "x")),
		contained("2.1-directory-over-symlink-to-file", Sym("s", probe), Dir("s").As(0o777, 7, 7)),
		contained("2.1-directory-over-lower-symlink", Dir("s").As(0o777, 7, 7), File("s/file", "x")).over([]Entry{Sym("s", canary)}),
		contained("2.1-file-over-symlink", Sym("s", probe), File("s", "x").As(0o777, 7, 7)),
		contained("2.1-xattr-over-symlink", Sym("s", probe), File("s", "x").Xattr("user.a", "b")),
	}
}

func hardlinks(probe string) []Case {
	lower := []Entry{Dir("d"), File("d/file", "lower").As(0o4755, 7, 7), Sym("link", probe), Device("null", tar.TypeChar, 1, 3), Fifo("fifo")}
	return []Case{
		refused("2.1-hardlink-absolute", Hard("h", probe)),
		contained("2.1-hardlink-passwd-replaced", Hard("h", "/etc/passwd"), File("h", "x")),
		refused("2.1-hardlink-relative", Hard("h", "../canary/file")),
		contained("2.1-hardlink-to-symlink", Sym("s", probe), Hard("h", "s"), File("h", "x").As(0o777, 7, 7)),
		contained("2.1-hardlink-to-symlink-kept", Sym("s", path.Dir(probe)), Hard("h", "s"), File("h/file", "x")),
		contained("2.1-hardlink-before-target", Hard("h", "f"), File("f", "x")),
		refused("2.1-hardlink-to-nothing", Hard("h", "f")),
		refused("2.1-hardlink-to-itself", File("f", "x"), Hard("f", "f")),
		refused("2.1-hardlink-to-itself-alone", Hard("f", "f")),
		refused("2.1-hardlink-over-its-directory", Dir("d"), File("d/f", "x"), Hard("d", "d/f")),
		refused("2.1-hardlink-to-directory", Dir("d"), Hard("h", "d")),
		refused("2.1-hardlink-to-root", Hard("h", "/")),
		refused("2.1-hardlink-to-whiteout", File(".wh.f", ""), Hard("h", "f")),
		contained("2.1-hardlink-to-device", Device("null", tar.TypeChar, 1, 3), Hard("h", "null")),
		contained("2.1-hardlink-to-fifo", Fifo("p"), Hard("h", "p")),
		contained("2.1-hardlink-lower", Hard("h", "d/file"), Hard("i", "h")).over(lower),
		contained("2.1-hardlink-lower-symlink", Hard("h", "link"), File("h", "x")).over(lower),
		contained("2.1-hardlink-lower-device", Hard("h", "null"), Hard("i", "fifo")).over(lower),
		refused("2.1-hardlink-lower-directory", Hard("h", "d")).over(lower),
		refused("2.1-hardlink-lower-removed", File("d/.wh.file", ""), Hard("h", "d/file")).over(lower),
		refused("2.1-hardlink-lower-removed-before", Hard("h", "d/file")).over(lower, []Entry{File("d/.wh.file", "")}),
		refused("2.1-hardlink-lower-under-opaque", Dir("d"), File("d/.wh..wh..opq", ""), Hard("h", "d/file")).over(lower),
	}
}

func devices() []Case {
	return []Case{
		contained("2.1-device-of-the-host", Device("sda", tar.TypeBlock, 8, 0), Device("mem", tar.TypeChar, 1, 1)),
		contained("2.1-device-replaced-not-opened", Device("d", tar.TypeChar, 1, 3), Fifo("p"), File("d", "x"), File("p", "x")),
		refused("2.1-device-fifo-as-parent", Fifo("p"), File("p/x", "x")),
		refused("2.1-device-major-out-of-range", Device("d", tar.TypeBlock, 1<<12, 0)),
		refused("2.1-device-minor-out-of-range", Device("d", tar.TypeChar, 1, 1<<20)),
		refused("2.1-device-negative", Raw(Header{Name: "d", Kind: '3', GNU: true, Major: "\xff\xff\xff\xff\xff\xff\xff\xff"}, "")),
		refused("2.1-device-0-0", Device("d", tar.TypeChar, 0, 0)),
		refused("2.1-device-socket", Raw(Header{Name: "s", Kind: 's'}, "")),
		refused("2.1-device-contiguous-file", Raw(Header{Name: "s", Kind: '7'}, "x")),
	}
}

func modes() []Case {
	named := File("f", "x").As(0o644, 1000, 1001)
	named.Uname, named.Gname = "root", "root"
	return []Case{
		contained("2.1-mode-setuid-after-chown", File("f", "x").As(0o6755, 100, 100), Dir("d").As(0o3777, 100, 100)),
		contained("2.1-mode-above-07777", File("f", "x").As(0o107755, 0, 0)),
		contained("2.1-mode-0000-directory", Dir("d").As(0, 0, 0), Dir("d/e").As(0, 5, 5), File("d/e/f", "x").As(0, 5, 5)),
		contained("2.1-mode-root-writable", Dir("./").As(0o777, 7, 7)),
		refused("2.1-owner-nobody", File("f", "x").As(0o644, 1<<32-1, 0)),
		contained("2.1-owner-huge", File("f", "x").As(0o644, 1<<32-2, 65534)),
		refused("2.1-owner-beyond", PAX('x', Record{"uid", "4294967296"}), File("f", "x")),
		refused("2.1-owner-negative", Raw(Header{Name: "f", Kind: '0', GNU: true, UID: "\xff\xff\xff\xff\xff\xff\xff\xff"}, "x")),
		contained("2.1-owner-names-ignored", named),
		contained("2.1-time-year-0", at(time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC))),
		contained("2.1-time-2500", at(time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC))),
		contained("2.1-time-without-end", PAX('x', Record{"mtime", "9223372036854775807.999999999"}), File("f", "x")),
		contained("2.1-time-negative", PAX('x', Record{"mtime", "-1.5"}), File("f", "x")),
		refused("2.1-time-nonsense", PAX('x', Record{"mtime", "1.x"}), File("f", "x")),
	}
}

func at(t time.Time) Entry {
	e := File("f", "x")
	e.ModTime, e.Format = t, tar.FormatPAX
	return e
}

func duplicates() []Case {
	return []Case{
		contained("2.1-duplicate-all-types", File("x", "1"), Dir("x"), File("x/y", "1"), Sym("x", "/tmp"), Fifo("x"), Device("x", tar.TypeChar, 1, 3), File("x", "2")),
		contained("2.1-duplicate-directory-file-directory", Dir("d"), File("d/1", "x"), File("d", "x"), Dir("d"), File("d/2", "x")),
		contained("2.1-duplicate-case-variants", File("Readme", "1"), File("README", "2"), Dir("D"), File("d", "x")),
		refused("2.1-duplicate-child-of-what-became-a-file", Dir("d"), File("d/a", "x"), File("d", "x"), File("d/b", "x")),
		contained("2.1-duplicate-entry-before-parent", File("a/b/f", "x"), Dir("a/b").As(0o700, 7, 7), Dir("a").As(0o711, 0, 0)),
		contained("2.1-duplicate-whiteout-then-file", File(".wh.f", ""), File("f", "new")).over([]Entry{File("f", "old")}),
		contained("2.1-duplicate-file-then-whiteout", File("f", "new"), File(".wh.f", "")).over([]Entry{File("f", "old")}),
		contained("2.1-duplicate-whiteout-then-directory", File(".wh.d", ""), Dir("d"), File("d/new", "x")).over([]Entry{Dir("d"), File("d/old", "x")}),
	}
}

func whiteouts() []Case {
	below := []Entry{Dir("d"), File("d/old", "x"), Sym("s", "d"), File("f", "x")}
	return []Case{
		refused("2.1-whiteout-of-nothing", File(".wh.", "")),
		refused("2.1-whiteout-of-dot", File(".wh..", "")),
		refused("2.1-whiteout-of-dotdot", Dir("d"), File("d/.wh...", "")),
		refused("2.1-whiteout-as-directory", File(".wh./x", "")),
		refused("2.1-whiteout-named-directory", Dir(".wh.x"), File(".wh.x/f", "")),
		refused("2.1-whiteout-of-whiteout", File(".wh..wh.", "")).relaxed(),
		contained("2.1-whiteout-meta", File(".wh..wh.foo", "x"), Dir(".wh..wh.plnk"), File(".wh..wh.plnk/1", "x")),
		contained("2.1-whiteout-of-symlink", File(".wh.s", "")).over(below),
		contained("2.1-whiteout-under-symlink", Sym("t", "d"), File("t/.wh.old", "")).over(below),
		contained("2.1-whiteout-of-own-only", File("mine", "x"), File(".wh.mine", "")),
		contained("2.1-whiteout-with-data", File(".wh.f", "data"), File("g", "x")).over(below),
		contained("2.1-opaque-after-content", Dir("d"), File("d/new", "x"), File("d/.wh..wh..opq", "")).over(below),
		contained("2.1-opaque-root", File("new", "x"), File(".wh..wh..opq", "")).over(below),
		refused("2.1-opaque-under-file", File("f", "x"), File("f/.wh..wh..opq", "")),
		contained("2.1-opaque-as-directory", Dir("d"), Dir("d/.wh..wh..opq")).over(below),
	}
}

// relaxed is for what is neither an attack nor of any use.
func (c Case) relaxed() Case {
	c.Refused = false
	return c
}

func attributes() []Case {
	var list []Case
	for _, name := range []string{"trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.origin", "user.overlay.opaque", "user.overlay.redirect"} {
		list = append(list, refused("2.1-xattr-"+name, Dir("d").Xattr(name, "y")), refused("2.1-xattr-on-file-"+name, File("f", "x").Xattr(name, "y")))
	}
	for _, name := range []string{"system.posix_acl_access", "security.selinux", "security.ima", "security.evm", "noname", ".x", "system.x"} {
		list = append(list, contained("2.1-xattr-dropped-"+name, File("f", "x").Xattr(name, "y")))
	}
	many := File("f", "x")
	many.PAXRecords = map[string]string{}
	for i := range 10_000 {
		many.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.%d", i)] = "v"
	}
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return append(list,
		contained("2.1-xattr-capability", File("f", "x").As(0o755, 7, 7).Xattr("security.capability", capability)),
		refused("2.1-xattr-capability-malformed", File("f", "x").Xattr("security.capability", "y")),
		contained("2.1-xattr-capability-on-directory", Dir("d").Xattr("security.capability", capability)),
		refused("2.1-xattr-64KiB", File("f", "x").Xattr("user.a", strings.Repeat("v", 64<<10))),
		refused("2.1-xattr-many", many),
		refused("2.1-xattr-name-256-bytes", File("f", "x").Xattr("user."+strings.Repeat("n", 256), "v")),
		contained("2.1-xattr-on-symlink", Sym("s", "f").Xattr("user.a", "v").Xattr("security.capability", capability)),
		contained("2.1-xattr-libarchive", PAX('x', Record{"LIBARCHIVE.xattr.trusted.overlay.opaque", "eQ"}), Dir("d")),
	)
}

func headers() []Case {
	return []Case{
		contained("2.1-pax-global", PAX('g', Record{"path", "../canary/file"}, Record{"size", "0"}, Record{"uid", "7"}, Record{"linkpath", "/x"}), File("f", "x"), Sym("s", "f")),
		refused("2.1-pax-size-larger", PAX('x', Record{"size", "100000"}), File("f", "x")),
		refused("2.1-pax-size-smaller", PAX('x', Record{"size", "0"}), File("f", "x")),
		refused("2.1-pax-size-negative", PAX('x', Record{"size", "-1"}), File("f", "x")),
		refused("2.1-size-negative", Raw(Header{Name: "f", Kind: '0', GNU: true, Size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}, "x")),
		refused("2.1-size-huge", Raw(Header{Name: "f", Kind: '0', GNU: true, Size: "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"}, "x")),
		contained("2.1-pax-vendor", PAX('x', Record{"VENDOR.thing", "../x"}, Record{"hdrcharset", "BINARY"}, Record{"charset", "x"}), File("f", "x")),
		refused("2.1-pax-bad-length", Raw(Header{Name: "pax", Kind: 'x'}, "99 path=x\n"), File("f", "x")),
		refused("2.1-pax-larger-than-1MiB", PAX('x', Record{"comment", strings.Repeat("c", 1<<20)}), File("f", "x")),
		refused("2.1-bad-checksum", Raw(Header{Name: "f", Kind: '0', BadSum: true}, "x")),
		refused("2.1-not-a-tar", Entry{Raw: []byte(strings.Repeat("\xfd7zXZ\x00 not a tar ", 100))}),
		{ID: "2.1-missing-end", Layer: Open(File("f", "x"))},
		{ID: "2.1-cut-in-content", Layer: Open(File("f", strings.Repeat("x", 1000)))[:1000], Refused: true},
		{ID: "2.1-cut-in-header", Layer: Open(File("f", "x"))[:300], Refused: true},
		{ID: "2.1-garbage-after-end", Layer: append(Tar(File("f", "x")), Tar(File("../canary/file", "x"))...)},
		{ID: "2.1-empty"},
		contained("1g-sparse-old", Sparse("old", "f", 1<<30, "data")),
		contained("1g-sparse-0.1", Sparse("0.1", "f", 1<<30, "data")),
		contained("1g-sparse-1.0", Sparse("1.0", "f", 1<<30, "data")),
		refused("2.1-sparse-1TiB-old", Sparse("old", "f", 1<<40, "data")),
		refused("2.1-sparse-1TiB-0.1", Sparse("0.1", "f", 1<<40, "data")),
		refused("2.1-sparse-1TiB-1.0", Sparse("1.0", "f", 1<<40, "data")),
		refused("1g-sparse-map-1.0", PAX('x', Record{"GNU.sparse.major", "1"}, Record{"GNU.sparse.minor", "0"}, Record{"GNU.sparse.realsize", "1000000000"}),
			Raw(Header{Name: "f", Kind: '0'}, "1000000000\n"+strings.Repeat("0\n0\n", 300_000))),
	}
}

func published(probe string) []Case {
	return []Case{
		contained("CVE-2021-32760", Sym("s", probe), Hard("h", "s").As(0o777, 0, 0), Dir("s").As(0o777, 7, 7), Hard("i", "h").As(0o777, 7, 7)),
		contained("CVE-2025-47290", Dir("d"), File("d/a", "x"), Sym("d", path.Dir(probe)), File("d/file", "x"), File("d/b", "x")),
		contained("CVE-2025-47290-across-layers", File("d/file", "x"), Dir("d/sub").As(0o777, 7, 7)).over([]Entry{Dir("d"), File("d/a", "x")}, []Entry{Sym("d", path.Dir(probe))}),
		refused("CVE-2021-29136-dot-symlink", Sym(".", path.Dir(probe)), File("file", "x")),
		refused("CVE-2021-29136-slash-symlink", Sym("/", path.Dir(probe)), File("file", "x")),
		refused("CVE-2021-29136-dot-slash-file", File("./.", "x")),
		refused("CVE-2021-29136-empty-hardlink", Raw(Header{Kind: '1', Link: "etc/passwd"}, "")),
		refused("CVE-2021-29136-dot-whiteout", File("./.wh..", "")),
		contained("CVE-2026-33056", Sym("s", path.Dir(probe)), Dir("s").As(0o777, 7, 7)),
		contained("CVE-2025-11395", Dir("a"), Sym("a/b", "../.."), Sym("a/b/canary", path.Dir(probe)), File("a/b/canary/file", "x")),
		contained("CVE-2026-48749", Sym("rootfs", path.Dir(probe)), File("rootfs/file", "x")),
	}
}
