package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

const userAgent = "gantry"

// query is what is asked of a host.
type query struct {
	method string
	what   string // below the repository's path
	accept []string
	ranges string // of a Range header
}

// hostsFor lists the hosts with the capability in the order to ask them.
// Those that failed are last.
func (r *Repository) hostsFor(caps capability) ([]*host, error) {
	var up, down []*host
	for _, h := range r.hosts {
		switch {
		case h.caps&caps != caps:
		case h.down.Load():
			down = append(down, h)
		default:
			up = append(up, h)
		}
	}
	if len(up)+len(down) == 0 {
		return nil, fmt.Errorf("no host is configured for registry %s: %w", r.domain, errdefs.ErrFailedPrecondition)
	}
	return append(up, down...), nil
}

// each asks the hosts with the capability until one succeeds. The error is
// that of the last, the registry itself unless another has failed before, with
// what the others said.
func (r *Repository) each(ctx context.Context, caps capability, try func(h *host, last bool) error) error {
	hosts, err := r.hostsFor(caps)
	if err != nil {
		return err
	}
	var before []string
	for i, h := range hosts {
		last := i == len(hosts)-1
		err := try(h, last)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !last:
			r.leave(ctx, h, err)
			before = append(before, err.Error())
		case len(before) > 0:
			return fmt.Errorf("%w (before that: %s)", err, strings.Join(before, "; "))
		default:
			return err
		}
	}
	return nil // not reached: there is a host
}

// leave notes that a host has failed where another is left.
func (r *Repository) leave(ctx context.Context, h *host, err error) {
	log := klog.FromContext(ctx)
	if errdefs.IsNotFound(err) { // a mirror need not have everything
		log.V(4).Info("Mirror does not have it", "host", h.name, "reason", err.Error())
		return
	}
	h.down.Store(true)
	log.Info("Registry host failed; the next is asked", "host", h.name, "registry", r.domain, "reason", err.Error())
}

// request makes one request to one host and repeats it where that may help.
// The answer is of status 200 or, with a range, 206.
func (r *Repository) request(ctx context.Context, h *host, last bool, q query) (*http.Response, error) {
	retry := r.retry(last)
	for renewed := 0; ; {
		used := h.auth.current()
		resp, err := r.ask(ctx, h, q, used)
		switch {
		case err != nil:
			err = broken(h.name, err)
		case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent && q.ranges != "":
			return resp, nil
		default:
			err = r.refusal(h, q, resp)
			if resp.StatusCode == http.StatusUnauthorized && renewed < 2 && h.is(resp.Request.URL) {
				if err = r.renew(ctx, h, used, resp, err); err == nil {
					renewed++
					continue
				}
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := retry.next(ctx, err); err != nil {
			return nil, err
		}
	}
}

// refusal is the error of an answer without what was asked for.
func (r *Repository) refusal(h *host, q query, resp *http.Response) error {
	defer resp.Body.Close()
	who := fmt.Sprintf("%s: %s %s/%s", h.name, q.method, r.name, q.what)
	if !h.is(resp.Request.URL) {
		who += ": " + resp.Request.URL.Host
	}
	return h.auth.statusError(resp, who)
}

// renew gets authorized as the answer wants. refused is the answer as an
// error, which stands when that is not possible.
func (r *Repository) renew(ctx context.Context, h *host, used string, resp *http.Response, refused error) error {
	err := h.auth.renew(ctx, r.fetcher(h), used, resp.Header.Values("WWW-Authenticate"))
	if why := (refusal{}); errors.As(err, &why) {
		status := refused.(*statusError)
		status.text += "; " + why.why
		return status
	}
	if err != nil {
		return broken(h.name, err)
	}
	return nil
}

// ask makes one request once.
func (r *Repository) ask(ctx context.Context, h *host, q query, authorization string) (*http.Response, error) {
	for {
		u := url.URL{Scheme: h.currentScheme(), Host: h.name, Path: path.Join("/", h.path, r.name, q.what)}
		if h.mirror {
			u.RawQuery = url.Values{"ns": {r.domain}}.Encode() // for one that mirrors several
		}
		req, err := http.NewRequestWithContext(ctx, q.method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		for key, values := range h.header {
			req.Header[key] = slices.Clone(values)
		}
		if req.Header.Get("User-Agent") == "" {
			req.Header.Set("User-Agent", userAgent)
		}
		if len(q.accept) > 0 {
			req.Header.Set("Accept", strings.Join(q.accept, ", "))
		}
		req.Header.Set("Accept-Encoding", "identity")
		if q.ranges != "" {
			req.Header.Set("Range", q.ranges)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := r.exchange(h, req)
		if h.guess && u.Scheme == "https" && errors.Is(err, http.ErrSchemeMismatch) {
			h.plain.Store(true)
			continue
		}
		if err != nil {
			return nil, err
		}
		if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
			resp.Body.Close()
			return nil, fmt.Errorf("answer has Content-Encoding %q: %w", abbreviate(printable(e, 64)), errdefs.ErrDataLoss)
		}
		return resp, nil
	}
}

// fetcher is for the host's authorizer.
func (r *Repository) fetcher(h *host) fetcher {
	return func(req *http.Request) (*http.Response, error) {
		// What is configured for the host is for it alone.
		if h.is(req.URL) {
			for key, values := range h.header {
				if _, has := req.Header[key]; !has {
					req.Header[key] = slices.Clone(values)
				}
			}
		}
		return r.exchange(h, req)
	}
}

// exchange sends a request and watches it to the end of the answer's body.
func (r *Repository) exchange(h *host, req *http.Request) (*http.Response, error) {
	ctx, p := newPace(req.Context(), r.timeout)
	p.begin()
	resp, err := h.client.Do(req.WithContext(ctx))
	p.timer.Stop()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		p.cancel(nil)
		return nil, err
	}
	resp.Body = &pacedBody{ReadCloser: resp.Body, ctx: ctx, pace: p}
	return resp, nil
}
