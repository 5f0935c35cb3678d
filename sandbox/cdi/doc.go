// Package cdi reads the Container Device Interface's specs
// (github.com/cncf-tags/container-device-interface, SPEC.md): files in which a
// vendor's driver says what a container needs beside a device's node, such as
// libraries to be mounted and hooks to be run. [Open] keeps the directories,
// [Specs.Edits] gives what the named devices want.
//
// Only the types are the CDI project's: its library reads files of any size
// and kind, follows links and keeps watches, where this one must bear a hostile
// or half-written file, and costs nothing but for containers that ask: all is
// read for each of them, by a process of its own (package hostwork). What a
// spec says is trusted no more than its owner: a file that anybody but root
// could have written is not read. A file that is not understood is as if it
// were not there, but for errors about the devices of its kind.
package cdi
