/* One connection brought to a state of the fuzzer's choice, then segments whose every field it chooses, near the
 * numbers that matter, mixed with time, calls of the application and empty packet pools. At the end nothing may be
 * left. */
#include "../tests/rig.h"

struct bytes {
    const uint8_t *p;
    size_t left;
};

static uint8_t next(struct bytes *b)
{
    if (b->left == 0)
        return 0;
    b->left--;
    return *b->p++;
}

/* -128 … 127, as sequence numbers count. */
static uint32_t next_step(struct bytes *b)
{
    uint32_t v = next(b);
    return v < 128 ? v : v - 256;
}

static uint32_t next32(struct bytes *b)
{
    uint32_t v = next(b);
    v = v << 8 | next(b);
    v = v << 8 | next(b);
    return v << 8 | next(b);
}

static void drain(struct rig *r)
{
    while (rig_take(r))
        ;
}

static struct mn_conn *block(struct rig *r)
{
    return mn_conn_get(r->s, r->conn);
}

/* A number near one that matters, or anywhere. */
static uint32_t number(struct bytes *b, uint32_t base, uint32_t other)
{
    uint8_t how = next(b);
    switch (how % 8) {
    case 0:
    case 1:
    case 2:
        return base;
    case 3:
        return base + next_step(b);
    case 4:
        return base + (uint32_t)next(b) * 37;
    case 5:
        return other + next_step(b);
    case 6:
        return base - (uint32_t)next(b) * 301;
    default:
        return next32(b);
    }
}

static void one_segment(struct rig *r, struct bytes *b, struct rig_flow *f)
{
    static uint8_t payload[1400];
    static const uint8_t flags[] = {16, 16, 16, 24, 17, 4, 20, 2, 18, 1, 0, 25, 48, 255, 16, 41};
    const struct mn_conn *c = block(r);
    uint32_t rcv = c != NULL ? c->rcv.nxt : f->them, edge = c != NULL ? c->rcv.edge : f->them;
    uint32_t una = c != NULL ? c->snd.una : f->us, nxt = c != NULL ? c->snd.nxt : f->us;
    struct mn_segment g = rig_segment(f, flags[next(b) % 16], payload, 0);
    uint8_t how = next(b);
    g.seq = number(b, rcv, edge);
    g.ack = number(b, nxt, una);
    g.len = (how & 3) == 0 ? 0 : (how & 3) == 1 ? next(b) : (how & 3) == 2 ? 1100 : 1U + next(b) % 4;
    g.wnd = 65535;
    if ((how & 4) == 0)
        g.wnd = (uint16_t)(next(b) << (how >> 5));
    g.has_ts = (how & 8) != 0 || (c != NULL && c->ts.on && (how & 16) == 0);
    g.tsval = f->tsval + ((how & 8) != 0 ? next_step(b) : 0);
    g.tsecr = c != NULL ? mn_conn_ts_now(r->s, c) - next(b) : 0;
    if ((g.flags & MN_TCP_SYN) != 0) {
        g.mss = (uint16_t)(next(b) * 8);
        g.wscale = (int8_t)(next(b) % 18 - 1);
        g.may_sack = (how & 128) != 0;
    } else if ((how & 128) != 0) {
        uint8_t more = next(b);
        g.ecn = more & 3;
        g.flags |= (uint8_t)(more & (MN_TCP_ECE | MN_TCP_CWR));
        g.sack_count = more >> 2 & 3;
        for (uint8_t i = 0; i < g.sack_count; i++) {
            g.sack[i].first = number(b, una, nxt);
            g.sack[i].end = g.sack[i].first + (uint32_t)next(b) * 19;
        }
    }
    uint8_t pkt[RIG_MTU + 400];
    size_t n = rig_build(r, pkt, &g);
    if (n <= RIG_MTU) {
        static uint8_t slots[16][RIG_MTU];
        static int at;
        at = (at + 1) % 16;
        memcpy(slots[at], pkt, n);
        mn_stack_input(r->s, RIG_PEER, slots[at], n, r->now);
        if ((how & 64) != 0 || at == 15)
            mn_stack_flush(r->s, r->now); /* else: part of a batch */
    }
}

static void act(struct rig *r, struct bytes *b, struct rig_flow *f)
{
    static uint8_t data[5000];
    uint8_t what = next(b);
    if (r->got > RIG_DATA / 2)
        r->got = 0;
    switch (what % 16) {
    case 0:
        mn_stack_flush(r->s, r->now);
        rig_advance(r, (uint64_t)next(b) * MN_MS);
        break;
    case 1:
        r->no_buffer = false; /* or it would be a minute of retries every millisecond */
        mn_stack_flush(r->s, r->now);
        rig_advance(r, (uint64_t)next(b) * MN_SECOND);
        break;
    case 2:
        rig_write(r, data, (size_t)next(b) * 17);
        break;
    case 3:
        r->limit = r->got + (size_t)next(b) * 20;
        mn_tcp_recv_resume(r->s, r->conn, r->now);
        break;
    case 4:
        r->limit = RIG_DATA;
        mn_tcp_recv_resume(r->s, r->conn, r->now);
        break;
    case 5:
        if (next(b) % 4 == 0)
            mn_tcp_shutdown(r->s, r->conn, r->now);
        break;
    case 6:
        if (next(b) % 16 == 0)
            mn_tcp_close(r->s, r->conn, r->now);
        else if (next(b) % 32 == 0)
            mn_tcp_abort(r->s, r->conn, r->now);
        break;
    case 7:
        r->no_buffer = next(b) % 3 == 0;
        break;
    case 8:
        f->tsval += next(b);
        break;
    default:
        one_segment(r, b, f);
        break;
    }
    drain(r);
}

