package runtimeservice

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/store"
	"github.com/gantry-cri/gantry/sandbox"
)

// After a restart a key belongs to what lives, in whatever order the records are read: a retried request must find it.
func TestKeysAfterARestart(t *testing.T) {
	pods := []lifecycle.Pod{lifecycle.PodNotReady, lifecycle.PodReady, lifecycle.PodCreating, lifecycle.PodStopping, lifecycle.PodRemoving}
	ctrs := []lifecycle.Container{lifecycle.ContainerExited, lifecycle.ContainerRunning, lifecycle.ContainerCreating, lifecycle.ContainerRemoving}
	podID := func(s lifecycle.Pod) string { return fmt.Sprintf("%064x", uint8(s)) }
	for shift := range len(pods) {
		c := &core{index: newIndex()}
		for i := range pods {
			state := pods[(i+shift)%len(pods)]
			rec := store.Pod{State: state, CreatedAt: int64(i) + math.MaxInt64/4, Config: []byte(`{"metadata":{"name":"p"}}`)}
			if err := c.loadPod(podID(state), rec); err != nil {
				t.Fatal(err)
			}
		}
		for i := range ctrs {
			state := ctrs[(i+shift)%len(ctrs)]
			id := fmt.Sprintf("c%063x", uint8(state))
			rec := store.Container{State: state, Pod: podID(lifecycle.PodReady), Cgroup: "/gantry/" + id, StopSignal: 15, Config: []byte(`{"metadata":{"name":"c"}}`)}
			if err := c.loadContainer(id, rec); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.index.podKeys[podKey{name: "p"}]; got == nil || got.state != lifecycle.PodReady {
			t.Errorf("shift %d: the pods' key belongs to %+v", shift, got)
		}
		if got := c.index.ctrKeys[containerKey{pod: podID(lifecycle.PodReady), name: "c"}]; got == nil || got.state != lifecycle.ContainerRunning {
			t.Errorf("shift %d: the containers' key belongs to %+v", shift, got)
		}
		if n, m := len(c.index.allPods()), len(c.index.allContainers(nil)); n != len(pods) || m != len(ctrs) {
			t.Errorf("shift %d: %d pods and %d containers in the books", shift, n, m)
		}
		if now := c.index.now(); now <= math.MaxInt64/4+int64(len(pods))-1 {
			t.Errorf("shift %d: a new pod would be older than those of the last run", shift)
		}
	}
}

// The exit of a start that was undone is not that of the next start.
func TestExitOfAnotherStart(t *testing.T) {
	for _, tt := range []struct {
		told, runs int
		want       lifecycle.Container
	}{
		{told: 7, runs: 7, want: lifecycle.ContainerExited},
		{told: 7, runs: 8, want: lifecycle.ContainerRunning},
		{told: 0, runs: 8, want: lifecycle.ContainerExited}, // lost, not told by the supervisor
	} {
		t.Run(fmt.Sprintf("%d for %d", tt.told, tt.runs), func(t *testing.T) {
			c := &container{pod: &pod{}, state: lifecycle.ContainerStarting, exited: make(chan struct{})}
			c.early = &sandbox.Exit{PID: tt.told, Code: 3, At: time.Unix(9, 0)}
			if err := (&containers{}).started(c, tt.runs, 5); err != nil || c.state != tt.want || c.early != nil {
				t.Errorf("%v, %v; want %v", c.state, err, tt.want)
			}
		})
	}
}

// A time-out that no duration can hold is a long one, not one that has passed.
func TestSeconds(t *testing.T) {
	for n, want := range map[int64]time.Duration{-1: 0, 0: 0, 30: 30 * time.Second} {
		if got := seconds(n); got != want {
			t.Errorf("seconds(%d) = %v, want %v", n, got, want)
		}
	}
	for _, n := range []int64{math.MaxInt64, 9223372036, 9223372037, 1 << 40} {
		if got := seconds(n); got < 1000*time.Hour {
			t.Errorf("seconds(%d) = %v", n, got)
		}
	}
}
