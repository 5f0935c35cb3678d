package streaming

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// maxResize bounds one resize event, which is {"Width":80,"Height":24}.
const maxResize = 1 << 10

// readResizes passes the sizes that r holds to sizes, of which only the latest
// is kept while nobody takes it. Sizes without extent say nothing and are left
// out. It returns at the end of r or at the first thing that is no size.
func readResizes(r io.Reader, sizes chan TerminalSize) error {
	events := bufio.NewScanner(r)
	events.Buffer(make([]byte, 0, 64), maxResize)
	events.Split(splitObjects)
	for events.Scan() {
		if len(bytes.TrimSpace(events.Bytes())) == 0 {
			continue
		}
		var size TerminalSize
		if err := json.Unmarshal(events.Bytes(), &size); err != nil {
			return fmt.Errorf("a resize event: %w", err)
		}
		if size.Width == 0 || size.Height == 0 {
			continue
		}
		select {
		case <-sizes: // nobody has taken the one before
		default:
		}
		sizes <- size // there is room: nobody else sends
	}
	return events.Err()
}

// splitObjects is a bufio.SplitFunc for JSON objects without others in them.
func splitObjects(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '}'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
