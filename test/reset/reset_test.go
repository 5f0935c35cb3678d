package reset

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestReset(t *testing.T) {
	harness.Require(t)
	rounds, seed := number(t, "GANTRY_RESET_ROUNDS", 3), number(t, "GANTRY_RESET_SEED", uint64(time.Now().UnixNano()))
	t.Cleanup(func() {
		if dir, err := guest(); err == nil {
			must(t, os.RemoveAll(dir))
		}
	})
	all := serve(t)
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Logf("GANTRY_RESET_SEED=%d GANTRY_RESET_ROUNDS=%d", seed, rounds)
			random := rand.New(rand.NewPCG(seed, 0))
			n := &node{machine: startMachine(t, kind), kind: kind, registry: all}
			n.mount(random)
			n.start()
			n.serving()
			n.learn(random)
			for round := range rounds {
				n.weather(random, 1+random.IntN(60))
				n.again(random, round%2 == 1)
				n.check(random)
				if t.Failed() {
					t.Fatalf("round %d", round)
				}
			}
			t.Logf("%d records in quarantine", n.aside)
		})
	}
}

// again waits for the machine and starts the daemon; with twice it is reset once more, while it repairs.
func (n *node) again(random *rand.Rand, twice bool) {
	n.t.Helper()
	n.wait()
	n.mount(random)
	n.start()
	if twice {
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
		n.reset()
		n.again(random, false)
		return
	}
	n.serving()
}

func number(t *testing.T, env string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	must(t, err)
	return n
}
