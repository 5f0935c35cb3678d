package disk

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Hanging is a file system of FUSE (fuse(4)) that stops to answer when told so, as NFS does without its server: who
// uses it then waits in the kernel and does not heed SIGKILL, for his request has been read. It has a folder, sub, a
// file in each folder, which can be written to, and no cache of them.
type Hanging struct {
	Dir string // where it is mounted

	t  testing.TB
	fd int // of /dev/fuse

	mu      sync.Mutex
	hangs   bool
	stalls  bool
	noFlush bool
	unread  bool // a request waits while it stalls
	ends    bool
	waiting [][]byte          // requests that were read and not answered
	written map[uint64][]byte // the contents of files that were written to, by node
}

// NewHanging mounts a file system that answers. The test's own process must not look into it: it would wait for itself,
// and could not end. It is unmounted when the test ends, and whoever waits for it then gets an error.
func NewHanging(t testing.TB) *Hanging {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root: it mounts")
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		missing(t, "the kernel has no FUSE: %v", err)
	}
	dir := t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("hanging", dir, "fuse", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		_ = unix.Close(fd)
		missing(t, "FUSE cannot be mounted: %v", err)
	}
	d := &Hanging{Dir: dir, t: t, fd: fd, written: make(map[uint64][]byte)}
	begun := make(chan struct{})
	var serving sync.WaitGroup
	serving.Go(func() { d.serve(begun) })
	t.Cleanup(func() {
		d.mu.Lock()
		d.ends = true
		d.mu.Unlock()
		serving.Wait()
		must(t, unix.Close(fd)) // ends the connection
		must(t, unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	})
	select {
	case <-begun: // a lookup that came before held a lock for which others would wait instead of asking
	case <-time.After(time.Minute):
		t.Fatal("the kernel does not begin with FUSE")
	}
	return d
}

// NoFlush has the kernel ask for nothing when a file is closed, as with disks. Else each program waits that is executed
// by a process with a file of this file system open, for the kernel closes that in the middle of it.
func (d *Hanging) NoFlush() {
	d.t.Helper()
	d.mu.Lock()
	d.noFlush = true
	d.mu.Unlock()
	must(d.t, exec.Command("cat", filepath.Join(d.Dir, "file")).Run())
}

// Hang leaves all requests from now on without an answer.
func (d *Hanging) Hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs = true
}

// Stall leaves all requests from now on unread: who waits heeds SIGKILL, as with most of NFS.
func (d *Hanging) Stall() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stalls = true
}

// Resume answers what has waited, and all that comes.
func (d *Hanging) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs, d.stalls, d.unread = false, false, false
	for _, r := range d.waiting {
		d.answer(r)
	}
	d.waiting = nil
}

// Content is what the file of the folder sub has, which the test cannot read without waiting for itself.
func (d *Hanging) Content() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(d.content(subNode + 1))
}

// AwaitHung returns when as many requests wait: processes that cannot be killed. When it stalls, it is one that can.
func (d *Hanging) AwaitHung(n int) {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		got := len(d.waiting)
		if d.unread {
			got++
		}
		d.mu.Unlock()
		if got >= n {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%d requests wait for the file system, want %d", got, n)
		}
	}
}

// Requests of FUSE, include/uapi/linux/fuse.h of the kernel.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseStatfs      = 17
	fuseRelease     = 18
	fuseFlush       = 25
	fuseInit        = 26
	fuseOpendir     = 27
	fuseReaddir     = 28
	fuseReleasedir  = 29
	fuseInterrupt   = 36
	fuseDestroy     = 38
	fuseBatchForget = 42
)

// Nodes: folders are odd, the file in a folder is the next.
const (
	rootNode = 1
	subNode  = 3
	content  = "content\n"
)

// serve closes begun when the kernel knows what it may ask. It does not leave the waiting to Go's poller: who closes a
// file of this file system, which is a request, might hold that up.
func (d *Hanging) serve(begun chan<- struct{}) {
	buf := make([]byte, 1<<20)
	for {
		asked, _ := unix.Poll([]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}, 50)
		d.mu.Lock()
		ends, stalls := d.ends, d.stalls
		d.unread = stalls && asked > 0
		d.mu.Unlock()
		if ends {
			return
		}
		if stalls {
			time.Sleep(time.Millisecond)
			continue
		}
		n, err := unix.Read(d.fd, buf)
		if err != nil { // nothing came, or it was taken back
			continue
		}
		request := append([]byte(nil), buf[:n]...)
		d.mu.Lock()
		switch op := binary.NativeEndian.Uint32(request[4:]); {
		case op == fuseForget || op == fuseBatchForget || op == fuseInterrupt: // want no answer
		case d.hangs && op != fuseInit && op != fuseRelease && op != fuseReleasedir: // for which nobody waits
			d.waiting = append(d.waiting, request)
		default:
			d.answer(request)
			if op == fuseInit {
				close(begun)
			}
		}
		d.mu.Unlock()
	}
}

