// Package oci runs the commands of an OCI runtime (runc, crun): each as a
// process group of its own with a fixed environment, bounded in time by its
// context and in output by a limit.
package oci
