package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// cpuOf adds up the user and system time of processes, ended ones too (proc_pid_stat(5)).
func cpuOf(pids []int) (seconds float64, err error) {
	const utime, stime, ticks = 11, 12, 100 // counted from the state; USER_HZ
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, text := range fields[utime : stime+1] {
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return 0, err
			}
			seconds += n / ticks
		}
	}
	return seconds, nil
}

// withArgument lists the processes that have text in their command line.
func withArgument(text string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && bytes.Contains(line, []byte(text)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// usage is what a process holds.
type usage struct{ rss, pss, fds, threads float64 } // KiB, KiB, count, count

func usageOf(pid int) (u usage, err error) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(body)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "Rss:":
			u.rss, err = strconv.ParseFloat(fields[1], 64)
		case fields[0] == "Pss:":
			u.pss, err = strconv.ParseFloat(fields[1], 64)
		}
		if err != nil {
			return u, err
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	u.fds, u.threads = float64(len(fds)), float64(len(threads))
	return u, err
}
