// One end of the tunnel bench over tsnet: a server of the bench's little protocol, and a driver of it.
//
// Commands come as JSON lines on standard input, answers leave as JSON lines on standard output; the
// protocol and the commands are those of tests/bench/ends.py. The auth key comes in TS_AUTHKEY.
// It ends by os.Exit: tsnet's Close can block for ever after many short connections.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/tsnet"
)

const (
	headerLen = 16
	reportLen = 32
	blockLen  = 1 << 20
	sampleLen = 64
	end       = 0 // ends an upload where a block would begin
)

type command struct {
	Do      string  `json:"do"`
	Peer    string  `json:"peer"`
	Port    int     `json:"port"`
	Streams int     `json:"streams"`
	Seconds float64 `json:"seconds"`
}

type answer map[string]any

var block = makeBlock()

// The same bytes at both ends: a receiver checks samples of them against their position.
func makeBlock() []byte {
	b := make([]byte, blockLen+sampleLen)
	x := uint32(1)
	for i := 0; i < blockLen; i++ {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	copy(b[blockLen:], b[:sampleLen])
	return b
}

func header(kind byte) []byte {
	h := make([]byte, headerLen)
	h[0] = kind
	return h
}

// --- the serving end ---

func serve(c net.Conn) {
	defer c.Close()
	h := make([]byte, headerLen)
	if _, err := io.ReadFull(c, h); err != nil {
		return
	}
	switch h[0] {
	case 'U':
		sink(c)
	case 'E':
		echo(c)
	}
}

func echo(c net.Conn) {
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// What all uploads have brought so far.
var taken atomic.Uint64

func sink(c net.Conn) {
	buf := make([]byte, blockLen)
	var total, wrong, first, last uint64
	for {
		n, err := c.Read(buf)
		if n > 0 {
			last = uint64(time.Now().UnixNano())
			if first == 0 {
				first = last
			}
			at := total % blockLen
			k := min(n, sampleLen)
			total += uint64(n)
			taken.Add(uint64(n))
			if (total-1)%blockLen == 0 && buf[n-1] == end {
				break
			}
			if !bytes.Equal(buf[:k], block[at:at+uint64(k)]) {
				wrong++
			}
		}
		if err != nil {
			return
		}
	}
	report := make([]byte, reportLen)
	for i, v := range []uint64{total, first, last, wrong} {
		binary.BigEndian.PutUint64(report[i*8:], v)
	}
	c.Write(report)
	c.Read(buf)
}

// --- the driving end ---

type driver struct {
	server *tsnet.Server
	cmd    command
}

func (d *driver) dial(kind byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := d.server.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", d.cmd.Peer, d.cmd.Port))
	if err != nil {
		return nil, err
	}
	_, err = c.Write(header(kind))
	return c, err
}

func (d *driver) until() time.Time {
	return time.Now().Add(time.Duration(d.cmd.Seconds * 1e9))
}

func (d *driver) uploadOne(c net.Conn, until time.Time) ([]uint64, error) {
	defer c.Close()
	var sent uint64
	for time.Now().Before(until) {
		n, err := c.Write(block[:blockLen])
		sent += uint64(n)
		if err != nil {
			return nil, err
		}
	}
	if _, err := c.Write([]byte{end}); err != nil {
		return nil, err
	}
	sent++
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	report := make([]byte, reportLen)
	if _, err := io.ReadFull(c, report); err != nil {
		return nil, err
	}
	out := []uint64{sent}
	for i := 0; i < 4; i++ {
		out = append(out, binary.BigEndian.Uint64(report[i*8:]))
	}
	return out, nil
}

func (d *driver) upload() (answer, error) {
	conns, err := d.dialAll('U')
	if err != nil {
		return nil, err
	}
	reports := make([][]uint64, len(conns))
	errs := make([]error, len(conns))
	var wg sync.WaitGroup
	until := d.until()
	for i, c := range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			reports[i], errs[i] = d.uploadOne(c, until)
		}()
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return answer{"reports": reports}, nil
}

func (d *driver) dialAll(kind byte) ([]net.Conn, error) {
	conns := make([]net.Conn, d.cmd.Streams)
	for i := range conns {
		c, err := d.dial(kind)
		if err != nil {
			return nil, err
		}
		conns[i] = c
	}
	return conns, nil
}

// open dials the connection that pump fills until this process ends (tests/bench/loss.py).
func (d *driver) open() (answer, error) {
	c, err := d.dial('U')
	pumped = c
	return answer{}, err
}

var pumped net.Conn

func pump() {
	for {
		if _, err := pumped.Write(block[:blockLen]); err != nil {
			return
		}
	}
}

func echoFor(c net.Conn, until time.Time) ([]float64, error) {
	defer c.Close()
	var times []float64
	b := []byte{7}
	for i := 0; ; i++ {
		started := time.Now()
		if started.After(until) {
			return times, nil
		}
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		if i > 0 {
			times = append(times, float64(time.Since(started))/1e3)
		}
	}
}

func (d *driver) echo() (answer, error) {
	conns, err := d.dialAll('E')
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var all []float64
	failures := 0
	until := d.until()
	for _, c := range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			times, err := echoFor(c, until)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
			if err != nil {
				failures++
			}
		}()
	}
	wg.Wait()
	out := percentiles(all)
	out["failures"] = failures
	return out, nil
}

