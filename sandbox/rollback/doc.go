// Package rollback undoes the steps of an operation that failed half-way.
//
// A [Stack] is made at the beginning of an operation; after each step that
// changed the world its undo is added. When the operation ends without
// [Stack.Release], [Stack.Undo] runs all undo steps, newest first, on a
// context of its own: the caller's may be the very one that has expired.
package rollback
