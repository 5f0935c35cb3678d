// Command plugin is a CNI plugin for tests. Its configuration tells what it does:
//
//	"log":  file that gets a line "COMMAND containerID netns args stdin" per call
//	"do":   {"ADD": behaviour, "DEL <containerID>": behaviour}; absent = ok
//	"switch": file with another "do" that counts before it, if it is there
//	"leases": directory where an ADD takes a lease for the pod, which must not have one, and DEL removes it; between
//	        taking it and writing down whose it is the first ADD there takes its time
//
// Behaviours: ok (prevResult, else "result" of the configuration), error (error object, exit 1), exit (exit 1 with
// words on stderr), hang, hangchild (a child of its own group hangs with it), garbage, endless, noips, leak (ends well,
// a child holds its stdout open); a number is the code of an error object.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 { // the child
		time.Sleep(time.Hour)
	}
	stdin, _ := io.ReadAll(os.Stdin)
	var conf struct {
		CNIVersion string            `json:"cniVersion"`
		Log        string            `json:"log"`
		Do         map[string]string `json:"do"`
		Switch     string            `json:"switch"`
		Leases     string            `json:"leases"`
		Result     json.RawMessage   `json:"result"`
		PrevResult json.RawMessage   `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	command := os.Getenv("CNI_COMMAND")
	if conf.Log != "" {
		f, err := os.OpenFile(conf.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(f, "%s %s %q %s env=%s %s\n", command, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_NETNS"),
			os.Getenv("CNI_ARGS"), strings.Join(os.Environ(), ","), stdin)
		f.Close()
	}
	behave(command, behaviour(conf.Switch, conf.Do, command, os.Getenv("CNI_CONTAINERID")))
	if conf.Leases != "" {
		lease(command, filepath.Join(conf.Leases, os.Getenv("CNI_CONTAINERID")))
	}
	if command == "ADD" {
		if len(conf.PrevResult) > 0 {
			os.Stdout.Write(conf.PrevResult)
		} else {
			os.Stdout.Write(conf.Result)
		}
	}
}

func behaviour(file string, do map[string]string, command, id string) string {
	var now map[string]string
	if data, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(data, &now); err != nil {
			panic(err)
		}
	}
	for _, m := range []map[string]string{now, do} {
		for _, key := range []string{command + " " + id, command} {
			if b, ok := m[key]; ok {
				return b
			}
		}
	}
	return "ok"
}

func lease(command, path string) {
	var err error
	switch command {
	case "ADD":
		dir := filepath.Dir(path)
		nobodys := fmt.Sprintf("%s/nobodys.%d", dir, os.Getpid())
		if err = os.Mkdir(nobodys, 0o700); err != nil {
			break
		}
		if os.Mkdir(filepath.Join(dir, "lock"), 0o700) == nil {
			time.Sleep(200 * time.Millisecond)
		}
		if _, err = os.Lstat(path); err == nil {
			err = os.ErrExist
			break
		}
		err = os.Rename(nobodys, path)
	case "DEL":
		if err = os.Remove(path); os.IsNotExist(err) {
			err = nil
		}
	}
	if err != nil {
		panic(err)
	}
}

func behave(command, do string) {
	child := func() {
		cmd := exec.Command("/proc/self/exe", "child")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			panic(err)
		}
	}
	switch do {
	case "", "ok":
	case "error":
		fmt.Printf(`{"cniVersion":"1.0.0","code":7,"msg":"no luck with %s","details":"as told"}`, command)
		os.Exit(1)
	case "exit":
		fmt.Fprintln(os.Stderr, "words on stderr")
		os.Exit(1)
	case "hangchild":
		child()
		time.Sleep(time.Hour)
	case "hang":
		time.Sleep(time.Hour)
	case "garbage":
		fmt.Print("}{ not json")
		os.Exit(0)
	case "noips":
		fmt.Print(`{"cniVersion":"1.0.0"}`)
		os.Exit(0)
	case "endless":
		for {
			if _, err := os.Stdout.Write(make([]byte, 4096)); err != nil {
				time.Sleep(time.Hour)
			}
		}
	case "leak":
		child()
	default:
		fmt.Printf(`{"cniVersion":"1.0.0","code":%s,"msg":"code %s of %s"}`, do, do, command)
		os.Exit(1)
	}
}
