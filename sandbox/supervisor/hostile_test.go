package supervisor_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Records that read well, and name processes and cgroups of others or times and codes that no end has: they are set aside,
// or not believed, and nothing that they name is killed or removed, neither by the takeover nor by a deletion.
func TestHostileRecord(t *testing.T) {
	w := newWorld(t)
	w.watch()
	good := w.container("sleep", "1000")
	w.run(good)
	victim := exec.Command("sleep", "1000")
	w.must(victim.Start())
	var dirs, procs []string
	for _, m := range w.mounts {
		if strings.Contains(filepath.Base(m), "cpuset") {
			continue // which takes no process before it has processors
		}
		dir := filepath.Join(m, w.cgroup, "victim")
		w.must(os.Mkdir(dir, 0o755))
		w.must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(victim.Process.Pid)), 0))
		dirs, procs = append(dirs, dir), append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	t.Cleanup(func() {
		_ = victim.Process.Kill()
		_ = victim.Wait()
		for _, dir := range dirs {
			w.eventually("the victim's cgroup is removed", func() bool { err := os.Remove(dir); return err == nil || os.IsNotExist(err) })
		}
	})
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", victim.Process.Pid))
	w.must(err)
	started, err := strconv.ParseUint(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))[20], 10, 64) // proc_pid_stat(5): field 22
	w.must(err)

	files := func(id string) string { return filepath.Join(w.dir, "supervisor/containers", id) }
	data, err := os.ReadFile(filepath.Join(files(good.ID), "container.json"))
	w.must(err)
	hostile := map[string]func(record, request map[string]any){
		"cgroups-of-another": func(_, request map[string]any) { request["cgroupProcs"] = procs },
		"root-cgroups": func(_, request map[string]any) {
			request["cgroupProcs"] = []string{filepath.Join(w.mounts[0], "cgroup.procs")}
		},
		"through-its-cgroup": func(_, request map[string]any) {
			own := filepath.Dir(request["cgroupProcs"].([]string)[0])
			request["cgroupProcs"] = []string{own + "/../victim/cgroup.procs"}
		},
		"process-1":       func(record, _ map[string]any) { record["pid"], record["startTime"] = 1, 0 },
		"every-process":   func(record, _ map[string]any) { record["pid"] = -1 },
		"another-process": func(record, _ map[string]any) { record["pid"], record["startTime"] = victim.Process.Pid, started },
		"relative-path":   func(_, request map[string]any) { request["bundle"] = "../x" },
		"negative-limit":  func(_, request map[string]any) { request["logMax"] = -1 },
	}
	for id, change := range hostile {
		record := map[string]any{}
		w.must(json.Unmarshal(data, &record))
		request := record["request"].(map[string]any)
		var own []string
		for _, p := range good.CgroupProcs {
			own = append(own, filepath.Join(filepath.Dir(p), "../"+id, "cgroup.procs"))
		}
		request["id"], request["cgroupProcs"] = id, own
		change(record, request)
		changed, err := json.Marshal(record)
		w.must(err)
		w.must(os.Mkdir(files(id), 0o700))
		w.must(os.WriteFile(filepath.Join(files(id), "container.json"), changed, 0o600))
	}
	ends := []string{
		`{"id":%q,"pid":7,"code":4294967296,"at":"2026-11-22T00:00:00Z"}`, `{"id":%q,"pid":7,"code":-1,"at":"2026-11-22T00:00:00Z"}`,
		`{"id":%q,"pid":7,"code":0,"at":"9999-11-22T00:00:00Z"}`, `{"id":%q,"pid":7,"code":0}`,
	}
	var unbelieved []string
	for _, end := range ends {
		req := w.container("sleep", "1000")
		w.run(req)
		w.must(os.WriteFile(filepath.Join(files(req.ID), "exit.json"), fmt.Appendf(nil, end, req.ID), 0o600))
		unbelieved = append(unbelieved, req.ID)
	}
	w.killSupervisor()
	states, err := w.client.List(w.ctx())
	w.must(err)
	known := map[string]bool{}
	for _, s := range states {
		known[s.ID] = s.Exit == nil
	}
	for _, id := range append(unbelieved, good.ID) {
		if !known[id] {
			t.Errorf("container %s is not running", id)
		}
	}
	if aside := list(filepath.Join(w.dir, "supervisor/quarantine")); len(known) != len(unbelieved)+1 || len(aside) != len(hostile) {
		t.Errorf("known: %v, set aside: %v", known, aside)
	}
	for id := range hostile {
		w.delete(id)
	}
	for id := range known {
		w.delete(id)
	}
	if state(victim.Process.Pid) == 'Z' || state(victim.Process.Pid) == 'X' {
		t.Error("the process of another was killed")
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	w.must(os.RemoveAll(filepath.Join(w.dir, "supervisor/quarantine")))
}
