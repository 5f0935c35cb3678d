package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const orphanTimeout = 10 * time.Second // for killed plugins to be gone

// endOrphans waits for plugins that run on although the daemon that started them was killed: one in its ADD would take an
// address after the DEL by which this process frees what the pod had. Only pods are looked for whose ADD was cut off,
// which nobody has been told to be attached: their records are there, the results are not. And one in its GC would take
// the addresses of pods that it was not told of, those of this process.
//
// They get pace.orphan to end by themselves before they are killed: host-local writes a pod's name into the file of an
// address after it has made that, so no DEL finds an address that was being taken when the plugin was killed.
func (n *Networks) endOrphans(ctx context.Context) error {
	cutOff := map[string]bool{}
	for id, a := range n.records.all() {
		_, err := os.Lstat(n.resultFile(id, a))
		if errors.Is(err, fs.ErrNotExist) && !builtIn(a.list) {
			cutOff[id] = true
		}
	}
	_, err := os.Lstat(n.collecting())
	collecting := err == nil
	if len(cutOff) == 0 && !collecting {
		return nil
	}
	harmful := func(vars []string) bool {
		switch env(vars, "CNI_COMMAND") {
		case "ADD":
			return cutOff[env(vars, "CNI_CONTAINERID")]
		case "GC":
			return collecting && env(vars, stateEnv) == n.cfg.StateDir
		}
		return false
	}
	patience := time.Now().Add(n.pace.orphan)
	deadline := patience.Add(orphanTimeout)
	told := map[int]bool{}
	for {
		left, err := orphans(harmful)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			if collecting {
				return os.RemoveAll(n.collecting()) // whatever it is
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d plugins of an earlier process do not end", len(left))
		}
		if time.Now().Before(patience) {
			left = nil
		}
		for _, o := range left {
			if !told[o.pid] {
				told[o.pid] = true
				klog.FromContext(ctx).Info("Ended a CNI plugin that a killed daemon had left", "command", o.command, "podID", o.pod, "pid", o.pid)
			}
			if err := unix.Kill(-o.group, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("ending CNI plugin %d of an earlier process: %w", o.pid, err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// resultFile is where libcni caches the result of a pod's ADD.
func (n *Networks) resultFile(pod string, a *attachment) string {
	dir := n.cfg.StateDir
	if builtIn(a.list) {
		dir = n.cfg.RunDir
	}
	return filepath.Join(dir, "results", a.list.Name+"-"+pod+"-"+ifName)
}

// collecting is a file that is there while plugins run their GC.
func (n *Networks) collecting() string { return filepath.Join(n.cfg.StateDir, "collecting") }

type orphan struct {
	pid, group   int
	command, pod string
}

// orphans are the processes that have the environment of a harmful call: plugins and what they started. A program that
// a plugin has left for good, as a daemon, has made a session of its own and is none.
func orphans(harmful func(vars []string) bool) (found []orphan, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ")) // it may have ended
		if !bytes.Contains(environ, []byte("CNI_CONTAINERID=")) {
			continue
		}
		vars := strings.Split(string(environ), "\x00")
		group, gerr := unix.Getpgid(pid)
		session, serr := unix.Getsid(pid)
		if harmful(vars) && gerr == nil && serr == nil && group != session && group != unix.Getpgrp() && group > 1 {
			found = append(found, orphan{pid, group, env(vars, "CNI_COMMAND"), env(vars, "CNI_CONTAINERID")})
		}
	}
	return found, nil
}
