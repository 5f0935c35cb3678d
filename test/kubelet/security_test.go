package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	cases["users and groups"] = users
	cases["capabilities and seccomp"] = capabilities
	cases["sysctls"] = sysctls
	cases["host namespaces"] = hostNamespaces
	cases["shared pid namespace"] = sharedPID
	cases["user namespace"] = userNamespace
	cases["host ports"] = hostPorts
}

func users(t *testing.T, n *node) {
	p := n.run(t, "users", `
securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000, supplementalGroups: [4000], supplementalGroupsPolicy: Merge}
volumes: [{name: v, emptyDir: {}}]
containers:
- name: merge
  image: USERS
  command: [sh, -c, "id -u; id -g; id -G; stat -c %g /v; touch /v/f && stat -c %g /v/f; sleep 1000"]
  volumeMounts: [{name: v, mountPath: /v}]
- name: other
  image: USERS
  securityContext: {runAsUser: 1234, runAsGroup: 0}
  command: [sh, -c, "id -u; id -g; sleep 1000"]
terminationGracePeriodSeconds: 1
`)
	strict := n.run(t, "strict", `
securityContext: {runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [4000], supplementalGroupsPolicy: Strict}
containers:
- {name: a, image: USERS, command: [sh, -c, "id -G; sleep 1000"]}
terminationGracePeriodSeconds: 1
`)
	s := p.untilReady()
	p.wantLog("merge", "1000\n2000\n2000 3000 4000 50000\n3000\n3000\n")
	p.wantLog("other", "1234\n0\n")
	u := s.container("merge").User
	if u == nil {
		t.Fatal("the pod's status has no user")
	}
	groups := slices.Sorted(slices.Values(u.Linux.SupplementalGroups))
	if u.Linux.UID != 1000 || u.Linux.GID != 2000 || !slices.Equal(groups, []int64{2000, 3000, 4000, 50000}) {
		t.Errorf("the user in the status is %+v", u.Linux)
	}
	strict.untilReady()
	strict.wantLog("a", "2000 4000\n")
}

func capabilities(t *testing.T, n *node) {
	const show = `grep -e CapEff -e NoNewPrivs -e 'Seccomp:' /proc/self/status | tr -s '\t' ' '; touch /f 2>/dev/null && echo writable; sleep 1000`
	p := n.run(t, "capabilities", fmt.Sprintf(`
containers:
- {name: default, image: BUSYBOX, command: [sh, -c, %[1]q]}
- {name: dropped, image: BUSYBOX, command: [sh, -c, %[1]q], securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [NET_ADMIN]}}}
- {name: unconfined, image: BUSYBOX, command: [sh, -c, %[1]q], securityContext: {seccompProfile: {type: Unconfined}}}
- {name: privileged, image: BUSYBOX, command: [sh, -c, "test -c /dev/kmsg && grep 'Seccomp:' /proc/self/status | tr -s '\t' ' '; mount -t tmpfs none /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs none /mnt && echo mounted; sleep 1000"], securityContext: {privileged: true}}
terminationGracePeriodSeconds: 1
`, show))
	p.untilReady()
	p.wantLog("default", "CapEff: 00000000a80425fb\nNoNewPrivs: 0\nSeccomp: 2\nwritable\n") // seccompDefault of the kubelet
	p.wantLog("dropped", "CapEff: 0000000000001000\nNoNewPrivs: 1\nSeccomp: 2\n")
	p.wantLog("unconfined", "CapEff: 00000000a80425fb\nNoNewPrivs: 0\nSeccomp: 0\nwritable\n")
	p.wantLog("privileged", "Seccomp: 0\nmounted\n")
}

func sysctls(t *testing.T, n *node) {
	p := n.run(t, "sysctls", `
securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "7"}, {name: kernel.shm_rmid_forced, value: "1"}, {name: net.core.somaxconn, value: "321"}]}
containers:
- {name: a, image: BUSYBOX, command: [sh, -c, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn; sleep 1000"]}
terminationGracePeriodSeconds: 1
`)
	p.untilReady()
	p.wantLog("a", "7\n1\n321\n")
}

const namespaces = `for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done; sleep 1000`

