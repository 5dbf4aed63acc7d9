/* Selective acknowledgement by the receiver: negotiation, blocks in ACKs, what came twice (T-06; RFC 2018, RFC 2883).
 */
#include "rig.h"

enum {
    A = MN_TCP_ACK,
};

static uint8_t g_bytes[64 << 10];

static void drain(struct rig *r)
{
    while (rig_take(r))
        ;
}

static struct mn_conn *conn_of(const struct rig *r)
{
    return mn_conn_get(r->s, r->conn);
}

static void test_negotiation(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    CHECK(r.seen.may_sack); /* our SYN permits */
    struct mn_segment g = rig_segment(&f, MN_TCP_SYN | A, NULL, 0);
    g.may_sack = true;
    rig_in(&r, g);
    CHECK(conn_of(&r)->may_sack);
    drain(&r);
    CHECK(!r.seen.may_sack); /* on SYNs only */
    rig_stop(&r);

    rig_start(&r);
    f = rig_connected_flow(&r, false); /* a SYN-ACK without */
    CHECK(!conn_of(&r)->may_sack);
    rig_stop(&r);

    for (int sack = 0; sack < 2; sack++) {
        rig_start(&r);
        CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
        f = (struct rig_flow){.them = 1000, .port = RIG_PORT, .peer_port = RIG_PEER_PORT};
        g = rig_segment(&f, MN_TCP_SYN, NULL, 0);
        g.may_sack = sack != 0;
        rig_in(&r, g);
        CHECK(rig_take(&r));
        CHECK_INT(r.seen.may_sack, sack); /* the SYN-ACK permits what the SYN did */
        rig_advance(&r, MN_SECOND);       /* and so does its retransmission */
        CHECK(rig_take(&r));
        CHECK_INT(r.seen.may_sack, sack);
        f.us = r.seen.seq + 1;
        f.them++;
        rig_in(&r, rig_segment(&f, A, NULL, 0));
        CHECK_INT(r.accepted, 1);
        CHECK_INT(conn_of(&r)->may_sack, sack);
        rig_stop(&r);
    }
}

static void test_simultaneous_open_permits(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    struct mn_segment g = rig_segment(&f, MN_TCP_SYN, NULL, 0);
    g.ack = 0;
    g.may_sack = true;
    rig_in(&r, g);
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.flags, MN_TCP_SYN | A);
    CHECK(r.seen.may_sack);
    CHECK(conn_of(&r)->may_sack);
    rig_stop(&r);
}

#define EXPECT_BLOCK(r, i, base, a, b)                                                                                 \
    do {                                                                                                               \
        CHECK((i) < (r)->seen.sack_count);                                                                             \
        CHECK_INT((r)->seen.sack[i].first - (base), a);                                                                \
        CHECK_INT((r)->seen.sack[i].end - (base), b);                                                                  \
    } while (0)

static void put(struct rig *r, struct rig_flow f, uint32_t base, uint32_t at, uint32_t n)
{
    f.them = base + at;
    rig_in(r, rig_segment(&f, A, g_bytes + at, n));
}

static void test_blocks(bool ts)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .sack = true, .ts = ts});
    uint32_t base = f.them;
    for (uint32_t i = 0; i < 5; i++) {
        put(&r, f, base, 1000 + 2000 * i, 500);
        RIG_EXPECT(&r, A, f.us, base, 0);
        uint32_t most = ts ? 3 : 4;
        CHECK_INT(r.seen.sack_count, i + 1 < most ? i + 1 : most);
        CHECK_INT(r.seen.has_ts, ts);
        for (uint32_t k = 0; k < r.seen.sack_count; k++) /* newest first, then backwards */
            EXPECT_BLOCK(&r, k, base, 1000 + 2000 * (i - k), 1500 + 2000 * (i - k));
    }
    put(&r, f, base, 0, 1000); /* the first hole is filled */
    RIG_EXPECT(&r, A, f.us, base + 1500, 0);
    EXPECT_BLOCK(&r, 0, base, 9000, 9500);
    for (uint32_t at = 1500; at < 9500; at += 1000) /* and all others */
        put(&r, f, base, at, 1000);
    drain(&r);
    CHECK_INT(r.seen.ack, base + 9500);
    CHECK_INT(conn_of(&r)->rcv.early.count, 0);
    CHECK_INT(r.got, 9500);
    CHECK(memcmp(r.data, g_bytes, 9500) == 0);
    rig_stop(&r);
}

static void test_blocks_plain(void)
{
    test_blocks(false);
}

static void test_blocks_beside_timestamps(void)
{
    test_blocks(true);
}

static void test_twice_below_the_ack(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .sack = true});
    uint32_t base = f.them;
    put(&r, f, base, 0, 1000);
    put(&r, f, base, 2000, 500);
    drain(&r);
    put(&r, f, base, 0, 1000); /* wholly known: it lies before the window */
    RIG_EXPECT(&r, A, f.us, base + 1000, 0);
    EXPECT_BLOCK(&r, 0, base, 0, 1000);
    EXPECT_BLOCK(&r, 1, base, 2000, 2500);
    rig_none(&r);
    put(&r, f, base, 500, 1000); /* half of it is known */
    RIG_EXPECT(&r, A, f.us, base + 1500, 0);
    EXPECT_BLOCK(&r, 0, base, 500, 1000);
    EXPECT_BLOCK(&r, 1, base, 2000, 2500);
    rig_none(&r);
    CHECK_INT(r.got, 1500);
    rig_stop(&r);
}

