package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test binary be what the doctor calls itself as.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "doctor" && os.Args[2] == networkProbe {
		main()
	}
	os.Exit(m.Run())
}

// gantry runs a command and returns its exit status and output.
func gantry(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut strings.Builder
	status = run(t.Context(), args, &out, &errOut)
	return status, out.String(), errOut.String()
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args       string
		status     int
		out, inErr string
	}{
		{"", exitUsage, "", "Usage: gantry COMMAND"},
		{"help", exitOK, "doctor", ""},
		{"--help", exitOK, "Usage: gantry COMMAND", ""},
		{"server", exitUsage, "", `unknown command "server"`},
		{"serve --help", exitOK, "--registry-config-dir DIR", ""},
		{"config --help", exitOK, "--default ", ""},
		{"doctor --help", exitOK, "exit\nstatus is 1", ""},
		{"version --help", exitOK, "Usage: gantry version", ""},
		{"serve --sokcet /x", exitUsage, "", "flag provided but not defined: -sokcet"},
		{"serve /x", exitUsage, "", `unexpected argument "/x"`},
		{"serve --root=", exitUsage, "", "must not be empty"},
		{"serve --runtime runc", exitUsage, "", "NAME=PATH"},
		{"serve --log-level high", exitUsage, "", "number"},
		{"serve --subnet 10.0.0.0", exitUsage, "", "10.86.0.0/16"},
		{"serve --cni-bin-dir /a,,/b", exitUsage, "", "empty"},
		{"serve --config /no/such/file.toml", exitError, "", "/no/such/file.toml"},
		{"version", exitOK, "k8s.io/cri-api v", ""},
	} {
		status, out, errOut := gantry(t, strings.Fields(tt.args)...)
		if status != tt.status || !strings.Contains(out, tt.out) || !strings.Contains(errOut, tt.inErr) {
			t.Errorf("gantry %s: status %d\n%s\n%s", tt.args, status, out, errOut)
		}
		if tt.status == exitOK && errOut != "" || tt.status == exitUsage && out != "" {
			t.Errorf("gantry %s writes to the wrong stream:\n%s\n%s", tt.args, out, errOut)
		}
	}
}

// Every flag has a line with what it is when it is not given.
func TestHelpIsComplete(t *testing.T) {
	_, out, _ := gantry(t, "serve", "--help")
	_, list, _ := strings.Cut(out, "Flags:\n")
	names := map[string]bool{}
	for line := range strings.Lines(list) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		names[name] = true
		if !strings.Contains(line, "(default ") {
			t.Errorf("no default in %q", line)
		}
	}
	for _, name := range strings.Fields("--config --root --run --socket --cni-conf-dir --cni-bin-dir --registry-config-dir --runtime --default-runtime --log-level --bridge --subnet") {
		if !names[name] {
			t.Errorf("no %s in the help", name)
		}
	}
}

func TestFlagsGoBeforeFiles(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	file := filepath.Join(dir, "c.toml")
	for path, text := range map[string]string{program: "#!", file: "root = \"/file\"\nlog_level = 1\n[cni]\nbin_dirs = [\"/file\"]\n[runtimes.file]\npath = \"" + program + "\"\n"} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	status, out, errOut := gantry(t, "config", "--config", file, "--run", "/flag", "--cni-bin-dir", "/a,/b", "--cni-bin-dir=/c",
		"--runtime", "mine="+program, "--default-runtime", "mine", "--log-level", "4", "--subnet", "10.9.0.0/24,fd00::/64", "--bridge", "br9",
		"--registry-config-dir", "/r", "--supervisor", program)
	if status != exitOK {
		t.Fatalf("status %d: %s", status, errOut)
	}
	for _, want := range []string{
		"\nroot = '/file'\n", "\nrun = '/flag'\n", "\nsocket = '/flag/gantry.sock'\n", "\nbin_dirs = ['/a', '/b', '/c']\n",
		"[runtimes.mine]", "[runtimes.file]", "\ndefault_runtime = 'mine'\n", "\nlog_level = 4\n",
		"\nsubnets = ['10.9.0.0/24', 'fd00::/64']\n", "\nbridge = 'br9'\n", "\ntable = 'gantry_br9'\n", "\nregistry_config_dirs = ['/r']\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if status, _, errOut := gantry(t, "config", "--config", file, "--run", "relative", "--supervisor", program); status != exitError || !strings.Contains(errOut, `run = "relative"`) {
		t.Errorf("an invalid configuration: status %d, %s", status, errOut)
	}
	if status, out, _ := gantry(t, "config", "--default"); status != exitOK || !strings.Contains(out, "\nrun = '/run/gantry'\n") {
		t.Errorf("the defaults: status %d\n%s", status, out)
	}
}

func TestServeNamesWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("\nsokcet = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, errOut := gantry(t, "serve", "--config", file); status != exitError || !strings.Contains(errOut, file+`:2: unknown key "sokcet"`) {
		t.Errorf("status %d: %s", status, errOut)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, errOut := gantry(t, "serve", "--config", file, "--root", dir+"/root", "--run", dir+"/run", "--runtime", "x=/no/such", "--supervisor", file)
	if status != exitError || !strings.Contains(errOut, `runtimes.x.path = "/no/such"`) || !strings.Contains(errOut, "supervisor = ") {
		t.Errorf("status %d: %s", status, errOut)
	}
	if _, err := os.Lstat(dir + "/root"); err == nil {
		t.Error("a daemon that refuses its configuration has made directories")
	}
}
