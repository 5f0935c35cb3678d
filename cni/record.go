package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/gantry-cri/gantry/cni/internal/journal"
)

// maxFile bounds what is read of a record or a configuration file.
const maxFile = 1 << 20

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

// save writes the record before the first plugin runs.
func (n *Networks) save(pod string, a *attachment) error {
	if err := n.journal.Put(pod, a, !builtIn(a.list)); err != nil {
		return fmt.Errorf("recording the attachment: %w", err)
	}
	n.mu.Lock()
	n.pods[pod] = a
	n.mu.Unlock()
	return nil
}

// forget removes the record after the last plugin has undone its work.
func (n *Networks) forget(pod string) error {
	if err := n.journal.Delete(pod); err != nil {
		return fmt.Errorf("removing the record of the attachment: %w", err)
	}
	n.mu.Lock()
	delete(n.pods, pod)
	n.mu.Unlock()
	return nil
}

// loadAttachments reads all records at start. Lists are shared: on most nodes there is one.
func (n *Networks) loadAttachments(ctx context.Context) (err error) {
	lists := map[string]*libcni.NetworkConfigList{}
	n.journal, err = journal.Open(ctx, filepath.Join(n.cfg.StateDir, "attachments"), func(pod string, value json.RawMessage) error {
		a, err := parseAttachment(pod, value, lists)
		if err != nil {
			return err
		}
		n.pods[pod] = a
		return nil
	})
	if err != nil {
		return fmt.Errorf("attachments: %w", err)
	}
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

// writeFile replaces a file atomically, to survive a power cut too.
func writeFile(path string, data []byte) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readFile reads a regular file of at most maxFile bytes.
func readFile(path string) ([]byte, error) {
	data, _, err := read(path)
	return data, err
}

// readTrusted reads a file that only root can have written: who can write it runs programs as root.
func readTrusted(path string) ([]byte, error) {
	data, st, err := read(path)
	if err != nil {
		return nil, err
	}
	if st.Mode&0o002 != 0 || (st.Uid != 0 && int(st.Uid) != os.Geteuid()) {
		return nil, fmt.Errorf("file can be written by others (owner %d, mode %04o), chown it to root and chmod it to 0644", st.Uid, st.Mode&0o7777)
	}
	return data, nil
}

// read does not wait for the writer of a named pipe.
func read(path string) ([]byte, *syscall.Stat_t, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return data, info.Sys().(*syscall.Stat_t), nil
}
