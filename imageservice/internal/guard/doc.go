// Package guard keeps a panic on what a registry or an archive has sent from
// ending the daemon, and with it the work for all others.
package guard
