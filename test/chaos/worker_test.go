package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// worker lives the lives of pods, one after the other.
type worker struct {
	*node
	number  int
	calm    bool       // it never gives up on a request
	react   *rand.Rand // what it does about an error: apart from the plan, which no error may change
	image   string     // that no other has
	history []string   // of this life
	pod     *pod
}

// ownImages are of busybox and each of one worker.
var ownImages = []string{
	"k8s-staging-cri-tools/test-image-1:latest", "k8s-staging-cri-tools/test-image-2:latest", "k8s-staging-cri-tools/test-image-3:latest",
	"k8s-staging-cri-tools/test-image-latest:latest", "k8s-staging-cri-tools/test-image-digest:latest", "k8s-staging-cri-tools/test-image-tags:1",
	"k8s-staging-cri-tools/test-image-tag:test", "gantry/demo:1", "e2e-test-images/nginx:1.14-2", "e2e-test-images/httpd:2.4.39-4",
}

func (n *node) newWorker(number int) *worker {
	return &worker{node: n, number: number, react: rand.New(rand.NewPCG(n.seed, uint64(number))), image: "registry.k8s.io/" + ownImages[number]}
}

// work lives until the round is over.
func (w *worker) work(round int) {
	for life := 0; !w.over.Load(); life++ {
		source := uint64(round)<<48 | uint64(w.number)<<32 | uint64(life)
		w.react = rand.New(rand.NewPCG(^w.seed, source))
		plan := draw(rand.New(rand.NewPCG(w.seed, source)), w.handlers)
		if err := w.live(fmt.Sprintf("w%d-%d-%d", w.number, round, life), plan); err != nil {
			w.differ(err)
			return
		}
		w.report.life()
	}
	if err := w.removeImage(); err != nil {
		w.differ(err)
	}
}

// differ reports what is not as it must be, with what the worker did before.
func (w *worker) differ(err error) {
	w.over.Store(true)
	w.report.differ(fmt.Sprintf("worker %d at %s (%v): %v\n%s", w.number, time.Now().Format("15:04:05.000"), &w.faults, err, w.past()))
}

func (w *worker) past() string { return "  " + strings.Join(w.history, "\n  ") }

func (w *worker) note(format string, a ...any) {
	w.history = append(w.history, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, a...))
}

// refusal is an answer that an object in its state may give.
type refusal struct{ error }

// failure is an error that a death or the worker's own impatience explains.
type failure struct{ error }

// request makes one. Its error is a failure, a refusal if its code is one of refusals, or a difference.
func (w *worker) request(what string, do func(context.Context) error, refusals ...codes.Code) error {
	w.gate.RLock()
	defer w.gate.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), giveUp)
	defer cancel()
	impatient := false
	if !w.calm {
		switch w.react.IntN(40) {
		case 0, 1:
			impatient = true
			var end context.CancelFunc
			ctx, end = context.WithTimeout(ctx, milliseconds(w.react, 60))
			defer end()
		case 2:
			impatient = true
			defer time.AfterFunc(milliseconds(w.react, 60), cancel).Stop()
		}
	}
	sent := time.Now()
	err := do(ctx)
	code, took := status.Code(err), time.Since(sent)
	w.report.call(what, code, took)
	w.note("%s, %d ms: %v", what, took.Milliseconds(), err)
	switch {
	case err == nil:
		return nil
	case impatient && (code == codes.Canceled || code == codes.DeadlineExceeded), code == codes.Unavailable && w.faults.explain(sent):
		return failure{err}
	case slices.Contains(refusals, code):
		return refusal{err}
	}
	return fmt.Errorf("%s: an error that nothing explains: %w", what, err)
}

// until repeats a request until it is answered, or refused; after a failure it may look, as the kubelet does, whether
// it has been done nevertheless. looks: it must.
func (w *worker) until(what string, do func(context.Context) error, found func() (bool, error), looks bool, refusals ...codes.Code) error {
	for began := time.Now(); ; {
		err := w.request(what, do, refusals...)
		if !errors.As(err, new(failure)) {
			return err
		}
		if time.Since(began) > giveUp {
			return fmt.Errorf("%s does not come to its end: %w", what, err)
		}
		if found == nil || !looks && w.react.IntN(2) == 0 {
			time.Sleep(milliseconds(w.react, 50))
			continue
		}
		if done, err := found(); done || err != nil {
			return err
		}
	}
}

// read is a request that is repeated until it is answered, patiently, and never refused but with NotFound.
func (w *worker) read(what string, do func(context.Context) error) error {
	calm := w.calm
	w.calm = true
	defer func() { w.calm = calm }()
	return w.until(what, do, nil, false, codes.NotFound)
}

func (w *worker) listPods() (list []*runtimeapi.PodSandbox, err error) {
	err = w.read("ListPodSandbox", func(ctx context.Context) error {
		resp, err := w.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: w.pod.config.Labels}}, grpc.WaitForReady(true))
		list = resp.GetItems()
		return err
	})
	return list, err
}

// listContainers lists those of the pod.
func (w *worker) listContainers() (list []*runtimeapi.Container, err error) {
	err = w.read("ListContainers", func(ctx context.Context) error {
		resp, err := w.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: w.pod.config.Labels}}, grpc.WaitForReady(true))
		list = resp.GetContainers()
		return err
	})
	return list, err
}
