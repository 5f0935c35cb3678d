package again

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// first is true in the first process of each test that asks.
const first = `
func first(t *testing.T) bool {
	f, err := os.OpenFile(filepath.Join(os.Getenv("MARKS"), filepath.Base(t.Name())), os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		f.Close()
	}
	return err == nil
}
`

// packages are those of a module, by name; the bodies of their tests, or the whole file.
var packages = map[string]string{
	"good":    `func TestGood(t *testing.T) {}`,
	"once":    `func TestOnce(t *testing.T) { t.Run("part", func(t *testing.T) { if first(t) { t.Error("what it said") } }) }`,
	"always":  `func TestAlways(t *testing.T) { t.Errorf("first: %v", first(t)) }`,
	"skipped": `func TestSkipped(t *testing.T) { if first(t) { t.Error("failed") }; t.Skip("not here") }`,
	"panics":  `func TestPanics(t *testing.T) { if first(t) { panic("dead") } }`,
	"races":   `func TestRaces(t *testing.T) { if first(t) { n := 0; done := make(chan bool); go func() { n++; done <- true }(); n++; <-done; _ = n } }`,
	"child":   `func TestChild(t *testing.T) { if first(t) { t.Error("a program of its own: WARNING: DATA RACE") } }`,
	"hangs":   `func TestHangs(t *testing.T) { if first(t) { t.Error("and hangs"); select {} } }`,
	"dies":    `func TestMain(m *testing.M) { m.Run(); os.Exit(1) }; func TestDies(t *testing.T) { first(t) }`,
	"broken":  `func TestBroken(t *testing.T) { first() }`,
	"four": `func TestA(t *testing.T) { if first(t) { t.Error() } }; func TestB(t *testing.T) { TestA(t) }
		func TestC(t *testing.T) { TestA(t) }; func TestD(t *testing.T) { TestA(t) }`,
	// What follows is run in halves: TestA in one, TestB in the other.
	"half": `func TestA(t *testing.T) { first(t); meet("TestB") }; func TestB(t *testing.T) { if first(t) { t.Error("what it said") }; meet("TestA") }
		func meet(other string) { for { if _, err := os.Stat(filepath.Join(os.Getenv("MARKS"), other)); err == nil { return } } }`,
	"both": `func TestA(t *testing.T) { if first(t) { t.Error() } }; func TestB(t *testing.T) { TestA(t) }`,
	"dead": `func TestA(t *testing.T) { if first(t) { panic("dead") } }; func TestB(t *testing.T) { if first(t) { t.Error() } }`,
	"gone": `func TestA(t *testing.T) { if first(t) { t.Error() } }; func TestB(t *testing.T) { if first(t) { os.Exit(1) } }`,
}

func TestFailedTestRunsOnceMore(t *testing.T) {
	module := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(module, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.com/m\n\ngo 1.24\n")
	for name, body := range packages {
		write(name+"/x_test.go", "package "+name+"\n\nimport (\n\t\"os\"\n\t\"path/filepath\"\n\t\"testing\"\n)\n"+first+body+"\n")
	}
	hack, err := filepath.Abs("../../hack")
	if err != nil {
		t.Fatal(err)
	}
	const flaky = "FLAKY: example.com/m/once TestOnce failed once, passed alone\n"
	for _, c := range []struct {
		name   string
		args   string
		passes bool
		says   []string
		again  int // so many tests
	}{
		{"nothing fails", "./good", true, []string{"ok  \texample.com/m/good"}, 0},
		{"fails once", "./good ./once", true, []string{flaky, "FLAKY:     --- FAIL: TestOnce/part", "FLAKY:         x_test.go:16: what it said\n", "once: --- FAIL: TestOnce"}, 1},
		{"fails always", "./once ./always", false, []string{"\n--- FAIL: TestOnce", "\n--- FAIL: TestAlways", "first: true", "first: false"}, 2},
		{"is skipped then", "./skipped", false, []string{"\n--- FAIL: TestSkipped"}, 1},
		{"panics", "./once ./panics", false, []string{"panic: dead"}, 0},
		{"races", "-race ./once ./races", false, []string{"WARNING: DATA RACE"}, 0},
		{"races elsewhere", "./once ./child", false, []string{"WARNING: DATA RACE"}, 0},
		{"hangs", "-timeout=3s ./hangs", false, []string{"panic: test timed out"}, 0},
		{"ends early", "./once ./dies", false, []string{"FAIL\texample.com/m/dies"}, 0},
		{"does not build", "./once ./broken", false, []string{"FAIL\texample.com/m/broken [build failed]"}, 0},
		{"in halves", "-timeout=1m -exec=$HACK/halves.sh ./good ./half", true, []string{"FLAKY: example.com/m/half TestB failed once, passed alone\n", "ok  \texample.com/m/good"}, 1},
		{"fails in both halves", "-exec=$HACK/halves.sh ./both", true, []string{"FLAKY: example.com/m/both TestA", "FLAKY: example.com/m/both TestB"}, 2},
		{"one half panics", "-exec=$HACK/halves.sh ./dead", false, []string{"panic: dead", "\n--- FAIL: TestB"}, 0},
		{"one half ends early", "-exec=$HACK/halves.sh ./gone", false, []string{"\n--- FAIL: TestA"}, 0},
		{"is one of four", "./four", false, []string{"\n--- FAIL: TestD"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, hack+"/gotest.sh", append([]string{"-count=1", "-vet=off"}, strings.Fields(strings.ReplaceAll(c.args, "$HACK", hack))...)...)
			cmd.Dir, cmd.Env = module, append(os.Environ(), "MARKS="+t.TempDir(), "GOFLAGS=", "GOWORK=off")
			out, err := cmd.CombinedOutput()
			text := "\n" + string(out)
			if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if (err == nil) != c.passes {
				t.Errorf("passed: %v", err == nil)
			}
			for _, s := range c.says {
				if !strings.Contains(text, s) {
					t.Errorf("no %q", s)
				}
			}
			if n := strings.Count(text, "once more, alone: "); n != c.again {
				t.Errorf("%d tests ran again", n)
			}
			if c.passes && strings.Contains(text, "\n--- FAIL: ") {
				t.Error("it passed, and looks as if it had not")
			}
			if !c.passes && strings.Contains(text, "FLAKY: ") {
				t.Error("it failed, and says that it is flaky")
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
		})
	}
}
