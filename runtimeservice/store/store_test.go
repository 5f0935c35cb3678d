package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

func sample() Container {
	return Container{
		State: lifecycle.ContainerExited, BootID: "b", Pod: "p", CreatedAt: 1, StartedAt: 2, FinishedAt: 3, ExitCode: 137,
		Reason: "OOMKilled", Message: "m", Config: json.RawMessage(`{"metadata":{"name":"c"}}`), ImageID: "sha256:1", ImageRef: "r@sha256:2",
		ImageName: "r:1", Cgroup: "/k/c", StopSignal: 15, UID: 1, GID: 2, Groups: []uint32{2, 3},
	}
}

func TestRecordsSurvive(t *testing.T) {
	root := t.TempDir()
	d, err := Open[Container](root, "containers")
	if err != nil {
		t.Fatal(err)
	}
	want := sample()
	for _, message := range []string{"much longer than the one that follows", "shorter", want.Message} {
		want.Message = message
		if err := d.Put("c1", want); err != nil {
			t.Fatal(err)
		}
	}
	got, damaged, err := d.Load()
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	if diff := cmp.Diff(map[string]Container{"c1": want}, got, cmpopts.EquateComparable()); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(filepath.Join(root, "containers/c1.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a record with an environment in it has mode %v, %v", info.Mode(), err)
	}
	for range 2 {
		if err := d.Delete("c1"); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, _ := d.Load(); len(got) != 0 {
		t.Errorf("after Delete: %v", got)
	}
	if left, err := os.ReadDir(filepath.Join(root, "containers")); err != nil || len(left) > 0 {
		t.Errorf("left after Delete and Load: %v, %v", left, err)
	}
}

// The files of deleted records hold nothing of them, serve the next records, and are not hoarded.
func TestFilesAreUsedAgain(t *testing.T) {
	root := t.TempDir()
	d, err := Open[Container](root, "containers")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "containers")
	inodes := func() map[uint64]int64 { // inode -> size
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		all := map[uint64]int64{}
		for _, e := range entries {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
				t.Fatal(err)
			}
			all[st.Ino] = st.Size
		}
		return all
	}
	put := func(id string) {
		t.Helper()
		if err := d.Put(id, sample()); err != nil {
			t.Fatal(err)
		}
	}
	put("c1")
	first := inodes()
	if err := d.Delete("c1"); err != nil {
		t.Fatal(err)
	}
	for inode, size := range inodes() {
		if size > 1 {
			t.Errorf("inode %d of a deleted record has %d bytes", inode, size)
		}
	}
	put("c2")
	again := inodes()
	for inode := range first {
		if _, same := again[inode]; !same || len(again) != len(first) {
			t.Errorf("inodes %v after %v, want the same", again, first)
		}
	}
	if got, damaged, err := d.Load(); err != nil || len(damaged) > 0 || len(got) != 1 || got["c2"].Message != sample().Message {
		t.Errorf("loaded %v, %v, %v", got, damaged, err)
	}
	for i := range maxSpare {
		put(fmt.Sprint("d", i))
	}
	for i := range maxSpare {
		if err := d.Delete(fmt.Sprint("d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(inodes()); n != maxSpare+len(first) {
		t.Errorf("%d files after many records were deleted, want %d to spare and one record's", n, maxSpare)
	}
	for range 2 { // spare files that somebody removed are made
		entries, err := filepath.Glob(filepath.Join(dir, "spare-*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.Remove(e); err != nil {
				t.Fatal(err)
			}
		}
		put("c3")
	}
}

// Whatever stands in the directory, the good records are loaded and the bad ones set aside with their cause.
func TestDamageIsSetAside(t *testing.T) {
	good, err := json.Marshal(envelope[Container]{version, "x", sample()})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ content, cause string }{
		"empty":        {"", "unexpected end"},
		"truncated":    {string(good[:len(good)/2]), "unexpected end"},
		"zeros":        {strings.Repeat("\x00", 100), "invalid character"},
		"newer":        {strings.Replace(string(good), `"version":1`, `"version":2`, 1), "version 2, this Gantry knows 1"},
		"another's":    {strings.Replace(string(good), `"id":"x"`, `"id":"y"`, 1), `record of "y"`},
		"no state":     {strings.Replace(string(good), `"exited"`, `"asleep"`, 1), `unknown state "asleep"`},
		"unknown key":  {strings.Replace(string(good), `"pod"`, `"pods"`, 1), `unknown field "pods"`},
		"wrong type":   {strings.Replace(string(good), `"uid":1`, `"uid":-1`, 1), "cannot unmarshal"},
		"just a value": {`7`, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			d, err := Open[Container](root, "containers")
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Put("good", sample()); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(d.file("x"), []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, "containers/x.tmp"), good[:10], 0o600); err != nil {
				t.Fatal(err)
			}
			got, damaged, err := d.Load()
			if err != nil || len(got) != 1 || len(damaged) != 1 {
				t.Fatalf("loaded %d, damaged %v, %v", len(got), damaged, err)
			}
			if !strings.Contains(damaged[0].Error(), test.cause) {
				t.Errorf("error %q does not tell the cause %q", damaged[0], test.cause)
			}
			aside, _ := os.ReadDir(filepath.Join(root, "quarantine"))
			left, _ := os.ReadDir(filepath.Join(root, "containers"))
			if len(aside) != 1 || len(left) != 2 || left[0].Name() != "good.json" || left[1].Name() != "good.tmp" {
				t.Errorf("quarantine %v, records %v", aside, left)
			}
		})
	}
}

