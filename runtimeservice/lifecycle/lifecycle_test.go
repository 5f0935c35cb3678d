package lifecycle

import (
	"errors"
	"strings"
	"testing"
)

// Every pair of state and event, one line a state: "event>state", all others refused.
func TestPodTable(t *testing.T) {
	check(t, podNames, podEventNames, map[string]string{
		"gone":     "",
		"creating": "made>ready stop>stopping remove>removing",
		"ready":    "stop>stopping lost>stopping",
		"stopping": "stop>stopping stopped>notReady",
		"notReady": "stop>stopping remove>removing",
		"removing": "remove>removing",
	}, func(s, e uint8) (string, error) {
		to, err := Pod(s).On(PodEvent(e))
		return to.String(), err
	})
}

func TestContainerTable(t *testing.T) {
	check(t, containerNames, containerEventNames, map[string]string{
		"gone":     "",
		"creating": "made>created remove>removing",
		"created":  "start>starting remove>removing",
		"starting": "undone>created started>running startFailed>exited",
		"running":  "exit>exited",
		"exited":   "exit>exited remove>removing",
		"removing": "remove>removing",
	}, func(s, e uint8) (string, error) {
		to, err := Container(s).On(ContainerEvent(e))
		return to.String(), err
	})
}

func check(t *testing.T, states, events []string, want map[string]string, on func(s, e uint8) (string, error)) {
	t.Helper()
	for s, state := range states {
		allowed := map[string]string{}
		for _, rule := range strings.Fields(want[state]) {
			e, to, _ := strings.Cut(rule, ">")
			allowed[e] = to
		}
		for e, event := range events {
			to, err := on(uint8(s), uint8(e))
			if next, ok := allowed[event]; ok {
				if err != nil || to != next {
					t.Errorf("%s on %s: %s, %v; want %s", state, event, to, err, next)
				}
				continue
			}
			var refusal *Refusal
			if !errors.As(err, &refusal) || to != state {
				t.Errorf("%s on %s: %s, %v; want a refusal", state, event, to, err)
			}
		}
	}
}

func TestStatesAsText(t *testing.T) {
	for i := range podNames {
		var back Pod
		b, _ := Pod(i).MarshalText()
		if err := back.UnmarshalText(b); (err != nil) != (i == 0) || back != Pod(i) {
			t.Errorf("pod state %q: %v, %v", b, back, err)
		}
	}
	for i := range containerNames {
		var back Container
		b, _ := Container(i).MarshalText()
		if err := back.UnmarshalText(b); (err != nil) != (i == 0) || back != Container(i) {
			t.Errorf("container state %q: %v, %v", b, back, err)
		}
	}
	var s Container
	if err := s.UnmarshalText([]byte("asleep")); err == nil {
		t.Error("a state that does not exist was read")
	}
}