func hostNamespaces(t *testing.T, n *node) {
	host := n.run(t, "hostns", fmt.Sprintf(`
hostNetwork: true
hostPID: true
hostIPC: true
containers:
- {name: a, image: BUSYBOX, command: [sh, -c, %q]}
terminationGracePeriodSeconds: 1
`, namespaces))
	own := n.run(t, "ownns", fmt.Sprintf(`
containers:
- {name: a, image: BUSYBOX, command: [sh, -c, %[1]q]}
- {name: b, image: BUSYBOX, command: [sh, -c, %[1]q]}
terminationGracePeriodSeconds: 1
`, namespaces))
	var node []string
	for _, name := range []string{"net", "pid", "ipc", "uts", "mnt"} {
		link, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		node = append(node, link)
	}
	host.untilReady()
	own.untilReady()
	read := func(p *pod, container string) []string {
		var got []string
		eventually(t, "the namespaces are printed", func() error {
			if got = strings.Fields(p.logs(container)); len(got) != len(node) {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
		return got
	}
	h, a, b := read(host, "a"), read(own, "a"), read(own, "b")
	for i, want := range []struct{ name, host, pod string }{
		{"net", "same", "same"}, {"pid", "same", "own"}, {"ipc", "same", "same"}, {"uts", "same", "same"}, {"mnt", "own", "own"},
	} {
		if same := h[i] == node[i]; same != (want.host == "same") {
			t.Errorf("with the host's namespaces: %s is %s, the node's %s", want.name, h[i], node[i])
		}
		if a[i] == node[i] {
			t.Errorf("a plain pod has the node's %s namespace", want.name)
		}
		if same := a[i] == b[i]; same != (want.pod == "same") {
			t.Errorf("two containers of a pod: %s %s and %s", want.name, a[i], b[i])
		}
	}
}

func sharedPID(t *testing.T, n *node) {
	p := n.run(t, "sharedpid", `
shareProcessNamespace: true
containers:
- {name: a, image: BUSYBOX, command: [sleep, "9876"]}
- {name: b, image: BUSYBOX, command: [sh, -c, "until pidof sleep >/dev/null && grep -l 9876 /proc/[0-9]*/cmdline >/dev/null; do :; done; test $$ != 1 && echo seen; sleep 1000"]}
terminationGracePeriodSeconds: 1
`)
	p.untilReady()
	p.wantLog("b", "seen\n")
}

// userNamespace: root in the pod is nobody on the node, and its volumes' files are still root's for both.
func userNamespace(t *testing.T, n *node) {
	p := n.run(t, "userns", `
hostUsers: false
volumes: [{name: e, emptyDir: {}}, {name: d, hostPath: {path: DIR}}]
containers:
- name: a
  image: BUSYBOX
  securityContext: {procMount: Unmasked}
  command: [sh, -c, "id -u; awk '$2 == 0 || $3 > 65536 {print \"the node\"}' /proc/self/uid_map; touch /e/f /d/f; stat -c %u /e/f /d/f /bin/busybox; grep -c ' /proc/' /proc/self/mountinfo; sleep 1000"]
  volumeMounts: [{name: e, mountPath: /e}, {name: d, mountPath: /d}]
- {name: b, image: BUSYBOX, command: [sleep, "1000"]}
terminationGracePeriodSeconds: 1
`)
	p.untilReady()
	p.wantLog("a", "0\n0\n0\n0\n0\n")
	info, err := os.Stat(filepath.Join(p.dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("a file that the pod's root has made in a volume belongs to %d on the node", uid)
	}
	a, b := p.exec("a", "cat", "/proc/self/uid_map"), p.exec("b", "cat", "/proc/self/uid_map")
	if a != b || !strings.HasSuffix(strings.TrimSpace(a), " 65536") {
		t.Errorf("the containers' user mappings are %q and %q", a, b)
	}
}

func hostPorts(t *testing.T, n *node) {
	p := n.run(t, "hostports", `
containers:
- {name: web, image: WEB, ports: [{containerPort: 80, hostPort: 12080}]}
terminationGracePeriodSeconds: 1
`)
	s := p.untilReady()
	for _, url := range []string{"http://127.0.0.1:12080/", "http://" + nodeIP + ":12080/", "http://" + s.PodIP + "/"} {
		eventually(t, url+" answers", func() error {
			body, err := page(url)
			if err == nil && body != "Welcome to hostports-node\n" {
				err = fmt.Errorf("it says %q", body)
			}
			return err
		})
	}
	p.remove()
	eventually(t, "the pod has gone", p.gone)
	if body, err := page("http://127.0.0.1:12080/"); err == nil {
		t.Errorf("the host port of a removed pod answers: %q", body)
	}
}

// page reads a web page over a connection of its own.
func page(url string) (string, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
