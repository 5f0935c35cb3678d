package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// runVersion is the verb version.
func runVersion(_ context.Context, args []string, stdout, stderr io.Writer) int {
	f := newFlags("version", "", "Prints the versions of Gantry, of the CRI and of Go.")
	if status, ok := f.parse(args, stdout, stderr); !ok {
		return status
	}
	fmt.Fprintf(stdout, "gantry  %s%s\nCRI     v1 (k8s.io/cri-api %s)\nGo      %s %s/%s\n",
		version, revision(), moduleVersion("k8s.io/cri-api"), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return exitOK
}

// revision is the commit that the binary was built from, if Go knows it.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ", changed"
		}
	}
	if commit == "" {
		return ""
	}
	return fmt.Sprintf(" (%.12s%s)", commit, dirty)
}

// moduleVersion is the version of a module that the binary is made of.
func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown"
}
