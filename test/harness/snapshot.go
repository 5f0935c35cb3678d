package harness

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// snapshot is the set of everything that an instance could leave behind, one line per thing.
type snapshot map[string]bool

// beyond lists what is in s and not in base, sorted.
func (s snapshot) beyond(base snapshot) []string {
	var extra []string
	for line := range s {
		if !base[line] {
			extra = append(extra, line)
		}
	}
	slices.Sort(extra)
	return extra
}

// take makes a snapshot; folder is the instance's.
func take(folder string) (snapshot, error) {
	s := snapshot{}
	return s, errors.Join(s.mounts(), s.links(), s.nftables(), s.cgroups(), s.processes(), s.files(folder))
}

// mounts reads mount points, namespace pins among them, of the tests' own mount namespace.
func (s snapshot) mounts() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text()) // proc_pid_mountinfo(5)
		if len(fields) > 4 {
			s["mount "+fields[4]] = true
		}
	}
	return nil
}

func (s snapshot) links() error {
	links, err := Dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, l := range links {
		s[fmt.Sprintf("link %s (%s)", l.Attrs().Name, l.Type())] = true
	}
	return nil
}

func (s snapshot) nftables() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("listing nftables tables: %w", err)
	}
	for _, t := range tables {
		s["nftables table "+t.Name] = true
		sets, err := conn.GetSets(t)
		if err != nil {
			return fmt.Errorf("listing the sets of table %s: %w", t.Name, err)
		}
		for _, set := range sets {
			elements, err := conn.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("listing set %s of table %s: %w", set.Name, t.Name, err)
			}
			for _, e := range elements {
				if !e.IntervalEnd {
					s[fmt.Sprintf("nftables element %x in set %s of table %s", e.Key, set.Name, t.Name)] = true
				}
			}
		}
	}
	return nil
}

// cgroups lists the groups of all hierarchies, but those that systemd keeps when nothing is in them any more.
func (s snapshot) cgroups() error {
	paths, err := Cgroups()
	for _, path := range paths {
		if !(systemd() && strings.HasSuffix(path, ".slice")) {
			s["cgroup "+path] = true
		}
	}
	return err
}

// Cgroups are the groups of all hierarchies. Where that of hugetlb is only a directory, tests that run beside these have
// made it, and mounted in a namespace of theirs; see MountHugetlb.
func Cgroups() (paths []string, err error) {
	var above, here unix.Stat_t
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || !e.IsDir() {
			return err
		}
		if path == hugetlbMount && unix.Stat(filepath.Dir(path), &above) == nil && unix.Stat(path, &here) == nil && above.Dev == here.Dev {
			return fs.SkipDir
		}
		paths = append(paths, path)
		return nil
	})
	return paths, err
}

func (s snapshot) processes() error {
	for _, p := range descendants(os.Getpid()) {
		s[p.String()] = true
	}
	return nil
}

// Files below an instance's folder that are made when they are first needed and then stay. Of trees the content is
// not looked at: the tests' logs and settings, and the image store, which the image service's own tests look at.
var (
	lastingTrees = regexp.MustCompile(`^(logs|certs\.d|net\.d|root/images|run/podinit)$`)
	lastingFiles = regexp.MustCompile(`^(gantry\.log|run/supervisor/(supervisor\.log|lock|start\.lock|supervisor\.sock|containers|staging|staging/\d+|quarantine)` +
		`|run/runtimes/[a-z0-9]+|run/cni|run/cni/results|root/(pods|containers)/spare-\d+|root/cni/(results|ports|attachments|networks|pod-cidr)|root/cni/networks/[^/]+(/network\.json|/leases(/lock)?)?)$`)
)

// files lists what is below folder, but not what is in file systems mounted there: the mount is listed.
func (s snapshot) files(folder string) error {
	var home unix.Stat_t
	if err := unix.Stat(folder, &home); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("looking at %s: %w", folder, err)
	}
	return filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile, or the instance has none yet
		}
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		switch {
		case lastingTrees.MatchString(relative):
			return fs.SkipDir
		case !lastingFiles.MatchString(relative):
			s["file "+path] = true
		}
		var here unix.Stat_t
		if e.IsDir() && unix.Lstat(path, &here) == nil && here.Dev != home.Dev {
			return fs.SkipDir
		}
		return nil
	})
}

// List is a snapshot as sorted lines; folder is an instance's.
func List(folder string) ([]string, error) {
	s, err := take(folder)
	if err != nil {
		return nil, err
	}
	return s.beyond(nil), nil
}
