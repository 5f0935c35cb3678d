package runtimeservice

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// oneSeries is a series of metrics: its name, unit and labels are cAdvisor's.
type oneSeries struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // beside labelKeys
	remembered bool     // is of facts.written.At, not of now
	// values gives each value with the values of labels; none when it is not known.
	values func(f *facts, add func(value uint64, labels ...string))
}

// series is all that metrics tell. The API's values are whole numbers, so what
// cAdvisor tells in fractions of a second is cut to seconds.
var series = []oneSeries{
	always("container_last_seen", "When the container was seen last, in seconds since 1970.", func(f *facts) uint64 { return uint64(f.now.Unix()) }),
	always("container_start_time_seconds", "When the container was started, in seconds since 1970.", func(f *facts) uint64 { return seconds64(uint64(f.began)) }),

	used("container_cpu_usage_seconds_total", "CPU time that was used.", counter, func(u *usedNow) uint64 { return seconds64(u.CPUNanos) }).labelled("cpu", "total"),
	used("container_cpu_user_seconds_total", "CPU time that was used by programs.", counter, func(u *usedNow) uint64 { return seconds64(u.UserNanos) }),
	used("container_cpu_system_seconds_total", "CPU time that was used by the kernel.", counter, func(u *usedNow) uint64 { return seconds64(u.SystemNanos) }),
	throttled("container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed.", func(u *usedNow) uint64 { return u.Periods }),
	throttled("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.", func(u *usedNow) uint64 { return u.ThrottledPeriods }),
	throttled("container_cpu_cfs_throttled_seconds_total", "Time that was waited for the next CPU quota.", func(u *usedNow) uint64 { return seconds64(u.ThrottledNanos) }),

	used("container_memory_usage_bytes", "Memory in use, with all of the page cache.", gauge, func(u *usedNow) uint64 { return u.Mem.Usage }),
	used("container_memory_working_set_bytes", "Memory in use, less the page cache that is reclaimed first.", gauge, func(u *usedNow) uint64 { return u.Mem.WorkingSet }),
	used("container_memory_rss", "Anonymous memory, in bytes.", gauge, func(u *usedNow) uint64 { return u.Mem.RSS }),
	used("container_memory_cache", "Page cache, in bytes.", gauge, func(u *usedNow) uint64 { return u.Mem.Cache }),
	used("container_memory_mapped_file", "Page cache that is mapped, in bytes.", gauge, func(u *usedNow) uint64 { return u.Mem.Mapped }),
	used("container_memory_total_active_file_bytes", "Page cache that is reclaimed last.", gauge, func(u *usedNow) uint64 { return u.Mem.ActiveFile }),
	used("container_memory_total_inactive_file_bytes", "Page cache that is reclaimed first.", gauge, func(u *usedNow) uint64 { return u.Mem.InactiveFile }),
	where("container_memory_kernel_usage", "Memory of the kernel, in bytes.", gauge, func(u *usedNow) (uint64, bool) { return u.Mem.Kernel, u.Mem.Kernel > 0 }),
	where("container_memory_max_usage_bytes", "The most memory that was in use.", gauge, func(u *usedNow) (uint64, bool) { return u.MaxMemory, u.MaxMemory > 0 }),
	where("container_memory_swap", "Swap in use, in bytes.", gauge, func(u *usedNow) (uint64, bool) { return u.Swap.Usage, u.Swap.Accounted }),
	used("container_memory_failcnt", "How often the memory limit was met.", counter, func(u *usedNow) uint64 { return u.MemoryFailures }),
	{name: "container_memory_failures_total", help: "Page faults.", kind: counter, labels: []string{"failure_type", "scope"}, values: faults},
	ofContainer("container_oom_events_total", "Processes that the kernel has killed for want of memory.", counter, func(f *facts) (uint64, bool) { return f.used.OOMKills, true }),

	used("container_processes", "Processes that there are.", gauge, func(u *usedNow) uint64 { return u.Processes }),
	used("container_threads", "Tasks that there are.", gauge, func(u *usedNow) uint64 { return u.Pids }),
	used("container_threads_max", "Tasks that there may be; 0 is without limit.", gauge, func(u *usedNow) uint64 { return u.MaxPids }),

	pressure("container_pressure_cpu_waiting_seconds_total", "Time in which some task waited for a CPU.", func(u *usedNow) *cgroup.Pressure { return u.CPUPSI }, false),
	pressure("container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU.", func(u *usedNow) *cgroup.Pressure { return u.CPUPSI }, true),
	pressure("container_pressure_memory_waiting_seconds_total", "Time in which some task waited for memory.", func(u *usedNow) *cgroup.Pressure { return u.MemoryPSI }, false),
	pressure("container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory.", func(u *usedNow) *cgroup.Pressure { return u.MemoryPSI }, true),
	pressure("container_pressure_io_waiting_seconds_total", "Time in which some task waited for a device.", func(u *usedNow) *cgroup.Pressure { return u.IOPSI }, false),
	pressure("container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for a device.", func(u *usedNow) *cgroup.Pressure { return u.IOPSI }, true),

	device("container_fs_reads_bytes_total", "Bytes that were read.", func(d *cgroup.DeviceIO) uint64 { return d.ReadBytes }),
	device("container_fs_reads_total", "Reads that were done.", func(d *cgroup.DeviceIO) uint64 { return d.Reads }),
	device("container_fs_writes_bytes_total", "Bytes that were written.", func(d *cgroup.DeviceIO) uint64 { return d.WriteBytes }),
	device("container_fs_writes_total", "Writes that were done.", func(d *cgroup.DeviceIO) uint64 { return d.Writes }),
	{name: "container_fs_usage_bytes", help: "Bytes that the writable layer takes.", kind: gauge, labels: []string{"device"}, remembered: true,
		values: func(f *facts, add func(uint64, ...string)) {
			if !f.written.At.IsZero() {
				add(f.written.Bytes, f.fs.Device)
			}
		}},
	filesystem("container_fs_limit_bytes", "Size of the file system of the writable layer.", func(fs *imageservice.Filesystem) uint64 { return fs.Bytes }),
	filesystem("container_fs_inodes_total", "Inodes of the file system of the writable layer.", func(fs *imageservice.Filesystem) uint64 { return fs.Inodes }),
	filesystem("container_fs_inodes_free", "Inodes that are free on it.", func(fs *imageservice.Filesystem) uint64 { return fs.FreeInodes }),

	link("container_network_receive_bytes_total", "Bytes that were received.", func(i *cni.Interface) uint64 { return i.RxBytes }),
	link("container_network_receive_packets_total", "Packets that were received.", func(i *cni.Interface) uint64 { return i.RxPackets }),
	link("container_network_receive_packets_dropped_total", "Received packets that were dropped.", func(i *cni.Interface) uint64 { return i.RxDrops }),
	link("container_network_receive_errors_total", "Errors in receiving.", func(i *cni.Interface) uint64 { return i.RxErrors }),
	link("container_network_transmit_bytes_total", "Bytes that were sent.", func(i *cni.Interface) uint64 { return i.TxBytes }),
	link("container_network_transmit_packets_total", "Packets that were sent.", func(i *cni.Interface) uint64 { return i.TxPackets }),
	link("container_network_transmit_packets_dropped_total", "Packets to send that were dropped.", func(i *cni.Interface) uint64 { return i.TxDrops }),
	link("container_network_transmit_errors_total", "Errors in sending.", func(i *cni.Interface) uint64 { return i.TxErrors }),

	ofContainer("container_spec_cpu_shares", "CPU shares that were asked for.", gauge, func(f *facts) (uint64, bool) { return positive(f.limits.GetCpuShares()) }),
	ofContainer("container_spec_cpu_quota", "CPU quota that was asked for, in microseconds a period.", gauge, func(f *facts) (uint64, bool) { return positive(f.limits.GetCpuQuota()) }),
	ofContainer("container_spec_cpu_period", "Period of the CPU quota, in microseconds.", gauge, func(f *facts) (uint64, bool) { return positive(f.limits.GetCpuPeriod()) }),
	ofContainer("container_spec_memory_limit_bytes", "Memory limit that was asked for; 0 is none.", gauge, func(f *facts) (uint64, bool) {
		n, _ := positive(f.limits.GetMemoryLimitInBytes())
		return n, true
	}),
	ofContainer("container_spec_memory_swap_limit_bytes", "Limit of memory and swap that was asked for; 0 is none.", gauge, func(f *facts) (uint64, bool) {
		n, _ := positive(f.limits.GetMemorySwapLimitInBytes())
		return n, true
	}),
}