// answer answers one request: struct fuse_in_header is of 40 bytes, fuse_out_header of 16.
func (d *Hanging) answer(request []byte) {
	node, body := binary.NativeEndian.Uint64(request[16:]), request[40:]
	var out fields
	errno := unix.Errno(0)
	switch binary.NativeEndian.Uint32(request[4:]) {
	case fuseInit:
		out.u32(7, 31, 4096, 1<<18) // version, readahead; FUSE_PARALLEL_DIROPS, or one lookup of a folder waits for another
		out.u16(16, 12)             // background, congestion
		out.u32(4096, 1)            // max_write, time_gran
		out.zero(64)
	case fuseLookup:
		child := uint64(0)
		switch name := string(body[:len(body)-1]); {
		case name == "sub" && node == rootNode:
			child = subNode
		case name == "file" && node%2 == 1:
			child = node + 1
		}
		if child == 0 {
			errno = unix.ENOENT
			break
		}
		out.u64(child, 0, 0, 0) // generation; entry and attributes are valid for no time
		out.u32(0, 0)
		d.attributes(&out, child)
	case fuseSetattr:
		const sizeIsValid = 1 << 3
		if size := binary.NativeEndian.Uint64(body[16:]); body[0]&sizeIsValid != 0 && size <= uint64(len(d.content(node))) {
			d.written[node] = d.content(node)[:size:size]
		}
		fallthrough
	case fuseGetattr:
		out.u64(0)
		out.u32(0, 0)
		d.attributes(&out, node)
	case fuseOpen, fuseOpendir:
		out.u64(0)
		out.u32(1, 0) // FOPEN_DIRECT_IO
	case fuseRead:
		offset, size := binary.NativeEndian.Uint64(body[8:]), binary.NativeEndian.Uint32(body[16:])
		rest := d.content(node)
		rest = rest[min(offset, uint64(len(rest))):]
		out = append(out, rest[:min(len(rest), int(size))]...)
	case fuseWrite:
		offset, data := binary.NativeEndian.Uint64(body[8:]), body[40:]
		old := d.content(node)
		d.written[node] = append(old[:min(offset, uint64(len(old)))], data...)
		out.u32(uint32(len(data)), 0)
	case fuseStatfs:
		out.zero(80)
	case fuseFlush:
		if d.noFlush {
			errno = unix.ENOSYS // it never asks again
		}
	case fuseReaddir, fuseRelease, fuseReleasedir, fuseDestroy:
	default:
		errno = unix.ENOSYS
	}
	if errno != 0 {
		out = nil
	}
	var head fields
	head.u32(uint32(16+len(out)), uint32(-int32(errno)))
	head = append(head, request[8:16]...) // the request's number
	// An error: whoever has asked was killed, or the test has ended.
	_, _ = unix.Write(d.fd, append(head, out...))
}

// fields is a structure of the protocol.
type fields []byte

func (f *fields) u16(values ...uint16) {
	for _, v := range values {
		*f = binary.NativeEndian.AppendUint16(*f, v)
	}
}

func (f *fields) u32(values ...uint32) {
	for _, v := range values {
		*f = binary.NativeEndian.AppendUint32(*f, v)
	}
}

func (f *fields) u64(values ...uint64) {
	for _, v := range values {
		*f = binary.NativeEndian.AppendUint64(*f, v)
	}
}

// zero fills up to n bytes.
func (f *fields) zero(n int) { *f = append(*f, make([]byte, n-len(*f))...) }

// content is what a node's file has.
func (d *Hanging) content(node uint64) []byte {
	if data, ok := d.written[node]; ok {
		return data
	}
	return []byte(content)
}

// attributes are struct fuse_attr.
func (d *Hanging) attributes(f *fields, node uint64) {
	mode, size := uint32(unix.S_IFDIR|0o755), uint64(0)
	if node%2 == 0 {
		mode, size = unix.S_IFREG|0o644, uint64(len(d.content(node)))
	}
	f.u64(node, size, 0, 0, 0, 0)
	f.u32(0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
}
