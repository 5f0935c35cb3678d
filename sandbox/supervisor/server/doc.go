// Package server is gantry-supervisor: the parent of a node's containers. The
// package above it, supervisor, is its client and says what a container's life
// looks like; PROTOCOL.md there describes the wire.
//
// One goroutine reaps (internal/reaper), one accepts; each connection has one
// for its call and one that waits for the client to go away; each container
// has one for each stream (internal/logcopy) and, while it is adopted rather
// than a child, one that waits for its pidfd. There is no polling and no
// thread per container.
//
// Locks: container.op is taken, with a context, by whoever changes what the
// container is (run, delete, the deletion after an exit) and may be held for
// long. Server.mu and container.mu guard fields and are never held while
// waiting; Server.mu comes before container.mu.
//
// Whatever a killed supervisor was doing is finished by the next one at its
// start ([Serve]): containers that live are adopted, those that do not get an
// exit record, half-made ones are deleted, processes of broken exec calls are killed.
// What would go with this process the daemon holds meanwhile (hold.go).
//
// What it keeps in memory is bounded: 10 KiB for each container, and 640 KiB more
// for each stream with output under way (of it 256 KiB in files of the run
// directory, see logcopy); 1 MiB for each of 32 connections that have not made
// their request, 32 MiB for the requests of all work under way, 8 MiB for an
// attached client's stream and 64 MiB for those of all. Above these new work is
// refused, or the client cut off. Descriptors: see room.
//
// The process may become another program (upgrade.go). All who change anything
// are inside a gate meanwhile (internal/gate), which is then shut: calls and
// the ends of processes inside one, copiers inside another. Outside are those
// who wait for what may take as long as it likes: exec for its process, watch and hold for news.
package server
