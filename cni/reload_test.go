package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// usesText waits until the list in force has a text in it.
func (n *node) usesText(text string) {
	n.t.Helper()
	eventually(n.t, "the list in force has "+text, func() bool {
		list, err := n.list()
		return err == nil && strings.Contains(string(list.Bytes), text)
	})
}

// TestPodsKeepTheirConfiguration: whatever becomes of the file, DEL is that of the ADD.
func TestPodsKeepTheirConfiguration(t *testing.T) {
	n := newNode(t, hasty)
	n.install("testplugin")
	for name, change := range map[string]func(path string) string{ // in any order
		"network has another name": func(string) string { n.write("10-x.conflist", n.conflist("other", nil, nil)); return `"other"` },
		"chain has one plugin":     func(string) string { n.write("10-x.conflist", n.conflist("outer", nil)); return `"outer"` },
		"file is gone": func(path string) string {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return `"gantry"`
		},
		"file is invalid": func(string) string {
			n.write("20-y.conflist", n.conflist("next", nil))
			n.write("10-x.conflist", `{"cniVersion":"1.0.0","name":"outer","plugins":[]}`)
			return `"next"`
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(filepath.Join(n.cfg.ConfDir, "20-y.conflist")); err != nil { // of another change
				t.Fatal(err)
			}
			n.write("10-x.conflist", n.conflist("outer", map[string]string{"ADD": "ok", "before": name}, nil))
			n.usesText(name)
			pod := n.joined(name)
			before := len(n.calls())
			n.usesText(change(filepath.Join(n.cfg.ConfDir, "10-x.conflist")))
			n.restart()
			n.detach(pod)
			var dels []call
			for _, c := range n.calls()[before:] {
				if c.command == "DEL" {
					dels = append(dels, c)
				}
			}
			if len(dels) != 2 || !strings.Contains(dels[1].line, name) || !strings.Contains(dels[0].line, `"prevResult":{`) || !strings.Contains(dels[0].line, `"name":"outer"`) {
				t.Errorf("DELs %v, want those of the two plugins of the pod's own list", dels)
			}
		})
	}
}

