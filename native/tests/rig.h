/* One stack under a microscope: segments are put in by hand, what leaves is read back, time moves when told.
 * The other side is "the peer": 100.64.0.2 (or its IPv6 twin) with whatever ports the test names. */
#ifndef MN_TESTS_RIG_H
#define MN_TESTS_RIG_H

#include <errno.h>

#include "../tcp/internal.h"
#include "check.h"

enum {
    RIG_OUT = 8192,
    RIG_MTU = 1280,
    RIG_PEER = 7,
    RIG_PORT = 80,
    RIG_PEER_PORT = 5000,
    RIG_DATA = 1 << 20,
};

struct rig_packet {
    uint16_t len;
    uint8_t data[RIG_MTU];
};

struct rig {
    struct mn_stack *s;
    uint64_t now, rng;
    struct mn_ip own4, own6, peer4, peer6;
    bool v6;
    struct rig_packet *out;
    uint32_t out_head, out_count;
    bool no_buffer, no_route;
    /* upcalls as they came */
    int accepted, connected, failed, closed, fins, writable, pings, udps, udp_errors, kernels;
    uint32_t conn, listener, udp_id;
    int err;
    uint8_t *data;
    size_t got, limit; /* limit: bytes the application takes at all */
    struct mn_ep udp_from;
    uint8_t udp_data[4 * RIG_MTU]; /* also of datagrams that came in pieces */
    size_t udp_len;
    uint16_t ping_id, ping_seq;
    bool close_on_data, abort_on_accept, is_full; /* is_full: the application accepts no more */
    struct mn_segment seen;                       /* the last segment read back */
    struct mn_packet seen_packet;
    uint8_t disco_key[32];
    unsigned disco_keys;
    uint8_t sent[RIG_MTU];
};

static uint8_t *rig_out_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct rig *r = ctx;
    (void)dst;
    CHECK(max <= RIG_MTU);
    if (r->no_buffer || r->no_route) {
        *err = r->no_route ? EHOSTUNREACH : ENOBUFS;
        return NULL;
    }
    CHECK(r->out_count < RIG_OUT);
    return r->out[(r->out_head + r->out_count) % RIG_OUT].data;
}

static void rig_out_commit(void *ctx, size_t len)
{
    struct rig *r = ctx;
    CHECK(len > 0 && len <= RIG_MTU);
    r->out[(r->out_head + r->out_count) % RIG_OUT].len = (uint16_t)len;
    r->out_count++;
}

static void rig_random(void *ctx, uint8_t *p, size_t n)
{
    test_random_bytes(&((struct rig *)ctx)->rng, p, n);
}

static uint32_t rig_route(void *ctx, const struct mn_ip *dst)
{
    struct rig *r = ctx;
    return mn_ip_equal(dst, &r->peer4) || mn_ip_equal(dst, &r->peer6) ? RIG_PEER : MN_PEER_NONE;
}

static bool rig_may_accept(void *ctx, uint32_t listener)
{
    struct rig *r = ctx;
    CHECK_INT(listener, r->listener);
    return !r->is_full;
}

static void rig_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    struct rig *r = ctx;
    CHECK_INT(listener, r->listener);
    r->accepted++;
    r->conn = conn;
    if (r->abort_on_accept)
        mn_tcp_abort(r->s, conn, r->now);
}

static void rig_connected(void *ctx, uint32_t conn)
{
    struct rig *r = ctx;
    CHECK_INT(conn, r->conn);
    r->connected++;
}

static void rig_failed(void *ctx, uint32_t conn, int err)
{
    struct rig *r = ctx;
    CHECK_INT(conn, r->conn);
    r->failed++;
    r->err = err;
}

static size_t rig_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    struct rig *r = ctx;
    size_t taken = 0;
    CHECK_INT(conn, r->conn);
    for (int i = 0; i < n; i++) {
        size_t k = iov[i].iov_len;
        if (k > r->limit - r->got)
            k = r->limit - r->got;
        memcpy(r->data + r->got, iov[i].iov_base, k);
        r->got += k;
        taken += k;
    }
    if (r->close_on_data)
        mn_tcp_close(r->s, conn, r->now);
    return taken;
}

