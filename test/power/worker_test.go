package power

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/imageservice"
)

// workerEnv makes the test binary a worker: "root run seed have image…", have being a bit for each image.
const workerEnv = "GANTRY_POWER_WORKER"

// atOnce is how many images the worker changes at a time; each image is changed by one goroutine only, so that what
// was answered about it is in order.
const atOnce = 3

// work pulls and removes images until it is killed, and prints a line before and after each.
func work(arguments string) error {
	args := strings.Fields(arguments)
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	have, names := args[3], args[4:]
	ctx := klog.NewContext(context.Background(), klog.Logger{}) // of what fails without power nobody wants to know
	s, err := imageservice.Open(ctx, imageservice.Config{Root: args[0], RunDir: args[1]})
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for g := range atOnce {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(g)))
			here := map[int]bool{}
			for i := range names {
				here[i] = have[i] == '1'
			}
			for {
				i := random.IntN(len(names)/atOnce)*atOnce + g
				remove := here[i] && random.IntN(3) > 0
				if err := change(ctx, s, names[i], i, remove); err != nil {
					fmt.Printf("failed %d %v\n", i, err)
					return
				}
				here[i] = !remove
			}
		})
	}
	all.Wait()
	select {} // the files stay open until the power is gone
}

func change(ctx context.Context, s *imageservice.Service, name string, i int, remove bool) (err error) {
	spec := &runtimeapi.ImageSpec{Image: name}
	if remove {
		fmt.Println("remove", i)
		if _, err = s.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err == nil {
			fmt.Println("removed", i)
		}
		return err
	}
	fmt.Println("pull", i)
	if _, err = s.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err == nil {
		fmt.Println("pulled", i)
	}
	return err
}

// known is what the answers so far say of an image.
type known int

const (
	unsure known = iota // asked for and not answered
	present
	absent
)

// storm is a running worker and what it has said.
type storm struct {
	cmd    *exec.Cmd
	output io.Reader
	state  []known
	pulled int           // pulls answered
	enough chan struct{} // closed when so many were
	want   int
	read   chan struct{} // closed at the end of its output

	mu     sync.Mutex
	cut    bool // failures are expected
	failed []string
}

// startStorm starts a worker on the store. state is what is known of each image.
func startStorm(t *testing.T, root, run string, seed uint64, state []known, names []string, want int) *storm {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	have := make([]byte, len(state))
	for i, k := range state {
		have[i] = '0'
		if k == present {
			have[i] = '1'
		}
	}
	s := &storm{state: state, want: want, enough: make(chan struct{}), read: make(chan struct{})}
	s.cmd = exec.Command(self)
	s.cmd.Env = append(os.Environ(), workerEnv+"="+strings.Join(append([]string{root, run, strconv.FormatUint(seed, 10), string(have)}, names...), " "))
	s.cmd.Stderr = os.Stderr
	s.output, err = s.cmd.StdoutPipe()
	must(t, err)
	must(t, s.cmd.Start())
	t.Cleanup(s.kill)
	go s.listen()
	return s
}

func (s *storm) listen() {
	defer close(s.read)
	for lines := bufio.NewScanner(s.output); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		number, _, _ := strings.Cut(rest, " ")
		i, err := strconv.Atoi(number)
		if err != nil || i < 0 || i >= len(s.state) {
			s.fail(lines.Text())
			continue
		}
		switch verb {
		case "pull":
			if s.state[i] == absent {
				s.state[i] = unsure // what is there stays there
			}
		case "remove":
			s.state[i] = unsure
		case "removed":
			s.state[i] = absent
		case "pulled":
			s.state[i] = present
			if s.pulled++; s.pulled == s.want {
				close(s.enough)
			}
		default:
			s.fail(lines.Text())
		}
	}
}

// fail notes what went wrong while there was power.
func (s *storm) fail(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cut {
		s.failed = append(s.failed, line)
	}
}

// expectFailure is called before the power is cut.
func (s *storm) expectFailure() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = true
}

// kill ends the worker and waits for it and its last words. It may be called again.
func (s *storm) kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.read
	_ = s.cmd.Wait()
}
