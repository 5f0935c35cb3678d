package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Digest asks what a tag is now, without fetching it. "" when the registry
// does not say.
func (r *Repository) Digest(ctx context.Context, tag string, accept []string) (digest.Digest, error) {
	var d digest.Digest
	err := r.each(ctx, canPull|canResolve, func(h *host, last bool) error {
		resp, err := r.request(ctx, h, last, query{method: http.MethodHead, what: "manifests/" + tag, accept: accept})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if d, err = contentDigest(resp); err != nil {
			return broken(h.name, err)
		}
		if d != "" && d.Algorithm() != digest.SHA256 {
			d = "" // what is here is known by sha256
		}
		return nil
	})
	return d, err
}

// contentDigest is what the registry says that the digest is, "" for nothing.
func contentDigest(resp *http.Response) (digest.Digest, error) {
	d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if d == "" {
		return "", nil
	}
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("Docker-Content-Digest %q: %w: %w", abbreviate(printable(string(d), 128)), err, errdefs.ErrDataLoss)
	}
	return d, nil
}

// Manifest fetches the document of a tag or a digest, of at most max bytes.
// Its descriptor has the digest that the document really has.
func (r *Repository) Manifest(ctx context.Context, ref string, accept []string, max int64) (ocispec.Descriptor, []byte, error) {
	var want digest.Digest
	caps := canPull | canResolve
	if strings.Contains(ref, ":") { // a tag has none
		want, caps = digest.Digest(ref), canPull
		if err := checkDigest(want); err != nil {
			return ocispec.Descriptor{}, nil, err
		}
	}
	var desc ocispec.Descriptor
	var body []byte
	err := r.each(ctx, caps, func(h *host, last bool) (err error) {
		retry := r.retry(last)
		for {
			desc, body, err = r.document(ctx, h, last, query{method: http.MethodGet, what: "manifests/" + ref, accept: accept}, want, max)
			if under := (interrupted{}); !errors.As(err, &under) {
				return err
			}
			if err := retry.next(ctx, err); err != nil {
				return err
			}
		}
	})
	return desc, body, err
}

// document fetches a manifest once. The error is interrupted when not all of
// it came.
func (r *Repository) document(ctx context.Context, h *host, last bool, q query, want digest.Digest, max int64) (desc ocispec.Descriptor, body []byte, err error) {
	resp, err := r.request(ctx, h, last, q)
	if err != nil {
		return desc, nil, err
	}
	defer resp.Body.Close()
	if body, err = readAll(resp, max); err != nil {
		return desc, nil, interrupted{broken(h.name, err)}
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	desc = ocispec.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: digest.FromBytes(body), Size: int64(len(body))}
	said, err := contentDigest(resp)
	if err != nil {
		return desc, nil, broken(h.name, err)
	}
	if want != "" && desc.Digest != want {
		err = fmt.Errorf("%s answers manifest %s instead of %s: %w", h.name, desc.Digest, want, errdefs.ErrDataLoss)
	} else if said != "" && said != said.Algorithm().FromBytes(body) {
		err = fmt.Errorf("%s answers manifest %s and says that it is %s: %w", h.name, desc.Digest, said, errdefs.ErrDataLoss)
	}
	if err != nil && !json.Valid(body) { // another one would be
		err = interrupted{broken(h.name, fmt.Errorf("manifest broke off after %d bytes: %w", len(body), io.ErrUnexpectedEOF))}
	}
	return desc, body, err
}

// checkDigest is of what becomes part of a URL.
func checkDigest(d digest.Digest) error {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q is not a sha256: %w", abbreviate(printable(string(d), 128)), errdefs.ErrInvalidArgument)
	}
	return nil
}

// maxDocument bounds what is fetched into memory, whatever its descriptor says.
const maxDocument = 64 << 20

// Blob fetches a small blob whole and verifies it. A host whose answer is not
// the blob is passed over.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("blob %s of %d bytes is not a document, which has at most %d: %w", desc.Digest, desc.Size, maxDocument, errdefs.ErrInvalidArgument)
	}
	for {
		s, err := r.stream(ctx, desc)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(s) // as much as the blob has
		s.Close()
		if err != nil {
			return nil, err
		}
		got := digest.FromBytes(body)
		if got == desc.Digest {
			return body, nil
		}
		err = fmt.Errorf("%s answers %d bytes with digest %s for blob %s of %d bytes: %w",
			s.hostName(), len(body), got, desc.Digest, desc.Size, errdefs.ErrDataLoss)
		if !r.Doubt(ctx, s, err) {
			return nil, err
		}
	}
}

func readAll(resp *http.Response, max int64) ([]byte, error) {
	if resp.ContentLength > max {
		return nil, fmt.Errorf("answer of %d bytes, more than %d: %w", resp.ContentLength, max, errdefs.ErrInvalidArgument)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > max {
		return nil, fmt.Errorf("answer of more than %d bytes: %w", max, errdefs.ErrInvalidArgument)
	}
	return body, nil
}
