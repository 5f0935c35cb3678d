// Command serve runs the registry of test images until it is interrupted.
//
//	go run ./test/images/serve [-listen 127.0.0.1:5000] [-bench] [-mirrors DIR]
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"syscall"

	"github.com/gantry-cri/gantry/test/images"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:5000", "loopback address to serve on; port 0 picks a free one")
	bench := flag.Bool("bench", false, "also make the images that pulls are timed with (2 GB of memory)")
	mirrors := flag.String("mirrors", "", "write a hosts.toml per registry name beneath this folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *listen, *bench, *mirrors); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, listen string, bench bool, mirrors string) error {
	r, err := images.Serve(ctx, listen, bench)
	if err != nil {
		return err
	}
	if mirrors != "" {
		if err := r.WriteMirrors(mirrors); err != nil {
			return err
		}
	}
	fmt.Println("serving the test images on", r.Addr)
	<-ctx.Done()
	return r.Close()
}
