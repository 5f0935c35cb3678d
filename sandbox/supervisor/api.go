package supervisor

import (
	"encoding/json"
	"os"
	"syscall"
	"time"
)

// Config says where the supervisor lives and how it is started.
type Config struct {
	Dir     string // its directory, absolute; made 0700 when missing
	Binary  string // gantry-supervisor, an absolute path
	LogFile string // its messages are appended here, 0640; "" = discarded
	Scope   bool   // it gets a scope of systemd's, where possible, instead of the caller's cgroup
}

// Runtime is an OCI runtime and where it keeps its state.
type Runtime struct {
	Path          string   `json:"path"`              // of the binary, absolute
	Root          string   `json:"root"`              // its --root
	Options       []string `json:"options,omitempty"` // further global options, each beginning with "--"; since version 2
	SystemdCgroup bool     `json:"systemdCgroup,omitempty"`
}

// RunRequest is a container to start.
type RunRequest struct {
	ID      string  `json:"id"` // up to 128 letters, digits, '_', '-' and, not first, '.'
	Runtime Runtime `json:"runtime"`
	Bundle  string  `json:"bundle"` // OCI bundle directory, absolute

	// LogPath is relative and beneath LogDir; "" discards the output. No
	// component of it may be a symbolic link.
	LogDir  string `json:"logDir,omitempty"`
	LogPath string `json:"logPath,omitempty"`
	// LogMax is the size that the log file does not pass, however much is
	// written; 0 for none. What is more is dropped until it is rotated.
	// Since version 3; to an older supervisor it is not sent.
	LogMax int64 `json:"logMax,omitempty"`

	Terminal  bool `json:"terminal,omitempty"`  // as in the bundle's process.terminal
	Stdin     bool `json:"stdin,omitempty"`     // keep stdin open; otherwise it is /dev/null
	StdinOnce bool `json:"stdinOnce,omitempty"` // stdin ends with the first attached session

	// Who the container's standard streams belong to: the root of its user
	// namespace, on the host. Only so can its processes open /dev/stdout. Since version 2.
	StdioUID uint32 `json:"stdioUID,omitempty"`
	StdioGID uint32 `json:"stdioGID,omitempty"`

	OOMFile     string   `json:"oomFile,omitempty"`     // memory.oom_control (v1) or memory.events (v2)
	CgroupProcs []string `json:"cgroupProcs,omitempty"` // the container's cgroup.procs, one per hierarchy
}

// ExecRequest is a process to run in a running container.
type ExecRequest struct {
	ID      string          `json:"id"`
	Process json.RawMessage `json:"process"` // OCI specs.Process

	// The process gets these; nil is /dev/null. They are made blocking, and
	// closed here as soon as they are sent; else the caller closes them, who may do so twice.
	Stdin  *os.File `json:"-"`
	Stdout *os.File `json:"-"`
	Stderr *os.File `json:"-"`

	// Terminal asks for a pseudo-terminal instead of the three files. Console
	// then is called once with its master, which it owns, before Exec returns
	// and while the process runs.
	Terminal bool                  `json:"terminal,omitempty"`
	Console  func(master *os.File) `json:"-"`
}

// AttachRequest is a session with the standard streams of a running container.
type AttachRequest struct {
	ID string `json:"id"`

	// Stdout and Stderr are write ends of pipes, to which goes what the container
	// writes from now on; nil is not wanted. They are closed when it is known
	// that the supervisor has them, so that their readers see their end.
	Stdout *os.File `json:"-"`
	Stderr *os.File `json:"-"`

	// Attached is called once, when the session has begun. input is nil or where
	// stdin is written to, or the master of the container's terminal; with a
	// terminal and stdin false it is good for the terminal's size alone. It is
	// closed by Attach: at the session's end, or when another client's session
	// has been the one whose end ends a container's stdin.
	Stdin    bool                             `json:"hasStdin,omitempty"`
	Attached func(input *os.File, stdin bool) `json:"-"`

	// StdinEnd is closed by the caller at the end of the stdin that Attached got
	// a descriptor for. That ends stdin for the container where RunRequest.StdinOnce says so and
	// there is no terminal; otherwise it ends the session.
	StdinEnd <-chan struct{} `json:"-"`
}

