// Command agent lets the host into the guest of package reset: one port carries connections to Gantry's socket, the
// other runs a shell script for each HTTP request and answers with its output.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os/exec"
)

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal("agent: ", err)
	}
}

func run() error {
	socket, err := net.Listen("tcp", ":7001")
	if err != nil {
		return err
	}
	scripts, err := net.Listen("tcp", ":7002")
	if err != nil {
		return err
	}
	fmt.Println("@@ the agent is up") // the test waits for it
	ended := make(chan error, 2)
	go func() { ended <- http.Serve(scripts, http.HandlerFunc(script)) }() //nolint:gosec // its one client is trusted
	go func() { ended <- forward(socket) }()
	return <-ended
}

func script(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone
	}
	out, err := exec.CommandContext(r.Context(), "/bin/sh", "-c", string(body)).CombinedOutput()
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		out = fmt.Appendf(out, "%v\n", err)
	}
	_, _ = w.Write(out)
}

func forward(l net.Listener) error {
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		server, err := net.Dial("unix", "/run/gantry/gantry.sock")
		if err != nil { // it is not there yet: the client tries again
			_ = client.Close()
			continue
		}
		for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
			go func() {
				_, _ = io.Copy(way[0], way[1]) // the end of either is the end of both
				_, _ = way[0].Close(), way[1].Close()
			}()
		}
	}
}
