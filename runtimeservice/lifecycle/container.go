package lifecycle

// Container is the state of a container.
type Container uint8

// States of a container. The CRI sees Created and Starting as
// CONTAINER_CREATED, Exited and Removing as CONTAINER_EXITED; Creating is not shown.
const (
	ContainerGone Container = iota // before and after its life; never on disk
	ContainerCreating
	ContainerCreated
	ContainerStarting
	ContainerRunning
	ContainerExited
	ContainerRemoving
)

// ContainerEvent is what happens to a container.
type ContainerEvent uint8

// Events of a container.
const (
	ContainerMade        ContainerEvent = iota // root file system and bundle are there
	ContainerUndone                            // making or starting was rolled back
	ContainerStart                             // StartContainer
	ContainerStarted                           // its process runs
	ContainerStartFailed                       // the OCI runtime refused
	ContainerExit                              // its process has ended
	ContainerRemove                            // RemoveContainer
)

var containerTable = map[Container]map[ContainerEvent]Container{
	ContainerCreating: {ContainerMade: ContainerCreated, ContainerRemove: ContainerRemoving},
	ContainerCreated:  {ContainerStart: ContainerStarting, ContainerRemove: ContainerRemoving},
	ContainerStarting: {ContainerStarted: ContainerRunning, ContainerStartFailed: ContainerExited, ContainerUndone: ContainerCreated},
	ContainerRunning:  {ContainerExit: ContainerExited},
	ContainerExited:   {ContainerExit: ContainerExited, ContainerRemove: ContainerRemoving},
	ContainerRemoving: {ContainerRemove: ContainerRemoving},
}

// On is the state that follows s after e, or a *Refusal.
func (s Container) On(e ContainerEvent) (Container, error) { return next(containerTable, s, e) }

var containerNames = []string{"gone", "creating", "created", "starting", "running", "exited", "removing"}
var containerEventNames = []string{"made", "undone", "start", "started", "startFailed", "exit", "remove"}

func (s Container) String() string      { return name(containerNames, uint8(s)) }
func (e ContainerEvent) String() string { return name(containerEventNames, uint8(e)) }

// MarshalText gives the state's name: what stands in records.
func (s Container) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes a state's name as [Container.MarshalText] gives it.
func (s *Container) UnmarshalText(b []byte) error {
	v, err := parse(containerNames, b)
	*s = Container(v)
	return err
}
