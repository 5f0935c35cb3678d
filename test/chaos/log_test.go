package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func (w *worker) logFile(c *container) string {
	return filepath.Join(w.pod.config.LogDirectory, c.config.LogPath)
}

// log is the container's log, with the files that were rotated.
func (w *worker) log(c *container) (all []byte, err error) {
	path := w.logFile(c)
	for i := range c.logs + 1 {
		name := path
		if i < c.logs {
			name = fmt.Sprintf("%s.%d", path, i)
		}
		body, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, body...)
	}
	return all, nil
}

// isReady reports whether the container has said so.
func (w *worker) isReady(c *container) bool {
	body, err := w.log(c)
	return err == nil && bytes.Contains(body, []byte(" F ready"))
}

// checkLog requires that a log has each line that the container wrote, whole, once and in order; and all of them when it
// has come to its own end. What it wrote when there was neither daemon nor supervisor, and it ended before they were there, is
// lost: nobody had its FIFO open then; with a terminal without the supervisor alone, and also when that
// died before the daemon knew that the container runs, and opened its FIFOs. A start that was undone may have written before.
func (w *worker) checkLog(c *container) error {
	if !c.started {
		return nil
	}
	body, err := w.log(c)
	if err != nil {
		return err
	}
	got, ready, n, undone := 0, false, 0, c.undone
	for line := range strings.Lines(string(body)) {
		n++
		fields := strings.SplitN(strings.TrimRight(line, "\r\n"), " ", 4)
		if !strings.HasSuffix(line, "\n") || len(fields) != 4 || fields[1] != "stdout" || fields[2] != "F" {
			if w.lostTerminal(c) {
				return nil
			}
			return fmt.Errorf("line %d of the log of container %s is %q", n, c.id, line)
		}
		switch text := fields[3]; {
		case ready && strings.HasPrefix(text, "got "):
		case !ready && text == strconv.Itoa(got+1):
			got++
		case !ready && text == "ready" && got == c.plan.lines && !c.plan.exits:
			ready = true
		case text == "1" && undone > 0:
			got, ready, undone = 1, false, undone-1
		case text == "ready" && c.plan.lines == 0 && undone > 0: // each start's first
			undone--
		case w.lostTerminal(c):
			return nil
		default:
			return fmt.Errorf("after %d lines, ready: %v, line %d of the log of container %s is %q", got, ready, n, c.id, line)
		}
	}
	if c.exit == nil || !c.plan.exits || c.exit.GetExitCode() != c.plan.code || got == c.plan.lines || w.lostTerminal(c) {
		return nil
	}
	if w.faults.inOutage(time.Unix(0, c.exit.GetFinishedAt())) && (c.plan.tty || w.faults.bothSince(c.asked) || w.faults.inStart(c.asked, c.running)) {
		w.report.lostEnd()
		return nil
	}
	return fmt.Errorf("container %s wrote %d lines, and its log has %d; it ended at %s", c.id, c.plan.lines, got, time.Unix(0, c.exit.GetFinishedAt()).Format("15:04:05.000"))
}
