package logcopy

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// The layout of a slot, which another build may have to read, changes with its number alone.
func TestLayoutIsNumbered(t *testing.T) {
	const want = `0x67616e7472790001: word 0 magic 8 want 16 sentinel 24 dev 40 ino 48 size 56 stream 64 nameLen 72 name 80 last 208 raw 4096+262144 states 0 1 2 3`
	var b strings.Builder
	fmt.Fprintf(&b, "%#x:", uint64(Layout))
	for typ, i := reflect.TypeFor[header](), 0; i < typ.NumField(); i++ {
		fmt.Fprintf(&b, " %s %d", typ.Field(i).Name, typ.Field(i).Offset)
	}
	fmt.Fprintf(&b, " raw %d+%d states %d %d %d %d", pageSize, rawSize, free, filled, reading, writing)
	if got := b.String(); got != want {
		t.Errorf("the layout is\n%s, it was\n%s\nchange Layout too, and what handoverVersion says", got, want)
	}
}