static void test_twice_within_a_block(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .sack = true});
    uint32_t base = f.them;
    put(&r, f, base, 2000, 1000);
    put(&r, f, base, 4000, 1000);
    drain(&r);
    put(&r, f, base, 2500, 500);
    CHECK(rig_take(&r));
    EXPECT_BLOCK(&r, 0, base, 2500, 3000);
    EXPECT_BLOCK(&r, 1, base, 2000, 3000);
    EXPECT_BLOCK(&r, 2, base, 4000, 5000);
    drain(&r);
    rig_stop(&r);
}

/* Both reports of a batch arrive: two that do not touch need an ACK each. */
static void test_two_duplicates_in_a_batch(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .sack = true});
    uint32_t base = f.them;
    put(&r, f, base, 0, 1240);
    put(&r, f, base, 1240, 1240);
    put(&r, f, base, 2480, 1240);
    drain(&r);
    struct mn_segment g[2];
    f.them = base;
    g[0] = rig_segment(&f, A, g_bytes, 1240);
    f.them = base + 2480;
    g[1] = rig_segment(&f, A, g_bytes + 2480, 1240);
    rig_batch(&r, g, 2);
    CHECK(rig_take(&r));
    EXPECT_BLOCK(&r, 0, base, 0, 1240);
    CHECK(rig_take(&r));
    EXPECT_BLOCK(&r, 0, base, 2480, 3720);
    rig_none(&r);
    rig_stop(&r);
}

/* Data that leaves in the same turn does not swallow the report. */
static void test_report_leaves_beside_data(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .sack = true});
    uint32_t base = f.them;
    uint8_t pkt[RIG_MTU];
    f.them = base + 1000;
    struct mn_segment g = rig_segment(&f, A, g_bytes + 1000, 500);
    mn_stack_input(r.s, RIG_PEER, pkt, rig_build(&r, pkt, &g), r.now);
    CHECK_INT(rig_write(&r, g_bytes, 100), 100);
    mn_stack_flush(r.s, r.now);
    RIG_EXPECT(&r, A, f.us, base, 100);
    RIG_EXPECT(&r, A, f.us + 100, base, 0);
    EXPECT_BLOCK(&r, 0, base, 1000, 1500);
    rig_none(&r);
    rig_stop(&r);
}

/* A batch of early segments is one ACK as long as that one can name every range that changed. */
static void test_a_batch_is_told_at_once(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .sack = true, .ts = true});
    uint32_t base = f.them;
    struct mn_segment g[12];
    for (uint32_t i = 0; i < 12; i++) { /* one hole, then all in a row */
        f.them = base + 1000 + i * 500;
        g[i] = rig_segment(&f, A, g_bytes + 1000 + i * 500, 500);
    }
    rig_batch(&r, g, 12);
    RIG_EXPECT(&r, A, f.us, base, 0);
    CHECK_INT(r.seen.sack_count, 1);
    EXPECT_BLOCK(&r, 0, base, 1000, 7000);
    rig_none(&r);
    for (uint32_t i = 0; i < 7; i++) { /* a hole before each: seven ranges, three to an ACK */
        f.them = base + 8000 + i * 1000;
        g[i] = rig_segment(&f, A, g_bytes + 8000 + i * 1000, 500);
    }
    rig_batch(&r, g, 7);
    uint32_t told = 0;
    for (int i = 0; i < 3; i++) {
        CHECK(rig_take(&r));
        for (uint32_t k = 0; k < r.seen.sack_count; k++) {
            uint32_t at = r.seen.sack[k].first - base;
            CHECK_INT(r.seen.sack[k].end - base, at == 1000 ? 7000 : at + 500);
            if (at >= 8000)
                told |= 1U << (at - 8000) / 1000;
        }
    }
    CHECK_INT(told, 127);
    rig_none(&r);
    rig_stop(&r);
}

/* A peer that did not permit gets none (RFC 2018 2). */
static void test_never_without_permission(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t base = f.them;
    put(&r, f, base, 1000, 500);
    put(&r, f, base, 1000, 500);
    put(&r, f, base, 0, 1000);
    put(&r, f, base, 0, 1000);
    while (rig_take(&r))
        CHECK_INT(r.seen.sack_count, 0);
    rig_stop(&r);
}

int main(void)
{
    uint64_t rng = 5;
    test_random_bytes(&rng, g_bytes, sizeof g_bytes);
    RUN(test_negotiation);
    RUN(test_simultaneous_open_permits);
    RUN(test_blocks_plain);
    RUN(test_blocks_beside_timestamps);
    RUN(test_twice_below_the_ack);
    RUN(test_twice_within_a_block);
    RUN(test_two_duplicates_in_a_batch);
    RUN(test_report_leaves_beside_data);
    RUN(test_a_batch_is_told_at_once);
    RUN(test_never_without_permission);
    return 0;
}
