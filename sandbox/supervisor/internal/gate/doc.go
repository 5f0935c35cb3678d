// Package gate stops many at a point where none is in the middle of anything.
package gate
