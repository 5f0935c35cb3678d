package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
	"github.com/gantry-cri/gantry/cri/transfer"
)

// imageVerb is one command of `gantry image`. Its flags are defined by flags,
// and run does the work with what stands beside them.
type imageVerb struct {
	name, synopsis, summary, about string
	least, most                    int // arguments; most < 0 for any number
	make                           func(f *flags) func(c *imageCall) error
}

// imageCall is one call of an imageVerb.
type imageCall struct {
	ctx            context.Context
	client         *transfer.Client
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
}

func imageVerbs() []imageVerb {
	return []imageVerb{
		{"ls", " [FLAGS]", "list images", "Lists the images of this node.", 0, 0, imageList},
		{"load", " [FLAGS] FILE|DIR|-", "take images out of an archive", `Takes all images out of an archive: what "docker save", podman, skopeo, buildx and
"gantry image save" write, plain or in gzip or zstd; or out of a directory that
is an OCI image layout. "-" is standard input. Layers that are here are not
unpacked again. Prints each image's id and tags.`, 1, 1, imageLoad},
		{"save", " [FLAGS] -o FILE|- IMAGE...", "write images into an archive", `Writes images into one archive, an OCI image layout that "docker load" takes too.
An image named by a tag has this tag in it, one named by its id or digest all it
has. Layers that were not kept as pulled ([images] keep_layer_blobs) are made
anew from their files; the image then has another id in the archive.`, 1, -1, imageSave},
		{"rm", " [FLAGS] IMAGE...", "remove images", `Removes images with all their names. Containers that run from one run on.`, 1, -1, imageRemove},
		{"prune", " [FLAGS]", "remove images that no container uses", `Removes the images that no container uses, running or not, as its own or as a
volume, and that are not pinned.`, 0, 0, imagePrune},
		{"pull", " [FLAGS] IMAGE", "fetch an image from its registry", `Fetches an image as the kubelet would, and prints its id.`, 1, 1, imagePull},
		{"pulls", " [FLAGS]", "list pulls under way", "Lists the pulls that are under way, also the kubelet's.", 0, 0, imagePulls},
	}
}

// runImage is the verb image.
func runImage(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		imageUsage(stderr)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		imageUsage(stdout)
		return exitOK
	}
	for _, v := range imageVerbs() {
		if v.name == args[0] {
			return v.run(ctx, args[1:], stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "gantry image: unknown command %q\n\n", args[0])
	imageUsage(stderr)
	return exitUsage
}

func imageUsage(w io.Writer) {
	fmt.Fprint(w, "Works with the images of a running gantry.\n\nUsage: gantry image COMMAND [FLAGS] [ARGUMENTS]\n\nCommands:\n")
	for _, v := range imageVerbs() {
		fmt.Fprintf(w, "  %-9s %s\n", v.name, v.summary)
	}
	fmt.Fprint(w, "\n\"gantry image COMMAND --help\" describes the flags of a command.\n")
}

func (v imageVerb) run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := newFlags("image "+v.name, v.synopsis, v.about)
	where := addSocketFlags(f)
	act := v.make(f)
	rest, err := parseMixed(f, args)
	if errors.Is(err, flag.ErrHelp) {
		f.help(stdout)
		return exitOK
	}
	if err == nil && len(rest) < v.least {
		err = fmt.Errorf("an argument is missing")
	}
	if err == nil && v.most >= 0 && len(rest) > v.most {
		err = fmt.Errorf("unexpected argument %q", rest[v.most])
	}
	if err != nil {
		fmt.Fprintf(stderr, "gantry image %s: %v\n\n", v.name, err)
		f.help(stderr)
		return exitUsage
	}
	if err := v.call(where, act, &imageCall{ctx: ctx, args: rest, stdin: os.Stdin, stdout: stdout, stderr: stderr}); err != nil {
		fmt.Fprintf(stderr, "gantry image %s: %v\n", v.name, err)
		return exitError
	}
	return exitOK
}

func (v imageVerb) call(where *socketFlags, act func(*imageCall) error, c *imageCall) (err error) {
	socket, err := where.find()
	if err != nil {
		return err
	}
	if c.client, err = transfer.Dial(socket); err != nil {
		return err
	}
	defer closing(&err, c.client.Close)
	return act(c)
}

// parseMixed takes flags before, between and behind the arguments; behind "--"
// all are arguments.
func parseMixed(f *flags, args []string) (rest []string, err error) {
	for {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		left := f.Args()
		if used := args[:len(args)-len(left)]; len(left) == 0 || len(used) > 0 && used[len(used)-1] == "--" {
			return append(rest, left...), nil
		}
		rest, args = append(rest, left[0]), left[1:]
	}
}

// socketFlags say which gantry is meant.
type socketFlags struct{ socket, file string }

func addSocketFlags(f *flags) *socketFlags {
	s := new(socketFlags)
	f.StringVar(&s.socket, "socket", "", "`PATH` of the gantry's socket")
	f.defaults["socket"] = "that of the configuration"
	f.StringVar(&s.file, "config", "", "`FILE` of the gantry's configuration")
	f.defaults["config"] = config.DefaultFile + ", which may be missing"
	return s
}

func (s *socketFlags) find() (string, error) {
	if s.socket != "" {
		return s.socket, nil
	}
	cfg, err := config.Load(s.file, func(*config.Config) {})
	return cfg.Socket, err
}

// terminal says whether w is one, where progress can be shown and taken back.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// progressLine is a line of a terminal that is written over.
type progressLine struct {
	w    io.Writer
	last string
}

func newProgressLine(w io.Writer) *progressLine {
	if !terminal(w) {
		return &progressLine{}
	}
	return &progressLine{w: w}
}

func (p *progressLine) show(line string) {
	if p.w != nil && line != p.last {
		fmt.Fprintf(p.w, "\r\x1b[K%s", line)
		p.last = line
	}
}

// clear takes the line away before something else is printed.
func (p *progressLine) clear() {
	if p.w != nil && p.last != "" {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.last = ""
	}
}

// bytesText is a size for a person.
func bytesText(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", (n+1023)>>10)
}

// plainText keeps what a registry or an archive said from playing with a
// terminal.
func plainText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
