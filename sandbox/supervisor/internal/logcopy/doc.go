// Package logcopy copies the output of containers, FIFO or terminal, to log
// files in the CRI's format: one line "2006-01-02T15:04:05.000000000Z stdout F
// text" for each line of text, tagged P instead of F when it goes on in the
// next (lines over 16 KiB, and what ends without a newline).
//
// It is built for three things:
//
//   - Nothing is lost or torn when this process is killed at any instruction.
//     Output is read into a staging slot, a file mapped MAP_SHARED, which the
//     kernel keeps. Its one state word says what of it is not in the log yet,
//     and, while a write is on, how long the log was before. [Pool.Recover]
//     hands what a predecessor left to the stream's next copier, which cuts the
//     log back to that length and goes on. (Exact where the slots are on tmpfs.)
//   - A silent container costs a parked goroutine and no buffer. A stream holds a
//     slot only while it has output under way or an unfinished line.
//   - The container never waits for the log's disk: what cannot be written is
//     dropped in whole lines, counted and warned of. A write that hangs cannot be
//     taken back; after hangTime a bypass reads and drops in its place, until
//     it is over, when the bypass is ended first: a stream has one reader at a time.
//     Locks that somebody holds while he writes are taken with a limit.
//
// States of a slot; each arrow is one store of the state word:
//
//	free ──▶ filled(a,b) ──▶ reading(a,b) ──read(2)──▶ filled(a,b+n)
//	  ▲                                                   │
//	  │ a = b at the end                                  ▼ the log's lock is held
//	  └──────────── filled(a+used,b) ◀──write(2)── writing(a,b)
//
// raw[a:b] is what is not in the log. While reading, raw[b:] begins with a
// random sentinel, so that a successor can tell whether the read happened.
package logcopy