// Exit is the end of a container's first process.
type Exit struct {
	ID   string    `json:"id"`
	PID  int       `json:"pid"`
	Code int       `json:"code"` // of the process, or 128+n after signal n
	At   time.Time `json:"at"`
	OOM  bool      `json:"oom,omitempty"` // it has ended so because the kernel was short of memory

	// Reason is empty, or says why Code is not the process' own but 255.
	Reason string `json:"reason,omitempty"`
}

// State is what the supervisor knows of a container.
type State struct {
	ID      string  `json:"id"`
	PID     int     `json:"pid"`
	Runtime Runtime `json:"runtime"`
	Exit    *Exit   `json:"exit,omitempty"` // nil while it runs
}

// The bodies of the other calls, and of the answers; see PROTOCOL.md.
type (
	// IDRequest names a container.
	IDRequest struct {
		ID string `json:"id"`
	}
	// KillRequest is the body of "kill".
	KillRequest struct {
		ID     string         `json:"id"`
		Signal syscall.Signal `json:"signal"`
		All    bool           `json:"all,omitempty"`
	}
	// UpdateRequest is the body of "update".
	UpdateRequest struct {
		ID        string          `json:"id"`
		Resources json.RawMessage `json:"resources"` // OCI specs.LinuxResources
	}
	// CheckpointRequest is the body of "checkpoint".
	CheckpointRequest struct {
		ID     string `json:"id"`
		Images string `json:"images"` // folders, absolute paths
		Work   string `json:"work"`
	}
	// ExecCall is the body of "exec": which of the three files come with it.
	ExecCall struct {
		ExecRequest
		HasStdin  bool `json:"hasStdin,omitempty"`
		HasStdout bool `json:"hasStdout,omitempty"`
		HasStderr bool `json:"hasStderr,omitempty"`
	}
	// UpgradeRequest is the body of "upgrade", with the open program beside it.
	UpgradeRequest struct {
		Path string `json:"path"` // where it is installed
	}
	// UpgradeAnswer is what "upgrade" answers.
	UpgradeAnswer struct {
		Replaced bool   `json:"replaced"` // false: it was that program already
		Version  string `json:"version"`  // of the program that runs now
	}
	// RunAnswer is what "run" answers.
	RunAnswer struct {
		PID int `json:"pid"`
	}
	// ExecAnswer is what "exec" answers; Console comes first and alone, with
	// the pseudo-terminal's master beside it.
	ExecAnswer struct {
		Console  bool `json:"console,omitempty"`
		ExitCode int  `json:"exitCode"`
	}
	// AttachCall is the body of "attach": which of the pipes come with it.
	AttachCall struct {
		AttachRequest
		HasStdout bool `json:"hasStdout,omitempty"`
		HasStderr bool `json:"hasStderr,omitempty"`
	}
	// AttachAnswer is what "attach" answers: Attached first, with the descriptor
	// for stdin beside it; perhaps StdinEnded; one that is empty at the end.
	AttachAnswer struct {
		Attached   bool `json:"attached,omitempty"`
		Stdin      bool `json:"stdin,omitempty"` // the descriptor may be written to
		StdinEnded bool `json:"stdinEnded,omitempty"`
	}
	// HoldAnswer is each of what "hold" answers: with a descriptor, of what is to
	// be held of a container; without one, that it is over; without an ID, that
	// what there was has been told.
	HoldAnswer struct {
		ID       string `json:"id,omitempty"`
		Terminal bool   `json:"terminal,omitempty"`
	}
	// ListAnswer is what "list" answers.
	ListAnswer struct {
		Containers []State `json:"containers"`
	}
)
