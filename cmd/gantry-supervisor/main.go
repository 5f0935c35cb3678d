// Command gantry-supervisor is the parent of a node's containers. The daemon
// starts it and talks to it; see sandbox/supervisor. With -open and -do it is
// another of the daemon's processes, which does one thing with paths that
// may hang, and ends; see sandbox/hostpath and sandbox/hostwork.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/hostpath"
	"github.com/gantry-cri/gantry/sandbox/hostwork"
	"github.com/gantry-cri/gantry/sandbox/supervisor/server"
)

// version is set by the linker (hack/build.sh).
var version = "devel"

const (
	memoryLimit = 256 << 20
	// oomScore is the oom_score_adj of a process that the kernel takes when there is no other.
	oomScore = -999
)

func main() {
	dir := flag.String("dir", "", "directory of the socket and the records, absolute, 0700")
	readyFD := flag.Int("ready-fd", -1, "descriptor to write \"ready\" to, or the error, and to close")
	handover := flag.Int("handover", 0, "descriptor of what another version of this program left, which this process was before")
	check := flag.Int("check", 0, "descriptor of such a handover: says whether this version understands it, and does no more")
	printVersion := flag.Bool("version", false, "print the version")
	open := flag.String("open", "", "path to open and pass on")
	do := flag.String("do", "", "work on paths to do, whose result is passed on")
	flag.Parse()
	if *printVersion {
		fmt.Println(version)
		return
	}
	var err error
	switch {
	case *open != "":
		err = hostpath.Serve(*open)
	case *do != "":
		err = hostpath.ServeWork(*do, hostwork.Works)
	case *check > 0:
		err = server.Check(*dir, *check)
	default:
		err = run(*dir, *readyFD, *handover)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gantry-supervisor:", err)
		os.Exit(1)
	}
}

func run(dir string, readyFD, handover int) (err error) {
	say := func(string) {}
	if readyFD >= 0 {
		unix.CloseOnExec(readyFD)
		f := os.NewFile(uintptr(readyFD), "ready")
		say = func(text string) {
			_, _ = f.WriteString(text)
			_ = f.Close()
		}
	}
	defer func() {
		if err != nil {
			say(err.Error())
		}
	}()
	if !filepath.IsAbs(dir) || flag.NArg() > 0 {
		return fmt.Errorf("usage: gantry-supervisor --dir DIR (an absolute path), got %q and %q", dir, flag.Args())
	}
	if handover > 0 { // it was executed by the name of a descriptor, which ps(1) would show
		_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	}
	// A small heap that stays small: most of what is done makes no garbage. The
	// limit is above all that is ever kept on purpose, see package server.
	debug.SetGCPercent(25)
	debug.SetMemoryLimit(memoryLimit)
	unix.Umask(0o022) // as log directories and files are made with their modes
	// The terminal that it may have been started from is of no concern, nor who
	// reads its own log. Not signal.Ignore, which containers would inherit.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGPIPE)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := protect(); err != nil {
		log.Warn("Short of memory, the kernel may kill the parent of all containers before one of them", "err", err)
	}
	return server.Serve(context.Background(), server.Config{Dir: dir, Version: version, Log: log, Ready: func() { say("ready\n") }, Handover: handover})
}

// protect has the kernel take others first when it is short of memory. The OCI
// runtime sets containers and what is executed in them to what their spec says.
func protect() error {
	const file = "/proc/self/oom_score_adj"
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if now, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && now <= oomScore {
		return nil
	}
	return os.WriteFile(file, []byte(strconv.Itoa(oomScore)), 0)
}
