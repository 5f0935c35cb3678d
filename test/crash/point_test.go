package crash

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gantry-cri/gantry/test/killpoint"
)

// point is where a program dies, and perhaps the daemon dies again when it is started after that.
type point struct {
	supervisor bool // it is the supervisor that dies, else the daemon
	operation  string
	cold       bool // the daemon is started anew before, and has made nothing for later yet
	both       bool // the supervisor dies with the daemon
	first      killpoint.Point
	again      killpoint.Point // N = 0: it does not
}

// Parts of a point's text.
const (
	ofSupervisor = "supervisor/"
	isCold       = "+cold"
	isBoth       = "+both"
)

func when(after bool) string {
	if after {
		return "after"
	}
	return "before"
}

// String is the form that GANTRY_CRASH_AT takes.
func (p point) String() string {
	var s strings.Builder
	if p.supervisor {
		s.WriteString(ofSupervisor)
	}
	s.WriteString(p.operation)
	if p.cold {
		s.WriteString(isCold)
	}
	if p.both {
		s.WriteString(isBoth)
	}
	fmt.Fprintf(&s, ":%d:%s", p.first.N, when(p.first.After))
	if p.again.N > 0 {
		fmt.Fprintf(&s, ":%d:%s", p.again.N, when(p.again.After))
	}
	return s.String()
}

func parsePoint(s string) (p point, err error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 && len(parts) != 5 {
		return p, fmt.Errorf("point %q is not [supervisor/]operation[+cold][+both]:N:before|after[:N:before|after]", s)
	}
	p.operation = parts[0]
	p.operation, p.supervisor = strings.CutPrefix(p.operation, ofSupervisor)
	p.operation, p.both = strings.CutSuffix(p.operation, isBoth)
	p.operation, p.cold = strings.CutSuffix(p.operation, isCold)
	for i, at := range []*killpoint.Point{&p.first, &p.again} {
		if 2*i+2 >= len(parts) {
			break
		}
		n, when := parts[2*i+1], parts[2*i+2]
		if at.N, err = strconv.Atoi(n); err != nil || at.N < 1 || when != "before" && when != "after" {
			return p, fmt.Errorf("point %q: %s:%s is not a number and before or after", s, n, when)
		}
		at.After = when == "after"
	}
	if p.supervisor && (p.both || p.again.N > 0) {
		return p, fmt.Errorf("point %q: the daemon does not die", s)
	}
	return p, nil
}
