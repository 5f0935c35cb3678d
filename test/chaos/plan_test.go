package chaos

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Kinds of pods.
const (
	plain = iota
	sharedPID
	userNamespace
	hostNetwork
	hostPort
	podKinds // how many
)

// podPlan is the life of a pod. It is drawn before the pod is made, so it depends on nothing but the seed.
type podPlan struct {
	kind       int
	handler    string
	containers []containerPlan
	deeds      []deed
	end        int
}

// Ends of a pod.
const (
	endedByParts = iota // containers stopped and removed, the pod stopped and removed
	stopped             // stopped with what runs in it, and removed
	removed             // removed with all that runs in it
	podEnds             // how many
)

// containerPlan is what a container is and does.
type containerPlan struct {
	tty, stdin, once bool
	volume, ownImage bool
	web              bool // it has a web server, at webPort
	lines            int  // that it writes, numbered
	slow             bool
	exits            bool  // when it has written them
	code             int32 // with
	timeout          int64 // of StopContainer, in seconds; below patient it may be killed
	again            bool  // when it has ended, it is made and started once more
}

// patient is a timeout that no container needs.
const patient = 60

// deed is something that is done while containers run.
type deed struct {
	what      int
	container int // of the plan's
	argument  uint32
}

// Deeds.
const (
	doExec = iota
	doUpdate
	doReopenLog
	doStats
	doLists
	doAttach
	doForward
	doPull
	doRemoveImage
	doWait
	deeds // how many
)

// draw draws a life.
func draw(random *rand.Rand, handlers []string) podPlan {
	one := func(of int) bool { return random.IntN(of) == 0 }
	p := podPlan{kind: random.IntN(podKinds), handler: handlers[random.IntN(len(handlers))], end: random.IntN(podEnds)}
	for i := range []int{1, 1, 2, 3}[random.IntN(4)] {
		c := containerPlan{
			tty: one(6), stdin: one(4), volume: one(3), ownImage: one(4), lines: random.IntN(40), slow: one(2),
			exits: one(2), code: int32(random.IntN(120)) + 4, timeout: []int64{0, 1, patient, patient}[random.IntN(4)], again: one(4),
		}
		c.once = c.stdin && one(2)
		c.web = i == 0 && !c.exits && p.kind != hostNetwork
		if one(10) {
			c.lines *= 50
			c.slow = false
		}
		p.containers = append(p.containers, c)
	}
	for range random.IntN(5) {
		p.deeds = append(p.deeds, deed{what: random.IntN(deeds), container: random.IntN(len(p.containers)), argument: random.Uint32()})
	}
	return p
}

// steadyPlan is of the pod that nobody touches. Its containers write all the time.
func steadyPlan() podPlan {
	c := containerPlan{lines: 1 << 30, slow: true, timeout: patient}
	return podPlan{containers: []containerPlan{c, c}}
}

// Exit codes beside those of plans.
const (
	exitInit   = 2 // asked to stop when it was runc's init still: what Go makes of a signal that the kernel keeps from a first process
	exitTerm   = 3 // asked to stop
	exitKilled = 137
	// exitDefault: asked to stop without a trap for it, and another is the first process.
	exitDefault = 143
)

const slowLine = 20 * time.Millisecond

// script is a shell's. But for a web server it starts no process, whose comings and goings would be in the audit's way; it waits by reading
// from a FIFO that nobody writes to, and that a start before, which was undone, may have made. A shell answers to signals while it reads.
func (p containerPlan) script(said string) string {
	s := ""
	if p.volume { // before the trap: who has ended by it has written
		s += fmt.Sprintf("echo %s > /volume/said; ", said)
	}
	s += "trap 'exit 3' TERM; [ -p /tmp/never ] || mkfifo /tmp/never; exec 4<>/tmp/never; "
	if p.web {
		s += fmt.Sprintf("httpd -p %d -h /bin 2>/dev/null; ", webPort)
	}
	pause := ""
	if p.slow {
		pause = fmt.Sprintf("read -t %.2f x <&4; ", slowLine.Seconds())
	}
	s += fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; %sdone; ", p.lines, pause)
	if p.exits {
		return s + fmt.Sprintf("exit %d", p.code)
	}
	s += "echo ready; "
	if p.stdin && !p.tty {
		s += "while read x; do echo got $x; done; "
	}
	return s + "while :; do read x <&4; done"
}
