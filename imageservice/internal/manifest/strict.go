package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
)

const maxDepth = 64

// isData are, folded, the fields whose objects have keys that an author chose.
var isData = map[string]bool{"LABELS": true, "ANNOTATIONS": true, "VOLUMES": true, "EXPOSEDPORTS": true}

// Decode reads another document that comes with an image, as strictly.
func Decode(body []byte, into any) error { return decode(body, into) }

// decode is json.Unmarshal for a document that must mean the same to every
// reader.
func decode(body []byte, into any) error {
	err := unambiguous(body)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil { // it may quote the document
		return fmt.Errorf("%.256s: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// unambiguous refuses keys that stand twice in one object, deep nesting and
// anything after the value. Labels and annotations, whose keys are data, may
// differ in case only.
func unambiguous(body []byte) error {
	type level struct {
		keys   map[string]struct{} // nil in an array
		isKey  bool                // the next token is a key
		asData bool                // keys are data, not field names
		last   string              // key
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var stack []level
	for first := true; first || len(stack) > 0; first = false {
		tok, err := dec.Token()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		var top *level
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		}
		if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
			stack = stack[:len(stack)-1]
			continue
		}
		if top != nil && top.keys != nil && top.isKey {
			key := tok.(string)
			top.last = fold(key)
			if !top.asData {
				key = top.last
			}
			if _, twice := top.keys[key]; twice {
				return fmt.Errorf("key %.64q stands twice", key)
			}
			top.keys[key] = struct{}{}
			top.isKey = false
			continue
		}
		if top != nil {
			top.isKey = top.keys != nil
		}
		if d, ok := tok.(json.Delim); ok {
			if len(stack) == maxDepth {
				return fmt.Errorf("nested deeper than %d", maxDepth)
			}
			next := level{}
			if d == '{' {
				next.keys, next.isKey = make(map[string]struct{}), true
				next.asData = top != nil && (top.asData || isData[top.last])
			}
			stack = append(stack, next)
		}
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("something follows the document")
	}
	return nil
}

// fold is how encoding/json decides that a key names a field: not quite as
// strings.ToLower does, since U+017F is an s to it.
func fold(key string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r {
				return next
			}
			r = next
		}
	}, key)
}
