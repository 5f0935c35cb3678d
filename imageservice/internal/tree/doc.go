// Package tree removes and measures directory trees that somebody hostile has
// filled: by descriptor, following no link, with bounded depth and memory.
package tree
