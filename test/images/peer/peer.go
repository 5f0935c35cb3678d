package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
)

// Serve answers on TCP and UDP at addresses such as [::]:80, until stop. Who is answered over TCP at the last one is
// answered everywhere.
func Serve(addresses ...string) (stop func() error, err error) {
	var open []io.Closer
	stop = func() error {
		var errs []error
		for _, c := range open {
			errs = append(errs, c.Close())
		}
		return errors.Join(errs...)
	}
	for _, a := range addresses {
		c, err := net.ListenPacket("udp", a)
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		open = append(open, c)
		l, err := net.Listen("tcp", a)
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		open = append(open, l)
		go streams(l)
		go datagrams(c)
	}
	return stop, nil
}

func streams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		fmt.Fprintln(c, c.RemoteAddr())
		c.Close()
	}
}

func datagrams(c net.PacketConn) {
	question := make([]byte, 64)
	for {
		_, from, err := c.ReadFrom(question)
		if err != nil {
			return // closed
		}
		_, _ = c.WriteTo([]byte(from.String()+"\n"), from) // lost is lost: he asks again
	}
}
