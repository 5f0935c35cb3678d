package runtimeservice

import (
	"context"
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/store"
	"github.com/gantry-cri/gantry/sandbox/rollback"
)

// A container that could be neither made nor undone stays in the books, where
// its removal finds it, and does not keep a retry from making it anew.
func TestContainerThatCannotBeUndone(t *testing.T) {
	records, err := store.Open[store.Container](t.TempDir(), "containers")
	if err != nil {
		t.Fatal(err)
	}
	s := &containers{&core{index: newIndex(), ctrStore: records}}
	newOne := func() *container {
		return &container{
			id: newID(), key: containerKey{pod: "p", name: "c"}, pod: &pod{id: "p"}, op: newOpLock(), made: make(chan struct{}),
			exited: make(chan struct{}), state: lifecycle.ContainerCreating, config: &runtimeapi.ContainerConfig{}, configJSON: []byte("{}"),
		}
	}
	c := newOne()
	s.index.addContainer(c)
	var undo rollback.Stack
	boom := errors.New("boom")
	undo.Add("the mount", func(context.Context) error { return boom })
	if err := s.forgetContainer(t.Context(), c, &undo); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if got, err := s.index.container(c.id); err != nil || got != c {
		t.Errorf("not in the books: %v", err)
	}
	st, shown := c.status()
	if !shown || st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetFinishedAt() == 0 || st.GetReason() == "" {
		t.Errorf("shown %v as %v", shown, st)
	}
	if all, _, err := records.Load(); err != nil || all[c.id].State != lifecycle.ContainerRemoving {
		t.Errorf("records %v, %v", all, err)
	}
	if old := s.index.addContainer(newOne()); old != nil {
		t.Error("a retry meets the old one")
	}
}
