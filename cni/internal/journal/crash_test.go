package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/killpoint"
)

const victimEnv = "GANTRY_TEST_JOURNAL"

func TestMain(m *testing.M) {
	killpoint.Main()
	if path := os.Getenv(victimEnv); path != "" {
		fmt.Println("up")
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			panic(err)
		}
		j, err := Open(context.Background(), path, func(string, json.RawMessage) error { return nil })
		if err == nil {
			err = errors.Join(j.Put("b", 2, true), j.Delete("a"))
		}
		if err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// TestKilled kills the owner of a damaged journal at each change: while it sets the damage aside, writes the file
// anew, puts a record and deletes one.
func TestKilled(t *testing.T) {
	killpoint.Require(t)
	for n, killed := 1, true; killed; n++ {
		path := filepath.Join(t.TempDir(), "j")
		damaged := `{"k":"a","v":1}` + "\nxx\n" + `{"k":"z","v":9}` + "\n"
		if err := errors.Join(os.WriteFile(path, []byte(damaged), 0o600), os.WriteFile(path+".damaged", []byte("older"), 0o600)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), victimEnv+"="+path, "GORACE=atexit_sleep_ms=0")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if word, err := bufio.NewReader(stdout).ReadString('\n'); word != "up\n" {
			t.Fatal(word, err)
		}
		trace, err := killpoint.Attach(cmd.Process.Pid, killpoint.Point{N: n})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(stdin, "go")
		werr := cmd.Wait()
		report, err := trace.End()
		if err != nil || report.Killed == (werr == nil) {
			t.Fatal(report, werr, err)
		}
		killed = report.Killed
		_, got := open(t, path)
		if want := []string{"a=1 z=9", "a=1 b=2 z=9", "b=2 z=9"}; !slices.Contains(want, got) || !killed && got != want[2] {
			t.Errorf("killed %v at %s: got %q, want one of %q", killed, report.Last(), got, want)
		}
		if aside, err := os.ReadFile(path + ".damaged"); string(aside) != damaged {
			t.Errorf("killed %v at %s: set aside is %q, %v", killed, report.Last(), aside, err)
		}
	}
}

// TestCutAtEachByte reads what a crash or a power cut leaves of the file: some of its beginning, and zeros where data
// was not written any more. What was put or deleted by then counts, the rest does not, and nothing is damaged.
func TestCutAtEachByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j, _ := open(t, path)
	type state struct {
		size int
		want string
	}
	states := []state{{0, ""}}
	for _, step := range []struct {
		err  error
		want string
	}{
		{j.Put("a", 1, true), "a=1"}, {j.Put("b", "two", false), `a=1 b="two"`}, {j.Delete("a"), `b="two"`},
		{j.Put("c", 3, true), `b="two" c=3`}, {j.Put("b", 4, false), `b=4 c=3`}, {j.Delete("c"), "b=4"},
	} {
		if step.err != nil {
			t.Fatal(step.err)
		}
		states = append(states, state{want: step.want})
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Collect(bytes.Lines(whole))
	if len(lines) != len(states)-1 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, line := range lines {
		states[i+1].size = states[i].size + len(line)
	}
	for cut := range len(whole) + 1 {
		var want string
		for _, s := range states {
			if s.size <= cut {
				want = s.want
			}
		}
		for _, zeros := range []int{0, 1, 4096} {
			path := filepath.Join(t.TempDir(), "j")
			if err := os.WriteFile(path, append(bytes.Clone(whole[:cut]), strings.Repeat("\x00", zeros)...), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, got := open(t, path); got != want {
				t.Errorf("%d of %d bytes, %d zeros: got %q, want %q", cut, len(whole), zeros, got, want)
			}
			if _, err := os.Stat(path + ".damaged"); err == nil {
				t.Errorf("%d of %d bytes, %d zeros: taken for damaged", cut, len(whole), zeros)
			}
		}
	}
}
