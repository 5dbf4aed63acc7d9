// Load on a relay by stock derphttp clients, for tests/bench/relay.py.
//
// Pairs of clients in one process: the first of each keeps -flight packets of -size bytes under way to the second,
// or with -rate offers that many a second of all pairs together. One line of JSON leaves on standard output; -pid
// names the relay whose CPU time is measured over the same seconds. Offered packets are evenly spaced, pairs in turn, and
// their latency counts from when they were meant to leave; what a pair is a second behind with is left out and counted
// as skipped.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	sampleEvery = 16
	stall       = 200 * time.Millisecond
)

var (
	host    = flag.String("host", "127.0.0.1", "the relay's address")
	port    = flag.Int("port", 3340, "the relay's port")
	pairs   = flag.Int("pairs", 1, "pairs of clients")
	size    = flag.Int("size", 1280, "bytes of a packet")
	flight  = flag.Int("flight", 1, "packets under way, of each pair")
	rate    = flag.Float64("rate", 0, "packets a second of all pairs; 0: closed loop")
	seconds = flag.Float64("seconds", 2, "how long to measure")
	warm    = flag.Float64("warm", 0.3, "seconds before that")
	pid     = flag.Int("pid", 0, "the relay's process")

	measuring                     atomic.Bool
	sent, received, lost, skipped atomic.Int64
	began                         = time.Now()
)

type pair struct {
	a, b     *derphttp.Client
	to       key.NodePublic
	credits  chan struct{}
	due      chan int64   // when packets were meant to leave, ns since began
	heard    atomic.Int64 // ns since began
	latency  []float64    // µs
	received int
}

func now() int64 { return int64(time.Since(began)) }

func region() *tailcfg.DERPRegion {
	node := &tailcfg.DERPNode{Name: "900a", RegionID: 900, HostName: *host, IPv4: *host, IPv6: "none", DERPPort: *port,
		InsecureForTests: true}
	return &tailcfg.DERPRegion{RegionID: 900, RegionCode: "lab", Nodes: []*tailcfg.DERPNode{node}}
}

func dial(private key.NodePrivate) (*derphttp.Client, error) {
	logf := func(string, ...any) {}
	c := derphttp.NewRegionClient(private, logf, netmon.NewStatic(), region)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := c.Connect(ctx); err != nil {
		return nil, err
	}
	m, err := c.Recv() // what the relay says of itself
	if _, ok := m.(derp.ServerInfoMessage); err == nil && !ok {
		err = fmt.Errorf("first message is %T", m)
	}
	return c, err
}

// pace tells pairs in turn to send. The runtime's own timers are a millisecond late.
func pace(all []*pair, deadline int64) {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0)
	start := now()
	for n := 0; ; n++ {
		due := start + int64(float64(n)*1e9 / *rate)
		if due >= deadline {
			return
		}
		for at := now(); at < due; at = now() {
			wait := unix.NsecToTimespec(due - at)
			_ = unix.Nanosleep(&wait, nil)
		}
		select {
		case all[n%len(all)].due <- due:
		default:
			if measuring.Load() {
				skipped.Add(1)
			}
		}
	}
}

// next waits until a packet may be sent and returns its time; 0: look at the clock and ask again.
func (p *pair) next() int64 {
	if *rate > 0 {
		select {
		case due := <-p.due:
			return due
		case <-time.After(stall):
			return 0
		}
	}
	select {
	case p.credits <- struct{}{}:
		return now()
	case <-time.After(stall):
		// What waits so long was dropped.
		if now()-p.heard.Load() > int64(stall) {
			for len(p.credits) > 0 {
				<-p.credits
				lost.Add(1)
			}
		}
		return 0
	}
}

func (p *pair) send(deadline int64) {
	packet := make([]byte, *size)
	packet[0] = 4 // as WireGuard's data begins
	for now() < deadline {
		at := p.next()
		if at == 0 {
			continue
		}
		binary.LittleEndian.PutUint64(packet[8:], uint64(at))
		if err := p.a.Send(p.to, packet); err != nil {
			fail("send", err)
		}
		if measuring.Load() {
			sent.Add(1)
		}
	}
}

func (p *pair) receive(deadline int64) {
	for now() < deadline {
		m, err := p.b.Recv()
		if err != nil {
			if now() >= deadline {
				return
			}
			fail("receive", err)
		}
		packet, ok := m.(derp.ReceivedPacket)
		if !ok {
			continue
		}
		at := now()
		p.heard.Store(at)
		if *rate == 0 {
			select {
			case <-p.credits:
			default:
			}
		}
		if !measuring.Load() {
			continue
		}
		received.Add(1)
		if p.received++; p.received%sampleEvery == 0 || *flight == 1 {
			p.latency = append(p.latency, float64(at-int64(binary.LittleEndian.Uint64(packet.Data[8:])))/1e3)
		}
	}
}

func cpu(id int32) float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return float64(ts.Nano()) / 1e9
}

func fail(what string, err error) {
	fmt.Fprintln(os.Stderr, "derp_load:", what+":", err)
	os.Exit(1)
}

func main() {
	flag.Parse()
	all := make([]*pair, *pairs)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			a, b := key.NewNode(), key.NewNode()
			p := &pair{to: b.Public(), credits: make(chan struct{}, *flight),
				due: make(chan int64, int(*rate)/(*pairs)+1)}
			var err error
			if p.a, err = dial(a); err != nil {
				fail("dial", err)
			}
			if p.b, err = dial(b); err != nil {
				fail("dial", err)
			}
			all[i] = p
		}()
	}
	wg.Wait()
	deadline := now() + int64((*warm+*seconds)*1e9)
	for _, p := range all {
		go p.receive(deadline)
		go p.send(deadline)
	}
	if *rate > 0 {
		go pace(all, deadline)
	}
	time.Sleep(time.Duration(*warm * 1e9))
	relayClock := int32(^*pid<<3 | 2)
	relay, own, start := cpu(relayClock), cpu(unix.CLOCK_PROCESS_CPUTIME_ID), now()
	measuring.Store(true)
	time.Sleep(time.Duration(*seconds * 1e9))
	measuring.Store(false)
	wall := float64(now()-start) / 1e9
	relay, own = cpu(relayClock)-relay, cpu(unix.CLOCK_PROCESS_CPUTIME_ID)-own
	time.Sleep(50 * time.Millisecond)
	var times []float64
	for _, p := range all {
		times = append(times, p.latency...)
	}
	sort.Float64s(times)
	out := map[string]any{"frames": received.Load(), "sent": sent.Load(), "lost": lost.Load(), "skipped": skipped.Load(), "seconds": wall,
		"per_s": float64(received.Load()) / wall, "cpu_s": relay, "own_cpu_s": own,
		"gbit_s": float64(received.Load()) * float64(*size) * 8 / wall / 1e9}
	if len(times) > 0 {
		out["p50_us"], out["p99_us"] = times[len(times)/2], times[len(times)*99/100]
	}
	json.NewEncoder(os.Stdout).Encode(out)
	os.Exit(0)
}