static void rig_peer_fin(void *ctx, uint32_t conn)
{
    struct rig *r = ctx;
    CHECK_INT(conn, r->conn);
    r->fins++;
}

static void rig_writable(void *ctx, uint32_t conn)
{
    struct rig *r = ctx;
    CHECK_INT(conn, r->conn);
    r->writable++;
}

static void rig_closed(void *ctx, uint32_t conn, int err)
{
    struct rig *r = ctx;
    CHECK_INT(conn, r->conn);
    r->closed++;
    r->err = err;
}

static void rig_udp_deliver(void *ctx, uint32_t udp, const struct mn_ep *from, const struct mn_ep *to,
                            const uint8_t *data, size_t len)
{
    struct rig *r = ctx;
    (void)to;
    CHECK(len <= sizeof r->udp_data);
    r->udps++;
    r->udp_id = udp;
    r->udp_from = *from;
    r->udp_len = len;
    memcpy(r->udp_data, data, len);
}

static void rig_udp_error(void *ctx, uint32_t udp, const struct mn_ep *to, int err)
{
    struct rig *r = ctx;
    (void)to;
    r->udp_errors++;
    r->udp_id = udp;
    r->err = err;
}

static void rig_to_kernel(void *ctx, const struct mn_packet *p)
{
    struct rig *r = ctx;
    r->kernels++;
    CHECK(p->ip == r->sent); /* as it came, not a copy */
}

static void rig_disco_key(void *ctx, uint32_t peer, const uint8_t key[32])
{
    struct rig *r = ctx;
    CHECK_INT(peer, RIG_PEER);
    memcpy(r->disco_key, key, sizeof r->disco_key);
    r->disco_keys++;
}

static void rig_ping_reply(void *ctx, uint16_t id, uint16_t seq, const struct mn_ip *from, const uint8_t *payload,
                           size_t len)
{
    struct rig *r = ctx;
    (void)from, (void)payload, (void)len;
    r->pings++;
    r->ping_id = id;
    r->ping_seq = seq;
}

/* ---- filter blobs by hand ---- */

struct rig_rule {
    uint8_t proto;         /* 0: TCP, UDP, ICMP, ICMPv6 */
    const char *src, *dst; /* "4" or "6": everything of the family; or hex of 16 bytes, 128 bits */
    uint16_t first, last;
};

static inline size_t rig_prefix(uint8_t *p, const char *text)
{
    memset(p, 0, 17);
    if (strcmp(text, "4") == 0) {
        memcpy(p, mn_ip4_prefix, 12);
        p[16] = 96;
    } else if (strcmp(text, "6") != 0) {
        CHECK_INT(test_hex(text, p, 16), 16);
        p[16] = 128;
    }
    return 17;
}

static inline size_t rig_blob(uint8_t *out, const struct rig_rule *rules, int n, const char *jailed)
{
    size_t at = 0;
    memcpy(out, "MNF1", 4);
    memset(out + 4, 0, 4);
    out[4] = (uint8_t)n;
    at = 8;
    for (int i = 0; i < n; i++) {
        static const uint8_t usual[] = {6, 17, 1, 58};
        uint8_t count = rules[i].proto == 0 ? 4 : 1;
        const uint8_t head[] = {count, 1, 0, 1, 0};
        memcpy(out + at, head, 5);
        at += 5;
        memcpy(out + at, rules[i].proto == 0 ? usual : &rules[i].proto, count);
        at += count;
        at += rig_prefix(out + at, rules[i].src);
        at += rig_prefix(out + at, rules[i].dst);
        out[at++] = (uint8_t)rules[i].first;
        out[at++] = (uint8_t)(rules[i].first >> 8);
        out[at++] = (uint8_t)rules[i].last;
        out[at++] = (uint8_t)(rules[i].last >> 8);
    }
    memset(out + at, 0, 4);
    at += 4;
    if (jailed != NULL) {
        out[at - 4] = 1;
        at += rig_prefix(out + at, jailed);
    }
    return at;
}

