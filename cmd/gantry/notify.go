package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cri/transfer"
)

const (
	// notifyTimeout bounds one message to a service manager that does not read.
	notifyTimeout = 5 * time.Second
	// answerTimeout bounds the daemon's answer to itself where no watchdog does.
	answerTimeout = 30 * time.Second
)

// manager is the service manager that has started the daemon, if it wants to
// hear how the daemon is: systemd, or whoever speaks sd_notify(3).
type manager struct {
	socket   string        // where it listens; "" for nobody
	watchdog time.Duration // it kills a daemon that is silent for longer; 0 for never
}

// takeManager takes the manager out of the environment, where no child shall
// find it and speak in the daemon's name.
func takeManager() manager {
	take := func(name string) string {
		value := os.Getenv(name)
		_ = os.Unsetenv(name) // fails for no name that is a constant
		return value
	}
	m := manager{socket: take("NOTIFY_SOCKET")}
	usec, err := strconv.ParseInt(take("WATCHDOG_USEC"), 10, 64)
	of := take("WATCHDOG_PID")
	if err == nil && usec > 0 && usec < int64(time.Hour/time.Microsecond)*24 && (of == "" || of == strconv.Itoa(os.Getpid())) {
		m.watchdog = time.Duration(usec) * time.Microsecond
	}
	return m
}

// systemd says whether the manager is systemd and this machine's (sd_booted(3)):
// the daemon is then in the cgroup of a unit.
func (m manager) systemd() bool {
	info, err := os.Lstat("/run/systemd/system")
	return m.socket != "" && err == nil && info.IsDir()
}

// say sends a message, lines of NAME=VALUE. Each has a connection of its own,
// for the manager may have been restarted since the last.
func (m manager) say(state string) error {
	if m.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.socket, Net: "unixgram"}) // "@" begins an abstract name
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return nil
}

// tell has the daemon ask itself: it says READY=1 with the first answer,
// WATCHDOG=1 with each, and STOPPING=1 when ctx ends. A daemon that hangs gets
// no answer, says nothing, and is restarted. Four questions fit into the
// watchdog's time; an answer may take half of it.
func (m manager) tell(ctx context.Context, serving string, answers func(context.Context) error) {
	if m.socket == "" {
		return
	}
	log := klog.FromContext(ctx)
	say := func(state string) (said bool) {
		err := m.say(state)
		if err != nil {
			log.Error(err, "The service manager does not hear the daemon")
		}
		return err == nil
	}
	patience, pause := answerTimeout, time.Second
	if m.watchdog > 0 {
		patience, pause = m.watchdog/2, m.watchdog/4
	}
	ready := false
	for {
		asked, cancel := context.WithTimeout(ctx, patience)
		err := answers(asked)
		cancel()
		switch {
		case err == nil && !ready:
			ready = say("READY=1\nWATCHDOG=1\nSTATUS=" + serving)
		case err == nil:
			say("WATCHDOG=1\nSTATUS=" + serving)
		case ctx.Err() == nil:
			log.Error(err, "The daemon does not answer itself", "patience", patience, "watchdog", m.watchdog)
			say("STATUS=Does not answer")
		}
		next := time.After(pause)
		if m.watchdog == 0 && ready {
			next = nil // nobody waits for more
		}
		select {
		case <-ctx.Done():
			say("STOPPING=1\nSTATUS=Stopping; containers run on")
			return
		case <-next:
		}
	}
}

// nobodys is a label of no pod: a list by it is empty, though every pod was looked at for it.
var nobodys = map[string]string{"gantry.invalid/nobody": ""}

// answers asks the daemon on a socket for what every kubelet asks it all the
// time: over a new connection, and through the locks of all pods and
// containers, but through none that is held by what waits for a disk or a program.
func answers(ctx context.Context, socket string) error {
	client, err := transfer.Dial(socket)
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: nobodys}})
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	_, err = client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: nobodys}})
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	return nil
}
