package reset

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// Where the agent's ports are, in the network namespace of the tests; and what the guest calls this machine.
const (
	criAddr, scriptAddr = "127.0.0.1:7001", "127.0.0.1:7002"
	hostInGuest         = "10.0.2.2"
)

// patience is what anything is given; only a broken test needs as long.
const patience = 3 * time.Minute

//go:embed guest.sh
var guestScript []byte

// machine is a running qemu.
type machine struct {
	t       *testing.T
	qemu    *exec.Cmd
	qmp     net.Conn
	replies *bufio.Scanner
	up      chan struct{} // a value for each time that the agent has come up
	logs    string        // the daemon's log of all lives

	saying  sync.Mutex // console
	console []string

	conn    *grpc.ClientConn // of this life; closed by reset
	Runtime runtimeapi.RuntimeServiceClient
	Image   runtimeapi.ImageServiceClient
}

// guest is what machines boot, made once.
var guest = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "gantry-reset-"); err != nil {
		return "", err
	}
	repo, err := harness.Repository()
	if err != nil {
		return "", err
	}
	out, err := exec.Command(filepath.Join(repo, "hack/vm/reset.sh"), dir).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("hack/vm/reset.sh: %w\n%s", err, out)
	}
	return dir, err
})

// startMachine boots a machine with a new disk that has a file system of that kind.
func startMachine(t *testing.T, kind string) *machine {
	t.Helper()
	files, err := guest()
	must(t, err)
	dir := t.TempDir()
	disk, script, qmp := filepath.Join(dir, "disk"), filepath.Join(dir, "script"), filepath.Join(dir, "qmp")
	must(t, os.WriteFile(script, guestScript, 0o600))
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 2<<30))
	mkfs := map[string][]string{"ext4": {"-F", "-q", "-E", "lazy_itable_init=1,nodiscard"}, "xfs": {"-q", "-K"}}[kind]
	if out, err := exec.Command("mkfs."+kind, append(mkfs, disk)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
	}
	m := &machine{t: t, up: make(chan struct{}, 1000), logs: filepath.Join(dir, "gantry.log")}
	// The disk has a write cache, as the guest sees it; what it flushes is in this machine's page cache already.
	m.qemu = exec.Command("qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off,erms=off,fsrm=off",
		"-smp", "2", "-m", "2048", "-kernel", filepath.Join(files, "kernel"), "-initrd", filepath.Join(files, "initrd"),
		"-append", "console=ttyS0 quiet loglevel=4 mitigations=off cgroup_no_v1=all no_timer_check tsc=reliable rcupdate.rcu_expedited=1 init_on_alloc=0",
		"-fw_cfg", "name=opt/tests,file="+script,
		"-drive", "if=none,id=n,format=raw,cache=unsafe,file="+disk, "-device", "virtio-blk-pci,drive=n,serial=node",
		"-netdev", fmt.Sprintf("user,id=u,hostfwd=tcp:%s-:7001,hostfwd=tcp:%s-:7002", criAddr, scriptAddr), "-device", "virtio-net-pci,netdev=u",
		"-nodefaults", "-display", "none", "-qmp", "unix:"+qmp+",server=on,wait=off", "-serial", "stdio", "-serial", "file:"+m.logs)
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	m.qemu.Stderr = os.Stderr
	out, err := m.qemu.StdoutPipe()
	must(t, err)
	must(t, m.qemu.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		m.listen(out)
	}()
	t.Cleanup(func() {
		if m.conn != nil {
			_ = m.conn.Close()
		}
		_ = m.qemu.Process.Kill()
		<-read
		_ = m.qemu.Wait() // killed
		if t.Failed() {
			m.tell()
		}
	})
	m.eventually("qemu answers", func() error {
		m.qmp, err = net.Dial("unix", qmp)
		return err
	})
	t.Cleanup(func() { _ = m.qmp.Close() })
	m.replies = bufio.NewScanner(m.qmp)
	m.command("qmp_capabilities")
	m.wait()
	return m
}

// listen keeps what the guest says on its console.
func (m *machine) listen(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		if strings.HasSuffix(line, "@@ the agent is up") {
			m.up <- struct{}{}
		}
		m.saying.Lock()
		m.console = append(m.console, line)
		m.saying.Unlock()
	}
}

