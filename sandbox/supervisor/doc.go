// Package supervisor is the daemon's side of gantry-supervisor, the one helper
// process of a node that is the parent of every container: the types of its
// calls and the [Client] that makes them. Its other side is package server.
//
// The supervisor is started by the client when none answers, in a session of
// its own (and a systemd scope, see Config.Scope), and outlives it. It runs the OCI runtime, copies the containers'
// output to their logs, records every exit on disk before it tells anybody,
// and ends by itself when it has had no container and no caller for five
// seconds. A client that finds it gone starts it again, unasked, and the
// daemon has one of another build than the installed one become that, see [Client.Upgrade].
//
// A container, seen from here:
//
//	        Run ok                 init exits                 Delete
//	(none) ───────▶ running ─────────────────────▶ exited ─────────▶ (none)
//	   ▲               │ Delete: SIGKILL, wait ───────┘
//	   └── Run failed or cancelled: undone by the OCI runtime's delete --force
//
// On disk, below Config.Dir (0700, worth nothing after a reboot):
//
//	lock, start.lock         held by the running server; by a client that starts one
//	lock.<pid>               held by one that was killed, and hangs in its end
//	supervisor.sock          PROTOCOL.md
//	containers/<id>/container.json    the request, pid and start time
//	containers/<id>/exit.json         the exit, once it has happened
//	containers/<id>/stdin,stdout,stderr   FIFOs that the container holds open itself, and the client
//	staging/<n>              output that is on its way from a FIFO to a log
//	quarantine/<id>.<time>   records that could not be read
package supervisor
