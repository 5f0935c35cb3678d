package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What Answer returns instead of an address where asking fails in a way that tests expect.
const (
	Refused = "refused"
	Silent  = "no answer"
)

// resend is the time after which a datagram is taken for lost.
const resend = 300 * time.Millisecond

// Question is what Answer takes: how and whom to ask, as tcp/10.1.2.3:80.
func Question(network string, to netip.AddrPort) string { return network + "/" + to.String() }

// Answer asks a peer and returns the address that it saw, or else what went wrong, as one line. ctx bounds it.
func Answer(ctx context.Context, question string) string {
	network, address, _ := strings.Cut(question, "/")
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp" && network != "udp" {
		return "not a question: " + question
	}
	from, err := ask(ctx, network, to)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case isTimeout(err):
		return Silent
	case err != nil:
		return strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return from.String()
}

func ask(ctx context.Context, network string, to netip.AddrPort) (netip.Addr, error) {
	c, err := (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, to.String()) // in the caller's namespace
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	end, ok := ctx.Deadline()
	if !ok {
		return netip.Addr{}, errors.New("asking without a deadline")
	}
	next := end
	for r := bufio.NewReader(c); ; {
		if network == "udp" {
			fmt.Fprintln(c, "?")
			next = time.Now().Add(resend)
		}
		_ = c.SetReadDeadline(next)
		line, err := r.ReadString('\n')
		if err == nil {
			seen, err := netip.ParseAddrPort(strings.TrimSpace(line))
			return seen.Addr().Unmap(), err
		}
		if network == "tcp" || !isTimeout(err) || time.Now().After(end) {
			return netip.Addr{}, err
		}
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
