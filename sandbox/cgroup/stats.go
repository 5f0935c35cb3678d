package cgroup

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is what a cgroup and its children have used. A figure that the kernel
// does not offer is zero.
type Stats struct {
	At        time.Time
	CPUNanos  uint64 // time used on all processors, ns
	Mem       Memory
	Swap      Swap
	Pids      uint64    // tasks, which are threads
	CPUPSI    *Pressure // nil where the kernel offers none (version 1, boot parameter psi=0)
	MemoryPSI *Pressure
	IOPSI     *Pressure
}

// Memory is in bytes, but for the faults.
type Memory struct {
	Usage           uint64 // with page cache
	WorkingSet      uint64 // Usage less the page cache that is reclaimed first (inactive_file)
	RSS             uint64 // anonymous memory
	PageFaults      uint64
	MajorPageFaults uint64
	Limit           uint64 // 0 = none
	Cache           uint64 // page cache
	Mapped          uint64 // of it, mapped by processes
	ActiveFile      uint64 // of it, reclaimed last
	InactiveFile    uint64 // of it, reclaimed first
	Kernel          uint64 // the kernel's own; version 2 only (5.18)
}

// Swap is in bytes.
type Swap struct {
	Accounted bool // else the kernel does not count it, and all is zero
	Usage     uint64
	Limit     uint64 // of swap alone; may be 0, then it is not allowed
	Limited   bool   // there is a Limit
}

// Pressure is stall information (Documentation/accounting/psi.rst of the kernel).
type Pressure struct{ Some, Full Stall }

// Stall is how long some, or all, tasks of the cgroup waited for a resource.
type Stall struct {
	Avg10, Avg60, Avg300 float64 // percent of the last 10, 60, 300 seconds
	Total                uint64  // microseconds
}

// The files of a Group, indexes of Group.files.
const (
	fileCPU = iota
	fileMemUsage
	fileMemStat
	fileMemLimit
	fileSwapUsage // version 2; on version 1 memory.stat has it
	fileSwapLimit
	filePids
	fileCPUPSI
	fileMemPSI
	fileIOPSI
	statFiles
)

type statFile struct{ controller, name string }

var statFilesV1 = [statFiles]statFile{
	fileCPU:       {"cpuacct", "cpuacct.usage"},
	fileMemUsage:  {"memory", "memory.usage_in_bytes"},
	fileMemStat:   {"memory", "memory.stat"},
	fileMemLimit:  {"memory", "memory.limit_in_bytes"},
	fileSwapLimit: {"memory", "memory.memsw.limit_in_bytes"},
	filePids:      {"pids", "pids.current"},
}

var statFilesV2 = [statFiles]statFile{
	fileCPU:       {"cpu", "cpu.stat"},
	fileMemUsage:  {"memory", "memory.current"},
	fileMemStat:   {"memory", "memory.stat"},
	fileMemLimit:  {"memory", "memory.max"},
	fileSwapUsage: {"memory", "memory.swap.current"},
	fileSwapLimit: {"memory", "memory.swap.max"},
	filePids:      {"pids", "pids.current"},
	fileCPUPSI:    {"cpu", "cpu.pressure"},
	fileMemPSI:    {"memory", "memory.pressure"},
	fileIOPSI:     {"io", "io.pressure"},
}

func (t *tree) statFile(i int) statFile {
	if t.version == V2 {
		return statFilesV2[i]
	}
	return statFilesV1[i]
}

func (t *tree) statName(i int) string { return t.statFile(i).name }

// maxStatFile is more than any of the files has: memory.stat, the longest, has about 2 KiB.
const maxStatFile = 16 << 10

// unlimited is where a limit of version 1 is none: the kernel shows the
// greatest multiple of the page size that an int64 holds.
const unlimited = math.MaxInt64 &^ (64<<10 - 1)

// statBuffers are for files of up to maxStatFile bytes.
var statBuffers = sync.Pool{New: func() any { return new([maxStatFile]byte) }}

// Stats reads the figures now. It costs one system call for each file: 6 on
// version 1, 10 on version 2.
func (g *Group) Stats() (Stats, error) {
	buf := statBuffers.Get().(*[maxStatFile]byte)
	defer statBuffers.Put(buf)
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return Stats{}, fmt.Errorf("cgroup %s: %w", g.path, os.ErrClosed)
	}
	r := statReader{g: g, buf: buf[:]}
	s := Stats{}
	if g.t.version == V2 {
		s.CPUNanos = r.keyed(fileCPU, "usage_usec") * 1000
	} else {
		s.CPUNanos, _ = r.number(fileCPU)
	}
	s.At = time.Now()
	r.memory(g.t.version, &s)
	s.Pids, _ = r.number(filePids)
	s.CPUPSI, s.MemoryPSI, s.IOPSI = r.pressure(fileCPUPSI), r.pressure(fileMemPSI), r.pressure(fileIOPSI)
	if r.err != nil {
		return Stats{}, fmt.Errorf("reading statistics of cgroup %s: %w", g.path, gone(r.err))
	}
	return s, nil
}

// statReader reads the files of a Group one after another and keeps the first error.
type statReader struct {
	g   *Group
	buf []byte
	err error
}

