package lifecycle

import "fmt"

// Pod is the state of a pod sandbox.
type Pod uint8

// States of a pod. Only PodReady is SANDBOX_READY to the CRI; a PodCreating is not shown at all.
const (
	PodGone     Pod = iota // before and after its life; never on disk
	PodCreating            // namespaces, network and files are being made
	PodReady
	PodStopping // containers are being killed, the network taken down
	PodNotReady
	PodRemoving // containers and files are being removed
)

// PodEvent is what happens to a pod.
type PodEvent uint8

// Events of a pod.
const (
	PodMade    PodEvent = iota // all was made
	PodStop                    // StopPodSandbox, also repeated; also when the undoing of its making has failed
	PodStopped                 // nothing of it runs, its network is free
	PodRemove                  // RemovePodSandbox
	PodLost                    // its namespaces or its init are gone
)

var podTable = map[Pod]map[PodEvent]Pod{
	PodCreating: {PodMade: PodReady, PodStop: PodStopping, PodRemove: PodRemoving},
	PodReady:    {PodStop: PodStopping, PodLost: PodStopping},
	PodStopping: {PodStop: PodStopping, PodStopped: PodNotReady},
	PodNotReady: {PodStop: PodStopping, PodRemove: PodRemoving},
	PodRemoving: {PodRemove: PodRemoving},
}

// On is the state that follows s after e, or a *Refusal.
func (s Pod) On(e PodEvent) (Pod, error) { return next(podTable, s, e) }

var podNames = []string{"gone", "creating", "ready", "stopping", "notReady", "removing"}
var podEventNames = []string{"made", "stop", "stopped", "remove", "lost"}

func (s Pod) String() string      { return name(podNames, uint8(s)) }
func (e PodEvent) String() string { return name(podEventNames, uint8(e)) }

// MarshalText gives the state's name: what stands in records.
func (s Pod) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes a state's name as [Pod.MarshalText] gives it.
func (s *Pod) UnmarshalText(b []byte) error {
	v, err := parse(podNames, b)
	*s = Pod(v)
	return err
}

// Refusal is an event that a state does not allow.
type Refusal struct {
	State, Event fmt.Stringer
}

func (r *Refusal) Error() string { return fmt.Sprintf("cannot %v while %v", r.Event, r.State) }

func next[S interface {
	comparable
	fmt.Stringer
}, E interface {
	comparable
	fmt.Stringer
}](table map[S]map[E]S, s S, e E) (S, error) {
	if to, ok := table[s][e]; ok {
		return to, nil
	}
	return s, &Refusal{State: s, Event: e}
}

func name(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}

func parse(names []string, b []byte) (uint8, error) {
	for i, n := range names {
		if n == string(b) && i != 0 { // 0 is "gone", which no record says
			return uint8(i), nil
		}
	}
	return 0, fmt.Errorf("unknown state %q", b)
}
