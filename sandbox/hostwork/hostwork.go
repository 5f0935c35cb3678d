package hostwork

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/cdi"
	"github.com/gantry-cri/gantry/sandbox/hostdev"
	"github.com/gantry-cri/gantry/sandbox/hostpath"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// Works are all that a process may be given.
var Works = map[string]hostpath.Work{
	"finding devices":   hostpath.NewWork(devices),
	"reading CDI specs": hostpath.NewWork(cdiEdits),
	"reading a file":    hostpath.NewWork(readFile),
	"relabelling":       hostpath.NewWork(relabel),
	"looking at mounts": hostpath.NewWork(modes),
}

// Paths are those of the host.
type Paths struct{ *hostpath.Opener }

// Device is one that is asked for, as [hostdev.Devices] has it.
type Device struct{ HostPath, ContainerPath, Permissions string }

// Devices are all of the host, if they are asked for, and of each that is asked for its nodes.
type Devices struct {
	All   []specs.LinuxDevice
	Nodes [][]specs.LinuxDevice
	Rules []specs.LinuxDeviceCgroup
}

type devicesAsked struct {
	All  bool
	List []Device
}

// Devices finds devices; what it says of an error begins with its place in list.
func (p Paths) Devices(ctx context.Context, all bool, list []Device) (found Devices, err error) {
	if all || len(list) > 0 {
		err = p.Do(ctx, "finding devices", devicesAsked{all, list}, &found)
	}
	return found, err
}

func devices(asked devicesAsked) (found Devices, err error) {
	if asked.All {
		if found.All, err = hostdev.All(); err != nil {
			return found, err
		}
	}
	for i, d := range asked.List {
		nodes, rules, err := hostdev.Devices(d.HostPath, d.ContainerPath, d.Permissions)
		if err != nil {
			return found, fmt.Errorf("devices[%d]: %w", i, err)
		}
		found.Nodes, found.Rules = append(found.Nodes, nodes), append(found.Rules, rules...)
	}
	return found, nil
}

type cdiAsked struct{ Dirs, Names []string }

// CDIEdits is [cdi.Specs.Edits] with the specs in dirs.
func (p Paths) CDIEdits(ctx context.Context, dirs, names []string) (edits cdi.Edits, err error) {
	return edits, p.Do(ctx, "reading CDI specs", cdiAsked{dirs, names}, &edits)
}

func cdiEdits(asked cdiAsked) (cdi.Edits, error) { return cdi.Open(asked.Dirs).Edits(asked.Names) }

type file struct {
	Path string
	Max  int64
}

// ReadFile reads a regular file of at most max bytes; anything else is errdefs.ErrInvalidArgument.
func (p Paths) ReadFile(ctx context.Context, path string, max int64) (data []byte, err error) {
	return data, p.Do(ctx, "reading a file", file{path, max}, &data)
}

func readFile(asked file) ([]byte, error) {
	f, err := os.OpenFile(asked.Path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not hold us up
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > asked.Max {
		return nil, fmt.Errorf("%q is no regular file of at most %d bytes: %w", asked.Path, asked.Max, errdefs.ErrInvalidArgument)
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil && len(data) > 0 {
		return nil, err
	}
	return data, nil
}

type labelled struct{ Path, Label string }

// Relabel is [selinux.Relabel]. When it is cut off, some of the files have the label.
func (p Paths) Relabel(ctx context.Context, path, label string) error {
	return p.Do(ctx, "relabelling", labelled{path, label}, &struct{}{})
}

func relabel(asked labelled) (struct{}, error) {
	return struct{}{}, selinux.Relabel(context.Background(), asked.Path, asked.Label)
}

// Modes are the modes of the files at paths, as stat(2) has them; 0: there is none any more.
func (p Paths) Modes(ctx context.Context, paths []string) (modes []uint32, err error) {
	if len(paths) == 0 {
		return nil, nil
	}
	return modes, p.Do(ctx, "looking at mounts", paths, &modes)
}

func modes(paths []string) ([]uint32, error) {
	all := make([]uint32, len(paths))
	for i, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, &os.PathError{Op: "stat", Path: path, Err: err}
		} else if err == nil {
			all[i] = st.Mode
		}
	}
	return all, nil
}