func seconds64(nanos uint64) uint64 { return nanos / 1e9 }

func positive(n int64) (uint64, bool) { return uint64(max(n, 0)), n > 0 }

// always is a series that every pod and container has.
func always(name, help string, value func(*facts) uint64) oneSeries {
	return oneSeries{name: name, help: help, kind: gauge, values: func(f *facts, add func(uint64, ...string)) { add(value(f)) }}
}

// where is a series of the cgroup, where ok.
func where(name, help string, kind runtimeapi.MetricType, value func(*usedNow) (n uint64, ok bool)) oneSeries {
	return oneSeries{name: name, help: help, kind: kind, values: func(f *facts, add func(uint64, ...string)) {
		if f.used == nil {
			return
		}
		if n, ok := value(f.used); ok {
			add(n)
		}
	}}
}

func used(name, help string, kind runtimeapi.MetricType, value func(*usedNow) uint64) oneSeries {
	return where(name, help, kind, func(u *usedNow) (uint64, bool) { return value(u), true })
}

// throttled is a series that only those with a CPU quota have.
func throttled(name, help string, value func(*usedNow) uint64) oneSeries {
	return where(name, help, counter, func(u *usedNow) (uint64, bool) { return value(u), u.Periods > 0 })
}

// labelled is the series with one more label, which is always the same.
func (s oneSeries) labelled(key, value string) oneSeries {
	plain := s.values
	s.labels = []string{key}
	s.values = func(f *facts, add func(uint64, ...string)) {
		plain(f, func(n uint64, _ ...string) { add(n, value) })
	}
	return s
}

