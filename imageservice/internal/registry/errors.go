package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// statusError reads the answer's explanation and closes it.
func (r *Repository) statusError(host *docker.RegistryHost, method, what string, resp *http.Response) error {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	detail := explain(body)
	if detail != "" {
		detail = " (" + detail + ")"
	}
	return fmt.Errorf("%s answers %s to %s %s/%s%s: %w", host.Host, resp.Status, method, r.name, what, detail, kind(resp.StatusCode))
}

func kind(status int) error {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case status == http.StatusNotFound:
		return errdefs.ErrNotFound
	case status == http.StatusTooManyRequests:
		return errdefs.ErrResourceExhausted
	case status >= 500, status == http.StatusRequestTimeout:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// explain takes the first message of a registry's error answer, made harmless
// for a log line.
func explain(body []byte) string {
	var answer struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	text := strings.TrimSpace(answer.Errors[0].Code + " " + answer.Errors[0].Message)
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	if len(text) > 256 {
		text = strings.ToValidUTF8(text[:256], "") + "…"
	}
	return text
}

// broken gives an error of the transport its kind and takes the URL out of
// it, whose query may hold a signature.
func broken(host *docker.RegistryHost, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) { // of the token server; its text has the body
		return fmt.Errorf("%s: token server answers %s: %w", host.Host, status.Status, kind(status.StatusCode))
	}
	if errors.Is(err, docker.ErrInvalidAuthorization) {
		return fmt.Errorf("%s: %w: %w", host.Host, err, errdefs.ErrPermissionDenied)
	}
	for _, k := range []error{errdefs.ErrPermissionDenied, errdefs.ErrDataLoss, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition} {
		if errors.Is(err, k) {
			return fmt.Errorf("%s: %w", host.Host, err)
		}
	}
	// Not wrapped: the transport's time-outs call themselves DeadlineExceeded,
	// which here is the caller's.
	return fmt.Errorf("%s: %v: %w", host.Host, err, errdefs.ErrUnavailable)
}

// isTransient is for errors that another attempt may not meet. A connection
// that is refused or not answered is none: it is for the next host, or for the
// kubelet's back-off.
func isTransient(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}
	var n net.Error
	return errors.As(err, &n) && n.Timeout() || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}