// TestHalfWritten leaves a network in force while its file is being written, so that pods do not come to the next one.
func TestHalfWritten(t *testing.T) {
	n := newNode(t, hasty)
	list := func(name string) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"loopback"}]}`, name)
	}
	n.write("10-x.conflist", list("first"))
	n.write("20-y.conflist", list("next"))
	n.uses("first")
	half := func(name, text string) {
		n.write(name, text[:len(text)/2])
		time.Sleep(4 * n.cfg.pace.look) // for what is to be seen not to happen
	}
	half("10-x.conflist", list("second"))
	n.stillUses("first")
	n.write("10-x.conflist", list("second"))
	n.uses("second")

	half("05-new.conflist", list("new")) // no pod is on it yet
	n.stillUses("second")
	n.write("05-new.conflist", list("new"))
	n.uses("new")

	n.write("05-new.conflist", strings.Replace(list("new"), "loopback", "a/b", 1)) // is what its writer meant
	n.uses("second")

	n.cfg.pace.writing = 10 * time.Millisecond // and one that nobody goes on with is passed over
	n.restart()
	half("10-x.conflist", list("third"))
	n.uses("next")
}

func (n *node) stillUses(name string) {
	n.t.Helper()
	if list, err := n.list(); err != nil || list.Name != name {
		n.t.Errorf("in force is %v, %v, want %s", list, err, name)
	}
	if err := n.Status(); err != nil {
		n.t.Errorf("status: %v", err)
	}
}

// TestLinkedFiles follows what is changed behind a link, in the way of a ConfigMap's volume and elsewhere, and a
// directory that is replaced.
func TestLinkedFiles(t *testing.T) {
	n := newNode(t, hasty)
	list := func(name string) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"loopback"}]}`, name)
	}
	do := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := n.cfg.ConfDir
	put := func(sub, name string) {
		do(os.MkdirAll(filepath.Join(dir, sub), 0o755), os.WriteFile(filepath.Join(dir, sub, "10-x.conflist"), []byte(list(name)), 0o644))
	}
	put("..1", "one")
	do(os.Symlink("..1", filepath.Join(dir, "..data")), os.Symlink("..data/10-x.conflist", filepath.Join(dir, "10-x.conflist")))
	n.uses("one")
	put("..2", "two")
	do(os.Symlink("..2", filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
	n.uses("two")
	put("..2", "behind") // nothing in the directory itself has changed
	n.uses("behind")

	other := dir + ".other"
	do(os.Mkdir(other, 0o755), os.WriteFile(filepath.Join(other, "10-x.conflist"), []byte(list("exchanged")), 0o644),
		unix.Renameat2(unix.AT_FDCWD, other, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE))
	n.uses("exchanged")
	n.write("10-x.conflist", list("within")) // and the new one is watched
	n.uses("within")
}

// TestPluginFolder puts the plugins of the folder of the network's name behind those of the list (CNI 1.1), for the
// pod's lifetime.
func TestPluginFolder(t *testing.T) {
	n := newNode(t, hasty)
	n.install("testplugin")
	folder := filepath.Join(n.cfg.ConfDir, "outer")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	plugin := func(file, mark string) {
		t.Helper()
		text := fmt.Sprintf(`{"type":"testplugin","log":%q,"mark":%q}`, n.log(), mark)
		if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	plugin("20-c.conf", "mark-c")
	plugin("10-b.conf", "mark-b")
	n.write("10-x.conflist", n.of("1.1.0", "outer", ""))
	n.usesText("mark-b")
	pod := n.joined("pod")
	plugin("10-b.conf", "mark-d") // seen without a change of the directory itself
	n.usesText("mark-d")
	n.restart()
	n.detach(pod)
	var got []string
	for _, c := range n.calls() {
		if c.command == "ADD" || c.command == "DEL" {
			_, mark, _ := strings.Cut(c.line, `"mark":"mark-`)
			got = append(got, c.command+mark[:min(1, len(mark))])
		}
	}
	if fmt.Sprint(got) != "[ADD ADDb ADDc DELc DELb DEL]" {
		t.Errorf("calls %v", got)
	}
	if err := os.Chmod(filepath.Join(folder, "10-b.conf"), 0o666); err != nil { // others choose what runs as root
		t.Fatal(err)
	}
	n.becomes("10-b.conf", "can be written by others")
	n.write("10-x.conflist", n.of("1.1.0", "outer", `"loadOnlyInlinedPlugins":true,`))
	n.becomes()
	n.write("10-x.conflist", `{"cniVersion":"1.1.0","name":"outer"}`)
	n.becomes("10-b.conf")
	plugin("10-b.conf", "mark-e")
	if err := os.Chmod(filepath.Join(folder, "10-b.conf"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.usesText("mark-e")
}

// TestVersions takes the highest version of a list that is known, and keeps to it.
func TestVersions(t *testing.T) {
	for _, c := range []struct{ keys, want string }{
		{`"cniVersion":"0.3.1",`, "0.3.1"},
		{``, "0.1.0"},
		{`"cniVersion":"0.4.0","cniVersions":["0.3.1","1.0.0"],`, "1.0.0"},
		{`"cniVersion":"1.1.0","cniVersions":["0.3.1"],`, "1.1.0"},
		{`"cniVersions":["1.0.0","9.0.0"],`, "1.0.0"},
		{`"cniVersion":"9.0.0","cniVersions":["1.0.0"],`, "1.0.0"},
		{`"cniVersions":["9.0.0"],`, "none of cniVersions"},
		{`"cniVersions":"1.0.0",`, "invalid type"},
		{`"cniVersion":"1.x",`, "1.x"},
	} {
		data, err := inline(t.TempDir(), []byte(`{`+c.keys+`"name":"x","plugins":[{"type":"a"}]}`))
		got := ""
		if err == nil {
			list, perr := parseList(data)
			if err = perr; err == nil {
				got = list.CNIVersion
				if strings.Contains(string(list.Bytes), "cniVersions") {
					t.Errorf("%s: the choice is not kept: %s", c.keys, list.Bytes)
				}
			}
		}
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", c.keys, got, c.want)
		}
	}
}