static inline void rig_filter(struct rig *r, const struct rig_rule *rules, int n)
{
    uint8_t blob[1024];
    size_t len = rig_blob(blob, rules, n, NULL);
    CHECK_INT(mn_stack_set_filter(r->s, blob, len), 0);
}

static inline void rig_allow_all(struct rig *r)
{
    const struct rig_rule all[] = {{0, "4", "4", 0, 65535}, {0, "6", "6", 0, 65535}};
    rig_filter(r, all, 2);
}

static inline void rig_deny_all(struct rig *r)
{
    rig_filter(r, NULL, 0);
}

/* ---- life ---- */

static inline void rig_start_with(struct rig *r, const struct mn_stack_config *cfg)
{
    memset(r, 0, sizeof *r);
    r->rng = 42;
    r->now = 100 * MN_SECOND;
    r->own4 = mn_ip_from4((const uint8_t[4]){100, 64, 0, 1});
    r->peer4 = mn_ip_from4((const uint8_t[4]){100, 64, 0, 2});
    r->own6 = mn_ip_from6((const uint8_t[16]){0xfd, 0x7a, [15] = 1});
    r->peer6 = mn_ip_from6((const uint8_t[16]){0xfd, 0x7a, [15] = 2});
#ifdef MN_FUZZING /* thousands of rigs a second: the large pieces are kept */
    static struct rig_packet out[RIG_OUT];
    static uint8_t data[RIG_DATA];
    r->out = out;
    r->data = data;
#else
    r->out = malloc(RIG_OUT * sizeof *r->out);
    r->data = malloc(RIG_DATA);
#endif
    r->limit = RIG_DATA;
    struct mn_stack_ops ops = {
        .ctx = r,
        .random = rig_random,
        .out_begin = rig_out_begin,
        .out_commit = rig_out_commit,
        .route = rig_route,
        .tcp_may_accept = rig_may_accept,
        .tcp_accepted = rig_accepted,
        .tcp_connected = rig_connected,
        .tcp_failed = rig_failed,
        .tcp_deliver = rig_deliver,
        .tcp_peer_fin = rig_peer_fin,
        .tcp_writable = rig_writable,
        .tcp_closed = rig_closed,
        .udp_deliver = rig_udp_deliver,
        .udp_error = rig_udp_error,
        .ping_reply = rig_ping_reply,
        .disco_key = rig_disco_key,
        .to_kernel = rig_to_kernel,
    };
    struct mn_stack_config filled = cfg != NULL ? *cfg : (struct mn_stack_config){0};
    filled.cc = filled.cc != NULL ? filled.cc : "cubic"; /* every loss has its answer */
    r->s = mn_stack_create(&ops, &filled, r->now);
    CHECK(r->s != NULL && r->out != NULL && r->data != NULL);
    struct mn_ip own[2] = {r->own4, r->own6};
    CHECK_INT(mn_stack_set_addresses(r->s, own, 2), 0);
    rig_allow_all(r);
}

static inline void rig_start(struct rig *r)
{
    rig_start_with(r, NULL);
}

/* Ends the test: nothing may be left unread, and destroying must free all (the sanitizer looks). */
static inline void rig_stop(struct rig *r)
{
    CHECK_INT(r->out_count, 0);
    mn_stack_destroy(r->s);
#ifndef MN_FUZZING
    free(r->out);
    free(r->data);
#endif
}

/* Move time, firing every deadline on the way at its own moment. */
static inline void rig_advance(struct rig *r, uint64_t ns)
{
    uint64_t until = r->now + ns;
    for (;;) {
        uint64_t at = mn_stack_next_deadline(r->s);
        if (at > until)
            break;
        r->now = at > r->now ? at : r->now;
        mn_stack_on_deadline(r->s, r->now);
    }
    r->now = until;
}

/* ---- packets ---- */

