package crash

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gantry-cri/gantry/test/killpoint"
)

// point is where the daemon dies, and perhaps dies again when it is started after that.
type point struct {
	operation string
	first     killpoint.Point
	again     killpoint.Point // N = 0: it does not
}

func when(after bool) string {
	if after {
		return "after"
	}
	return "before"
}

// String is the form that GANTRY_CRASH_AT takes.
func (p point) String() string {
	s := fmt.Sprintf("%s:%d:%s", p.operation, p.first.N, when(p.first.After))
	if p.again.N > 0 {
		s += fmt.Sprintf(":%d:%s", p.again.N, when(p.again.After))
	}
	return s
}

func parsePoint(s string) (p point, err error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 && len(parts) != 5 {
		return p, fmt.Errorf("point %q is not operation:N:before|after[:N:before|after]", s)
	}
	p.operation = parts[0]
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
	return p, nil
}
