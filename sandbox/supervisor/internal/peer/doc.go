// Package peer says who is at the other end of a supervisor's socket, and
// whether he will ever answer.
package peer
