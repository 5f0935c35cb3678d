package cni

import "time"

// pace is how often the background work does something and how long it waits for plugins. The zero value stands for
// the times below; tests have less patience.
type pace struct {
	askReady, askNotReady time.Duration // between two questions for the network's state
	answer                time.Duration // for the answers of a chain to STATUS or CHECK
	look                  time.Duration // between two looks at the configuration, for what inotify does not see
	writing               time.Duration // for the writer of a configuration file to finish it
	retry, retryMost      time.Duration // before the next DEL of one that failed: the first time, and at most
	del                   time.Duration // for a DEL in the background
	collect               time.Duration // for a GC; new pods of its network wait for it
	settle                time.Duration // for all DELs of the daemon's start together
	orphan                time.Duration // for plugins that a killed daemon has left to end by themselves
}

func (p pace) orDefault() pace {
	for _, d := range []struct {
		set       *time.Duration
		otherwise time.Duration
	}{
		{&p.askReady, 30 * time.Second}, {&p.askNotReady, 5 * time.Second}, {&p.answer, 10 * time.Second},
		{&p.look, 30 * time.Second}, {&p.writing, 5 * time.Second},
		{&p.retry, time.Second}, {&p.retryMost, 5 * time.Minute}, {&p.del, 30 * time.Second},
		{&p.collect, 30 * time.Second}, {&p.settle, 30 * time.Second}, {&p.orphan, 5 * time.Second},
	} {
		if *d.set == 0 {
			*d.set = d.otherwise
		}
	}
	return p
}