func percentiles(times []float64) answer {
	if len(times) == 0 {
		return answer{"count": 0}
	}
	sort.Float64s(times)
	return answer{"count": len(times), "p50": times[len(times)/2], "p99": times[len(times)*99/100]}
}

func (d *driver) churn() (answer, error) {
	failures := 0
	var times []float64
	b := []byte{7}
	began, until := time.Now(), d.until()
	for {
		started := time.Now()
		if started.After(until) {
			break
		}
		c, err := d.dial('E')
		if err == nil {
			_, err = c.Write(b)
		}
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		if c != nil {
			c.Close()
		}
		if err != nil {
			failures++
			continue
		}
		times = append(times, float64(time.Since(started))/1e3)
	}
	seconds := time.Since(began).Seconds()
	out := percentiles(times)
	out["failures"] = failures
	out["seconds"] = seconds
	return out, nil
}

func (d *driver) direct() (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	lc, err := d.server.LocalClient()
	if err != nil {
		return nil, err
	}
	status, err := lc.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range status.Peer {
		for _, ip := range p.TailscaleIPs {
			if ip.String() == d.cmd.Peer {
				return answer{"direct": p.CurAddr != "", "by": p.CurAddr}, nil
			}
		}
	}
	return answer{"direct": false}, nil
}

func (d *driver) run() (answer, error) {
	switch d.cmd.Do {
	case "upload":
		return d.upload()
	case "echo":
		return d.echo()
	case "churn":
		return d.churn()
	case "direct":
		return d.direct()
	case "open":
		return d.open()
	case "pump":
		if pumped == nil {
			return nil, fmt.Errorf("nothing is open")
		}
		go pump()
		return answer{}, nil
	case "taken":
		return answer{"bytes": taken.Load()}, nil
	case "quit":
		os.Exit(0)
	}
	return nil, fmt.Errorf("no command %q", d.cmd.Do)
}

func say(a answer) {
	line, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

func main() {
	url := flag.String("url", "", "control server")
	name := flag.String("name", "", "host name")
	dir := flag.String("dir", "", "state directory")
	port := flag.Int("port", 9000, "tailnet port to serve")
	flag.Parse()
	s := &tsnet.Server{Dir: *dir, ControlURL: *url, Hostname: *name, Ephemeral: true}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if _, err := s.Up(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "up:", err)
		os.Exit(1)
	}
	ip4, _ := s.TailscaleIPs()
	l, err := s.Listen("tcp", fmt.Sprintf(":%d", *port))
	if err != nil {
		fmt.Fprintln(os.Stderr, "listen:", err)
		os.Exit(1)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	say(answer{"ready": ip4.String()})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		d := driver{server: s}
		if err := json.Unmarshal(lines.Bytes(), &d.cmd); err != nil {
			say(answer{"error": err.Error()})
			continue
		}
		out, err := d.run()
		if err != nil {
			out = answer{"error": err.Error()}
		}
		say(out)
	}
	os.Exit(0)
}