static inline void rig_ip_in(struct rig *r, const uint8_t *pkt, size_t len)
{
    memcpy(r->sent, pkt, len);
    mn_stack_input(r->s, RIG_PEER, r->sent, len, r->now);
    mn_stack_flush(r->s, r->now);
}

/* Write the segment g with its data into out; returns the length. */
static inline size_t rig_build(struct rig *r, uint8_t *out, const struct mn_segment *g)
{
    struct mn_ep from = {.ip = r->v6 ? r->peer6 : r->peer4, .port = g->sport != 0 ? g->sport : RIG_PEER_PORT};
    struct mn_ep to = {.ip = r->v6 ? r->own6 : r->own4, .port = g->dport != 0 ? g->dport : RIG_PORT};
    size_t n = mn_segment_write(out, &from, &to, g);
    if (g->len == 0)
        return n;
    size_t ip = r->v6 ? MN_IP6_HEADER : MN_IP4_HEADER, tcp = n - ip + g->len;
    uint8_t header[MN_IP6_HEADER];
    memcpy(out + n, g->data, g->len);
    mn_packet_write_header(header, &from.ip, &to.ip, MN_PROTO_TCP, tcp);
    memcpy(out, header, ip);
    mn_packet_set_ecn(out, g->ecn);
    mn_store16(out + ip + 16, 0);
    mn_csum_store(out + ip + 16, mn_csum_add(mn_csum_pseudo(&from.ip, &to.ip, MN_PROTO_TCP, tcp), out + ip, tcp));
    return n + g->len;
}

/* As if a peer of another number had sent it. */
static inline void rig_in_from(struct rig *r, uint32_t peer, struct mn_segment g)
{
    uint8_t pkt[RIG_MTU];
    mn_stack_input(r->s, peer, pkt, rig_build(r, pkt, &g), r->now);
    mn_stack_flush(r->s, r->now);
}

static inline void rig_in(struct rig *r, struct mn_segment g)
{
    uint8_t pkt[RIG_MTU];
    rig_ip_in(r, pkt, rig_build(r, pkt, &g));
}

/* A batch of segments before one flush. */
static inline void rig_batch(struct rig *r, const struct mn_segment *g, int n)
{
    uint8_t(*pkts)[RIG_MTU] = malloc((size_t)n * RIG_MTU);
    CHECK(pkts != NULL);
    for (int i = 0; i < n; i++)
        mn_stack_input(r->s, RIG_PEER, pkts[i], rig_build(r, pkts[i], &g[i]), r->now);
    mn_stack_flush(r->s, r->now);
    free(pkts);
}

static inline bool rig_take(struct rig *r)
{
    if (r->out_count == 0)
        return false;
    struct rig_packet *p = &r->out[r->out_head];
    CHECK_INT(mn_packet_parse(&r->seen_packet, p->data, p->len), 0);
    if (r->seen_packet.proto == MN_PROTO_TCP)
        CHECK_INT(mn_segment_parse(&r->seen, &r->seen_packet), 0);
    r->out_head = (r->out_head + 1) % RIG_OUT;
    r->out_count--;
    return true;
}

static inline void rig_none(struct rig *r)
{
    if (rig_take(r)) {
        fprintf(stderr, "unexpected: flags %x seq %u ack %u len %u\n", r->seen.flags, r->seen.seq, r->seen.ack,
                r->seen.len);
        CHECK(false);
    }
}

#define RIG_EXPECT(r, f, s, a, n)                                                                                      \
    do {                                                                                                               \
        CHECK(rig_take(r));                                                                                            \
        CHECK_INT((r)->seen.flags & ~MN_TCP_PSH, f);                                                                   \
        CHECK_INT((r)->seen.seq, s);                                                                                   \
        if (((f)&MN_TCP_ACK) != 0)                                                                                     \
            CHECK_INT((r)->seen.ack, a);                                                                               \
        CHECK_INT((r)->seen.len, n);                                                                                   \
    } while (0)