// A record that its reader finds wrong leaves nothing behind, the version before it included.
func TestSetAside(t *testing.T) {
	root := t.TempDir()
	d, err := Open[Container](root, "containers")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Put("x", sample()); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.SetAside("x", errors.New("its pod is unknown")); !strings.Contains(err.Error(), "its pod is unknown") || strings.Contains(err.Error(), "rename") {
		t.Error(err)
	}
	aside, _ := os.ReadDir(filepath.Join(root, "quarantine"))
	left, _ := os.ReadDir(filepath.Join(root, "containers"))
	if len(aside) != 1 || len(left) != 0 {
		t.Errorf("quarantine %v, records %v", aside, left)
	}
}

// Pods of before there were labels are read, and labels are kept; without any the record is as it was then.
func TestLabels(t *testing.T) {
	d, err := Open[Pod](t.TempDir(), "pods")
	if err != nil {
		t.Fatal(err)
	}
	const old = `{"version":1,"id":"old","record":{"state":"ready","bootID":"b","createdAt":1,"handler":"","config":{}}}`
	if err := os.WriteFile(d.file("old"), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	want := Pod{State: lifecycle.PodReady, BootID: "b", CreatedAt: 1, Config: json.RawMessage(`{}`)}
	if err := d.Put("plain", want); err != nil {
		t.Fatal(err)
	}
	labelled := want
	labelled.ProcessLabel, labelled.MountLabel = "u:r:t:s0:c1,c2", "u:object_r:f:s0:c1,c2"
	if err := d.Put("labelled", labelled); err != nil {
		t.Fatal(err)
	}
	got, damaged, err := d.Load()
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	if diff := cmp.Diff(map[string]Pod{"old": want, "plain": want, "labelled": labelled}, got, cmpopts.EquateComparable()); diff != "" {
		t.Error(diff)
	}
	if body, err := os.ReadFile(d.file("plain")); err != nil || strings.TrimRight(strings.Replace(string(body), `"plain"`, `"old"`, 1), " ") != old {
		t.Errorf("a record without labels is %s, %v", body, err)
	}
}

// A new version that a crash has cut off leaves the record as it was.
func TestCutOffVersion(t *testing.T) {
	d, err := Open[Container](t.TempDir(), "containers")
	if err != nil {
		t.Fatal(err)
	}
	want := sample()
	if err := d.Put("c1", want); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"c1", "never-made"} {
		if err := os.WriteFile(d.shadow(id), []byte(`{"version":1,"id":"c1","rec`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, damaged, err := d.Load()
	if err != nil || len(damaged) > 0 || len(got) != 1 || got["c1"].ExitCode != want.ExitCode {
		t.Fatalf("%v, %v, %v", got, damaged, err)
	}
	want.ExitCode = 3
	if err := d.Put("c1", want); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := d.Load(); got["c1"].ExitCode != 3 {
		t.Errorf("after the cut off version: %v", got)
	}
	if _, err := os.Lstat(d.shadow("never-made")); err == nil {
		t.Error("the beginning of a record that was never made is still there")
	}
}

func FuzzRead(f *testing.F) {
	good, _ := json.Marshal(envelope[Container]{version, "x", sample()})
	f.Add(good)
	f.Add([]byte(`{"version":1,"id":"x","record":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Open[Container](t.TempDir(), "containers")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.file("x"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, damaged, err := d.Load()
		if err != nil || len(got)+len(damaged) != 1 {
			t.Fatalf("loaded %v, damaged %v, %v", got, damaged, err)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	d, err := Open[Container](b.TempDir(), "containers")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := d.Put("c", sample()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSpareFilesAreMadeAhead takes every spare file there is, and others come; each serves one record.
func TestSpareFilesAreMadeAhead(t *testing.T) {
	root := t.TempDir()
	d, err := Open[Container](root, "containers")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { d.KeepSpare(ctx) })
	spares := func() int {
		found, err := filepath.Glob(filepath.Join(root, "containers", "spare-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	want := map[string]bool{}
	for round := range 3 {
		for deadline := time.Now().Add(time.Minute); spares() < minSpare; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: %d spare files, want %d", round, spares(), minSpare)
			}
		}
		for i := range minSpare {
			id := fmt.Sprintf("c%d-%d", round, i)
			want[id] = true
			if err := d.Put(id, sample()); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	wg.Wait()
	got, damaged, err := d.Load()
	if err != nil || len(damaged) > 0 || len(got) != len(want) {
		t.Errorf("loaded %d records, want %d; %v, %v", len(got), len(want), damaged, err)
	}
	if n := spares(); n > 0 {
		t.Errorf("%d spare files after Load", n)
	}
}
