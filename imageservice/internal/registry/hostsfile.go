package registry

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	tomlparser "github.com/pelletier/go-toml/v2/unstable"
)

// capability is what a host may be asked for.
type capability uint8

const (
	canPull    capability = 1 << iota // manifests by digest, and blobs
	canResolve                        // manifests by tag
)

// hostConfig is one host of a hosts.toml.
type hostConfig struct {
	scheme, host string // "" is the registry of the image's name
	path         string // of the API's root
	caps         capability
	ca           []string
	client       [][2]string // certificate and key; the key may be "": in the same file
	skipVerify   bool
	header       http.Header
	dialTimeout  time.Duration // 0 is the default
	guess        bool          // on loopback without configuration: https, else http
}

func (c *hostConfig) hasTLS() bool { return c.skipVerify || len(c.ca) > 0 || len(c.client) > 0 }

// fileHost is a host as it is written in a file.
type fileHost struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // string or []string
	Client       any            `toml:"client"` // string, []string or [][2]string
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // string or []string
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

const (
	maxHosts       = 64
	maxDialTimeout = 10 * time.Minute
)

// parseHosts reads a hosts.toml: its hosts in the order of the file, then the
// server. dir is what relative file names are relative to.
func parseHosts(dir string, body []byte) ([]hostConfig, error) {
	var file struct {
		fileHost
		Server string              `toml:"server"`
		Hosts  map[string]fileHost `toml:"host"`
	}
	d := toml.NewDecoder(bytes.NewReader(body))
	if err := d.DisallowUnknownFields().Decode(&file); err != nil {
		return nil, tomlError(err)
	}
	if len(file.Hosts) > maxHosts {
		return nil, fmt.Errorf("host: %d hosts, more than %d", len(file.Hosts), maxHosts)
	}
	var all []hostConfig
	for _, name := range hostOrder(body, file.Hosts) {
		key := fmt.Sprintf("host.%q", abbreviate(name))
		if name == "" {
			return nil, fmt.Errorf("%s: no address", key)
		}
		c, err := file.Hosts[name].config(dir, name, key, key+".")
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	c, err := file.config(dir, file.Server, "server", "")
	if err != nil {
		return nil, err
	}
	return append(all, c), nil
}

// tomlError names the place; the library's own text may quote the file.
func tomlError(err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		row, _ := unknown.Errors[0].Position()
		return fmt.Errorf("line %d: unknown key %q", row, abbreviate(strings.Join(unknown.Errors[0].Key(), ".")))
	}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		row, col := at.Position()
		if key := strings.Join(at.Key(), "."); key != "" {
			return fmt.Errorf("line %d: key %q: %s", row, abbreviate(key), printable(at.Error(), 256))
		}
		return fmt.Errorf("line %d, column %d: %s", row, col, printable(at.Error(), 256))
	}
	return errors.New(printable(err.Error(), 256))
}

