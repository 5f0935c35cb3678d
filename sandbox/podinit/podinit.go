package podinit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

const (
	// loadAddress is where the one segment is mapped; the file header is part of it.
	loadAddress = 0x400000
	// headerSize is the ELF header (64) and one program header (56).
	headerSize = 64 + 56
)

// program is the code of one architecture and its ELF machine number.
type program struct {
	machine uint16
	code    []byte
}

// programs hold, for each architecture:
//
//	rt_sigaction(SIGCHLD, &{handler: SIG_IGN}, NULL, 8)
//	for { pause() }          // ppoll(NULL, 0, NULL, NULL, 0) where there is no pause
//
// followed by the struct sigaction, four zero words but for handler = SIG_IGN (1).
var programs = map[string]program{
	"amd64": {machine: 62, code: append([]byte{
		0xb8, 13, 0, 0, 0, // mov eax, SYS_rt_sigaction
		0xbf, 17, 0, 0, 0, // mov edi, SIGCHLD
		0x48, 0x8d, 0x35, 0x13, 0, 0, 0, // lea rsi, [rip+19] (the struct below)
		0x31, 0xd2, // xor edx, edx
		0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8
		0x0f, 0x05, // syscall
		0xb8, 34, 0, 0, 0, // mov eax, SYS_pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp -9
	}, sigIgn...)},
	"arm64": {machine: 183, code: append(words(
		0xd2800220, // mov x0, #17 (SIGCHLD)
		0x10000181, // adr x1, +48 (the struct below)
		0xd2800002, // mov x2, #0
		0xd2800103, // mov x3, #8
		0xd28010c8, // mov x8, #134 (rt_sigaction)
		0xd4000001, // svc #0
		0xd2800000, // mov x0, #0      <- loop
		0xd2800001, // mov x1, #0
		0xd2800002, // mov x2, #0
		0xd2800003, // mov x3, #0
		0xd2800928, // mov x8, #73 (ppoll)
		0xd4000001, // svc #0
		0x17fffffa, // b -24
	), sigIgn...)},
}

// sigIgn is struct sigaction of the kernel: handler, flags, restorer, mask.
var sigIgn = append([]byte{1}, make([]byte, 31)...)

func words(w ...uint32) []byte {
	var b []byte
	for _, v := range w {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// image is the ELF file for an architecture (GOARCH).
func image(arch string) ([]byte, error) {
	p, ok := programs[arch]
	if !ok {
		return nil, fmt.Errorf("pod init: no program for architecture %s", arch)
	}
	return p.elf()
}

func (p program) elf() ([]byte, error) {
	size := uint64(headerSize + len(p.code))
	var b bytes.Buffer
	for _, v := range []any{
		// ELF header (elf(5)).
		[16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1},
		uint16(2), p.machine, uint32(1), // ET_EXEC, machine, EV_CURRENT
		uint64(loadAddress + headerSize), uint64(64), uint64(0), // entry, program headers, section headers
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		// The one program header: PT_LOAD, readable and executable.
		uint32(1), uint32(5), uint64(0), uint64(loadAddress), uint64(loadAddress), size, size, uint64(0x1000),
		p.code,
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return nil, fmt.Errorf("pod init: %w", err)
		}
	}
	return b.Bytes(), nil
}

// Install writes the program as dir/init, executable by all, unless it is
// there already, and returns dir: the root file system of a pod's init. The
// empty directories are mount points of the OCI runtime.
func Install(dir string) (string, error) {
	img, err := image(runtime.GOARCH)
	if err != nil {
		return "", err
	}
	for _, sub := range []string{"proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", fmt.Errorf("pod init: %w", err)
		}
	}
	return dir, install(filepath.Join(dir, "init"), img)
}

// x32Probe makes one system call of the x32 ABI, getpid, and exits with 1 if
// the kernel has none of them (ENOSYS), else with 0.
var x32Probe = program{machine: 62, code: []byte{
	0xb8, 39, 0, 0, 0x40, // mov eax, __X32_SYSCALL_BIT | SYS_getpid
	0x0f, 0x05, // syscall
	0xc1, 0xe8, 31, // shr eax, 31 (the sign)
	0x89, 0xc7, // mov edi, eax
	0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
	0x0f, 0x05, // syscall
}}

// InstallX32Probe writes a program for amd64 that exits with 1 if the kernel
// has no x32 ABI.
func InstallX32Probe(path string) error {
	img, err := x32Probe.elf()
	if err != nil {
		return err
	}
	return install(path, img)
}

// install writes an executable file, unless it is there already.
func install(path string, img []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, img) {
		return nil
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, img, 0o755); err != nil {
		return fmt.Errorf("pod init: %w", err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // whatever the umask
		return fmt.Errorf("pod init: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("pod init: %w", err)
	}
	return nil
}