/* Walk into one of the states; the fuzzer goes on from there. */
static struct rig_flow begin(struct rig *r, uint8_t how)
{
    struct rig_flow f;
    bool ts = (how & 16) != 0;
    if (how % 16 == 0)
        return rig_connect(r); /* SYN-SENT */
    if (how % 16 == 1) {
        f = rig_connect(r);
        rig_in(r, rig_segment(&f, MN_TCP_SYN, NULL, 0)); /* SYN-RCVD */
        f.them++;
        drain(r);
        return f;
    }
    struct rig_open open = {.mss = 1240, .wscale = 7, .ts = ts, .sack = true};
    f = how % 2 == 0 ? rig_connected_flow(r, ts) : rig_accept(r, open);
    block(r)->ecn_on = (how & 128) != 0; /* as if the SYNs had said so */
    block(r)->may_sack = (how & 128) != 0 || how % 2 != 0;
    struct mn_segment fin = rig_segment(&f, MN_TCP_FIN | MN_TCP_ACK, NULL, 0);
    struct mn_segment ack = rig_segment(&f, MN_TCP_ACK, NULL, 0);
    ack.ack++;
    switch (how % 16 / 2) {
    case 2:
        mn_tcp_shutdown(r->s, r->conn, r->now); /* FIN-WAIT-1 */
        break;
    case 3:
        mn_tcp_shutdown(r->s, r->conn, r->now);
        rig_in(r, ack); /* FIN-WAIT-2 */
        break;
    case 4:
        rig_in(r, fin); /* CLOSE-WAIT */
        break;
    case 5:
        mn_tcp_shutdown(r->s, r->conn, r->now);
        rig_in(r, fin); /* CLOSING */
        break;
    case 6:
        rig_in(r, fin);
        mn_tcp_shutdown(r->s, r->conn, r->now); /* LAST-ACK */
        break;
    case 7:
        mn_tcp_close(r->s, r->conn, r->now);
        fin.ack++;
        rig_in(r, fin); /* TIME-WAIT */
        break;
    default:
        break;
    }
    drain(r);
    return f;
}

static void check_block(struct rig *r)
{
    const struct mn_conn *c = block(r);
    if (c == NULL || c->state < MN_ESTABLISHED)
        return;
    CHECK(mn_seq_le(c->snd.una, c->snd.nxt));
    CHECK(mn_seq_le(c->snd.nxt, c->snd.end + 1));
    CHECK(mn_conn_used(c) <= c->snd.ring.cap);
    CHECK(mn_conn_unread(c) <= c->rcv.ring.cap);
    CHECK(c->snd.mss > 0 && c->cc.cwnd >= c->cc.mss);
    const struct mn_early *e = &c->rcv.early;
    CHECK(e->count <= MN_EARLY_RANGES && e->untold <= e->newest_count && e->newest_count <= MN_EARLY_NEWEST);
    for (uint16_t i = 0; i < e->count; i++) {
        CHECK(mn_seq_lt(i == 0 ? c->rcv.nxt : e->ranges[i - 1].end, e->ranges[i].first));
        CHECK(mn_seq_lt(e->ranges[i].first, e->ranges[i].end));
        CHECK(e->ranges[i].end - c->rcv.read <= c->rcv.ring.cap);
    }
    for (uint8_t i = 0; i < e->newest_count; i++)
        CHECK(mn_early_find(e, e->newest[i]) != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct rig r;
    struct bytes b = {data, len};
    struct mn_stack_config cfg = {0};
    uint8_t how = next(&b);
    if ((how & 32) != 0)
        cfg.rcvbuf_max = cfg.sndbuf_max = 16384;
    rig_start_with(&r, &cfg);
    r.v6 = (how & 64) != 0;
    struct rig_flow f = begin(&r, how);
    while (b.left > 0) {
        act(&r, &b, &f);
        check_block(&r);
    }
    /* The peer falls silent and the application leaves: everything must come to an end. */
    r.no_buffer = false;
    mn_stack_flush(r.s, r.now);
    drain(&r);
    if (block(&r) != NULL)
        mn_tcp_close(r.s, r.conn, r.now);
    for (int i = 0; i < 400; i++) {
        rig_advance(&r, 5 * MN_SECOND);
        drain(&r);
    }
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 0);
    CHECK_INT(mn_stack_stats(r.s)->ring_bytes, 0);
    rig_stop(&r);
    return 0;
}
