package main

import (
	"fmt"
	"hash/crc32"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A block of lines is written at once; its lines differ in their last fields, and blocks in their numbers.
const (
	lineSize  = 80
	blockSize = 64 << 10 / lineSize * lineSize
)

// lines writes blocks of numbered lines of 80 bytes to stdout as fast as it can:
//
//	ID BLOCK LINE xxxx…
//
// With a folder it says there that it is ready (ID.ready), waits until go, a FIFO, has a writer, and in the end tells
// in ID.done when it began (CLOCK_REALTIME, ns), how many bytes it has written and their CRC-32C.
func lines(id string, blocks int, dir string) {
	block := make([]byte, 0, blockSize)
	for i := range blockSize / lineSize {
		head := fmt.Sprintf("%.8s %08d %04d ", id+"        ", 0, i)
		block = append(append(append(block, head...), strings.Repeat("x", lineSize-1-len(head))...), '\n')
	}
	if dir != "" {
		note(dir, id+".ready", "")
		start, err := os.Open(filepath.Join(dir, "go"))
		if err != nil {
			log.Fatal(err)
		}
		defer start.Close()
	}
	began, sum, table := time.Now(), uint32(0), crc32.MakeTable(crc32.Castagnoli)
	for n := range blocks {
		number := fmt.Sprintf("%08d", n)
		for at := 9; at < len(block); at += lineSize {
			copy(block[at:at+8], number)
		}
		sum = crc32.Update(sum, table, block)
		if _, err := os.Stdout.Write(block); err != nil {
			log.Fatal(err)
		}
	}
	if dir != "" {
		note(dir, id+".done", fmt.Sprintf("%d %d %08x\n", began.UnixNano(), blocks*len(block), sum))
	}
}

func note(dir, name, text string) {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		log.Fatal(err)
	}
}

// linesCommand is lines ID BLOCKS [DIR].
func linesCommand(args []string) {
	if len(args) < 2 {
		log.Fatal("usage: guest lines ID BLOCKS [DIR]")
	}
	blocks, err := strconv.Atoi(args[1])
	if err != nil {
		log.Fatal(err)
	}
	lines(args[0], blocks, strings.Join(args[2:], ""))
}
