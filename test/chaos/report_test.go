package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// report counts what has happened.
type report struct {
	mu          sync.Mutex
	lives       int
	kills       map[string]int
	calls       map[string]map[codes.Code]int
	took        map[string]time.Duration // all calls of a kind
	recoveries  map[string][]time.Duration
	unknown     int // exits that nobody could know
	lostEnds    int // logs that lack what was written when neither daemon nor supervisor was there
	crunMounts  int // that killed cruns have left in /tmp
	audits      int
	differences []string
}

func (r *report) life() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives++
}

func (r *report) kill(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kills == nil {
		r.kills = map[string]int{}
	}
	r.kills[what]++
}

func (r *report) call(what string, code codes.Code, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls == nil {
		r.calls, r.took = map[string]map[codes.Code]int{}, map[string]time.Duration{}
	}
	r.took[what] += took
	if r.calls[what] == nil {
		r.calls[what] = map[codes.Code]int{}
	}
	r.calls[what][code]++
}

func (r *report) recovered(who string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.recoveries == nil {
		r.recoveries = map[string][]time.Duration{}
	}
	r.recoveries[who] = append(r.recoveries[who], took)
}

func (r *report) unknownExit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unknown++
}

func (r *report) lostEnd() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lostEnds++
}

func (r *report) crunMount() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.crunMounts++
}

func (r *report) audited() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.audits++
}

// differ enters what is not as it must be.
func (r *report) differ(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.differences = append(r.differences, text)
}

func (r *report) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.differences) > 0
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func (r *report) short() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d lives, %d kills, %d differences", r.lives, sum(r.kills), len(r.differences))
}

func (r *report) String() string {
	head := r.short()
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d audits of the books under way, %d exit codes and %d ends of logs that nobody could know, %d mounts of killed cruns' own\n", head, r.audits, r.unknown, r.lostEnds, r.crunMounts)
	for _, what := range slices.Sorted(maps.Keys(r.kills)) {
		fmt.Fprintf(&b, "  %5d × %s\n", r.kills[what], what)
	}
	for _, who := range slices.Sorted(maps.Keys(r.recoveries)) {
		took := slices.Sorted(slices.Values(r.recoveries[who]))
		fmt.Fprintf(&b, "  %s: median %d ms, most %d ms\n", who, took[len(took)/2].Milliseconds(), took[len(took)-1].Milliseconds())
	}
	for _, what := range slices.Sorted(maps.Keys(r.calls)) {
		total := 0
		var failed []string
		for _, code := range slices.Sorted(maps.Keys(r.calls[what])) {
			n := r.calls[what][code]
			if total += n; code != codes.OK {
				failed = append(failed, fmt.Sprintf("%d %s", n, code))
			}
		}
		fmt.Fprintf(&b, "  %6d %s, %d ms each: %s\n", total, what, r.took[what].Milliseconds()/int64(total), strings.Join(failed, ", "))
	}
	return b.String()
}
