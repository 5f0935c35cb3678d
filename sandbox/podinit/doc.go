// Package podinit carries the first process of a pod whose containers share
// one PID namespace.
//
// A PID namespace lives as long as its process 1, so such a pod needs one
// that is no container's. All it has to do is to exist and to leave no
// zombies: it ignores SIGCHLD, which makes the kernel reap orphans by itself
// (sigaction(2), POSIX.1-2001), and then pauses for ever. That is two system
// calls, so the program is not a Go binary of 1.5 MB of memory a pod but an
// ELF file of some 200 bytes, put together here from the instructions below.
// It dies by SIGKILL from outside its namespace; every other signal is ignored
// by the kernel for a process 1 without a handler (pid_namespaces(7)).
package podinit