// tell shows the ends of the console and of the daemon's log, and keeps them where GANTRY_TEST_LOGS says.
func (m *machine) tell() {
	log, _ := os.ReadFile(m.logs)
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	for what, lines := range map[string][]string{"console": m.console, "log of gantry": lines} {
		m.t.Logf("the %s ends:\n%s", what, strings.Join(lines[max(0, len(lines)-60):], "\n"))
		if home := os.Getenv("GANTRY_TEST_LOGS"); home != "" {
			name := strings.NewReplacer("/", "-", " ", "-").Replace(m.t.Name() + " " + what)
			must(m.t, os.MkdirAll(home, 0o755))
			must(m.t, os.WriteFile(filepath.Join(home, name), []byte(strings.Join(lines, "\n")), 0o644))
		}
	}
}

// command has qemu do something: https://www.qemu.org/docs/master/interop/qmp-spec.html
func (m *machine) command(name string) {
	m.t.Helper()
	if _, err := fmt.Fprintf(m.qmp, "{\"execute\":%q}\n", name); err != nil {
		m.t.Fatalf("asking qemu for %s: %v", name, err)
	}
	for m.replies.Scan() { // greetings and events come between
		var reply struct{ Return, Error json.RawMessage }
		must(m.t, json.Unmarshal(m.replies.Bytes(), &reply))
		if reply.Error != nil {
			m.t.Fatalf("qemu refuses %s: %s", name, reply.Error)
		}
		if reply.Return != nil {
			return
		}
	}
	m.t.Fatalf("qemu ended at %s: %v", name, m.replies.Err())
}

// reset presses the button. What the connection was used for fails.
func (m *machine) reset() {
	m.t.Helper()
	m.same()
	m.command("system_reset")
	if m.conn != nil {
		_ = m.conn.Close()
		m.conn = nil
	}
}

// wait waits until the agent is up. On a machine with much else to do an emulated processor sometimes hangs while it
// boots, before there is a Gantry: that gets the button pressed again.
func (m *machine) wait() {
	m.t.Helper()
	for range 3 {
		select {
		case <-m.up:
			return
		case <-time.After(patience / 2):
		}
		m.t.Log("the machine did not come up, and is reset again")
		m.command("system_reset")
	}
	m.t.Fatal("the machine does not come up")
}

// same requires that the machine has not restarted by itself.
func (m *machine) same() {
	m.t.Helper()
	if len(m.up) > 0 {
		m.t.Fatal("the machine restarted by itself: see its console")
	}
}

// sh runs a script in the guest and returns its output.
func (m *machine) sh(format string, args ...any) string {
	m.t.Helper()
	out, err := m.try(fmt.Sprintf(format, args...))
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", fmt.Sprintf(format, args...), err, out)
	}
	return out
}

var client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

func (m *machine) try(script string) (string, error) {
	resp, err := client.Post("http://"+scriptAddr, "text/plain", strings.NewReader(script))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New("it failed")
	}
	return string(out), err
}

// lines are a script's lines of output, sorted.
func (m *machine) lines(format string, args ...any) []string {
	m.t.Helper()
	list := strings.FieldsFunc(m.sh(format, args...), func(r rune) bool { return r == '\n' })
	slices.Sort(list)
	return list
}

// start has the daemon start, and connects to it; serving waits for it.
func (m *machine) start() {
	m.t.Helper()
	m.sh("/gantry/bin/gantry serve --root /node/root --run /run/gantry --socket /run/gantry/gantry.sock --cni-conf-dir /tmp/net.d" +
		" --cni-bin-dir /tmp/cni-bin --registry-config-dir /tmp/certs.d --runtime crun=/usr/bin/crun --runtime runc=/gantry/bin/runc" +
		" --default-runtime crun --bridge gantry0 --subnet 10.88.0.0/27,fd00:88::/64 --log-level 2 </dev/null >/dev/ttyS1 2>&1 &")
	var err error
	m.conn, err = grpc.NewClient("passthrough:///"+criAddr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 20 * time.Second,
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}}))
	must(m.t, err)
	m.Runtime, m.Image = runtimeapi.NewRuntimeServiceClient(m.conn), runtimeapi.NewImageServiceClient(m.conn)
}

// serving waits until the daemon is ready.
func (m *machine) serving() {
	m.t.Helper()
	m.eventually("the daemon is ready", func() error {
		ctx, cancel := context.WithTimeout(m.t.Context(), patience)
		defer cancel()
		resp, err := m.Runtime.Status(ctx, &runtimeapi.StatusRequest{}, grpc.WaitForReady(true))
		for _, c := range resp.GetStatus().GetConditions() {
			if !c.GetStatus() {
				err = errors.Join(err, fmt.Errorf("%s: %s: %s", c.GetType(), c.GetReason(), c.GetMessage()))
			}
		}
		return err
	})
}

// eventually polls until there is no error any more.
func (m *machine) eventually(what string, condition func() error) {
	m.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("waited in vain until %s: %v", what, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
