package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
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
}

// Swap is in bytes.
type Swap struct {
	Usage   uint64
	Limit   uint64 // of swap alone; may be 0, then it is not allowed
	Limited bool   // there is a Limit
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
	fileSwapUsage
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
	fileSwapUsage: {"memory", "memory.memsw.usage_in_bytes"}, // memory and swap
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

// maxStatFile is more than any of the files has: memory.stat, the longest, has about 2 KiB.
const maxStatFile = 16 << 10

// unlimited is where a limit of version 1 is none: the kernel shows the
// greatest multiple of the page size that an int64 holds.
const unlimited = math.MaxInt64 &^ (64<<10 - 1)

// Stats reads the figures now.
func (g *Group) Stats() (Stats, error) {
	r := statReader{files: &g.files, buf: make([]byte, maxStatFile)}
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
	files *[statFiles]*os.File
	buf   []byte
	err   error
}

func (r *statReader) memory(v Version, s *Stats) {
	m := &s.Mem
	m.Usage, _ = r.number(fileMemUsage)
	swapUsage, _ := r.number(fileSwapUsage)
	swapLimit, swapLimited := r.number(fileSwapLimit)
	limit, limited := r.number(fileMemLimit)
	if limited {
		m.Limit = limit
	}
	var inactive uint64
	if v == V2 {
		s.Swap = Swap{Usage: swapUsage, Limit: swapLimit, Limited: swapLimited}
		eachKey(r.read(fileMemStat), func(key string, n uint64) {
			switch key {
			case "anon":
				m.RSS = n
			case "pgfault":
				m.PageFaults = n
			case "pgmajfault":
				m.MajorPageFaults = n
			case "inactive_file":
				inactive = n
			}
		})
	} else {
		s.Swap.Usage = floorSub(swapUsage, m.Usage)
		if swapLimited && limited {
			s.Swap.Limit, s.Swap.Limited = floorSub(swapLimit, limit), true
		}
		eachKey(r.read(fileMemStat), func(key string, n uint64) {
			switch key { // total_ is with the children
			case "total_rss":
				m.RSS = n
			case "total_pgfault":
				m.PageFaults = n
			case "total_pgmajfault":
				m.MajorPageFaults = n
			case "total_inactive_file":
				inactive = n
			}
		})
	}
	m.WorkingSet = floorSub(m.Usage, inactive)
}

// floorSub is a-b, or 0: the two were not read at the same instant.
func floorSub(a, b uint64) uint64 { return a - min(a, b) }

// read returns a file's content, valid until the next read; nothing where there is no file.
func (r *statReader) read(i int) []byte {
	f := r.files[i]
	if f == nil || r.err != nil {
		return nil
	}
	n := 0
	for n < len(r.buf) {
		m, err := f.ReadAt(r.buf[n:], int64(n))
		n += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if !errors.Is(err, unix.EOPNOTSUPP) { // a pressure file whose accounting is turned off
				r.err = err
			}
			return nil
		}
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
		r.err = fmt.Errorf("%s: %w", r.files[i].Name(), err)
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
	eachKey(r.read(i), func(key string, v uint64) {
		if key == want {
			n = v
		}
	})
	return n
}

// eachKey calls f for each line "key number"; other lines are passed over.
func eachKey(data []byte, f func(key string, n uint64)) {
	for line := range bytes.Lines(data) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(string(value), 10, 64); err == nil {
			f(string(key), n)
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
	switch key {
	case "avg10":
		s.Avg10 = avg
	case "avg60":
		s.Avg60 = avg
	case "avg300":
		s.Avg300 = avg
	}
}
