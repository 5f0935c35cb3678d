package main

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// bench is one run over all runtimes.
type bench struct {
	*options
	dir     string             // temporary, for logs
	results map[string]*sample // by runtime name; of the present test
}

// sample collects values by name. It may be used concurrently.
type sample struct {
	mu     sync.Mutex
	values map[string][]float64
}

func newSample() *sample { return &sample{values: map[string][]float64{}} }

func (s *sample) add(name string, value float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[name] = append(s.values[name], value)
}

// since notes the milliseconds since began and returns the present time, from which the next step counts.
func (s *sample) since(name string, began time.Time) time.Time {
	now := time.Now()
	s.add(name, now.Sub(began).Seconds()*1e3)
	return now
}

// quantile of values that are not empty.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// print writes a table: a row per name, a column per runtime.
func (b *bench) print(title, unit string) {
	fmt.Printf("\n%s (%s: median / p95)\n%-26s", title, unit, "")
	names := map[string]bool{}
	for _, r := range b.runtimes {
		fmt.Printf("%24s", r.name)
		for name := range b.results[r.name].values {
			names[name] = true
		}
	}
	fmt.Println()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		fmt.Printf("%-26s", name)
		for _, r := range b.runtimes {
			if values := b.results[r.name].values[name]; len(values) > 0 {
				fmt.Printf("%14.1f /%8.1f", quantile(values, .5), quantile(values, .95))
			} else {
				fmt.Printf("%24s", "-")
			}
		}
		fmt.Println()
	}
}
