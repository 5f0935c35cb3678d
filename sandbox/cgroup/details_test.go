package cgroup

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestDetailsV2(t *testing.T) {
	tr := fixture(t)
	got, err := tr.readDetails("/pods/abc")
	if err != nil {
		t.Fatal(err)
	}
	want := Details{
		UserNanos: 4000117000, SystemNanos: 1023000000, Periods: 7, ThrottledPeriods: 2, ThrottledNanos: 88000000,
		MaxMemory: 33554432, MemoryFailures: 12, OOMKills: 2, MaxPids: 0,
		IO: []DeviceIO{{Device: "250:7", ReadBytes: 4096, Reads: 1}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := tr.readDetails("/pods/gone"); !errdefs.IsNotFound(err) {
		t.Errorf("of a cgroup that is gone: %v", err)
	}
}

func TestDeviceIOV1(t *testing.T) {
	io := ioTable{}
	io.parse1([]byte("250:7 Read 4096\n250:7 Write 8192\n250:7 Sync 1\n250:7 Total 12288\nTotal 12288\n"), func(d *DeviceIO) (read, write *uint64) { return &d.ReadBytes, &d.WriteBytes })
	io.parse1([]byte("250:7 Read 1\n250:7 Write 2\n250:7 Total 3\nTotal 3\n"), func(d *DeviceIO) (read, write *uint64) { return &d.Reads, &d.Writes })
	want := []DeviceIO{{Device: "250:7", ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2}}
	if diff := cmp.Diff(want, io.named()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