// hostOrder lists the hosts as they stand in the file, which is the order in
// which they are asked. The decoder does not tell.
func hostOrder(body []byte, hosts map[string]fileHost) []string {
	var order []string
	p := tomlparser.Parser{}
	p.Reset(body)
	top := true // before the first table
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind == tomlparser.Table || e.Kind == tomlparser.ArrayTable {
			top = false
		} else if !top || e.Kind != tomlparser.KeyValue {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next() && len(parts) < 2; {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) == 2 && parts[0] == "host" && !slices.Contains(order, parts[1]) {
			order = append(order, parts[1])
		}
	}
	var rest []string // written as an inline table
	for name := range hosts {
		if !slices.Contains(order, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(order, rest...)
}

// config checks what was written. key names the address and prefix the other
// settings in errors.
func (f fileHost) config(dir, server, key, prefix string) (c hostConfig, err error) {
	if server != "" {
		if c, err = parseServer(server, f.OverridePath); err != nil {
			return c, fmt.Errorf("%s: %w", key, err)
		}
	}
	c.skipVerify = f.SkipVerify
	if c.caps, err = parseCapabilities(f.Capabilities); err != nil {
		return c, fmt.Errorf("%scapabilities: %w", prefix, err)
	}
	if c.ca, err = stringList(f.CA); err != nil {
		return c, fmt.Errorf("%sca: %w", prefix, err)
	}
	for i := range c.ca {
		c.ca[i] = absolute(dir, c.ca[i])
	}
	if c.client, err = parseClient(dir, f.Client); err != nil {
		return c, fmt.Errorf("%sclient: %w", prefix, err)
	}
	for name, value := range f.Header {
		values, err := stringList(value)
		if err == nil {
			err = checkHeader(name, values)
		}
		if err != nil {
			return c, fmt.Errorf("%sheader.%q: %w", prefix, abbreviate(name), err)
		}
		if c.header == nil {
			c.header = make(http.Header)
		}
		name = http.CanonicalHeaderKey(name)
		c.header[name] = append(c.header[name], values...)
	}
	if f.DialTimeout != "" {
		c.dialTimeout, err = time.ParseDuration(f.DialTimeout)
		if err != nil || c.dialTimeout <= 0 || c.dialTimeout > maxDialTimeout {
			return c, fmt.Errorf("%sdial_timeout: %q is not a duration between 0 and %s", prefix, abbreviate(f.DialTimeout), maxDialTimeout)
		}
	}
	return c, nil
}

func parseServer(server string, override bool) (c hostConfig, err error) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Hostname() == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return c, fmt.Errorf("%q is not an http or https address", abbreviate(withoutSecrets(server)))
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return c, fmt.Errorf("address of %q has more than scheme, host and path", abbreviate(u.Host))
	}
	c.scheme, c.host = u.Scheme, u.Host
	c.path = path.Clean("/" + u.Path)
	if !override && !strings.HasSuffix(c.path, "/v2") {
		c.path = path.Join(c.path, "v2")
	}
	return c, nil
}

func parseCapabilities(names []string) (caps capability, err error) {
	if len(names) == 0 {
		return canPull | canResolve, nil
	}
	for _, name := range names {
		switch strings.ToLower(name) {
		case "pull":
			caps |= canPull
		case "resolve":
			caps |= canResolve
		case "push", "referrers": // not used here
		default:
			return 0, fmt.Errorf("%q is not one of pull, resolve, push, referrers", abbreviate(name))
		}
	}
	return caps, nil
}

// parseClient reads the three forms: one file with certificate and key,
// several such, and pairs of files.
func parseClient(dir string, v any) (pairs [][2]string, err error) {
	list, ok := v.([]any)
	if v != nil && !ok {
		list = []any{v}
	}
	for _, item := range list {
		files, err := stringList(item)
		if err != nil {
			return nil, err
		}
		pair := [2]string{absolute(dir, files[0])}
		switch _, isList := item.([]any); {
		case !isList && len(files) == 1:
		case isList && len(files) == 2:
			pair[1] = absolute(dir, files[1])
		default:
			return nil, fmt.Errorf("%d files instead of a certificate and its key", len(files))
		}
		pairs = append(pairs, pair)
	}
	return pairs, nil
}

// stringList reads a string or a list of strings; none may be empty.
func stringList(v any) ([]string, error) {
	var list []any
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		list = []any{v}
	case []any:
		list = v
	default:
		return nil, fmt.Errorf("%T instead of a string or a list of strings", v)
	}
	if len(list) == 0 || len(list) > maxHosts {
		return nil, fmt.Errorf("list of %d strings", len(list))
	}
	out := make([]string, len(list))
	for i, item := range list {
		s, ok := item.(string)
		if !ok || s == "" || strings.ContainsRune(s, 0) {
			return nil, fmt.Errorf("entry %d is not a string with content", i)
		}
		out[i] = s
	}
	return out, nil
}

// checkHeader does not name the value, which may be a secret.
func checkHeader(name string, values []string) error {
	const separators = "()<>@,;:\\\"/[]?={} \t"
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(separators, r) }) {
		return errors.New("not the name of a header")
	}
	for _, v := range values {
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return errors.New("value with control characters")
		}
	}
	return nil
}

func absolute(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// hostsFileError gives an error of a configuration file its kind and name.
func hostsFileError(file string, err error) error {
	return fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrFailedPrecondition)
}
