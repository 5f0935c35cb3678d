package cri

import (
	"errors"
	"fmt"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	maxName     = 253 // a DNS subdomain, what Kubernetes gives objects
	maxID       = 256
	maxHostname = 64 // HOST_NAME_MAX; a pod with setHostnameAsFQDN may use all of it
	maxLabel    = 63
	maxPath     = 4095 // PATH_MAX
	maxImage    = 4096
)

func missing(field string) error { return fmt.Errorf("%s is required", field) }

// wrong is an error about a value, of which no more is shown than helps.
func wrong(field, value, why string) error {
	return fmt.Errorf("%s %.128q %s", field, value, why)
}

func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

// optional applies a check to a value that may be empty.
func optional(check func(field, value string) error, field, value string) error {
	if value == "" {
		return nil
	}
	return check(field, value)
}

// id takes any text that is not empty: an id is only looked up, never used, so
// one that does not exist is NotFound, whatever it looks like.
func id(field, value string) error {
	switch {
	case value == "":
		return missing(field)
	case len(value) > maxID:
		return wrong(field, value, fmt.Sprintf("is longer than %d bytes", maxID))
	}
	return nil
}

// name takes what is safe as a part of a path, an argument and a log line.
func name(field, value string) error {
	switch {
	case value == "":
		return missing(field)
	case len(value) > maxName:
		return wrong(field, value, fmt.Sprintf("is longer than %d bytes", maxName))
	case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == '\\' }):
		return wrong(field, value, "may hold only printable ASCII without blanks and slashes")
	case value == "." || strings.Contains(value, ".."):
		return wrong(field, value, `must not be "." or hold ".."`)
	case value[0] == '-':
		return wrong(field, value, `must not begin with "-"`)
	}
	return nil
}

// hostname takes labels of letters, digits, "-" and "_", with dots between them (hostname(7)).
func hostname(field, value string) error {
	if len(value) > maxHostname {
		return wrong(field, value, fmt.Sprintf("is longer than %d bytes", maxHostname))
	}
	for label := range strings.SplitSeq(value, ".") {
		switch {
		case label == "":
			return wrong(field, value, "has an empty part between dots")
		case len(label) > maxLabel:
			return wrong(field, value, fmt.Sprintf("has a part of more than %d bytes", maxLabel))
		case label[0] == '-' || label[len(label)-1] == '-':
			return wrong(field, value, `has a part that begins or ends with "-"`)
		case strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}):
			return wrong(field, value, `may hold only letters, digits, "-", "_" and "."`)
		}
	}
	return nil
}

// plainPath takes text that can be a path at all.
func plainPath(field, value string) error {
	switch {
	case value == "":
		return missing(field)
	case len(value) > maxPath:
		return wrong(field, value, fmt.Sprintf("is longer than %d bytes", maxPath))
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return wrong(field, value, "holds control characters")
	}
	for part := range strings.SplitSeq(value, "/") {
		if part == ".." {
			return wrong(field, value, `must not hold ".."`)
		}
		if len(part) > 255 {
			return wrong(field, value, "has a part of more than 255 bytes")
		}
	}
	return nil
}

// absolute takes an absolute path without detours; a slash at its end is not one.
func absolute(field, value string) error {
	if err := plainPath(field, value); err != nil {
		return err
	}
	if value[0] != '/' {
		return wrong(field, value, "must be an absolute path")
	}
	if clean := path.Clean(value); clean != value && clean+"/" != value {
		return wrong(field, value, fmt.Sprintf("must be written %.128q", clean))
	}
	return nil
}

// relative takes a path of a file beneath some directory.
func relative(field, value string) error {
	if err := plainPath(field, value); err != nil {
		return err
	}
	if value[0] == '/' {
		return wrong(field, value, "must be relative to the pod's log_directory")
	}
	if path.Clean(value) == "." || strings.HasSuffix(value, "/") {
		return wrong(field, value, "must name a file")
	}
	return nil
}

func image(field string, spec *runtimeapi.ImageSpec) error {
	switch {
	case spec.GetImage() == "":
		return missing(field + ".image")
	case len(spec.GetImage()) > maxImage:
		return wrong(field+".image", spec.GetImage(), fmt.Sprintf("is longer than %d bytes", maxImage))
	}
	return optional(name, field+".runtime_handler", spec.GetRuntimeHandler())
}

func command(field string, argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return missing(field)
	}
	for i, arg := range argv {
		if strings.IndexByte(arg, 0) >= 0 {
			return wrong(index(field, i), arg, "holds a NUL byte")
		}
	}
	return nil
}

func streams(tty, stdin, stdout, stderr bool) error {
	if tty && stderr {
		return errors.New("tty and stderr exclude each other: a terminal has one output")
	}
	if !stdin && !stdout && !stderr {
		return errors.New("one of stdin, stdout and stderr is required")
	}
	return nil
}

func ports(field string, list []int32) error {
	for i, p := range list {
		if p < 1 || p > 65535 {
			return fmt.Errorf("%s %d is not between 1 and 65535", index(field, i), p)
		}
	}
	return nil
}

func notNegative(field string, n int64) error {
	if n < 0 {
		return fmt.Errorf("%s %d is negative", field, n)
	}
	return nil
}
