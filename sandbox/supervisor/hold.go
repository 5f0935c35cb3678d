package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// held is a duplicate of what a container would lose with its supervisor.
type held struct {
	f        *os.File
	terminal bool
}

// Hold keeps what containers would lose if the supervisor were killed: their
// terminals, the writing end of a stdin that is to end with its first client,
// and what is in the FIFOs of their output, which Run keeps too. It first gives the supervisor the terminals that its predecessor had.
// It returns when ctx ends or the connection breaks, and keeps what it has for
// the next Hold, which is to follow soon. There must be one at a time.
func (c *Client) Hold(ctx context.Context) error { return c.hold(ctx, true) }

// hold is Hold, or takes what there is now and no more.
func (c *Client) hold(ctx context.Context, on bool) error {
	if err := c.giveBack(ctx); err != nil {
		return err
	}
	if err := c.holdAllOutputs(ctx); err != nil {
		return err
	}
	told := make(map[string]bool) // until all are
	return c.stream(ctx, "hold", struct{}{}, nil, func(_ wire.Conn, body json.RawMessage, got []*os.File) (bool, error) {
		var a HoldAnswer
		if err := json.Unmarshal(body, &a); err != nil || len(got) > 1 {
			closeAll(got)
			return false, fmt.Errorf("answer with %d descriptors, %w", len(got), err)
		}
		switch {
		case a.ID == "":
			c.letGo(func(id string) bool { return !told[id] })
			told = nil
			return on, nil
		case len(got) == 0:
			c.letGo(func(id string) bool { return id == a.ID })
		default:
			if told != nil {
				told[a.ID] = true
			}
			c.letGo(func(id string) bool { return id == a.ID })
			c.keep(a.ID, held{f: got[0], terminal: a.Terminal})
		}
		return true, nil
	})
}

// giveBack gives the supervisor those terminals that it does not have.
func (c *Client) giveBack(ctx context.Context) error {
	c.mu.Lock()
	terminals := make(map[string]*os.File)
	for id, h := range c.held {
		if h.terminal {
			terminals[id] = h.f
		}
	}
	c.mu.Unlock()
	for id, f := range terminals {
		sent, err := wire.Duplicate(f) // stream closes what it has sent, and what is held must be until more is
		if err != nil {
			return err
		}
		err = c.stream(ctx, "restore", IDRequest{ID: id}, []*os.File{sent}, func(_ wire.Conn, _ json.RawMessage, got []*os.File) (bool, error) {
			closeAll(got)
			return false, nil
		})
		_ = sent.Close()
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) { // it has ended, or its supervisor lives
			return err
		}
	}
	return nil
}

func (c *Client) keep(id string, h held) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = h.f.Close()
		return
	}
	c.held[id] = h
}

// letGo closes what is held of the containers that over names.
func (c *Client) letGo(over func(id string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, h := range c.held {
		if over(id) {
			_ = h.f.Close()
			delete(c.held, id)
		}
	}
}
