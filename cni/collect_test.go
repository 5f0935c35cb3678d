package cni

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gcCalls are the attachments that each call of GC was told of, by network.
func (n *node) gcCalls() (calls []gcCall) {
	n.t.Helper()
	for _, c := range n.calls() {
		if c.command != "GC" {
			continue
		}
		var conf struct {
			Name  string
			Valid []struct{ ContainerID, IfName string } `json:"cni.dev/valid-attachments"`
		}
		_, stdin, _ := strings.Cut(c.line, " {")
		if err := json.Unmarshal([]byte("{"+stdin), &conf); err != nil {
			n.t.Fatalf("%v: %s", err, c.line)
		}
		if conf.Valid == nil {
			n.t.Errorf("GC is not told which attachments are valid: %s", c.line)
		}
		call := gcCall{network: conf.Name}
		for _, v := range conf.Valid {
			if v.IfName != "eth0" {
				n.t.Errorf("attachment %v is not eth0's", v)
			}
			call.pods = append(call.pods, v.ContainerID)
		}
		slices.Sort(call.pods)
		calls = append(calls, call)
	}
	return calls
}

type gcCall struct {
	network string
	pods    []string
}

// collected runs GC with the live pods and waits for what follows it.
func (n *node) collected(live ...Pod) error {
	n.t.Helper()
	var ids []string
	for _, p := range live {
		ids = append(ids, p.ID)
	}
	err := n.GC(n.ctx, ids)
	n.settled <- errors.New("the test knows of no attachment") // is taken once all of this GC is done
	eventually(n.t, "GC is done", func() bool { return len(n.settled) == 0 })
	return err
}

// TestGCOfPlugins tells the plugins every attachment of their network, once nothing else is attached.
func TestGCOfPlugins(t *testing.T) {
	n := newNode(t, hasty)
	n.install("testplugin")
	n.write("10-x.conflist", n.of("1.1.0", "one", ""))
	n.uses("one")
	a, b, stuck, dead := n.pod(), n.pod(), n.named("stuck"), n.joined("dead")
	n.attach(a)
	n.turn("DEL", "error")
	if _, err := n.Attach(n.ctx, stuck); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(n.ctx, stuck); err == nil {
		t.Error("detached although the plugin fails")
	}
	n.turn("DEL "+stuck.ID, "error")
	// The same network with another configuration, and another network that is not the one in force any more.
	n.write("10-x.conflist", n.of("1.1.0", "one", `"more":true,`))
	eventually(t, "the new list is in force", func() bool {
		list, err := n.list()
		return err == nil && strings.Contains(string(list.Bytes), "more")
	})
	n.attach(b)
	n.write("10-x.conflist", n.of("1.1.0", "two", ""))
	n.uses("two")
	c := n.pod()
	n.attach(c)
	if got := n.gcCalls(); len(got) > 0 {
		t.Errorf("GC was called before the live pods are known: %v", got)
	}
	if err := n.collected(a, b, c, stuck); err != nil {
		t.Error(err)
	}
	if n.records.get(dead.ID) != nil {
		t.Error("the dead pod is attached")
	}
	one := slices.Sorted(maps.Keys(map[string]bool{a.ID: true, b.ID: true, stuck.ID: true}))
	got := n.gcCalls()
	slices.SortFunc(got, func(x, y gcCall) int { return strings.Compare(x.network, y.network) })
	if len(got) != 3 || got[0].network != "one" || got[1].network != "one" || got[2].network != "two" ||
		!slices.Equal(got[0].pods, one) || !slices.Equal(got[1].pods, one) || !slices.Equal(got[2].pods, []string{c.ID}) {
		t.Errorf("GC was told of %v, want %v of both configurations of one and %v of two", got, one, c.ID)
	}
	commands := n.commands()
	if slices.Index(commands, "GC") < slices.Index(commands, "DEL") {
		t.Errorf("calls %v, want the dead pod's DEL before GC", commands)
	}
	n.turn()
	n.detach(stuck)
}

