package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Load reads a file and its drop-ins, applies override (the flags; may be nil)
// and settles what is unset. file "" is [DefaultFile], which may be missing; a
// named file may not. The result is not checked: see [Config.Validate].
func Load(file string, override func(*Config)) (Config, error) {
	named := file != ""
	if !named {
		file = DefaultFile
	}
	cfg := Default()
	err := cfg.read(file)
	if errors.Is(err, fs.ErrNotExist) && !named {
		err = nil
	}
	if err != nil {
		return Config{}, err
	}
	dropIns, err := filepath.Glob(escapeGlob(file) + ".d/*.toml")
	if err != nil {
		return Config{}, fmt.Errorf("looking for drop-ins of %s: %w", file, err)
	}
	for _, f := range dropIns { // Glob sorts
		if strings.HasPrefix(filepath.Base(f), ".") {
			continue // an editor's
		}
		if err := cfg.read(f); err != nil {
			return Config{}, err
		}
	}
	if override != nil {
		override(&cfg)
	}
	cfg.settle(searchPath())
	return cfg, nil
}

// Settle gives what is unset in c the values that follow from the rest of it
// and from what is installed, as [Load] does at its end.
func Settle(c Config) Config {
	c.settle(searchPath())
	return c
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// read puts a file's keys over what there is.
func (c *Config) read(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if len(data) > maxFile {
		return fmt.Errorf("configuration %s is larger than %d bytes", file, maxFile)
	}
	return c.decode(file, data)
}

func (c *Config) decode(file string, data []byte) error {
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		var errs []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %q: correct or remove it (`gantry config --default` shows all keys)",
				file, line, strings.Join(e.Key(), ".")))
		}
		return errors.Join(errs...)
	case errors.As(err, &bad):
		line, _ := bad.Position()
		what := strings.TrimPrefix(bad.Error(), "toml: ")
		if key := strings.Join(bad.Key(), "."); key != "" {
			what = fmt.Sprintf("key %q: %s", key, what)
		}
		return fmt.Errorf("%s:%d: %s", file, line, what)
	default:
		return fmt.Errorf("%s: %w", file, err)
	}
}

// settle gives unset keys the values that follow from others and from what is installed in dirs.
func (c *Config) settle(dirs []string) {
	if c.Socket == "" && c.Run != "" {
		c.Socket = filepath.Join(c.Run, "gantry.sock")
	}
	if c.Images.PreloadDir == "" && c.Root != "" {
		c.Images.PreloadDir = filepath.Join(c.Root, "preload")
	}
	if c.Supervisor == "" {
		c.Supervisor = findSupervisor(dirs)
	}
	if n := &c.Network; n.Table == "" {
		// Two instances that share a table would take each other's rules for their own.
		n.Table = "gantry"
		if n.Bridge != defaultBridge {
			n.Table += "_" + strings.Map(func(r rune) rune {
				if r == '.' || r == '-' {
					return '_'
				}
				return r
			}, n.Bridge)
		}
	}
	if len(c.Runtimes) == 0 {
		c.Runtimes = map[string]Runtime{}
		for _, name := range []string{"runc", "crun"} {
			if path := find(name, dirs); path != "" {
				c.Runtimes[name] = Runtime{Path: path}
			}
		}
	}
	for name, r := range c.Runtimes {
		if r.Path != "" && !strings.Contains(r.Path, "/") {
			if path := find(r.Path, dirs); path != "" {
				r.Path = path
			}
		}
		if r.Root == "" && c.Run != "" {
			r.Root = filepath.Join(c.Run, "runtimes", name)
		}
		c.Runtimes[name] = r
	}
	if c.DefaultRuntime == "" {
		names := append([]string{"runc", "crun"}, slices.Sorted(maps.Keys(c.Runtimes))...)
		for _, name := range names {
			if _, ok := c.Runtimes[name]; ok {
				c.DefaultRuntime = name
				break
			}
		}
	}
}

func findSupervisor(dirs []string) string {
	const name = "gantry-supervisor"
	if self, err := os.Executable(); err == nil {
		if path := find(name, []string{filepath.Dir(self)}); path != "" {
			return path
		}
	}
	return find(name, dirs)
}

// searchPath is PATH, and then the directories that a service manager's may lack.
func searchPath() []string {
	return append(filepath.SplitList(os.Getenv("PATH")),
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
}

// find is the absolute path of a program in one of dirs, "" if it is in none.
func find(name string, dirs []string) string {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if filepath.IsAbs(path) && executable(path) == nil {
			return path
		}
	}
	return ""
}

// executable is nil for a regular file that this process may execute.
func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("there is no such file")
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return errors.New("is not a regular file")
	case unix.Access(path, unix.X_OK) != nil:
		return errors.New("is not executable")
	}
	return nil
}

// Print writes the configuration as TOML with a comment for each key. [Load]
// reads it back to an equal one.
func (c Config) Print(w io.Writer) error {
	if _, err := io.WriteString(w, "# Gantry's configuration. It belongs to "+DefaultFile+";\n# drop-ins that change single keys to "+DefaultFile+".d/*.toml.\n\n"); err != nil {
		return err
	}
	return toml.NewEncoder(w).Encode(c)
}
