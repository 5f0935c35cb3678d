package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// compareBooks has all stand still now and then, and compares what is listed with what is on the disk.
func (n *node) compareBooks(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(auditTime):
		}
		n.gate.Lock()
		err := n.eventually(n.booksAgree)
		n.gate.Unlock()
		if err != nil {
			n.report.differ(fmt.Sprintf("while all stood still at %s (%v): %v", time.Now().Format("15:04:05.000"), &n.faults, err))
			return
		}
		n.report.audited()
	}
}

// eventually gives what goes on behind answers time to end.
func (n *node) eventually(condition func() error) (err error) {
	for began := time.Now(); time.Since(began) < giveUp/2; time.Sleep(20 * time.Millisecond) {
		if err = condition(); err == nil {
			return nil
		}
	}
	return err
}

// ids are the names in a folder of the instance, without an ending, but for spare files.
func (n *node) ids(folder, ending string) (ids []string, err error) {
	entries, err := os.ReadDir(filepath.Join(n.Dir, folder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ending); ok {
			ids = append(ids, name)
		}
	}
	return ids, err
}

// booksAgree requires that records and only records are listed, and that only what is listed has something in the run
// directory: an error says what does not.
func (n *node) booksAgree() error {
	ctx, cancel := context.WithTimeout(context.Background(), giveUp)
	defer cancel()
	podList, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containerList, err := n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	var pods, containers []string
	for _, p := range podList.GetItems() {
		pods = append(pods, p.GetId())
	}
	for _, c := range containerList.GetContainers() {
		containers = append(containers, c.GetId())
		if !slices.Contains(pods, c.GetPodSandboxId()) {
			return fmt.Errorf("container without a pod: %v", c)
		}
	}
	var errs []error
	both := append(slices.Clone(pods), containers...) // some pods have an init, which is a container there
	for _, of := range []struct {
		folder, ending string
		must, may      []string
	}{
		{"root/pods", ".json", pods, pods}, {"root/containers", ".json", containers, containers},
		{"run/pods", "", nil, pods}, {"run/containers", "", containers, both}, {"run/rootfs", "", containers, containers},
		{"run/supervisor/containers", "", nil, both},
	} {
		there, err := n.ids(of.folder, of.ending)
		errs = append(errs, err)
		for _, id := range there {
			if !slices.Contains(of.may, id) {
				errs = append(errs, fmt.Errorf("%s has %s, which is not listed", of.folder, id))
			}
		}
		for _, id := range of.must {
			if !slices.Contains(there, id) {
				errs = append(errs, fmt.Errorf("%s lacks %s, which is listed", of.folder, id))
			}
		}
	}
	return errors.Join(errs...)
}

// rest requires that nothing is there but the steady pod, as it always was.
func (n *node) rest() {
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), giveUp)
	defer cancel()
	pods, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.GetItems()) != 1 {
		errs = append(errs, fmt.Errorf("pods: %v, %w", pods, err))
	}
	containers, err := n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil || len(containers.GetContainers()) != 2 {
		errs = append(errs, fmt.Errorf("containers: %v, %w", containers, err))
	}
	list, err := n.Image.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 1 {
		errs = append(errs, fmt.Errorf("images: %v, %w", list, err))
	}
	if pids := n.SupervisorPIDs(); len(pids) != 1 {
		errs = append(errs, fmt.Errorf("supervisors: %v", pids))
	}
	errs = append(errs, n.eventually(n.booksAgree), n.removeCrunsOwn(), n.atRest(), n.steady.unchanged())
	if err := errors.Join(errs...); err != nil {
		n.report.differ(fmt.Sprintf("with every pod removed (%v): %v", &n.faults, err))
	}
}

// removeCrunsOwn removes the mounts, of one path in /tmp each, that crun makes for a moment while it starts a container, and
// that stay when it is killed then. Nobody but crun knows of them.
func (n *node) removeCrunsOwn() error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		at := strings.Fields(line)[4] // proc_pid_mountinfo(5)
		if name, ok := strings.CutPrefix(at, "/tmp/crun."); !ok || strings.Contains(name, "/") {
			continue
		}
		if err := errors.Join(unix.Unmount(at, unix.MNT_DETACH), os.Remove(at)); err != nil {
			return err
		}
		n.report.crunMount()
	}
	return nil
}

// unchanged requires that the steady pod runs as it always did, with each line that it wrote in its log.
func (w *worker) unchanged() error {
	w.history = nil
	err := w.podIsReady()
	for _, c := range w.pod.containers {
		err = errors.Join(err, w.observe(c), w.checkLog(c))
		if c.exit != nil {
			err = errors.Join(err, fmt.Errorf("container %s has ended: %v", c.id, c.exit))
		}
	}
	return err
}

// mustEnd ends the steady pod.
func (w *worker) mustEnd() {
	w.pod.plan.end = stopped
	if err := w.end(); err != nil {
		w.differ(err)
	}
}
