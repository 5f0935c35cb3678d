package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	meanPause = 1500 * time.Millisecond // between one kill and the next, which waits for the recovery from the one before
	// settleTime is how long after a death its echo may come to a client, and the two processes may not yet have told
	// each other of their descriptors.
	settleTime = 2 * time.Second
	giveUp     = 2 * time.Minute // after which what does not come to its end is a difference
)

// faults remembers who was killed when.
type faults struct {
	mu         sync.Mutex
	all        []string
	outages    []outage // of the supervisor
	recovered  bool     // from all
	at         time.Time
	daemon     time.Time // the last death of each
	supervisor time.Time
	bothAtOnce time.Time
}

// outage is a time in which the supervisor, or its successor, was dead.
type outage struct{ from, to time.Time }

// killing enters a death before it is brought about.
func (f *faults) killing(what string, daemon, supervisor bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.all, f.recovered = append(f.all, now.Format("15:04:05.000 ")+what), false
	if daemon {
		f.daemon = now
	}
	if supervisor {
		f.supervisor = now
		f.outages = append(f.outages, outage{from: now})
	}
	if f.daemon.Sub(f.supervisor).Abs() < settleTime {
		f.bothAtOnce = now
	}
}

func (f *faults) recover() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recovered, f.at = true, time.Now()
	if f.daemon.Sub(f.supervisor).Abs() < settleTime {
		f.bothAtOnce = f.at
	}
	for i := len(f.outages) - 1; i >= 0 && f.outages[i].to.IsZero(); i-- {
		f.outages[i].to = f.at
	}
}

// explain reports whether a request that was sent then may have failed because somebody died.
func (f *faults) explain(sent time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all) > 0 && (!f.recovered || f.at.Add(settleTime).After(sent))
}

// inOutage reports whether there may have been no supervisor then.
func (f *faults) inOutage(then time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.outages, func(o outage) bool {
		return then.After(o.from) && (o.to.IsZero() || then.Before(o.to.Add(settleTime)))
	})
}

func (f *faults) supervisorSince(then time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.supervisor.After(then)
}

// inStart reports whether the supervisor may have died in a start that was asked for and answered then.
func (f *faults) inStart(asked, answered time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.outages, func(o outage) bool { return o.from.After(asked) && o.from.Before(answered) })
}

// bothSince reports whether daemon and supervisor were dead at one time, or may have been.
func (f *faults) bothSince(then time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bothAtOnce.Add(settleTime).After(then) && !f.bothAtOnce.IsZero()
}

func (f *faults) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "killed last: " + strings.Join(f.all[max(0, len(f.all)-6):], ", ")
}

// blow is something that the killer does, weight times as often as one of weight 1.
type blow struct {
	what   string
	weight int
	do     func(*node, *rand.Rand) error
}

var blows = []blow{
	{"daemon", 40, func(n *node, random *rand.Rand) error { return n.killDaemon("daemon", random, 0, 0) }},
	{"daemon, and again while it starts", 14, func(n *node, random *rand.Rand) error {
		return n.killDaemon("daemon, and again while it starts", random, milliseconds(random, 150), 0)
	}},
	{"daemon, and the supervisor while it starts", 8, func(n *node, random *rand.Rand) error {
		return n.killDaemon("daemon, and the supervisor while it starts", random, 0, milliseconds(random, 150))
	}},
	{"supervisor", 16, func(n *node, _ *rand.Rand) error { return n.killSupervisor("supervisor", 0) }},
	{"supervisor, and the next one at once", 6, func(n *node, random *rand.Rand) error {
		return n.killSupervisor("supervisor, and the next one at once", milliseconds(random, 100))
	}},
	{"both at once", 10, (*node).killBoth},
	{"SIGTERM of the daemon", 6, func(n *node, _ *rand.Rand) error {
		n.faults.killing("SIGTERM of the daemon", true, false)
		if err := n.Stop(); err != nil {
			return err
		}
		return n.startDaemon(0, 0)
	}},
}

func drawBlow(random *rand.Rand) blow {
	total := 0
	for _, b := range blows {
		total += b.weight
	}
	draw := random.IntN(total)
	for _, b := range blows {
		if draw -= b.weight; draw < 0 {
			return b
		}
	}
	panic("weights are of more than there is")
}

