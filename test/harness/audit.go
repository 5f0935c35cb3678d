package harness

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"
)

// Audit lists, as an error, what the instance has beyond what it had when first ready. The bridge and the table
// with its sets of subnets stay until the daemon ends; the elements of a pod must not.
func (i *Instance) Audit() error { return i.audit(i.idle, networkOfNode, "with every pod removed") }

var networkOfNode = regexp.MustCompile(`^(link gtest\d+ \(bridge\)|nftables table .*|nftables element \w+ in set (bridges|pods|masq|direct).*)$`)

// AuditFromNow is an Audit that compares with what the instance has now, for one with pods that stay: of these nothing
// may be missing either, and the image store must be the same.
func (i *Instance) AuditFromNow() (func() error, error) {
	base, err := i.steady()
	store, serr := i.ImageStore()
	return func() error {
		if err := i.imageStoreIs(store); err != nil {
			return err
		}
		if err := i.audit(base, networkOfNode, "beside the pods that stay"); err != nil {
			return err
		}
		now, err := take(i.Dir)
		if gone := base.beyond(now); err == nil && len(gone) > 0 {
			err = fmt.Errorf("%d missing of the pods that stay:\n  %s", len(gone), strings.Join(gone, "\n  "))
		}
		return err
	}, errors.Join(err, serr)
}

// steady is a snapshot without the instance's own processes, of a moment when nothing is on its way to its end.
func (i *Instance) steady() (last snapshot, err error) {
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		Reap()
		now, err := take(i.Dir)
		if err != nil {
			return nil, err
		}
		maps.DeleteFunc(now, func(line string, _ bool) bool { return i.isOwnProcess(line) })
		if maps.Equal(now, last) {
			return now, nil
		}
		last = now
	}
	return nil, errors.New("the instance does not come to rest")
}

// audit waits until nothing is beyond base but what allowed matches.
func (i *Instance) audit(base snapshot, allowed *regexp.Regexp, when string) error {
	deadline := time.Now().Add(settleTime)
	for {
		Reap()
		now, err := take(i.Dir)
		if err != nil {
			return err
		}
		for line := range now {
			if i.isOwnProcess(line) || (allowed != nil && allowed.MatchString(line)) {
				delete(now, line)
			}
		}
		extra := now.beyond(base)
		if len(extra) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			shown := extra[:min(len(extra), mostShown)]
			return fmt.Errorf("%d left behind %s:\n  %s", len(extra), when, strings.Join(shown, "\n  "))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// isOwnProcess tells the daemon (which has another pid after a restart) and one supervisor from leftovers, and so
// those of other instances.
func (i *Instance) isOwnProcess(line string) bool {
	if !strings.HasPrefix(line, "process ") {
		return false
	}
	if strings.Contains(line, "/gantry-test-") && !strings.Contains(line, i.Dir) {
		return true // of an instance beside this one
	}
	if i.cmd == nil {
		return false
	}
	if strings.HasPrefix(line, fmt.Sprintf("process %d ", i.PID())) {
		return true
	}
	pids := i.SupervisorPIDs()
	return len(pids) == 1 && strings.HasPrefix(line, fmt.Sprintf("process %d ", pids[0]))
}
