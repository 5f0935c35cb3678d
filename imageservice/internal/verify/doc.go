// Package verify asks programs whether an image may be used.
//
// The convention is that of containerd's image verifier directory
// (io.containerd.image-verifier.v1.bindir), so what is made for it works here:
// every entry of the directory is a program, run in the order of their names as
//
//	program -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json
//
// with the descriptor as JSON on standard input. Exit status 0 agrees; the
// standard output is the reason; standard error goes to the log. All must
// agree. No directory and an empty one agree to everything.
//
// Whatever else happens is a refusal: an entry that is no executable file, too
// many of them, a program that ends otherwise, that takes too long, that says
// too much, that leaves a process behind which holds its output. A program has
// an environment of PATH alone and a process group of its own, which is killed
// whole when the program has ended, by itself or not.
package verify