func milliseconds(random *rand.Rand, most int) time.Duration {
	return time.Duration(1+random.IntN(most)) * time.Millisecond
}

// kill kills until stop is closed. All is well again when it returns.
func (n *node) kill(round int, stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(n.seed, uint64(round)))
	for last := time.Now(); ; {
		select {
		case <-stop:
			return
		case <-time.After(time.Until(last.Add(time.Duration(random.ExpFloat64() * float64(meanPause))))):
		}
		last = time.Now()
		b := drawBlow(random)
		n.gate.RLock()
		err := b.do(n, random)
		n.faults.recover()
		n.gate.RUnlock()
		n.report.kill(b.what)
		if err == nil {
			err = n.steady.unchanged()
		}
		if err != nil {
			n.report.differ(fmt.Sprintf("after a kill (%s): %v", b.what, err))
			return
		}
	}
}

// killDaemon kills it and starts it. When it is being started it is killed again, or the supervisor is, after that time.
func (n *node) killDaemon(what string, random *rand.Rand, again, supervisor time.Duration) error {
	n.faults.killing(what, true, false)
	if err := n.Kill(); err != nil {
		return err
	}
	if random.IntN(4) == 0 {
		time.Sleep(milliseconds(random, 300)) // away for a while
	}
	return n.startDaemon(again, supervisor)
}

// startDaemon starts it, and again if it was killed meanwhile.
func (n *node) startDaemon(again, supervisor time.Duration) error {
	var killed chan error
	if again > 0 || supervisor > 0 {
		killed = make(chan error, 1)
		n.Started = func(pid int) {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				killed <- err
				return
			}
			go func() {
				defer unix.Close(fd)
				time.Sleep(again + supervisor)
				if again == 0 {
					killed <- n.endSupervisor("supervisor while the daemon starts")
					return
				}
				n.faults.killing("daemon while it starts", true, false)
				killed <- unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}()
		}
	}
	began, answered := time.Now(), make(chan time.Duration, 1)
	ctx, cancel := context.WithTimeout(context.Background(), giveUp)
	defer cancel()
	if killed == nil {
		go func() {
			_, _ = n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}, grpc.WaitForReady(true))
			answered <- time.Since(began)
		}()
	}
	err := n.StartDaemon(ctx)
	n.Started = nil
	if killed == nil {
		if err == nil {
			n.report.recovered("daemon, from its start to the first answered List", <-answered)
		}
		return err
	}
	if kerr := <-killed; kerr != nil {
		return kerr
	}
	if again == 0 {
		return err
	}
	if err := n.Kill(); err != nil { // waits for its end
		return err
	}
	return n.startDaemon(0, 0)
}

// endSupervisor kills the supervisor that there is, if there is one.
func (n *node) endSupervisor(what string) error {
	for _, pid := range n.SupervisorPIDs() {
		n.faults.killing(what, false, true)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

func (n *node) killSupervisor(what string, again time.Duration) error {
	before := n.SupervisorPIDs()
	began := time.Now()
	if err := n.endSupervisor(what); err != nil {
		return err
	}
	if again > 0 {
		for time.Since(began) < giveUp && (len(n.SupervisorPIDs()) == 0 || slices.Equal(n.SupervisorPIDs(), before)) {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(again)
		if err := n.endSupervisor(what); err != nil {
			return err
		}
	}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), giveUp)
		resp, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: n.steady.pod.containers[0].id, Cmd: []string{"echo", "here"}})
		cancel()
		if err == nil && string(resp.GetStdout()) == "here\n" {
			n.report.recovered("supervisor, from the kill to the first answered ExecSync", time.Since(began))
			return nil
		}
		if time.Since(began) > giveUp {
			return fmt.Errorf("no ExecSync after the supervisor's death: %v, %w", resp, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) killBoth(random *rand.Rand) error {
	n.faults.killing("both at once", true, true)
	pids := n.SupervisorPIDs()
	if random.IntN(2) == 0 {
		slices.Reverse(pids)
	}
	for _, pid := range append(pids, n.PID()) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return err
		}
	}
	if err := n.Kill(); err != nil {
		return err
	}
	return n.startDaemon(0, 0)
}
