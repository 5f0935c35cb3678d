// Command list prints, one per line, what a runtime could leave behind on this machine: mounts, links, nftables
// tables and elements, cgroups without processes, and the files below the given folder. The demo compares two of these.
package main

import (
	"fmt"
	"log"
	"os"

	"github.com/gantry-cri/gantry/test/harness"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: list FOLDER")
	}
	lines, err := harness.List(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for _, line := range lines {
		fmt.Println(line)
	}
}
