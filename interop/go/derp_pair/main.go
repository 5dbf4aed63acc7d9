// Two stock derphttp clients, each at a relay, for interop/peers/derp_pair.py.
//
// They send packets both ways and compare them to the byte, then one leaves and the other waits to be told; with -stay
// both remain until the second vanishes from the first's relay for another reason, and until they meet again. What
// happens is said in lines of JSON on standard output. The certificates are verified: SSL_CERT_FILE, or -pin.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	limit = 40 * time.Second
	hello = "are you there?"
)

var (
	first   = flag.String("a", "", "HOST:PORT of the first client's relay")
	second  = flag.String("b", "", "of the second's; empty: the same")
	pin     = flag.String("pin", "", "sha256-raw:… of a self-signed certificate")
	version = flag.String("tls", "", "1.2 or 1.3 and no other; empty: what Go likes")
	packets = flag.Int("packets", 50, "each way")
	size    = flag.Int("size", 1280, "bytes of each")
	stay    = flag.Bool("stay", false, "nobody leaves")
	name    = flag.String("key", "", "privkey:… of the first client; empty: a fresh one")

	versions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
)

type end struct {
	client *derphttp.Client
	public key.NodePublic
	heard  chan derp.ReceivedMessage
}

func say(event string, about map[string]any) {
	about["event"] = event
	json.NewEncoder(os.Stdout).Encode(about)
}

func fail(what string, err error) {
	say("failed", map[string]any{"what": what, "error": fmt.Sprint(err)})
	os.Exit(1)
}

func region(address string) *tailcfg.DERPRegion {
	host, text, err := net.SplitHostPort(address)
	port, bad := strconv.Atoi(text)
	if err != nil || bad != nil {
		fail("address", fmt.Errorf("%q is not HOST:PORT", address))
	}
	node := &tailcfg.DERPNode{Name: "900a", RegionID: 900, HostName: host, IPv4: host, IPv6: "none", DERPPort: port,
		CertName: *pin}
	return &tailcfg.DERPRegion{RegionID: 900, RegionCode: "lab", Nodes: []*tailcfg.DERPNode{node}}
}

func connect(address string, private key.NodePrivate) *end {
	quiet := func(string, ...any) {}
	get := func() *tailcfg.DERPRegion { return region(address) }
	e := &end{client: derphttp.NewRegionClient(private, quiet, netmon.NewStatic(), get), public: private.Public(),
		heard: make(chan derp.ReceivedMessage, 1024)}
	if wanted, ok := versions[*version]; ok {
		e.client.TLSConfig = &tls.Config{MinVersion: wanted, MaxVersion: wanted}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := e.client.Connect(ctx); err != nil {
		fail("connect", err)
	}
	if m, err := e.client.Recv(); err != nil {
		fail("login", err)
	} else if _, ok := m.(derp.ServerInfoMessage); !ok {
		fail("login", fmt.Errorf("first message is %T", m))
	}
	go e.listen()
	return e
}

// listen goes on over losses: the client dials again with the next call.
func (e *end) listen() {
	for {
		m, err := e.client.Recv()
		if err == derphttp.ErrClientClosed {
			return
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if p, ok := m.(derp.ReceivedPacket); ok { // its bytes are the client's own
			m = derp.ReceivedPacket{Source: p.Source, Data: bytes.Clone(p.Data)}
		}
		e.heard <- m
	}
}

// meet sends until both directions carry: a relay that has not heard of a client yet drops what is for it.
func meet(a, b *end) {
	over := time.Now().Add(limit)
	for _, way := range [][2]*end{{a, b}, {b, a}} {
		for pass(way[0], way[1], []byte(hello), 200*time.Millisecond) != nil {
			if time.Now().After(over) {
				fail("meet", fmt.Errorf("nothing arrives"))
			}
		}
	}
}

// pass sends one packet and waits for it at the other end.
func pass(from, to *end, packet []byte, patience time.Duration) error {
	if err := from.client.Send(to.public, packet); err != nil {
		return err
	}
	over := time.After(patience)
	for {
		select {
		case m := <-to.heard:
			p, ok := m.(derp.ReceivedPacket)
			if !ok {
				continue
			}
			if len(packet) != len(hello) && string(p.Data) == hello {
				continue // late
			}
			if p.Source != from.public || !bytes.Equal(p.Data, packet) {
				return fmt.Errorf("%d bytes of %v instead of %d of %v", len(p.Data), p.Source, len(packet), from.public)
			}
			return nil
		case <-over:
			return fmt.Errorf("a packet of %d bytes did not arrive", len(packet))
		}
	}
}

func exchange(a, b *end) {
	for i := range *packets {
		packet := make([]byte, *size+i%7)
		rand.Read(packet)
		for _, way := range [][2]*end{{a, b}, {b, a}} {
			if err := pass(way[0], way[1], packet, limit); err != nil {
				fail("exchange", err)
			}
		}
	}
}

func tlsOf(e *end) string {
	state, ok := e.client.TLSConnectionState()
	if !ok {
		return ""
	}
	return tls.VersionName(state.Version)
}

// waitGone returns how long the first took to be told that the second is gone.
func waitGone(a, b *end) (derp.PeerGoneReasonType, float64) {
	began := time.Now()
	over := time.After(2 * limit)
	for {
		select {
		case m := <-a.heard:
			if gone, ok := m.(derp.PeerGoneMessage); ok && gone.Peer == b.public {
				return gone.Reason, time.Since(began).Seconds()
			}
		case <-over:
			fail("gone", fmt.Errorf("nobody said that the other end is gone"))
		}
	}
}

func main() {
	flag.Parse()
	if *second == "" {
		*second = *first
	}
	private := key.NewNode()
	if *name != "" {
		if err := private.UnmarshalText([]byte(*name)); err != nil {
			fail("key", err)
		}
	}
	a, b := connect(*first, private), connect(*second, key.NewNode())
	meet(a, b)
	exchange(a, b)
	say("exchanged", map[string]any{"packets": 2 * *packets, "tls": []string{tlsOf(a), tlsOf(b)},
		"relays": []string{a.client.ServerPublicKey().String(), b.client.ServerPublicKey().String()}})
	if !*stay {
		b.client.Close()
	}
	reason, after := waitGone(a, b)
	say("gone", map[string]any{"reason": int(reason), "after_s": after})
	if !*stay {
		return
	}
	meet(a, b)
	say("again", map[string]any{})
}
