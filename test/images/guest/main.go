// Command guest is the one static program of the test images that busybox cannot stand in for.
//
//	guest web PORT [WORD...]   a web server; WORDs only show in the process' command line
//	guest get URL              prints a page (busybox's static wget crashes where it cannot load the C library's resolver)
//	guest euid                 prints its effective user id (installed setuid to test no_new_privs)
//	guest socket FAMILY        makes a socket of an address family, by its number
//	guest peer ADDRESS...      tells who asks at these addresses, such as [::]:80, from which address he does
//	guest ask TIME QUESTION... asks as many peers, as tcp/10.1.2.3:80 or udp/..., at once; prints a line for each
//	guest lines ID BLOCKS [DIR] writes numbered lines as fast as it can (lines.go)
//	guest echo ADDRESS...      sends back what TCP clients at these addresses send, until they have closed their side
//	guest pause                waits for SIGINT or SIGTERM
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-cri/gantry/test/images/peer"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: guest web PORT | get URL | euid | socket FAMILY | peer ADDRESS... | ask TIME QUESTION... | lines ID BLOCKS [DIR] | echo ADDRESS... | pause")
	}
	switch os.Args[1] {
	case "web":
		web(os.Args[2])
	case "get":
		get(os.Args[2])
	case "euid":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	case "socket":
		family, err := strconv.Atoi(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		kind := syscall.SOCK_STREAM
		if family == syscall.AF_ALG {
			kind = syscall.SOCK_SEQPACKET
		}
		if _, err := syscall.Socket(family, kind, 0); err != nil {
			log.Fatalf("socket of family %d: %v", family, err)
		}
	case "peer":
		if _, err := peer.Serve(os.Args[2:]...); err != nil {
			log.Fatal(err)
		}
		fmt.Println("serving")
		wait()
	case "ask":
		ask(os.Args[2], os.Args[3:])
	case "lines":
		linesCommand(os.Args[2:])
	case "echo":
		for _, address := range os.Args[2:] {
			echo(address)
		}
		fmt.Println("serving")
		wait()
	case "pause":
		wait()
	default:
		log.Fatalf("unknown command %q", os.Args[1])
	}
}

func wait() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}

// echo begins to serve at an address.
func echo(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go func() {
				_, _ = io.Copy(c, c) // ends with the client
				_ = c.Close()
			}()
		}
	}()
}

// ask prints a line for each question: the address that the peer saw, or what went wrong.
func ask(limit string, questions []string) {
	most, err := time.ParseDuration(limit)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	answers := make([]string, len(questions))
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() { answers[i] = peer.Answer(ctx, q) })
	}
	wg.Wait()
	for _, a := range answers {
		fmt.Println(a)
	}
}

func get(url string) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		log.Fatal(err)
	}
}

// web serves one page on every path, logs to stdout and writes the pid file that critest looks for.
func web(port string) {
	log.SetOutput(os.Stdout)
	if err := os.MkdirAll("/var/run", 0o755); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("/var/run/nginx.pid", fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		log.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		log.Printf("GET %s from %s", r.URL.Path, r.RemoteAddr)
		fmt.Fprintf(w, "Welcome to %s\n", host)
	})
	log.Printf("%s: serving on port %s", os.Args[0], port)
	log.Fatal(http.ListenAndServe(":"+port, nil))
}
