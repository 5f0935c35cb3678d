package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/gantry-cri/gantry/cni/internal/journal"
)

// attachment is a pod's record, version 1. It is immutable.
type attachment struct {
	Version      int             `json:"version"`
	NetNS        string          `json:"netns"`
	Config       string          `json:"config"` // the list, as the ADD got it
	Args         [][2]string     `json:"args"`
	Capabilities map[string]any  `json:"capabilities"`
	SoFar        json.RawMessage `json:"soFar,omitempty"` // result of the chain's plugins that have run, see addChain
	// ------ not saved ------
	list *libcni.NetworkConfigList
}

func (a *attachment) runtimeConf(pod, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: pod, NetNS: netns, IfName: ifName, Args: a.Args, CapabilityArgs: a.Capabilities}
}

// records are those of all pods, in memory and on disk. Reading never waits for the disk.
type records struct {
	journal *journal.Journal

	mu   sync.Mutex
	pods map[string]*attachment // by pod id
}

// openRecords reads all records. Lists are shared: on most nodes there is one.
func openRecords(ctx context.Context, path string) (*records, error) {
	r := &records{pods: map[string]*attachment{}}
	lists := map[string]*libcni.NetworkConfigList{}
	var err error
	r.journal, err = journal.Open(ctx, path, func(pod string, value json.RawMessage) error {
		a, err := parseAttachment(pod, value, lists)
		if err != nil {
			return err
		}
		r.pods[pod] = a
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("attachments: %w", err)
	}
	return r, nil
}

// get is the record of a pod, nil when it is not attached.
func (r *records) get(pod string) *attachment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pods[pod]
}

// all are the records at this moment.
func (r *records) all() map[string]*attachment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.pods)
}

// put writes a record, before the first plugin runs.
func (r *records) put(pod string, a *attachment) error {
	if err := r.journal.Put(pod, a, !builtIn(a.list)); err != nil {
		return fmt.Errorf("recording the attachment: %w", err)
	}
	r.mu.Lock()
	r.pods[pod] = a
	r.mu.Unlock()
	return nil
}

// delete removes a record, after the last plugin has undone its work.
func (r *records) delete(pod string) error {
	if err := r.journal.Delete(pod); err != nil {
		return fmt.Errorf("removing the record of the attachment: %w", err)
	}
	r.mu.Lock()
	delete(r.pods, pod)
	r.mu.Unlock()
	return nil
}

func parseAttachment(pod string, data []byte, lists map[string]*libcni.NetworkConfigList) (*attachment, error) {
	if err := utils.ValidateContainerID(pod); err != nil {
		return nil, err
	}
	a := &attachment{}
	if err := json.Unmarshal(data, a); err != nil {
		return nil, err
	}
	if a.Version != 1 {
		return nil, fmt.Errorf("version %d is not known", a.Version)
	}
	if a.NetNS != "" && !filepath.IsAbs(a.NetNS) {
		return nil, fmt.Errorf("netns %.200q is not an absolute path", a.NetNS)
	}
	if a.list = lists[a.Config]; a.list == nil {
		list, err := parseList([]byte(a.Config))
		if err != nil {
			return nil, err
		}
		a.list, lists[a.Config] = list, list
	}
	a.Config = string(a.list.Bytes) // shared too
	return a, nil
}
