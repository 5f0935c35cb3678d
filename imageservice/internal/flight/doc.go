// Package flight does a piece of work once, however many ask for it at once.
//
// Unlike x/sync/singleflight the work belongs to nobody: it goes on as long as
// one caller waits, is cancelled when the last one has given up, and that last
// one returns only after it has ended, so that nothing is left under way. A
// panic is an error of those who wait.
package flight
