package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
)

// statusError is an answer of another status than was hoped for.
type statusError struct {
	text   string
	status int
	after  time.Duration // that the server wants to be left alone; -1: does not say
}

func (e *statusError) Error() string { return e.text + ": " + kind(e.status).Error() }
func (e *statusError) Unwrap() error { return kind(e.status) }

// again says whether the same request may succeed later.
func (e *statusError) again() bool {
	return e.status == http.StatusTooManyRequests || e.status == http.StatusRequestTimeout || e.status >= 500
}

// maxErrorBody is what is read of an answer's explanation.
const maxErrorBody = 64 << 10

// newStatusError reads the answer's explanation. The caller closes it.
func newStatusError(resp *http.Response, who, hint string, mask func(string) string) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	detail := mask(explain(body))
	if detail != "" {
		detail = " (" + detail + ")"
	}
	status := printable(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)), 64)
	return &statusError{
		text:   who + " answers " + strings.TrimSpace(status) + detail + hint,
		status: resp.StatusCode,
		after:  retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
}

func kind(status int) error {
	switch {
	case status == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case status == http.StatusForbidden:
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

// explain takes the first message of a registry's error answer.
func explain(body []byte) string {
	var answer struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // of some token servers
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	text := answer.Details
	if len(answer.Errors) > 0 {
		text = answer.Errors[0].Code + " " + answer.Errors[0].Message
	}
	return withoutSecrets(printable(text, 256))
}

// printable makes a text of somebody else harmless for a log line.
func printable(text string, max int) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	text = strings.TrimSpace(text)
	if len(text) > max {
		text = strings.ToValidUTF8(text[:max], "") + "…"
	}
	return text
}

// abbreviate keeps a long text from filling the log.
func abbreviate(s string) string {
	if len(s) > 256 {
		return strings.ToValidUTF8(s[:256], "") + "…"
	}
	return s
}

var secretParts = regexp.MustCompile(`\?[^\s"')]+|//[^\s/@"]+@`)

// withoutSecrets takes queries and user names out of the URLs in a text.
func withoutSecrets(text string) string {
	return secretParts.ReplaceAllStringFunc(text, func(s string) string {
		if s[0] == '?' {
			return "?…"
		}
		return "//…@"
	})
}

// broken gives an error of the transport its kind and takes the URL out of it.
func broken(who string, err error) error {
	var status *statusError
	var done *brokenError
	if errors.As(err, &status) || errors.As(err, &done) {
		return err
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	for _, k := range []error{
		errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied, errdefs.ErrDataLoss, errdefs.ErrInvalidArgument,
		errdefs.ErrFailedPrecondition, errdefs.ErrUnavailable, errNoRanges,
	} {
		if errors.Is(err, k) {
			return &brokenError{who + ": " + withoutSecrets(printable(err.Error(), 512)), k, err}
		}
	}
	return &brokenError{who + ": " + withoutSecrets(printable(err.Error(), 512)) + ": " + errdefs.ErrUnavailable.Error(), errdefs.ErrUnavailable, err}
}

// brokenError has one kind only: the transport's time-outs call themselves
// DeadlineExceeded, which here is the caller's.
type brokenError struct {
	text        string
	kind, cause error
}

func (e *brokenError) Error() string { return e.text }
func (e *brokenError) Unwrap() error { return e.kind }

// transient is for errors that another attempt may not meet. A connection
// that is refused or not answered is none: it is for the next host, or for the
// kubelet's back-off.
func transient(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.again()
	}
	var b *brokenError
	if errors.As(err, &b) {
		err = b.cause
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || errors.Is(err, errStill) {
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
