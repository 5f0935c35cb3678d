package selinux

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// Options are what a request says of a label. "" leaves the part as it is.
type Options struct{ User, Role, Type, Level string }

// Labels are those of processes and of files. Both are "" where there are none.
type Labels struct{ Process, Mount string }

// Enabled reports whether the kernel runs SELinux.
func Enabled() bool { return selinux.GetEnabled() }

// Check says why containers cannot be given labels on this node, nil if they can.
func Check() error {
	if !Enabled() {
		return fmt.Errorf("this machine does not run SELinux: %w", errdefs.ErrFailedPrecondition)
	}
	l, err := New(Options{})
	if err != nil {
		return err
	}
	Release(l)
	return nil
}

// New draws the labels of a pod. Their level is the one that the options give,
// or one that no labels have which were drawn or reserved before. The caller
// gives them to [Release] when the pod is gone. An error about the options is
// of kind errdefs.ErrInvalidArgument.
func New(o Options) (Labels, error) {
	if err := o.check(); err != nil {
		return Labels{}, err
	}
	process, mount, err := label.InitLabels(nil)
	if err != nil {
		return Labels{}, fmt.Errorf("drawing a label: %w", err)
	}
	if process == "" || mount == "" {
		return Labels{}, fmt.Errorf("the SELinux policy names no labels for containers (contexts/lxc_contexts), install container-selinux: %w", errdefs.ErrFailedPrecondition)
	}
	drawn := Labels{process, mount}
	if o.Level != "" {
		selinux.ReleaseLabel(process)
	}
	l, err := drawn.With(o)
	if err != nil {
		selinux.ReleaseLabel(process)
		return Labels{}, err
	}
	Reserve(l)
	return l, nil
}

// With are the labels with the parts that the options name. The file's type is
// the policy's, and its role is that of all files. The kernel is asked whether
// its policy has such labels.
func (l Labels) With(o Options) (Labels, error) {
	if o == (Options{}) {
		return l, nil
	}
	if err := o.check(); err != nil {
		return Labels{}, err
	}
	out := l.with(o)
	if !Enabled() {
		return out, nil
	}
	for _, name := range []string{out.Process, out.Mount} {
		if err := selinux.SecurityCheckContext(name); err != nil {
			return Labels{}, fmt.Errorf("the SELinux policy of this node has no label %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
		}
	}
	return out, nil
}

func (l Labels) with(o Options) Labels {
	return Labels{
		Process: change(l.Process, o),
		Mount:   change(l.Mount, Options{User: o.User, Level: o.Level}),
	}
}

// change replaces parts of one label. A level is not added where there is none:
// such a policy has no levels.
func change(name string, o Options) string {
	parts := strings.SplitN(name, ":", 4)
	for i, v := range []string{o.User, o.Role, o.Type, o.Level} {
		if v != "" && i < len(parts) {
			parts[i] = v
		}
	}
	return strings.Join(parts, ":")
}

var (
	validName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	validLevel = regexp.MustCompile(`^s\d{1,2}(-s\d{1,2})?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$`)
)

// maxLevel keeps labels below the 256 bytes that an option of a mount may have.
const maxLevel = 64

// check refuses what is no part of a label. The text becomes an option of
// mounts and a part of other labels, where a quote or a colon would say more.
func (o Options) check() error {
	for _, p := range []struct{ field, value string }{{"user", o.User}, {"role", o.Role}, {"type", o.Type}} {
		if p.value != "" && !validName.MatchString(p.value) {
			return fmt.Errorf("%s %.80q is no name of letters, digits, \"_\", \".\" and \"-\": %w", p.field, p.value, errdefs.ErrInvalidArgument)
		}
	}
	if o.Level != "" && (len(o.Level) > maxLevel || !validLevel.MatchString(o.Level)) {
		return fmt.Errorf("level %.80q is not of the form s0:c1,c2, of at most %d bytes: %w", o.Level, maxLevel, errdefs.ErrInvalidArgument)
	}
	return nil
}

// holders counts the pods of each level, for requests may give several pods
// the same one: the level is free again when the last of them has gone.
var holders = struct {
	sync.Mutex
	n map[string]int
}{n: map[string]int{}}

// Reserve keeps New from drawing the level of l again, until as many calls of
// Release. For labels of pods that an earlier daemon has made.
func Reserve(l Labels) {
	level := levelOf(l)
	if level == "" {
		return
	}
	holders.Lock()
	defer holders.Unlock()
	holders.n[level]++
	_ = selinux.ReserveLabelV2(l.Process) // no error but that it is reserved
}

// Release gives back what New or Reserve has reserved.
func Release(l Labels) {
	level := levelOf(l)
	if level == "" {
		return
	}
	holders.Lock()
	defer holders.Unlock()
	if holders.n[level]--; holders.n[level] <= 0 {
		delete(holders.n, level)
		selinux.ReleaseLabel(l.Process)
	}
}

func levelOf(l Labels) string {
	if parts := strings.SplitN(l.Process, ":", 4); len(parts) == 4 {
		return parts[3]
	}
	return ""
}
