package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
)

const (
	maxOutput = 1 << 20 // of stdout and of stderr
	maxShown  = 2 << 10 // of output in an error
)

// checkOutput refuses what a plugin that ended well must not have printed: an error object and, as ADD's result, what
// libcni cannot read or, as a null among the addresses, does not survive.
func checkOutput(command string, conf, stdout []byte) error {
	var out struct {
		types.Error
		IPs        []*json.RawMessage `json:"ips"`
		Interfaces []*json.RawMessage `json:"interfaces"`
		Routes     []*json.RawMessage `json:"routes"`
	}
	err := json.Unmarshal(stdout, &out)
	if err == nil && out.Code != 0 && out.Msg != "" {
		return fmt.Errorf("printed an error: %w", shownObject(&out.Error))
	}
	if command != "ADD" { // which alone has a result
		return nil
	}
	if err != nil {
		return fmt.Errorf("printed no result: %s, stdout %q", shown([]byte(err.Error())), shown(stdout)) // the error quotes it too
	}
	if slices.Contains(out.IPs, nil) || slices.Contains(out.Interfaces, nil) || slices.Contains(out.Routes, nil) {
		return fmt.Errorf("its result has null as an address, interface or route, stdout %q", shown(stdout))
	}
	if _, err := readResult(conf, stdout); err != nil {
		return fmt.Errorf("its result cannot be read: %s", shown([]byte(err.Error())))
	}
	return nil
}

// readResult reads a result as libcni does.
func readResult(conf, stdout []byte) (types.Result, error) {
	return invoke.ExecPluginWithResult(context.Background(), "", conf, &invoke.Args{}, printed{stdout: stdout})
}

// printed is a plugin that has run.
type printed struct {
	invoke.Exec
	stdout []byte
}

func (p printed) ExecPlugin(context.Context, string, []byte, []string) ([]byte, error) {
	return p.stdout, nil
}

// pluginError is the error object that a failing plugin prints, else what there is to say about it.
func pluginError(what string, err error, stdout, stderr []byte) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", what, err)
	}
	object := &types.Error{}
	if json.Unmarshal(stdout, object) == nil && object.Msg != "" {
		object = shownObject(object)
		if object.Code == types.ErrTryAgainLater {
			return fmt.Errorf("%s: %w: %w", what, object, errdefs.ErrUnavailable)
		}
		return fmt.Errorf("%s: %w", what, object)
	}
	return fmt.Errorf("%s: %w, stdout %q, stderr %q", what, err, shown(stdout), shown(stderr))
}

// shownObject is an error object of a plugin, cut if its text is long.
func shownObject(object *types.Error) *types.Error {
	if len(object.Error()) <= maxShown {
		return object
	}
	return &types.Error{Code: object.Code, Msg: shown([]byte(object.Error()))}
}

// shown is the end of an output, where programs say why they fail.
func shown(out []byte) string {
	out = bytes.TrimSpace(out)
	if len(out) > maxShown {
		out = out[len(out)-maxShown:]
	}
	return strings.ToValidUTF8(string(out), "\uFFFD") // gRPC sends no error with another text
}

// capped keeps an output of at most maxOutput bytes and ends the plugin that writes more.
type capped struct {
	buf  bytes.Buffer // not embedded: its ReadFrom would go round Write
	full context.CancelCauseFunc
	what string
}

func (c *capped) Write(b []byte) (int, error) {
	if c.buf.Len()+len(b) > maxOutput {
		err := fmt.Errorf("it wrote more than %d bytes to %s", maxOutput, c.what)
		c.full(err)
		return 0, err
	}
	return c.buf.Write(b)
}
