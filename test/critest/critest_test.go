package critest

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/harness"
)

const (
	enough  = 100 // specs that must pass
	timeout = 15 * time.Minute
)

//go:embed skips.txt
var skipList string

func TestMain(m *testing.M) { harness.Main(m) }

// rule is a line of skips.txt.
type rule struct {
	always bool   // skip, not may
	unless string // a file: where it exists the rule does not hold
	specs  *regexp.Regexp
	reason string
}

func (r rule) holds() bool {
	if r.unless == "" {
		return true
	}
	_, err := os.Stat(r.unless)
	return err != nil
}

func parseRules(text string) ([]rule, error) {
	var rules []rule
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, " :: ", 3)
		if len(fields) != 3 {
			return nil, fmt.Errorf("skips.txt: %q: want ACTION :: REGEXP :: REASON", line)
		}
		action, unless, _ := strings.Cut(strings.TrimSpace(fields[0]), " unless ")
		if action != "skip" && action != "may" || unless != "" && !filepath.IsAbs(unless) {
			return nil, fmt.Errorf("skips.txt: %q: the action is skip or may, or either with unless /FILE", line)
		}
		specs, err := regexp.Compile(fields[1])
		if err != nil {
			return nil, fmt.Errorf("skips.txt: %q: %w", line, err)
		}
		rules = append(rules, rule{always: action == "skip", unless: unless, specs: specs, reason: fields[2]})
	}
	return rules, nil
}

// spec is the part of ginkgo's JSON report that is looked at.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
	CapturedGinkgoWriterOutput string
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
}

func TestCRIConformance(t *testing.T) {
	cfg := config(t)
	focus, want := os.Getenv("CRITEST_FOCUS"), enough
	if focus != "" {
		want = 1
	}
	conforms(t, harness.New(t, cfg), focus, want)
}

// TestNetworkingWithReferencePlugins runs the networking specs once more, with pods connected by CNI's own plugins.
func TestNetworkingWithReferencePlugins(t *testing.T) {
	i, _ := harness.NewWithReferencePlugins(t, config(t))
	conforms(t, i, "Networking", 4)
}

// TestStreamingOverWebSockets runs the specs of exec, attach and port-forward once more, whose clients take SPDY otherwise.
func TestStreamingOverWebSockets(t *testing.T) {
	conforms(t, harness.New(t, config(t)), "Streaming", 5, "-websocket-exec", "-websocket-attach", "-websocket-portforward")
}

func config(t *testing.T) harness.Config {
	harness.Require(t)
	cfg := harness.Config{Registry: harness.Registry(t)}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		cfg.TOML = "selinux = true\n"
	}
	if name := os.Getenv("CRITEST_RUNTIME"); name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Flags = []string{"--runtime", name + "=" + path, "--default-runtime", name}
	}
	return cfg
}

// conforms requires of the specs in focus ("" = all) that they pass, at least so many, or are skipped for a known reason.
// flags are further ones of critest's.
func conforms(t *testing.T, i *harness.Instance, focus string, want int, flags ...string) {
	t.Helper()
	rules, err := parseRules(skipList)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := harness.Tool(t.Context(), "critest")
	if err != nil {
		t.Fatal(err)
	}
	specs := runSuite(t, i, binary, focus, rules, flags)

	passed, failed, skipped := 0, 0, map[string]int{}
	for _, s := range specs {
		if s.LeafNodeType != "It" && s.State == "passed" {
			continue // set-up and tear-down of the suite
		}
		switch s.State {
		case "passed":
			passed++
		case "skipped", "pending":
			if s.Failure.Message == "" && focus != "" {
				continue // out of focus
			}
			r := slices.IndexFunc(rules, func(r rule) bool { return r.holds() && r.specs.MatchString(s.name()) })
			if r < 0 {
				t.Errorf("skipped without a line in skips.txt: %s: %s", s.name(), s.Failure.Message)
				continue
			}
			skipped[rules[r].reason]++
		default:
			failed++
			t.Errorf("%s: %s\n%s (%s:%d)\n%s", s.State, s.name(), s.Failure.Message, filepath.Base(s.Failure.Location.FileName),
				s.Failure.Location.LineNumber, tail(s.CapturedGinkgoWriterOutput, 25))
		}
	}
	total := 0
	for _, n := range skipped {
		total += n
	}
	t.Logf("critest: %d passed, %d failed, %d skipped", passed, failed, total)
	for reason, n := range skipped {
		t.Logf("  %d skipped: %s", n, reason)
	}
	if passed < want {
		t.Errorf("%d specs passed, want at least %d", passed, want)
	}
}

// runSuite runs critest to its end and returns its specs. Specs that fail are in the report, so the exit code only
// matters when there is none.
func runSuite(t *testing.T, i *harness.Instance, binary, focus string, rules []rule, flags []string) []spec {
	t.Helper()
	report, tmp := filepath.Join(i.LogDir, "critest.json"), filepath.Join(i.LogDir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"-runtime-endpoint=unix://" + i.Socket, "-ginkgo.json-report=" + report, "-ginkgo.no-color", "-ginkgo.timeout=" + timeout.String()}
	args = append(args, flags...)
	if focus != "" {
		args = append(args, "-ginkgo.focus="+focus)
	}
	for _, r := range rules {
		if r.always && r.holds() {
			args = append(args, "-ginkgo.skip="+r.specs.String())
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir, cmd.Env = tmp, append(os.Environ(), "TMPDIR="+tmp)
	out, runErr := cmd.CombinedOutput()
	body, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("critest left no report: %v, %v\n%s", runErr, err, tail(string(out), 60))
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(body, &suites); err != nil || len(suites) != 1 {
		t.Fatalf("critest's report: %d suites, %v", len(suites), err)
	}
	return suites[0].SpecReports
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func TestRulesAreRead(t *testing.T) {
	if _, err := parseRules(skipList); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"no fields", "never :: x :: y", "may unless here :: x :: y", "skip :: ( :: y"} {
		if _, err := parseRules(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
