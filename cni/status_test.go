package cni

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
)

// hasty does the work in the background as fast as a test likes it. What is ended when it takes too long has a minute, as
// a machine may be slow; a test of what hangs for ever sets the one limit that it is about.
func hasty(c *Config) {
	c.pace = pace{askReady: 20 * time.Millisecond, askNotReady: 10 * time.Millisecond, answer: time.Minute,
		look: 50 * time.Millisecond, writing: time.Hour, retry: 5 * time.Millisecond, retryMost: 20 * time.Millisecond,
		del: time.Minute, collect: time.Minute, settle: time.Minute}
}

const tooLong = 300 * time.Millisecond // for a plugin that hangs

func (n *node) switchFile() string { return n.cfg.StateDir + ".switch" }

// turn tells the test plugin what to do from now on: pairs of a command, or one and a pod's id, and a behaviour.
func (n *node) turn(pairs ...string) {
	n.t.Helper()
	do := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		do[pairs[i]] = pairs[i+1]
	}
	data, err := json.Marshal(do)
	if err == nil {
		err = os.WriteFile(n.switchFile()+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(n.switchFile()+".new", n.switchFile())
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// of is a list of one test plugin and of a version of the specification, with further keys of the list.
func (n *node) of(version, name, keys string) string {
	return strings.Replace(n.conflist(name, nil), `{"cniVersion":"1.0.0"`, `{`+keys+`"cniVersion":"`+version+`"`, 1)
}

// becomes waits until Status has all the words, or is nil without any.
func (n *node) becomes(words ...string) {
	n.t.Helper()
	eventually(n.t, "status has "+strings.Join(words, ", "), func() bool {
		err := n.Status()
		for _, w := range words {
			if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), w) {
				return false
			}
		}
		return (err == nil) == (len(words) == 0)
	})
}

// count is how often the test plugin was called.
func (n *node) count(command string) (count int) {
	for _, c := range n.commands() {
		if c == command {
			count++
		}
	}
	return count
}

// asked waits until the test plugin was called that often more.
func (n *node) asked(command string, more int) {
	n.t.Helper()
	before := n.count(command)
	eventually(n.t, command+" is called again", func() bool { return n.count(command) >= before+more })
}

func TestStatusOfPlugins(t *testing.T) {
	n := newNode(t, hasty)
	n.install("testplugin")
	n.turn("STATUS", "50")
	n.write("10-x.conflist", n.of("1.1.0", "asked", ""))
	n.becomes("network asked is not ready", "testplugin STATUS", "code 50 of STATUS", "(code 50, the plugin cannot attach pods)")
	n.attach(n.pod()) // what the plugin says is seconds old; it decides itself
	n.turn("STATUS", "51")
	n.becomes("(code 51, the plugin cannot attach pods, and attached ones may be cut off)")
	n.turn("STATUS", "exit")
	n.becomes("words on stderr")
	n.turn()
	n.becomes()
	n.turn("STATUS", "4") // it does not know the command
	n.asked("STATUS", 2)
	n.becomes()

	n.cfg.pace.answer = tooLong
	n.restart()
	n.turn("STATUS", "hang")
	n.becomes("deadline") // and until then, and for others, nothing waits
	n.attach(n.named("beside"))
	if err := n.Close(); err != nil { // nor does Close, and it leaves no plugin behind
		t.Fatal(err)
	}
	if left := n.left(); len(left) > 0 {
		t.Errorf("processes %v run on", left)
	}
	n.cfg.pace.answer = time.Hour
	n.open() // nor Open
	n.becomes("its plugins have not answered yet")
}

// TestStatusOfOldLists asks no plugin for what its version does not have, but looks for the program.
func TestStatusOfOldLists(t *testing.T) {
	n := newNode(t, hasty)
	n.turn("STATUS", "50", "GC", "50")
	n.write("10-x.conflist", n.of("1.0.0", "old", ""))
	n.becomes("network old is not ready", "testplugin is not in "+n.cfg.BinDirs[0])
	if _, err := n.Attach(n.ctx, n.pod()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("%v, want not found", err)
	}
	n.install("testplugin") // the agent that brings it comes later
	n.becomes()
	if err := os.Remove(filepath.Join(n.cfg.BinDirs[0], "testplugin")); err != nil {
		t.Fatal(err)
	}
	n.becomes("testplugin is not in")
	n.install("testplugin")
	n.becomes()
	if got := n.commands(); len(got) > 0 {
		t.Errorf("calls %v, want none", got)
	}
}

// TestStatusOfTheNext asks about a new configuration at once, and about none of an old one.
func TestStatusOfTheNext(t *testing.T) {
	n := newNode(t, hasty, func(c *Config) { c.pace.askReady, c.pace.askNotReady = time.Hour, time.Hour })
	n.install("testplugin")
	n.turn("STATUS", "50")
	n.write("10-x.conflist", n.of("1.1.0", "first", ""))
	n.becomes("network first")
	n.write("10-x.conflist", n.of("1.1.0", "second", ""))
	n.becomes("network second")
	if err := os.Remove(filepath.Join(n.cfg.ConfDir, "10-x.conflist")); err != nil {
		t.Fatal(err)
	}
	n.becomes()
}

// TestStatusOfTheFirst does not call a network ready whose plugins have not answered, as there was none before.
func TestStatusOfTheFirst(t *testing.T) {
	n := newNode(t, func(c *Config) { c.NoDefault = true })
	n.install("testplugin")
	n.turn("STATUS", "hang")
	n.write("10-x.conflist", n.of("1.1.0", "first", ""))
	n.uses("first")
	if n.Status() == nil { // that of before: there was no file, or half of it
		t.Error("the network is ready")
	}
}

func TestWithoutDigits(t *testing.T) {
	if a, b := withoutDigits("read tcp 127.0.0.1:54321: reset at 12:00"), withoutDigits("read tcp 127.0.0.1:1022: reset at 9:31"); a != b {
		t.Errorf("%q and %q differ", a, b)
	}
	if withoutDigits("a is not in 1") == withoutDigits("b is not in 1") {
		t.Error("other reasons are equal")
	}
}

// TestRepairOfTheTable brings host ports back after nft flush ruleset.
func TestRepairOfTheTable(t *testing.T) {
	n := newNode(t, hasty)
	pod := n.pod(PortMapping{Protocol: "tcp", HostPort: 18101, ContainerPort: 80})
	ip := n.attach(pod)
	listen(t, pod.NetNS, "tcp", at(ip, 80).String())
	deleteTable(t, n.cfg.Table)
	eventually(t, "the table is back", func() bool {
		tables, err := (&nftables.Conn{}).ListTablesOfFamily(nftables.TableFamilyINet)
		return err == nil && slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == n.cfg.Table })
	})
	reaches(t, "", "tcp", at(netip.MustParseAddr("127.0.0.1"), 18101), netip.Addr{})
}
