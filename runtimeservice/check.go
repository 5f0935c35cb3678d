package runtimeservice

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/runtimeservice/store"
)

// What a record says is removed, unmounted and killed by. So one that reads well is checked as if a stranger had written
// it: no value leads to what is not its object's, and none is so large that counting with it goes wrong. Values that only
// the CRI shows are not looked at, nor what a newer version may have come to refuse.

var validID = regexp.MustCompile(fmt.Sprintf(`^[0-9a-f]{%d}$`, idLength))

const (
	lastTime      = 1 << 62 // in nanoseconds since 1970: the year 2116, with as much room behind it
	maxGroups     = 1 << 16 // NGROUPS_MAX of Linux
	maxPodIPs     = 64
	maxPodCgroups = 1024
	maxStopSignal = 64
)

func checkTimes(times map[string]int64) error {
	for field, t := range times {
		if t < 0 || t > lastTime {
			return fmt.Errorf("%s %d is no time", field, t)
		}
	}
	return nil
}

// checkPod refuses a pod's record; cfg is its config.
func checkPod(n ocispec.Node, id string, rec store.Pod, cfg *runtimeapi.PodSandboxConfig) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("id %.80q is none of %d hexadecimal digits", id, idLength)
	}
	if len(rec.IPs) > maxPodIPs || len(rec.Cgroups) > maxPodCgroups {
		return fmt.Errorf("%d ips or %d cgroups are too many", len(rec.IPs), len(rec.Cgroups))
	}
	for _, ip := range rec.IPs {
		if !ip.IsValid() {
			return errors.New("ips has one that is no address")
		}
	}
	var parents []string // by one driver or the other: the configuration may have changed since
	var errs []error
	for _, n.Systemd = range []bool{false, true} {
		parent, err := cgroupDir(n, cfg, "")
		if err == nil {
			parents = append(parents, parent)
		}
		errs = append(errs, err)
	}
	if len(parents) == 0 {
		return fmt.Errorf("config: %w", errors.Join(errs...))
	}
	for _, dir := range rec.Cgroups {
		above := func(parent string) bool { return strings.HasPrefix(parent+"/", dir+"/") }
		if path.Clean(dir) != dir || !slices.ContainsFunc(parents, above) {
			return fmt.Errorf("cgroups has %.200q, which is not above the pod's", dir)
		}
	}
	return checkTimes(map[string]int64{"createdAt": rec.CreatedAt})
}

// checkContainer refuses a container's record.
func checkContainer(id string, rec store.Container) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("id %.80q is none of %d hexadecimal digits", id, idLength)
	}
	// The name is enough, wherever it is: no other cgroup has this id in it.
	name := path.Base(rec.Cgroup)
	if !path.IsAbs(rec.Cgroup) || path.Clean(rec.Cgroup) != rec.Cgroup || name != id && name != "gantry-"+id+".scope" {
		return fmt.Errorf("cgroup %.200q is not the container's", rec.Cgroup)
	}
	if rec.StopSignal < 1 || rec.StopSignal > maxStopSignal {
		return fmt.Errorf("stopSignal %d is not in 1 to %d", rec.StopSignal, maxStopSignal)
	}
	if len(rec.Groups) > maxGroups {
		return fmt.Errorf("%d groups are too many", len(rec.Groups))
	}
	if r := rec.Runtime; r != nil {
		if !filepath.IsAbs(r.Path) || r.Root != "" && !filepath.IsAbs(r.Root) {
			return fmt.Errorf("runtime: path %.200q or root %.200q is not absolute", r.Path, r.Root)
		}
		if r.Handler == "" || r.Handler == "." || r.Handler == ".." || strings.Contains(r.Handler, "/") { // it names a directory
			return fmt.Errorf("runtime: handler %.80q is no name", r.Handler)
		}
	}
	return checkTimes(map[string]int64{"createdAt": rec.CreatedAt, "startedAt": rec.StartedAt, "finishedAt": rec.FinishedAt})
}
