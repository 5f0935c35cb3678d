package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sample is what one pull cost, in the order of metrics.
type sample [5]float64

var metrics = [len(sample{})]string{"wall s", "CPU s", "peak MB", "written MB", "disk MB"}

const (
	settle   = 500 * time.Millisecond // for what a pull leaves to be done
	removing = 3 * time.Minute        // for what a removal leaves to be done; a machine at work takes its time
)

// measure pulls an image that is not there and removes it again.
func (d *daemon) measure(ctx context.Context, image string) (s sample, err error) {
	empty, err := usage(d.root)
	if err != nil {
		return s, err
	}
	if err := d.syncfs(); err != nil {
		return s, err
	}
	cpu, written, err := d.counters()
	if err != nil {
		return s, err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.pid), []byte("5"), 0); err != nil { // resets VmHWM
		return s, err
	}
	began := time.Now()
	spec := &runtimeapi.ImageSpec{Image: image}
	if _, err := d.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		return s, err
	}
	s[0] = time.Since(began).Seconds()
	time.Sleep(settle)
	cpuAfter, writtenAfter, err := d.counters()
	if err != nil {
		return s, err
	}
	s[1], s[3] = cpuAfter-cpu, (writtenAfter-written)/1e6
	if s[2], err = d.peak(); err != nil {
		return s, err
	}
	full, err := usage(d.root)
	if err != nil {
		return s, err
	}
	s[4] = (full - empty) / 1e6
	if _, err := d.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
		return s, err
	}
	return s, d.removed(empty)
}

// removed waits until the files of the removed image are gone.
func (d *daemon) removed(empty float64) error {
	const slack = 4e6 // metadata files keep their size
	for deadline := time.Now().Add(removing); ; time.Sleep(50 * time.Millisecond) {
		now, err := usage(d.root)
		if err != nil || now < empty+slack {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%.0f MB are left of a removed image", (now-empty)/1e6)
		}
	}
}

func (d *daemon) syncfs() error {
	dir, err := os.Open(d.root)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// counters are the CPU seconds and the written bytes so far (proc_pid_stat(5), proc_pid_io(5)).
func (d *daemon) counters() (cpu, written float64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.pid))
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, cstime, ticks = 11, 14, 100 // counted from the state; USER_HZ
	for _, text := range fields[utime : cstime+1] {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, 0, err
		}
		cpu += n / ticks
	}
	written, err = d.field("io", "write_bytes:")
	return cpu, written, err
}

func (d *daemon) peak() (float64, error) {
	kib, err := d.field("status", "VmHWM:")
	return kib * 1024 / 1e6, err
}

func (d *daemon) field(file, name string) (float64, error) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", d.pid, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/%s", name, d.pid, file)
}

// usage adds up the blocks beneath a folder, of each file once. Files may go meanwhile.
func usage(root string) (total float64, err error) {
	seen := map[uint64]bool{}
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			total += float64(st.Blocks) * 512
		}
		return err
	})
	return total, err
}

// print writes the medians of one image, and how many times Gantry's the others' are.
func print(image string, runtimes []*daemon, results map[*daemon][]sample) {
	fmt.Printf("\n%-26s", path.Base(image))
	for _, d := range runtimes {
		fmt.Printf("%22s", d.name)
	}
	for i, metric := range metrics {
		fmt.Printf("\n  %-24s", metric)
		own := median(results[runtimes[0]], i)
		for _, d := range runtimes {
			if m := median(results[d], i); d == runtimes[0] {
				fmt.Printf("%22.2f", m)
			} else {
				fmt.Printf("%14.2f (%4.1fx)", m, m/own)
			}
		}
	}
	fmt.Println()
}

func median(samples []sample, metric int) float64 {
	var values []float64
	for _, s := range samples {
		values = append(values, s[metric])
	}
	slices.Sort(values)
	return values[len(values)/2]
}
