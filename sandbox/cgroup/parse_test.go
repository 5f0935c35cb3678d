package cgroup

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:32 / /var/jail/memory rw,relatime - cgroup cgroup rw,memory
`

func TestDetectHybrid(t *testing.T) {
	tr, err := detect(strings.NewReader(hybrid))
	if err != nil {
		t.Fatal(err)
	}
	want := &tree{version: V1, hierarchies: []hierarchy{
		{root: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
		{root: "/sys/fs/cgroup/memory", controllers: []string{"memory"}},
		{root: "/sys/fs/cgroup/devices", controllers: []string{"devices"}},
		{root: "/sys/fs/cgroup/pids", controllers: []string{"pids"}},
		{root: "/sys/fs/cgroup/systemd", controllers: []string{"name=systemd"}},
		{root: "/sys/fs/cgroup/unified", unified: true},
	}}
	if diff := cmp.Diff(want, tr, cmp.AllowUnexported(tree{}, hierarchy{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := tr.dir("cpuacct"); got != "/sys/fs/cgroup/cpu,cpuacct" {
		t.Errorf("cpuacct is at %q", got)
	}
}

func TestDetectNothing(t *testing.T) {
	for _, in := range []string{"", "31 23 0:28 / / rw - ext4 /dev/vda rw\n", strings.ReplaceAll(hybrid, "memory", "blkio")} {
		_, err := detect(strings.NewReader(in))
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "mount cgroup2") {
			t.Errorf("%q: %v, want unavailable and what to do", in, err)
		}
	}
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte(hybrid))
	f.Add([]byte("some avg10=0.00 avg60=NaN avg300=1e999 total=21\nfull\n"))
	f.Add([]byte("anon 1\ninactive_file 18446744073709551616\nx"))
	f.Add([]byte("1\n2\n0\n-1\n"))
	f.Add([]byte("9223372036854771712\n"))
	f.Add([]byte("8:0 rbytes=4096 wbytes=x rios=1 =\n8:16 Read 4096\nTotal 4096\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseMounts(strings.NewReader(string(data)))
		eachKey(data, func(key []byte, _ uint64) {
			if strings.ContainsAny(string(key), " \n") {
				t.Errorf("key %q", key)
			}
		})
		if p := parsePressure(data); p != nil && p.Some.Avg10 != p.Some.Avg10 {
			t.Error("NaN")
		}
		if n, limited, err := parseNumber(data); err == nil && limited && n >= unlimited {
			t.Errorf("%d is no limit", n)
		}
		io := ioTable{}
		io.parse2(data)
		io.parse1(data, func(d *DeviceIO) (read, write *uint64) { return &d.Reads, &d.Writes })
		for _, d := range io.named() {
			if d.Device == "" {
				t.Error("a device without a name")
			}
		}
		pids, err := parseProcs(data)
		for _, pid := range pids {
			if err == nil && pid <= 0 {
				t.Errorf("pid %d", pid)
			}
		}
	})
}