/* A connection as both sides know it: the next numbers of each. */
struct rig_flow {
    uint32_t us, them; /* next sequence number */
    uint16_t port;     /* ours */
    uint16_t peer_port;
    bool ts;
    uint32_t tsval, tsecr;
};

static inline struct mn_segment rig_segment(const struct rig_flow *f, uint8_t flags, const void *data, uint32_t len)
{
    return (struct mn_segment){.sport = f->peer_port,
                               .dport = f->port,
                               .seq = f->them,
                               .ack = f->us,
                               .flags = flags,
                               .wnd = 65535,
                               .wscale = -1,
                               .data = data,
                               .len = len,
                               .has_ts = f->ts,
                               .tsval = f->tsval,
                               .tsecr = f->tsecr};
}

struct rig_open {
    uint16_t mss;
    int8_t wscale; /* 0 in a test means: absent; use 1.. */
    bool ts;
    uint16_t wnd;
    bool sack;
};

/* The peer opens: handshake done, tcp_accepted came. */
static inline struct rig_flow rig_accept(struct rig *r, struct rig_open o)
{
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = RIG_PEER_PORT, .ts = o.ts, .tsval = 500};
    if (r->listener == 0)
        CHECK_INT(mn_tcp_listen(r->s, NULL, RIG_PORT, 0, &r->listener), 0);
    struct mn_segment g = rig_segment(&f, MN_TCP_SYN, NULL, 0);
    g.mss = o.mss;
    g.wscale = o.wscale == 0 ? -1 : o.wscale;
    g.may_sack = o.sack;
    g.ack = 0;
    if (o.wnd != 0)
        g.wnd = o.wnd;
    rig_in(r, g);
    RIG_EXPECT(r, MN_TCP_SYN | MN_TCP_ACK, r->seen.seq, 1001, 0);
    f.us = r->seen.seq + 1;
    f.them = 1001;
    f.tsecr = r->seen.tsval;
    g = rig_segment(&f, MN_TCP_ACK, NULL, 0);
    if (o.wnd != 0)
        g.wnd = o.wnd;
    int before = r->accepted;
    rig_in(r, g);
    CHECK_INT(r->accepted, before + 1);
    return f;
}

/* We open: SYN out, nothing answered yet. */
static inline struct rig_flow rig_connect(struct rig *r)
{
    struct mn_ep to = {.ip = r->v6 ? r->peer6 : r->peer4, .port = RIG_PEER_PORT};
    struct rig_flow f = {.them = 9000, .peer_port = RIG_PEER_PORT};
    CHECK_INT(mn_tcp_connect(r->s, &to, NULL, &r->conn, r->now), 0);
    CHECK(rig_take(r));
    CHECK_INT(r->seen.flags, MN_TCP_SYN);
    f.port = r->seen.sport;
    f.us = r->seen.seq + 1;
    return f;
}

/* We open and the peer agrees. */
static inline struct rig_flow rig_connected_flow(struct rig *r, bool ts)
{
    struct rig_flow f = rig_connect(r);
    f.ts = ts;
    f.tsval = 500;
    f.tsecr = r->seen.tsval;
    struct mn_segment g = rig_segment(&f, MN_TCP_SYN | MN_TCP_ACK, NULL, 0);
    g.mss = 1240;
    rig_in(r, g);
    f.them++;
    CHECK_INT(r->connected, 1);
    RIG_EXPECT(r, MN_TCP_ACK, f.us, f.them, 0);
    return f;
}

static inline size_t rig_write(struct rig *r, const uint8_t *data, size_t n)
{
    size_t done = 0, room;
    uint8_t *p;
    while (done < n && (p = mn_tcp_send_reserve(r->s, r->conn, &room)) != NULL) {
        size_t k = n - done < room ? n - done : room;
        memcpy(p, data + done, k);
        mn_tcp_send_commit(r->s, r->conn, k, r->now);
        done += k;
    }
    return done;
}

static inline int rig_state(struct rig *r)
{
    struct mn_tcp_info info;
    return mn_tcp_info(r->s, r->conn, &info) == 0 ? info.state : -1;
}

#endif
