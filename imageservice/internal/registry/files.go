package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFile bounds every configuration file, certificate and key.
const maxFile = 1 << 20

// readFile reads a regular file of at most max bytes. A FIFO or a device does
// not make it wait.
func readFile(name string, max int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	body, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > max {
		return nil, fmt.Errorf("more than %d bytes", max)
	}
	return body, nil
}

// hostConfigs reads the configuration anew, so that a change counts from the
// next pull on.
func (c *Client) hostConfigs(domain string) ([]hostConfig, error) {
	dir, err := c.hostDir(domain)
	if err != nil {
		return nil, err
	}
	var configs []hostConfig
	if dir != "" {
		if configs, err = loadHosts(dir); err != nil {
			return nil, err
		}
	} else {
		configs = []hostConfig{{caps: canPull | canResolve}}
	}
	for i := range configs {
		if configs[i].host == "" {
			configs[i].self(domain)
		}
	}
	return configs, nil
}

// self makes the config that of the registry itself.
func (c *hostConfig) self(domain string) {
	c.scheme, c.host, c.path = "https", endpoint(domain), "/v2"
	if !isLoopback(domain) || c.hasTLS() {
		return
	}
	c.skipVerify = true // nobody has certificates for this name
	switch _, port, _ := net.SplitHostPort(domain); port {
	case "", "443":
	case "80":
		c.scheme = "http"
	default:
		c.guess = true
	}
}

// hostDir finds the directory of a registry: that of the first configured
// directory which has one for it or a _default. "" when there is none.
func (c *Client) hostDir(domain string) (string, error) {
	names := []string{domain, "_default"}
	if host, port, err := net.SplitHostPort(domain); err == nil {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		names = append([]string{host + "_" + port + "_"}, names...)
	}
	for _, root := range c.HostsDirs {
		for _, name := range names {
			dir := filepath.Join(root, name)
			info, err := os.Stat(dir)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil && !info.IsDir() {
				err = errors.New("not a directory")
			}
			if err != nil {
				return "", hostsFileError(dir, err)
			}
			return dir, nil
		}
	}
	return "", nil
}

// loadHosts reads the hosts.toml of a directory or, without one, certificates
// in Docker's layout: *.crt are CAs, *.cert and *.key the client's.
func loadHosts(dir string) ([]hostConfig, error) {
	file := filepath.Join(dir, "hosts.toml")
	body, err := readFile(file, maxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, hostsFileError(file, err)
	}
	if len(body) > 0 {
		configs, err := parseHosts(dir, body)
		if err != nil {
			return nil, hostsFileError(file, err)
		}
		return configs, nil
	}
	c := hostConfig{caps: canPull | canResolve}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, hostsFileError(dir, err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if strings.HasSuffix(name, ".crt") {
			c.ca = append(c.ca, name)
		}
		if base, ok := strings.CutSuffix(name, ".cert"); ok {
			pair := [2]string{name}
			if _, err := os.Stat(base + ".key"); err == nil {
				pair[1] = base + ".key"
			}
			c.client = append(c.client, pair)
		}
	}
	return []hostConfig{c}, nil
}
