// Package lifecycle holds the state machines of pods and containers: pure
// tables, without input, output, clock or goroutine. What they allow, the
// runtimeservice does; what they refuse, it refuses.
//
// A pod:
//
//	            Made            Stop            Stopped           Remove
//	Creating ─────────▶ Ready ───────▶ Stopping ───────▶ NotReady ───────▶ Removing
//	    │                 │ Lost ▶ ▲ ▲ ◀─ Stop again         ▲ │
//	    └─────Stop (the undoing has failed)     Stop (again) └─┘
//
// A container:
//
//	          Made           Start            Started           Exit
//	Creating ──────▶ Created ─────▶ Starting ────────▶ Running ──────▶ Exited
//	    │               ▲              │  │                              ▲
//	    │               └────Undone────┘  └───────────StartFailed────────┘
//	                          Created | Exited ─Remove▶ Removing
//
// What was being made and was rolled back, and what was removed, leaves by its
// record being deleted: no event says that nothing is left.
//
// States with something under way (Creating, Starting, Stopping, Removing) are
// intents: they are on disk before the first change, and start-up finishes or
// undoes what they announce.
package lifecycle
