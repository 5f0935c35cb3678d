package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listedImage is a line of `gantry image ls --json`.
type listedImage struct {
	ID          string   `json:"id"`
	RepoTags    []string `json:"repoTags"`
	RepoDigests []string `json:"repoDigests"`
	Size        uint64   `json:"size"`
	Pinned      bool     `json:"pinned"`
}

func imageList(f *flags) func(*imageCall) error {
	asJSON := f.Bool("json", false, "print a JSON array")
	quiet := f.Bool("quiet", false, "print ids only")
	return func(c *imageCall) error {
		images, err := c.images()
		if err != nil {
			return err
		}
		switch {
		case *quiet:
			for _, img := range images {
				fmt.Fprintln(c.stdout, img.GetId())
			}
			return nil
		case *asJSON:
			list := []listedImage{}
			for _, img := range images {
				list = append(list, listedImage{img.GetId(), notNil(img.GetRepoTags()), notNil(img.GetRepoDigests()), img.GetSize(), img.GetPinned()})
			}
			e := json.NewEncoder(c.stdout)
			e.SetIndent("", "  ")
			return e.Encode(list)
		}
		return c.table(images)
	}
}

func notNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// images are those of the node, by their first name.
func (c *imageCall) images() ([]*runtimeapi.Image, error) {
	resp, err := c.client.ListImages(c.ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(resp.GetImages(), func(a, b *runtimeapi.Image) int {
		return strings.Compare(imageName(a)+a.GetId(), imageName(b)+b.GetId())
	})
	return resp.GetImages(), nil
}

// imageName is what a person calls an image.
func imageName(img *runtimeapi.Image) string {
	for _, names := range [][]string{img.GetRepoTags(), img.GetRepoDigests()} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return shortID(img.GetId())
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(13, len(id))]
}

func (c *imageCall) table(images []*runtimeapi.Image) error {
	t := tabwriter.NewWriter(c.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tTAG\tID\tSIZE\tPINNED")
	for _, img := range images {
		pinned := "no"
		if img.GetPinned() {
			pinned = "yes"
		}
		tags := img.GetRepoTags()
		if len(tags) == 0 {
			tags = []string{untagged(img)}
		}
		for _, name := range tags {
			i := strings.LastIndex(name, ":")
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name[:i], name[i+1:], shortID(img.GetId()), bytesText(img.GetSize()), pinned)
		}
	}
	return t.Flush()
}

// untagged is the repository of an image that has only a digest, if that.
func untagged(img *runtimeapi.Image) string {
	if d := img.GetRepoDigests(); len(d) > 0 {
		repo, _, _ := strings.Cut(d[0], "@")
		return repo + ":<none>"
	}
	return "<none>:<none>"
}

func imageRemove(*flags) func(*imageCall) error {
	return func(c *imageCall) error {
		var errs []error
		for _, ref := range c.args {
			spec := &runtimeapi.ImageSpec{Image: ref}
			// RemoveImage has no word for an image that is not there.
			resp, err := c.client.ImageStatus(c.ctx, &runtimeapi.ImageStatusRequest{Image: spec})
			if err == nil && resp.GetImage() == nil {
				err = fmt.Errorf("no image %q", ref)
			}
			if err == nil {
				_, err = c.client.RemoveImage(c.ctx, &runtimeapi.RemoveImageRequest{Image: spec})
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintf(c.stdout, "removed %s\n", resp.GetImage().GetId())
		}
		return errors.Join(errs...)
	}
}

func imagePrune(f *flags) func(*imageCall) error {
	dry := f.Bool("dry-run", false, "only say what would be removed")
	return func(c *imageCall) error {
		unused, err := c.unused()
		if err != nil {
			return err
		}
		var freed uint64
		did := "removed"
		if *dry {
			did = "would remove"
		}
		for _, img := range unused {
			if !*dry {
				if _, err := c.client.RemoveImage(c.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: img.GetId()}}); err != nil {
					return fmt.Errorf("%s: %w", imageName(img), err)
				}
			}
			freed += img.GetSize()
			fmt.Fprintf(c.stdout, "%s %s (%s, %s)\n", did, imageName(img), shortID(img.GetId()), bytesText(img.GetSize()))
		}
		fmt.Fprintf(c.stdout, "%s in all: %d, of %s; layers that other images have too stay\n", did, len(unused), bytesText(freed))
		return nil
	}
}

// unused are the images that no container is made from or has mounted, and that
// are not pinned. The images are listed first: a container that is made meanwhile
// is seen, and one of an image that is pulled meanwhile does not matter.
func (c *imageCall) unused() ([]*runtimeapi.Image, error) {
	images, err := c.images()
	if err != nil {
		return nil, err
	}
	resp, err := c.client.ListContainers(c.ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	used := make(map[string]bool)
	for _, ctr := range resp.GetContainers() {
		used[ctr.GetImageRef()], used[ctr.GetImageId()], used[ctr.GetImage().GetImage()] = true, true, true
		resp, err := c.client.ContainerStatus(c.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ctr.GetId()})
		if err != nil {
			return nil, err
		}
		for _, m := range resp.GetStatus().GetMounts() { // image volumes
			used[m.GetImage().GetImage()] = true
		}
	}
	return slices.DeleteFunc(images, func(img *runtimeapi.Image) bool {
		names := slices.Concat([]string{img.GetId()}, img.GetRepoTags(), img.GetRepoDigests())
		return img.GetPinned() || slices.ContainsFunc(names, func(n string) bool { return used[n] })
	}), nil
}
