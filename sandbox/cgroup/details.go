package cgroup

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Details are the figures of a cgroup and its children that only metrics tell,
// beside [Stats]. A figure that the kernel does not offer is zero.
type Details struct {
	UserNanos, SystemNanos uint64 // CPU time in and below the kernel's border, ns

	Periods, ThrottledPeriods uint64 // of CFS bandwidth control
	ThrottledNanos            uint64

	MaxMemory      uint64 // bytes, the most that was used
	MemoryFailures uint64 // how often the memory limit was met
	OOMKills       uint64 // on version 1 without the children's
	Processes      uint64 // tasks may be more
	MaxPids        uint64 // limit of tasks; 0 = none
	IO             []DeviceIO
}

// DeviceIO is what a cgroup has read from and written to one block device.
type DeviceIO struct {
	Device                string // /dev/vda; major:minor where it has no name
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// ReadDetails reads the details of a cgroup now. One that is gone is
// errdefs.ErrNotFound. It opens and closes about ten files: no descriptors are
// kept for what is asked for every half minute.
func ReadDetails(path string) (Details, error) {
	t, err := host()
	if err != nil {
		return Details{}, err
	}
	if err := checkPath(path); err != nil {
		return Details{}, err
	}
	return t.readDetails(path)
}

func (t *tree) readDetails(path string) (Details, error) {
	buf := statBuffers.Get().(*[maxStatFile]byte)
	defer statBuffers.Put(buf)
	r := detailReader{t: t, path: path, buf: buf[:]}
	var d Details
	if t.version == V2 {
		r.details2(&d)
	} else {
		r.details1(&d)
	}
	d.MaxPids = r.number("pids", "pids.max")
	if dirs := (&Group{t: t, path: path}).procDirs(); r.err == nil && len(dirs) > 0 {
		var pids []int
		pids, r.err = walkProcs(dirs[0], 0)
		d.Processes = uint64(len(pids))
	}
	if r.err != nil {
		return Details{}, fmt.Errorf("reading details of cgroup %s: %w", path, r.err)
	}
	if !t.exists(path) { // the files are missing because the cgroup is
		return Details{}, fmt.Errorf("cgroup %s: %w", path, gone(fs.ErrNotExist))
	}
	return d, nil
}

// detailReader reads files of a cgroup and keeps the first error; a file that is not there is empty.
type detailReader struct {
	t    *tree
	path string
	buf  []byte
	err  error
}

func (r *detailReader) details2(d *Details) {
	eachKey(r.read("cpu", "cpu.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "user_usec":
			d.UserNanos = n * 1000
		case "system_usec":
			d.SystemNanos = n * 1000
		case "nr_periods":
			d.Periods = n
		case "nr_throttled":
			d.ThrottledPeriods = n
		case "throttled_usec":
			d.ThrottledNanos = n * 1000
		}
	})
	eachKey(r.read("memory", "memory.events"), func(key []byte, n uint64) {
		switch string(key) {
		case "max":
			d.MemoryFailures = n
		case "oom_kill":
			d.OOMKills = n
		}
	})
	d.MaxMemory = r.number("memory", "memory.peak") // 5.19
	io := ioTable{}
	io.parse2(r.read("io", "io.stat"))
	d.IO = io.named()
}

func (r *detailReader) details1(d *Details) {
	d.UserNanos = r.number("cpuacct", "cpuacct.usage_user")
	d.SystemNanos = r.number("cpuacct", "cpuacct.usage_sys")
	eachKey(r.read("cpu", "cpu.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "nr_periods":
			d.Periods = n
		case "nr_throttled":
			d.ThrottledPeriods = n
		case "throttled_time":
			d.ThrottledNanos = n
		}
	})
	d.MaxMemory = r.number("memory", "memory.max_usage_in_bytes")
	d.MemoryFailures = r.number("memory", "memory.failcnt")
	eachKey(r.read("memory", "memory.oom_control"), func(key []byte, n uint64) {
		if string(key) == "oom_kill" {
			d.OOMKills = n
		}
	})
	io := ioTable{}
	io.parse1(r.read("blkio", "blkio.throttle.io_service_bytes_recursive"), func(d *DeviceIO) (read, write *uint64) { return &d.ReadBytes, &d.WriteBytes })
	io.parse1(r.read("blkio", "blkio.throttle.io_serviced_recursive"), func(d *DeviceIO) (read, write *uint64) { return &d.Reads, &d.Writes })
	d.IO = io.named()
}

// read returns a file's content, valid until the next read. It does without
// package os, which would have Go's poller watch each file for its moment.
func (r *detailReader) read(controller, name string) []byte {
	file := r.t.file(controller, r.path, name)
	if file == "" || r.err != nil {
		return nil
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	n := 0
	if err == nil {
		if n, err = unix.Read(fd, r.buf); err == unix.EINTR {
			n, err = unix.Read(fd, r.buf)
		}
		_ = unix.Close(fd)
	}
	if err != nil {
		r.err = gone(&os.PathError{Op: "reading", Path: name, Err: err})
		return nil
	}
	return r.buf[:n]
}

// number is 0 for "no limit" and where there is no file.
func (r *detailReader) number(controller, name string) uint64 {
	b := r.read(controller, name)
	if len(b) == 0 {
		return 0
	}
	n, _, err := parseNumber(b)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	return n
}

// ioTable is figures by device, as major:minor.
type ioTable map[string]*DeviceIO

func (t ioTable) device(number []byte) *DeviceIO {
	d := t[string(number)]
	if d == nil {
		d = &DeviceIO{Device: string(number)}
		t[d.Device] = d
	}
	return d
}

// parse2 reads lines such as "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func (t ioTable) parse2(data []byte) {
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		d := t.device(fields[0])
		for _, f := range fields[1:] {
			key, text, _ := bytes.Cut(f, []byte{'='})
			n, err := strconv.ParseUint(string(text), 10, 64)
			if err != nil {
				continue
			}
			switch string(key) {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
	}
}

// parse1 reads lines such as "8:0 Read 4096"; others, such as the total, are passed over.
func (t ioTable) parse1(data []byte, of func(*DeviceIO) (read, write *uint64)) {
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) != 3 {
			continue
		}
		n, err := strconv.ParseUint(string(fields[2]), 10, 64)
		if err != nil {
			continue
		}
		read, write := of(t.device(fields[0]))
		switch string(fields[1]) {
		case "Read":
			*read = n
		case "Write":
			*write = n
		}
	}
}

// named is the devices that were used, by the names that they have now.
func (t ioTable) named() []DeviceIO {
	var all []DeviceIO
	for number, d := range t {
		if d.ReadBytes|d.WriteBytes|d.Reads|d.Writes == 0 {
			continue
		}
		// The link's last part is the name, with "!" where it has a slash (cciss!c0d0).
		if link, err := os.Readlink(filepath.Join("/sys/dev/block", filepath.Base(number))); err == nil {
			d.Device = "/dev/" + strings.ReplaceAll(filepath.Base(link), "!", "/")
		}
		all = append(all, *d)
	}
	slices.SortFunc(all, func(a, b DeviceIO) int { return strings.Compare(a.Device, b.Device) })
	return all
}
