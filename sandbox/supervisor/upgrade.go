package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// Upgrade has the supervisor become the program at Config.Binary, if it is
// another one: in its process, which all containers, their terminals and the
// commands in them stay with. It first takes what Hold does, so that a crash
// meanwhile takes no more than one at any other time, and keeps that for the
// Hold that is to follow. There must be no Hold beside it.
//
// errdefs.ErrUnavailable: not now, as something is under way that would have to
// be waited for, and it is to be tried again; errdefs.ErrFailedPrecondition: that
// program does not take over from this one; errdefs.ErrNotImplemented: the one
// that runs is too old for it. After any error the old one is as it was, or has
// crashed and is replaced by the next call.
func (c *Client) Upgrade(ctx context.Context) (a UpgradeAnswer, err error) {
	program, err := os.Open(c.cfg.Binary)
	if err != nil {
		return a, fmt.Errorf("upgrading the supervisor: %w", err)
	}
	defer program.Close()
	if err := c.hold(ctx, false); err != nil {
		return a, err
	}
	err = c.stream(ctx, "upgrade", UpgradeRequest{Path: c.cfg.Binary}, []*os.File{program},
		func(_ wire.Conn, raw json.RawMessage, got []*os.File) (bool, error) {
			closeAll(got)
			return false, json.Unmarshal(raw, &a)
		})
	return a, err
}
