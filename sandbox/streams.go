package sandbox

import "io"

// TerminalSize is the size of a terminal in cells. It is an alias, so that
// packages that may not import each other share the type.
type TerminalSize = struct{ Width, Height uint16 }

// Streams are the client's ends of a session in a container; nil is one that
// the client does not want. Whoever makes them unblocks what waits in them
// once the session has returned.
type Streams struct {
	Stdin          io.Reader           // Read ends with io.EOF at the client's half-close, with another error when the client has gone
	Stdout, Stderr io.Writer           // a terminal has no Stderr
	Resize         <-chan TerminalSize // the latest size counts; closed at the session's end
}
