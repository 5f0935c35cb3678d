package server

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestOOMKills(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		text string
		want uint64
	}{
		{"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3}, // v1
		{"low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 0\n", 2},
		{"", 0}, {"oom_kill x\n", 0},
	} {
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := oomKills(path); got != tt.want || !ok {
			t.Errorf("%q: %d, %v", tt.text, got, ok)
		}
	}
	for _, none := range []string{"", filepath.Join(dir, "none")} {
		if n, ok := oomKills(none); n != 0 || ok {
			t.Errorf("%q: %d, %v", none, n, ok)
		}
	}
}

// TestDiedOfOOM is of a container whose cgroup is there at its end, or was removed by systemd.
func TestDiedOfOOM(t *testing.T) {
	const gone = -1
	for _, tt := range []struct {
		name           string
		systemd        bool
		file           string
		code           int
		killed         bool
		own, above     int // at the end
		ownAt, aboveAt int // at the start
		want           bool
	}{
		{name: "its own", file: "memory.events", code: 137, own: 1, want: true},
		{name: "on version 1", systemd: true, file: "memory.oom_control", code: 137, own: 1, want: true},
		{name: "of an earlier one", file: "memory.events", code: 137, own: 1, ownAt: 1},
		{name: "of an exec", file: "memory.events", code: 1, own: 1},
		{name: "and killed by us", file: "memory.events", code: 137, killed: true, own: 1},
		{name: "a neighbour's", systemd: true, file: "memory.events", code: 137, own: 0, above: 1},
		{name: "cgroup gone", systemd: true, file: "memory.events", code: 137, own: gone, above: 3, aboveAt: 2, want: true},
		{name: "cgroup gone, nothing killed", systemd: true, file: "memory.events", code: 137, own: gone, above: 2, aboveAt: 2},
		{name: "cgroup gone, killed by us", systemd: true, file: "memory.events", code: 137, killed: true, own: gone, above: 3},
		{name: "cgroup gone, ended otherwise", systemd: true, file: "memory.events", code: 3, own: gone, above: 3},
		{name: "both gone", systemd: true, file: "memory.events", code: 137, own: gone, above: gone, aboveAt: 2},
		{name: "gone without systemd", file: "memory.events", code: 137, own: gone, above: 3},
		{name: "gone on version 1", systemd: true, file: "memory.oom_control", code: 137, own: gone, above: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			own := filepath.Join(dir, "gantry-x.scope")
			if err := os.Mkdir(own, 0o700); err != nil {
				t.Fatal(err)
			}
			set := func(dir string, n int) {
				path := filepath.Join(dir, tt.file)
				err := os.WriteFile(path, fmt.Appendf(nil, "oom_kill %d\n", n), 0o600)
				if n == gone {
					err = os.Remove(path)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			c := &container{killed: tt.killed}
			c.rec.Request.OOMFile = filepath.Join(own, tt.file)
			c.rec.Request.Runtime.SystemdCgroup = tt.systemd
			set(own, tt.ownAt)
			set(dir, tt.aboveAt)
			c.rec.countOOMKills()
			set(own, tt.own)
			set(dir, tt.above)
			if got := c.diedOfOOM(tt.code); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