// TestGCIsLeftOut where the configuration or the plugins have none, and where a pod might live that nobody told of.
func TestGCIsLeftOut(t *testing.T) {
	for name, c := range map[string]struct {
		version, keys string
		spoil         func(*node, Pod)
		want          int
	}{
		"as it should be": {version: "1.1.0", want: 1},
		"of old lists":    {version: "1.0.0"},
		"disabled":        {version: "1.1.0", keys: `"disableGC":true,`},
		"damaged records": {version: "1.1.0", spoil: func(n *node, _ Pod) {
			f, err := os.OpenFile(filepath.Join(n.cfg.StateDir, "attachments"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				n.t.Fatal(err)
			}
			if _, err = f.WriteString("}\n"); err != nil {
				n.t.Fatal(err)
			}
			f.Close()
			n.t.Cleanup(func() { _ = os.Remove(filepath.Join(n.cfg.StateDir, "attachments.damaged")) })
		}},
		"lost records": {version: "1.1.0", spoil: func(n *node, p Pod) {
			for _, path := range []string{"attachments", "results/x-" + p.ID + "-eth0"} {
				if err := os.Remove(filepath.Join(n.cfg.StateDir, path)); err != nil {
					n.t.Fatal(err)
				}
			}
		}},
		"lost records that the cache has": {version: "1.1.0", want: 1, spoil: func(n *node, _ Pod) {
			if err := os.Remove(filepath.Join(n.cfg.StateDir, "attachments")); err != nil {
				n.t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, hasty)
			n.install("testplugin")
			n.write("10-x.conflist", n.of(c.version, "x", c.keys))
			n.uses("x")
			pod := n.pod()
			n.attach(pod)
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			if c.spoil != nil {
				c.spoil(n, pod)
			}
			n.open()
			if err := n.collected(pod); err != nil {
				t.Error(err)
			}
			if got := n.gcCalls(); len(got) != c.want || c.want > 0 && !slices.Equal(got[0].pods, []string{pod.ID}) {
				t.Errorf("GC was told of %v, want %d calls with %s", got, c.want, pod.ID)
			}
		})
	}
}

// TestAttachWaitsForGC of its network, which knows nothing of the new pod and would take its address for a leftover.
// Pods of other networks do not wait, nor do pods that leave, nor the daemon's start; one that hangs is ended.
func TestAttachWaitsForGC(t *testing.T) {
	n := newNode(t, hasty, func(c *Config) { c.pace.collect = time.Hour })
	n.install("testplugin")
	n.write("10-x.conflist", n.of("1.1.0", "x", ""))
	n.uses("x")
	old := n.joined("old")
	n.turn("GC", "hang")
	if err := n.GC(n.ctx, []string{old.ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "GC hangs", func() bool { return len(n.gcCalls()) == 1 })
	n.detach(old)
	late := n.named("late")
	attached := make(chan error)
	go func() {
		_, err := n.Attach(n.ctx, late)
		attached <- err
	}()
	eventually(t, "the pod waits", func() bool { // for nothing but GC, as it has the lock
		unlock := n.Networks.calls.try(late.ID, nil)
		if unlock != nil {
			unlock()
		}
		return unlock == nil
	})
	n.write("10-x.conflist", n.of("1.1.0", "y", ""))
	n.uses("y")
	n.attach(n.pod())
	if n.records.get(late.ID) != nil {
		t.Error("the pod has an attachment that GC does not know")
	}
	for _, pid := range n.left() {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	if err := <-attached; err != nil {
		t.Error(err)
	}
	n.detach(late)
}

// TestGCThatHangs is ended, and pods are attached from then on.
func TestGCThatHangs(t *testing.T) {
	n := newNode(t, hasty, func(c *Config) { c.pace.collect = tooLong })
	n.install("testplugin")
	n.write("10-x.conflist", n.of("1.1.0", "x", ""))
	n.uses("x")
	n.turn("GC", "hang")
	if err := n.GC(n.ctx, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "GC hangs", func() bool { return len(n.gcCalls()) == 1 })
	n.attach(n.pod())
	n.nothingRuns()
}
