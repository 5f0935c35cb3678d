package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

const (
	// The pause before an upgrade that had to wait is tried again doubles up to
	// upgradePauseMax: each try holds new calls up for as long as a probe bears.
	upgradePause    = 2 * time.Second
	upgradePauseMax = 5 * time.Minute
	// upgradeTimeout is for a try: the check takes 10 s at most, and nothing is held before its end.
	upgradeTimeout = 30 * time.Second
)

// Upgrade is what became of having the supervisor become the installed program.
type Upgrade struct {
	Replaced bool   // it was another one
	Version  string // of the supervisor that runs; "" where it is not known
	Err      error  // why it is not the installed one
	Later    bool   // it is tried again
}

var errUpgradeDue = errors.New("upgrade of the supervisor is due")

// upgrader upgrades the supervisor once, and later if that had to wait.
type upgrader struct {
	tell  func(Upgrade)
	pause time.Duration // before the next try; 0 before the first one
	due   time.Time     // of the next try; zero for none

	replaced bool // by the last call of upgrade
}

// upgrade tries it, if it is time. What is not new is not told again.
func (u *upgrader) upgrade(ctx context.Context, sup *supervisor.Client) {
	u.replaced = false
	first := u.pause == 0
	if !first && (u.due.IsZero() || time.Now().Before(u.due)) {
		return
	}
	u.pause, u.due = min(max(2*u.pause, upgradePause), upgradePauseMax), time.Time{}
	trying, cancel := context.WithTimeout(ctx, upgradeTimeout)
	defer cancel()
	a, err := sup.Upgrade(trying)
	u.replaced = a.Replaced
	later := errdefs.IsUnavailable(err)
	switch {
	case ctx.Err() != nil:
	case later:
		u.due = time.Now().Add(u.pause)
		if !first {
			return
		}
		fallthrough
	case !errdefs.IsNotImplemented(err): // an older one, which goes on
		u.tell(Upgrade{Replaced: a.Replaced, Version: a.Version, Err: err, Later: later})
	}
}
