package machine

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// run accepts on l until that fails, and copies both ways. A connection whose target does not answer is closed at once:
// the client sees what it would see from a machine that refuses.
func (f Forward) run(ctx context.Context, l net.Listener) error {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if f.DNS != "" {
		dialer.Resolver = &net.Resolver{
			PreferGo: true, // the system's resolver asks servers of the host's network
			Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, f.DNS)
			},
		}
	}
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			target, err := dialer.DialContext(ctx, "tcp", f.To)
			if err != nil {
				return
			}
			defer target.Close()
			relay(client, target)
		}()
	}
}

// relay copies both ways and passes on the end of each direction by itself: a client may stop sending and still read.
func relay(a, b net.Conn) {
	var both sync.WaitGroup
	pipe := func(to, from net.Conn) {
		// An error here is an end of the connection, which the other side learns from the close.
		_, _ = io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}
	both.Go(func() { pipe(a, b) })
	both.Go(func() { pipe(b, a) })
	both.Wait()
}
