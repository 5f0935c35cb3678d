package kubelet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/test/harness"
)

const (
	nodeName    = "node"
	kubeletAPI  = "https://127.0.0.1:10250" // the tests have a network namespace of their own
	nodeIP      = "198.51.100.1"
	stopTimeout = 30 * time.Second
)

// kubelet is a running kubelet.
type kubelet struct {
	dir       string // its root directory, pod logs, manifests
	manifests string
	log       string // path
	options   options
	args      []string
	cmd       *exec.Cmd
	exited    chan struct{}
}

// options is what kubelets of the tests differ in.
type options struct {
	Socket, Dir, LogDir string
	DiskWanted          string // free part of the disk below which the kubelet collects images and dead containers
	Gates               []string
}

// configuration is the kubelet's. It differs from a node's where the test machine or the test's time asks for it:
// back-off and log checks as short as they may be, no eviction, no iptables, no restrictions on who may ask.
var configuration = template.Must(template.New("").Parse(`
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: 10250
healthzBindAddress: 127.0.0.1
healthzPort: 10248
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://{{.Socket}}
staticPodPath: {{.Dir}}/manifests
podLogsDir: {{.LogDir}}
volumePluginDir: {{.Dir}}/plugins
resolvConf: {{.Dir}}/resolv.conf
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
evictionHard: {memory.available: 0%, nodefs.available: {{.DiskWanted}}, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
imageMinimumGCAge: 1ns
serializeImagePulls: false
fileCheckFrequency: 1s
syncFrequency: 2s
volumeStatsAggPeriod: 5s
containerLogMaxSize: 64Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
seccompDefault: true
allowedUnsafeSysctls: [net.core.somaxconn]
featureGates:
  KubeletCrashLoopBackOffMax: true
  ContainerStopSignals: true
{{- range .Gates}}
  {{.}}: true
{{- end}}
`))

// startKubelet starts a kubelet on the instance and waits until it is healthy.
func startKubelet(t testing.TB, i *harness.Instance, gates ...string) *kubelet {
	t.Helper()
	binary, err := harness.Tool(t.Context(), "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(i.LogDir, "kubelet")
	k := &kubelet{dir: dir, manifests: filepath.Join(dir, "manifests"), log: filepath.Join(dir, "kubelet.log")}
	for _, d := range []string{k.manifests, filepath.Join(dir, "plugins")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.options = options{Socket: i.Socket, Dir: dir, LogDir: filepath.Join(i.LogDir, "pods"), DiskWanted: "0%", Gates: gates}
	// The last two keep one dead container of each name, and do so at once.
	k.args = []string{binary, "--config=" + filepath.Join(dir, "config.yaml"), "--root-dir=" + filepath.Join(dir, "root"),
		"--cert-dir=" + filepath.Join(dir, "pki"), "--hostname-override=" + nodeName, "--node-ip=" + nodeIP, "--v=2",
		"--maximum-dead-containers-per-container=1", "--minimum-container-ttl-duration=0"}
	restoreTunables(t)
	addAddress(t)
	k.start(t)
	return k
}

func (k *kubelet) start(t testing.TB) {
	t.Helper()
	var config strings.Builder
	if err := configuration.Execute(&config, k.options); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.dir, "config.yaml"), []byte(config.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(k.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(k.args[0], k.args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k.cmd, k.exited = cmd, make(chan struct{})
	go func() {
		defer close(k.exited)
		_ = cmd.Wait() // its outcome is in cmd.ProcessState
	}()
	eventually(t, "the kubelet is healthy", func() error {
		select {
		case <-k.exited:
			t.Fatalf("the kubelet ended: %s; its log ends:\n%s", cmd.ProcessState, k.logTail(20))
		default:
		}
		_, err := k.get("/healthz")
		return err
	})
}

// stop ends the kubelet alone; its pods stay.
func (k *kubelet) stop() error {
	if k.cmd == nil {
		return nil
	}
	if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-k.exited:
		k.cmd = nil
		return nil
	case <-time.After(stopTimeout):
		_ = k.cmd.Process.Kill()
		<-k.exited
		return fmt.Errorf("the kubelet did not end in %s of SIGTERM", stopTimeout)
	}
}

// The kubelet sets these for the whole machine, namespaces or not.
var tunables = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

func restoreTunables(t testing.TB) {
	t.Helper()
	for _, name := range tunables {
		path := filepath.Join("/proc/sys", name)
		value, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(path, value, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// addAddress gives the tests' network namespace, which has only the loopback link, an address that may be a node's.
func addAddress(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeIP), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(lo, addr); err != nil {
		t.Fatal(err)
	}
}

var client = http.Client{
	Timeout:   20 * time.Second,
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // made by the kubelet when it starts
}

// get reads a path of the kubelet's API.
func (k *kubelet) get(path string) (string, error) { return k.ask(http.MethodGet, path) }

func (k *kubelet) ask(method, path string) (string, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, kubeletAPI+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

func (k *kubelet) getJSON(path string, into any) error {
	body, err := k.get(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (k *kubelet) logTail(n int) string {
	body, err := os.ReadFile(k.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(body), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// eventually polls until f returns nil; the bound only decides when a broken test gives up.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
