package cni

import (
	"context"
	"strings"
	"testing"
	"time"
)

// broken attaches a pod and fails to detach it.
func (n *node) broken(name string) Pod {
	n.t.Helper()
	pod := n.named(name)
	if _, err := n.Attach(n.ctx, pod); err != nil {
		n.t.Fatal(err)
	}
	if err := n.Detach(n.ctx, pod); err == nil || !strings.Contains(err.Error(), "no luck with DEL") {
		n.t.Errorf("%v, want the plugin's error", err)
	}
	return pod
}

func (n *node) isDetached(pod Pod) {
	n.t.Helper()
	eventually(n.t, "pod "+pod.Name+" is detached", func() bool { return n.records.get(pod.ID) == nil })
}

// TestRetriedDel tries a DEL again in the background until it works; a caller is told the error meanwhile, and nothing
// afterwards.
func TestRetriedDel(t *testing.T) {
	n := newNode(t, hasty)
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", nil))
	n.uses("outer")
	n.turn("DEL", "error")
	pod := n.broken("one")
	n.asked("DEL", 3)
	if err := n.Detach(n.ctx, pod); err == nil {
		t.Error("detached although the plugin fails")
	}
	n.turn()
	n.isDetached(pod)
	before := n.count("DEL")
	n.detach(pod)
	if n.count("DEL") != before || n.retries.has(pod.ID) {
		t.Error("what is detached is detached again")
	}
}

// TestRetriedDelByTheCaller need not wait for the next try, nor stay behind for it.
func TestRetriedDelByTheCaller(t *testing.T) {
	n := newNode(t, func(c *Config) { c.pace.retry = time.Hour })
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", nil))
	n.uses("outer")
	n.turn("DEL", "error")
	pod := n.broken("one")
	n.turn()
	n.detach(pod)
	if n.retries.has(pod.ID) {
		t.Error("a DEL that worked is tried again")
	}
}

// TestRetriedRollback undoes in the background what a failed ADD could not undo.
func TestRetriedRollback(t *testing.T) {
	n := newNode(t, hasty)
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", nil))
	n.uses("outer")
	n.turn("ADD", "error", "DEL", "error")
	pod := n.pod()
	if _, err := n.Attach(n.ctx, pod); err == nil || !strings.Contains(err.Error(), "undoing it") {
		t.Errorf("%v, want both errors", err)
	}
	n.turn()
	n.isDetached(pod)
	n.attach(pod)
}

// TestRetriedDelHangs holds up neither the pods beside it, nor for long the caller that comes for its own, nor the end.
func TestRetriedDelHangs(t *testing.T) {
	n := newNode(t, hasty, func(c *Config) { c.pace.del, c.pace.settle = tooLong, time.Hour })
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", nil))
	n.uses("outer")
	n.turn("DEL", "error")
	stuck := []Pod{n.broken("a"), n.broken("b"), n.broken("c")}
	failing := n.broken("d")
	var hang []string
	for _, p := range stuck {
		hang = append(hang, "DEL "+p.ID, "hang")
	}
	n.turn(hang...)
	n.isDetached(failing) // gets its turn among more that hang than are tried at once
	n.detach(n.joined("beside"))
	eventually(t, "a try hangs", func() bool { return len(n.left()) > 0 })
	n.turn()
	for _, p := range stuck {
		n.detach(p)
	}

	n.turn("DEL", "error")
	last := n.broken("last")
	n.turn("DEL", "hang")
	n.cfg.pace.del = time.Hour
	n.restart()
	ctx, cancel := context.WithTimeout(n.ctx, 100*time.Millisecond)
	defer cancel()
	if err := n.GC(ctx, nil); err == nil {
		t.Error("GC hides that a DEL hangs")
	}
	eventually(t, "the DEL is tried again", func() bool { return len(n.left()) > 0 })
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if left := n.left(); len(left) > 0 {
		t.Errorf("processes %v run on", left)
	}
	n.turn()
	n.open()
	if err := n.GC(n.ctx, nil); err != nil {
		t.Error(err)
	}
	n.isDetached(last)
}

// joined attaches a pod that the test detaches.
func (n *node) joined(name string) Pod {
	n.t.Helper()
	pod := n.named(name)
	if _, err := n.Attach(n.ctx, pod); err != nil {
		n.t.Fatal(err)
	}
	return pod
}

// TestStartIsBounded leaves to the background what hangs when the daemon starts.
func TestStartIsBounded(t *testing.T) {
	n := newNode(t, hasty, func(c *Config) { c.pace.del, c.pace.settle = time.Hour, tooLong })
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", nil))
	n.uses("outer")
	var pods []Pod
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		pods = append(pods, n.joined(name))
	}
	n.turn("DEL", "hang")
	n.restart()
	ended := make(chan [2]error, 1)
	go func() {
		one := n.Detach(context.Background(), pods[0]) // which was being stopped
		eventually(t, "it is tried in the background", func() bool { return n.count("DEL") == 2 })
		ended <- [2]error{one, n.GC(context.Background(), nil)}
	}()
	eventually(t, "the start is over", func() bool { return len(ended) == 1 })
	if errs := <-ended; errs[0] == nil || errs[1] == nil {
		t.Errorf("%v: it is hidden that DELs hang", errs)
	}
	for _, p := range pods {
		if n.records.get(p.ID) == nil || !n.retries.has(p.ID) {
			t.Errorf("pod %s is forgotten", p.Name)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.turn()
	n.cfg.pace.settle = time.Minute // what hangs no more may take what it takes
	n.open()
	if err := n.GC(n.ctx, nil); err != nil {
		t.Error(err)
	}
}

// TestRetriesBackOff doubles the wait up to the most, with differences, and takes the pod that is due first.
func TestRetriesBackOff(t *testing.T) {
	r := newRetries(pace{retry: time.Second, retryMost: 5 * time.Minute})
	ctx := logging(t)
	nominal := time.Second
	for i := range 12 {
		before := time.Now()
		r.add(ctx, "one", context.DeadlineExceeded)
		after, due := time.Now(), r.failed["one"].due
		if due.Sub(before) < nominal*7/8 || due.Sub(after) > nominal*9/8 {
			t.Errorf("wait %d is %v, want about %v", i, due.Sub(before), nominal)
		}
		nominal = min(2*nominal, 5*time.Minute)
	}
	r.add(ctx, "two", context.DeadlineExceeded)
	if pod, wait := r.next(); pod != "" || wait > 2*time.Second {
		t.Errorf("next is %q in %v, want nothing for about a second", pod, wait)
	}
	r.failed["two"].due = time.Now()
	if pod, _ := r.next(); pod != "two" {
		t.Errorf("next is %q, want two", pod)
	}
	if pod, _ := r.next(); pod != "" {
		t.Errorf("next is %q, which is being tried", pod)
	}
	r.drop(ctx, "two")
	if r.has("two") || !r.has("one") {
		t.Error("the wrong one is dropped")
	}
}