func (r *statReader) memory(v Version, s *Stats) {
	m := &s.Mem
	m.Usage, _ = r.number(fileMemUsage)
	swapLimit, swapLimited := r.number(fileSwapLimit)
	s.Swap.Accounted = r.g.files[fileSwapLimit] != noFile
	limit, limited := r.number(fileMemLimit)
	if limited {
		m.Limit = limit
	}
	if v == V2 {
		s.Swap.Usage, _ = r.number(fileSwapUsage)
		s.Swap.Limit, s.Swap.Limited = swapLimit, swapLimited
		eachKey(r.read(fileMemStat), func(key []byte, n uint64) {
			switch string(key) {
			case "anon":
				m.RSS = n
			case "pgfault":
				m.PageFaults = n
			case "pgmajfault":
				m.MajorPageFaults = n
			case "file":
				m.Cache = n
			case "file_mapped":
				m.Mapped = n
			case "active_file":
				m.ActiveFile = n
			case "inactive_file":
				m.InactiveFile = n
			case "kernel":
				m.Kernel = n
			}
		})
	} else {
		if swapLimited && limited {
			s.Swap.Limit, s.Swap.Limited = floorSub(swapLimit, limit), true
		}
		eachKey(r.read(fileMemStat), func(key []byte, n uint64) {
			switch string(key) { // total_ is with the children
			case "total_rss":
				m.RSS = n
			case "total_pgfault":
				m.PageFaults = n
			case "total_pgmajfault":
				m.MajorPageFaults = n
			case "total_cache":
				m.Cache = n
			case "total_mapped_file":
				m.Mapped = n
			case "total_active_file":
				m.ActiveFile = n
			case "total_inactive_file":
				m.InactiveFile = n
			case "total_swap":
				s.Swap.Usage = n
			}
		})
	}
	m.WorkingSet = floorSub(m.Usage, m.InactiveFile)
}

// floorSub is a-b, or 0: the two were not read at the same instant.
func floorSub(a, b uint64) uint64 { return a - min(a, b) }

// read returns a file's content, valid until the next read; nothing where there is no file.
func (r *statReader) read(i int) []byte {
	fd := r.g.files[i]
	if fd == noFile || r.err != nil {
		return nil
	}
	// One read: the kernel gives all of a cgroup file that there is room for.
	n, err := unix.Pread(fd, r.buf, 0)
	for err == unix.EINTR {
		n, err = unix.Pread(fd, r.buf, 0)
	}
	if err != nil {
		if err != unix.EOPNOTSUPP { // a pressure file whose accounting is turned off
			r.err = &os.PathError{Op: "read", Path: r.g.t.statName(i), Err: err}
		}
		return nil
	}
	return r.buf[:n]
}

// number reads a file that is one number; limited is false for "no limit" and where there is no file.
func (r *statReader) number(i int) (n uint64, limited bool) {
	b := r.read(i)
	if b == nil {
		return 0, false
	}
	n, limited, err := parseNumber(b)
	if err != nil {
		r.err = fmt.Errorf("%s: %w", r.g.t.statName(i), err)
	}
	return n, limited
}

// parseNumber reads a number or "max"; limited is false where it stands for no limit.
func parseNumber(b []byte) (n uint64, limited bool, err error) {
	text := string(bytes.TrimSpace(b))
	if text == "max" {
		return 0, false, nil
	}
	if n, err = strconv.ParseUint(text, 10, 64); err != nil {
		return 0, false, err
	}
	if n >= unlimited {
		return 0, false, nil
	}
	return n, true, nil
}

// keyed is one figure of a file of "key number" lines.
func (r *statReader) keyed(i int, want string) (n uint64) {
	eachKey(r.read(i), func(key []byte, v uint64) {
		if string(key) == want {
			n = v
		}
	})
	return n
}

// eachKey calls f for each line "key number"; other lines are passed over.
func eachKey(data []byte, f func(key []byte, n uint64)) {
	for line := range bytes.Lines(data) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(string(value), 10, 64); err == nil {
			f(key, n)
		}
	}
}

func (r *statReader) pressure(i int) *Pressure {
	b := r.read(i)
	if len(b) == 0 {
		return nil
	}
	return parsePressure(b)
}

// parsePressure reads lines such as "some avg10=0.12 avg60=0.00 avg300=0.00
// total=21". What it does not know it passes over; without any known line it returns nil.
func parsePressure(b []byte) *Pressure {
	var p Pressure
	known := false
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		var s *Stall
		switch string(fields[0]) {
		case "some":
			s = &p.Some
		case "full":
			s = &p.Full
		default:
			continue
		}
		known = true
		for _, f := range fields[1:] {
			key, value, _ := bytes.Cut(f, []byte{'='})
			s.set(string(key), string(value))
		}
	}
	if !known {
		return nil
	}
	return &p
}

func (s *Stall) set(key, value string) {
	if key == "total" {
		s.Total, _ = strconv.ParseUint(value, 10, 64)
		return
	}
	avg, err := strconv.ParseFloat(value, 64)
	if err != nil || math.IsNaN(avg) || math.IsInf(avg, 0) {
		return
	}
	switch string(key) {
	case "avg10":
		s.Avg10 = avg
	case "avg60":
		s.Avg60 = avg
	case "avg300":
		s.Avg300 = avg
	}
}
