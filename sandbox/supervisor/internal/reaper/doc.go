// Package reaper waits for all children of this process: one place, so that no
// two waits compete, and no exit is lost however early it comes. The process
// is a subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)): children of its children
// become its own when their parent ends.
package reaper
