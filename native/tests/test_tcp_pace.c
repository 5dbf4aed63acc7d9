/* The pacing gate: bulk leaves in small bursts spread over the round trip; small writes, small windows and fast paths
 * never wait. */
#include "rig.h"

enum {
    A = MN_TCP_ACK,
    MSS = 1240,
    RTT_MS = 40,
};

static uint8_t g_bytes[400000];

static struct mn_conn *block(struct rig *r)
{
    return mn_conn_get(r->s, r->conn);
}

static uint32_t drain(struct rig *r)
{
    uint32_t n = 0;
    while (rig_take(r))
        n += r->seen.len;
    return n;
}

static void ack(struct rig *r, const struct rig_flow *f)
{
    rig_in(r, rig_segment(f, A, NULL, 0));
}

/* A connection whose window is `segments`, nothing out, on a path of rtt_ns. */
static struct rig_flow start(struct rig *r, uint32_t segments, uint64_t rtt_ns)
{
    rig_start(r);
    struct rig_flow f = rig_accept(r, (struct rig_open){.mss = MSS, .sack = true, .wscale = 7});
    struct mn_conn *c = block(r);
    c->rtt = (struct mn_rtt){.rto_ns = MN_RTO_INITIAL_NS};
    mn_rtt_take(&c->rtt, rtt_ns);
    c->cc.path.min_ns = rtt_ns;
    c->cc.cwnd = segments * MSS;
    return f;
}

static void test_bulk_is_spread(void)
{
    struct rig r;
    start(&r, 50, RTT_MS * MN_MS);
    rig_write(&r, g_bytes, 50 * MSS);
    uint32_t first = drain(&r), total = first, most = 0, bursts = 0;
    CHECK_INT(first, 10 * MSS); /* what any path takes */
    for (int i = 0; i < RTT_MS; i++) {
        rig_advance(&r, MN_MS);
        uint32_t n = drain(&r);
        most = n > most ? n : most;
        bursts += n > 0;
        total += n;
    }
    /* Twice the window per round trip in slow start: 2.5 segments a millisecond. */
    CHECK_INT(total, 50 * MSS);
    CHECK(most <= 4 * MSS);
    CHECK(bursts >= 12);
    rig_stop(&r);
}

static void test_small_writes_do_not_wait(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 50, RTT_MS * MN_MS);
    rig_write(&r, g_bytes, 10 * MSS);
    CHECK_INT(drain(&r), 10 * MSS);
    rig_write(&r, g_bytes, 100); /* the gate is shut for a while, but not for this */
    CHECK_INT(drain(&r), 100);
    rig_write(&r, g_bytes, 100);
    CHECK_INT(drain(&r), 100);
    f.us += 10 * MSS + 200;
    ack(&r, &f);
    rig_none(&r);
    rig_stop(&r);
}

static void test_fast_paths_are_not_paced(void)
{
    static const uint64_t rtts[] = {1, 1000, 50000, MN_MS};
    for (int i = 0; i < 4; i++) {
        struct rig r;
        start(&r, 50, rtts[i]);
        rig_write(&r, g_bytes, 50 * MSS);
        CHECK_INT(drain(&r), 50 * MSS);
        rig_stop(&r);
    }
}

/* A burst is as long as a millisecond lasts, and the sum is right whatever the timers' grain. */
static void test_fast_and_long(void)
{
    struct rig r;
    start(&r, 40000, RTT_MS * MN_MS);
    uint32_t total = 0, written = 0;
    rig_write(&r, g_bytes, 8 * MSS);
    total = drain(&r); /* some thousand segments a millisecond would be allowed: more than a turn sends */
    CHECK_INT(total, 8 * MSS);
    for (int i = 0; i < 40; i++) {
        written += (uint32_t)rig_write(&r, g_bytes, 20 * MSS);
        rig_advance(&r, MN_MS);
        total += drain(&r);
    }
    CHECK_INT(total, written + 8 * MSS);
    rig_stop(&r);
}

int main(void)
{
    RUN(test_bulk_is_spread);
    RUN(test_small_writes_do_not_wait);
    RUN(test_fast_paths_are_not_paced);
    RUN(test_fast_and_long);
    return 0;
}
