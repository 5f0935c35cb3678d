package hostile

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Entry is one entry of a tar, or the bytes in its place.
type Entry struct {
	tar.Header
	Body string
	Raw  []byte
}

// Tar returns the tar of entries, with its end mark. It panics on an entry that archive/tar cannot write: such are
// written with Raw.
func Tar(entries ...Entry) []byte {
	return append(Open(entries...), make([]byte, 1024)...)
}

// Open is Tar without the end mark.
func Open(entries ...Entry) []byte {
	var buf bytes.Buffer
	for _, e := range entries {
		if e.Raw != nil {
			buf.Write(e.Raw)
			continue
		}
		tw := tar.NewWriter(&buf)
		e.Size = int64(len(e.Body))
		if e.ModTime.IsZero() {
			e.ModTime = time.Unix(1, 0)
		}
		err := tw.WriteHeader(&e.Header)
		if err == nil {
			_, err = tw.Write([]byte(e.Body))
		}
		if err == nil {
			err = tw.Flush()
		}
		if err != nil {
			panic(fmt.Sprintf("entry %q: %v", e.Name, err))
		}
	}
	return buf.Bytes()
}

// Dir, File, Sym, Hard, Fifo and Device are entries with usual modes.
func Dir(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

// File is a regular file.
func File(name, body string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, Body: body}
}

// Sym is a symbolic link.
func Sym(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Hard is a hard link; target is a name in the tar.
func Hard(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o777}}
}

// Fifo is a named pipe.
func Fifo(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o600}}
}

// Device is a device, of the kind that a type flag of tar says.
func Device(name string, kind byte, major, minor int64) Entry {
	return Entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

// As gives an entry a mode and an owner.
func (e Entry) As(mode int64, uid, gid int) Entry {
	e.Mode, e.Uid, e.Gid = mode, uid, gid
	return e
}

// Xattr adds an extended attribute.
func (e Entry) Xattr(name, value string) Entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// Record is a key and a value of a PAX header.
type Record struct{ Key, Value string }

// PAX puts records in front of the next entry, whatever they say. kind 'g' makes them global.
func PAX(kind byte, records ...Record) Entry {
	var b strings.Builder
	for _, r := range records {
		n := len(r.Key) + len(r.Value) + 3
		for n != len(r.Key)+len(r.Value)+3+len(strconv.Itoa(n)) {
			n = len(r.Key) + len(r.Value) + 3 + len(strconv.Itoa(n))
		}
		fmt.Fprintf(&b, "%d %s=%s\n", n, r.Key, r.Value)
	}
	return Raw(Header{Name: "pax", Kind: kind}, b.String())
}

// Header is a ustar header in which everything may be wrong.
type Header struct {
	Name, Link string
	Kind       byte
	Size       string // "": that of the body
	UID        string // octal, or base 256
	Major      string
	BadSum     bool
	GNU        bool
}

// Raw writes a header as it is, and the padded body.
func Raw(h Header, body string) Entry {
	b := make([]byte, 512)
	copy(b[:100], h.Name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x000000000\x00")
	copy(b[108:116], h.UID)
	copy(b[124:], fmt.Sprintf("%011o\x00", len(body)))
	if h.Size != "" {
		copy(b[124:136], h.Size)
	}
	copy(b[136:], "00000000001\x00")
	b[156] = h.Kind
	copy(b[157:257], h.Link)
	copy(b[257:], "ustar\x0000")
	if h.GNU {
		copy(b[257:], "ustar  \x00")
	}
	copy(b[329:337], h.Major)
	seal(b)
	if h.BadSum {
		b[150] ^= 1
	}
	b = append(b, body...)
	return Entry{Raw: append(b, make([]byte, -len(body)&511)...)}
}

func seal(b []byte) {
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// Sparse returns a file of a size with data at its end, in one of the three sparse forms: "old", "0.1" or "1.0".
func Sparse(form, name string, size int64, data string) Entry {
	at := size - int64(len(data))
	switch form {
	case "old":
		e := Raw(Header{Name: name, Kind: 'S', GNU: true}, data)
		number(e.Raw[386:398], at)
		copy(e.Raw[398:], fmt.Sprintf("%011o\x00", len(data)))
		number(e.Raw[483:495], size)
		seal(e.Raw)
		return e
	case "0.1":
		e := PAX('x', Record{"GNU.sparse.major", "0"}, Record{"GNU.sparse.minor", "1"}, Record{"GNU.sparse.name", name},
			Record{"GNU.sparse.size", fmt.Sprint(size)}, Record{"GNU.sparse.numblocks", "1"}, Record{"GNU.sparse.map", fmt.Sprintf("%d,%d", at, len(data))})
		e.Raw = append(e.Raw, Raw(Header{Name: "GNUSparseFile.0/f", Kind: '0'}, data).Raw...)
		return e
	case "1.0":
		e := PAX('x', Record{"GNU.sparse.major", "1"}, Record{"GNU.sparse.minor", "0"}, Record{"GNU.sparse.name", name}, Record{"GNU.sparse.realsize", fmt.Sprint(size)})
		list := fmt.Sprintf("1\n%d\n%d\n", at, len(data))
		list += strings.Repeat("\x00", -len(list)&511)
		e.Raw = append(e.Raw, Raw(Header{Name: "GNUSparseFile.0/f", Kind: '0'}, list+data).Raw...)
		return e
	}
	panic("no such form: " + form)
}

// number writes a field as GNU tar does when octal digits do not suffice.
func number(field []byte, n int64) {
	for i := len(field) - 1; i > 0; i-- {
		field[i] = byte(n)
		n >>= 8
	}
	field[0] = 0x80
}

// Reseal makes the checksums of a tar's headers right, so that a fuzzer's changes get past them.
func Reseal(body []byte) []byte {
	body = bytes.Clone(body)
	for off := 0; off+512 <= len(body); {
		b := body[off : off+512]
		if bytes.Equal(b, make([]byte, 512)) {
			break
		}
		seal(b)
		size, err := strconv.ParseUint(strings.Trim(string(b[124:136]), " \x00"), 8, 31)
		if err != nil || b[156] == tar.TypeDir || b[156] == tar.TypeSymlink || b[156] == tar.TypeLink {
			size = 0
		}
		off += 512 + int(size+511)&^511
	}
	return body
}