func ofContainer(name, help string, kind runtimeapi.MetricType, value func(*facts) (n uint64, ok bool)) oneSeries {
	return oneSeries{name: name, help: help, kind: kind, values: func(f *facts, add func(uint64, ...string)) {
		if !f.container {
			return
		}
		if n, ok := value(f); ok {
			add(n)
		}
	}}
}

// faults are those of the cgroup and all below it, which for a container is all of it.
func faults(f *facts, add func(uint64, ...string)) {
	if f.used == nil {
		return
	}
	m := f.used.Mem
	if f.container {
		add(m.PageFaults, "pgfault", "container")
		add(m.MajorPageFaults, "pgmajfault", "container")
	}
	add(m.PageFaults, "pgfault", "hierarchy")
	add(m.MajorPageFaults, "pgmajfault", "hierarchy")
}

// pressure is missing where the kernel does not count it.
func pressure(name, help string, of func(*usedNow) *cgroup.Pressure, full bool) oneSeries {
	return where(name, help, counter, func(u *usedNow) (uint64, bool) {
		p := of(u)
		switch {
		case p == nil:
			return 0, false
		case full:
			return p.Full.Total / 1e6, true
		}
		return p.Some.Total / 1e6, true
	})
}

func device(name, help string, value func(*cgroup.DeviceIO) uint64) oneSeries {
	return oneSeries{name: name, help: help, kind: counter, labels: []string{"device"}, values: func(f *facts, add func(uint64, ...string)) {
		if f.used == nil {
			return
		}
		for i := range f.used.IO {
			add(value(&f.used.IO[i]), f.used.IO[i].Device)
		}
	}}
}

// filesystem is a series of the file system that a container writes to.
func filesystem(name, help string, value func(*imageservice.Filesystem) uint64) oneSeries {
	return oneSeries{name: name, help: help, kind: gauge, labels: []string{"device"}, values: func(f *facts, add func(uint64, ...string)) {
		if f.fs.Bytes > 0 {
			add(value(&f.fs), f.fs.Device)
		}
	}}
}

func link(name, help string, value func(*cni.Interface) uint64) oneSeries {
	return oneSeries{name: name, help: help, kind: counter, labels: []string{"interface"}, values: func(f *facts, add func(uint64, ...string)) {
		for i := range f.network {
			add(value(&f.network[i]), f.network[i].Name)
		}
	}}
}
