/* Loss recovery of a sender whose peer knows SACK, packet by packet: RACK and its timer, PRR, lost retransmissions,
 * tail loss probes, undo by timestamps, by D-SACK and by F-RTO, reneging, blocks that lie. */
#include "rig.h"

enum {
    A = MN_TCP_ACK,
    MSS = 1240,
    DATA = MSS - 12, /* beside a timestamp */
    RTT_MS = 40,
};

static uint8_t g_bytes[400000];

static struct mn_conn *block(struct rig *r)
{
    return r->s->slots[r->conn & (MN_MAX_CONNS - 1)].conn;
}

static uint32_t drain(struct rig *r)
{
    uint32_t n = 0;
    while (rig_take(r))
        n++;
    return n;
}

/* An ACK of `number` with blocks [sack[0], sack[1]), … given in segments from f->us on. */
struct says {
    uint32_t number, size; /* in segments of size bytes */
    uint32_t count, sack[8];
    uint32_t tsecr;
};

static void ack(struct rig *r, const struct rig_flow *f, struct says w)
{
    uint32_t size = w.size == 0 ? MSS : w.size;
    struct mn_segment g = rig_segment(f, A, NULL, 0);
    g.ack = f->us + w.number * size;
    g.sack_count = (uint8_t)w.count;
    for (uint32_t i = 0; i < w.count; i++)
        g.sack[i] = (struct mn_block){f->us + w.sack[2 * i] * size, f->us + w.sack[2 * i + 1] * size};
    if (w.tsecr != 0)
        g.tsecr = w.tsecr;
    rig_in(r, g);
}

/* A connection on a path of RTT_MS with a measured round trip; ten segments of it are out when it returns. */
static struct rig_flow start_with(struct rig *r, const char *cc, uint32_t segments, uint32_t base)
{
    rig_start_with(r, &(struct mn_stack_config){.cc = cc});
    struct rig_flow f = rig_accept(r, (struct rig_open){.mss = MSS, .sack = true, .wscale = 7});
    struct mn_conn *c = block(r);
    if (base != 0) {
        c->snd.una = c->snd.nxt = c->snd.end = c->snd.wl2 = base;
        c->loss.recover = c->loss.farthest = base;
        f.us = base;
    }
    rig_write(r, g_bytes, 100);
    drain(r);
    rig_advance(r, RTT_MS * MN_MS);
    f.us += 100;
    ack(r, &f, (struct says){0});
    c->rtt = (struct mn_rtt){.rto_ns = MN_RTO_INITIAL_NS};
    mn_rtt_take(&c->rtt, RTT_MS * MN_MS);
    rig_write(r, g_bytes, segments * MSS);
    CHECK_INT(drain(r), segments < 10 ? segments : 10);
    return f;
}

static struct rig_flow start(struct rig *r, uint32_t segments, uint32_t base)
{
    return start_with(r, "cubic", segments, base);
}

static void test_three_behind_a_hole(void)
{
    for (int wraps = 0; wraps < 2; wraps++) {
        struct rig r;
        struct rig_flow f = start(&r, 10, wraps ? 0U - 100 - 2 * MSS : 0);
        rig_advance(&r, RTT_MS * MN_MS);
        ack(&r, &f, (struct says){.count = 1, .sack = {1, 2}});
        rig_none(&r);
        ack(&r, &f, (struct says){.count = 1, .sack = {1, 3}});
        rig_none(&r);
        ack(&r, &f, (struct says){.count = 1, .sack = {1, 4}});
        RIG_EXPECT(&r, A, f.us, f.them, MSS);
        rig_none(&r);
        CHECK(block(&r)->loss.in_recovery);
        rig_advance(&r, RTT_MS * MN_MS);
        ack(&r, &f, (struct says){.number = 10});
        CHECK(!block(&r)->loss.in_recovery);
        CHECK_INT(block(&r)->cc.cwnd, 7 * MSS);
        CHECK_INT(block(&r)->sent.count, 0);
        rig_none(&r);
        rig_stop(&r);
    }
}

/* One block behind a hole is no proof: a quarter of a round trip is waited. */
static void test_reordering_timer(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 10, 0);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {1, 2}});
    rig_advance(&r, RTT_MS * MN_MS / 4 - 1);
    rig_none(&r);
    rig_advance(&r, 1);
    RIG_EXPECT(&r, A, f.us, f.them, MSS);
    rig_none(&r);
    rig_stop(&r);
}

/* It was reordered, and so it is known: three behind a hole prove nothing any more, the timer does. */
static void test_reordering_is_remembered(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 10, 0);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {1, 2}});
    ack(&r, &f, (struct says){.number = 2});
    CHECK(block(&r)->loss.has_reordering);
    ack(&r, &f, (struct says){.number = 2, .count = 1, .sack = {3, 9}});
    rig_none(&r);
    rig_advance(&r, RTT_MS * MN_MS / 4);
    RIG_EXPECT(&r, A, f.us + 2 * MSS, f.them, MSS);
    rig_none(&r);
    rig_stop(&r);
}

static void test_many_holes(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 40, 0); /* ten are out */
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 3, .sack = {8, 9, 5, 6, 2, 4}});
    /* Lost: 0 1 4 6 7. Out: 9. Four arrived of ten: 7/10 of four may leave, and as much more as was delivered. */
    RIG_EXPECT(&r, A, f.us, f.them, MSS);
    RIG_EXPECT(&r, A, f.us + MSS, f.them, MSS);
    RIG_EXPECT(&r, A, f.us + 4 * MSS, f.them, MSS);
    RIG_EXPECT(&r, A, f.us + 6 * MSS, f.them, MSS);
    rig_none(&r);
    ack(&r, &f, (struct says){.count = 3, .sack = {8, 10, 5, 6, 2, 4}});
    RIG_EXPECT(&r, A, f.us + 7 * MSS, f.them, MSS);
    rig_none(&r);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 10});
    CHECK(!block(&r)->loss.in_recovery);
    CHECK_INT(drain(&r), 7);
    CHECK_INT(mn_stack_stats(r.s)->tcp_retransmits, 5);
    CHECK_INT(mn_stack_stats(r.s)->tcp_timeouts, 0);
    rig_stop(&r);
}

/* What was sent after a retransmission arrives, the retransmission does not: it is lost too. */
static void test_lost_retransmission(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 40, 0);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {1, 10}});
    RIG_EXPECT(&r, A, f.us, f.them, MSS);
    uint32_t fresh = drain(&r); /* new data behind it */
    CHECK(fresh > 3);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {1, 14}});
    RIG_EXPECT(&r, A, f.us, f.them, MSS);
    drain(&r);
    CHECK_INT(mn_stack_stats(r.s)->tcp_retransmits, 2);
    CHECK_INT(mn_stack_stats(r.s)->tcp_timeouts, 0);
    rig_stop(&r);
}

/* The window during recovery: never above what left, down to the threshold by its end, nothing sent in one burst. */
static void test_rate_is_reduced_in_proportion(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 200, 0);
    uint32_t sent = 10, acked = 0;
    while (sent - acked < 40) { /* open the window; what it lets go is paced over half a round trip */
        acked = sent;
        ack(&r, &f, (struct says){.number = sent});
        rig_write(&r, g_bytes, 60 * MSS);
        sent += drain(&r);
        rig_advance(&r, RTT_MS * MN_MS);
        sent += drain(&r);
    }
    uint32_t before = sent - acked, total = 0;
    for (uint32_t i = acked + 2; i <= acked + before; i++) {
        ack(&r, &f, (struct says){.number = acked, .count = 1, .sack = {acked + 1, i}});
        uint32_t n = drain(&r);
        CHECK(n <= 2);
        total += n;
    }
    uint32_t threshold = block(&r)->cc.ssthresh / MSS;
    CHECK(total + 2 >= threshold && total <= threshold + 1);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = sent});
    CHECK_INT(block(&r)->cc.cwnd / MSS, threshold);
    drain(&r);
    rig_stop(&r);
}

/* A loss that no queue explains is repaired and the window stands; the more are lost, the less they are believed. */
static void test_sparse_losses_are_borne(void)
{
    struct rig r;
    struct rig_flow f = start_with(&r, "forbearing", 10, 0);
    struct mn_conn *c = block(&r);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 1}); /* a round trip as short as the first */
    uint32_t before = c->cc.cwnd;
    ack(&r, &f, (struct says){.number = 1, .count = 1, .sack = {2, 5}});
    RIG_EXPECT(&r, A, f.us + MSS, f.them, MSS);
    CHECK(c->loss.in_recovery && c->loss.is_standing);
    CHECK(c->cc.cwnd >= before && mn_loss_window(c) == c->cc.cwnd);
    CHECK_INT(mn_stack_stats(r.s)->tcp_losses_borne, 1);
    ack(&r, &f, (struct says){.number = 1, .count = 2, .sack = {9, 10, 2, 5}}); /* four more */
    RIG_EXPECT(&r, A, f.us + 5 * MSS, f.them, MSS);
    CHECK(c->loss.in_recovery && !c->loss.is_standing);
    CHECK(c->cc.ssthresh < before);
    drain(&r);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 10});
    CHECK(!c->loss.in_recovery && c->cc.cwnd == c->cc.ssthresh);
    rig_stop(&r);
}

/* ---- tails ---- */

static void test_tail_loss_probe(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 4, 0);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 1}); /* 2, 3 and 4 are lost */
    rig_advance(&r, 2 * RTT_MS * MN_MS + 2 * MN_MS - 1);
    rig_none(&r);
    rig_advance(&r, 1);
    RIG_EXPECT(&r, A, f.us + 3 * MSS, f.them, MSS);
    rig_none(&r);
    CHECK_INT(mn_stack_stats(r.s)->tcp_tail_probes, 1);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 1, .count = 1, .sack = {3, 4}});
    rig_advance(&r, RTT_MS * MN_MS / 4);
    RIG_EXPECT(&r, A, f.us + MSS, f.them, MSS);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 2, .count = 1, .sack = {3, 4}});
    RIG_EXPECT(&r, A, f.us + 2 * MSS, f.them, MSS);
    ack(&r, &f, (struct says){.number = 4});
    CHECK_INT(mn_stack_stats(r.s)->tcp_timeouts, 0);
    rig_none(&r);
    rig_stop(&r);
}

/* The probe filled the hole itself: a loss all the same, and the window says so; unless a D-SACK tells it was none. */
static void test_probe_that_repairs(void)
{
    for (int spurious = 0; spurious < 2; spurious++) {
        struct rig r;
        struct rig_flow f = start(&r, 5, 0);
        rig_advance(&r, 2 * RTT_MS * MN_MS + 2 * MN_MS);
        RIG_EXPECT(&r, A, f.us + 4 * MSS, f.them, MSS);
        uint32_t before = block(&r)->cc.cwnd;
        if (spurious)
            ack(&r, &f, (struct says){.number = 5, .count = 1, .sack = {4, 5}});
        else
            ack(&r, &f, (struct says){.number = 5});
        rig_write(&r, g_bytes, MSS);
        drain(&r);
        ack(&r, &f, (struct says){.number = 6});
        CHECK(spurious ? block(&r)->cc.cwnd >= before : block(&r)->cc.cwnd < before);
        CHECK_INT(mn_stack_stats(r.s)->tcp_timeouts, 0);
        rig_none(&r);
        rig_stop(&r);
    }
}

static void test_probe_prefers_new_data(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 12, 0); /* two wait for the window */
    rig_advance(&r, 2 * RTT_MS * MN_MS + 2 * MN_MS);
    RIG_EXPECT(&r, A, f.us + 10 * MSS, f.them, MSS);
    rig_none(&r);
    rig_advance(&r, 150 * MN_MS); /* one probe only */
    rig_none(&r);
    rig_advance(&r, 60 * MN_MS);
    RIG_EXPECT(&r, A, f.us, f.them, MSS); /* then the timeout, from the probe on */
    drain(&r);
    rig_stop(&r);
}

/* ---- taking back ---- */

static void test_undo_by_dsack(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 10, 0);
    uint32_t before = block(&r)->cc.cwnd;
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {1, 5}});
    RIG_EXPECT(&r, A, f.us, f.them, MSS);
    CHECK(block(&r)->cc.cwnd < before);
    rig_advance(&r, 5 * MN_MS);
    ack(&r, &f, (struct says){.number = 10}); /* it had only been late */
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 10, .count = 1, .sack = {0, 1}});
    CHECK(block(&r)->cc.cwnd >= before);
    CHECK(block(&r)->loss.has_reordering);
    CHECK_INT(block(&r)->loss.reorder_factor, 2);
    CHECK_INT(mn_stack_stats(r.s)->tcp_undone, 1);
    rig_none(&r);
    rig_stop(&r);
}

static void test_undo_by_timestamp(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .sack = true, .ts = true});
    rig_write(&r, g_bytes, 10 * DATA);
    CHECK_INT(drain(&r), 10);
    uint32_t stamp = r.seen.tsval, before = block(&r)->cc.cwnd;
    rig_advance(&r, 250 * MN_MS); /* a pause of the path */
    drain(&r);
    CHECK_INT(mn_stack_stats(r.s)->tcp_timeouts, 1);
    CHECK(block(&r)->cc.cwnd <= DATA);
    ack(&r, &f, (struct says){.number = 2, .size = DATA, .tsecr = stamp});
    CHECK(block(&r)->cc.cwnd >= before);
    CHECK(!block(&r)->loss.in_timeout);
    ack(&r, &f, (struct says){.number = 10, .size = DATA, .tsecr = stamp});
    rig_none(&r); /* and nothing is sent twice that need not be */
    CHECK(mn_stack_stats(r.s)->tcp_retransmits <= 2);
    rig_stop(&r);
}

static void test_undo_by_originals(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 10, 0);
    uint32_t before = block(&r)->cc.cwnd;
    rig_advance(&r, 500 * MN_MS);
    drain(&r);
    CHECK(block(&r)->loss.in_timeout);
    ack(&r, &f, (struct says){.number = 3}); /* two of them were sent once only */
    CHECK(!block(&r)->loss.in_timeout);
    CHECK(block(&r)->cc.cwnd >= before);
    drain(&r);
    rig_stop(&r);
}

/* A timeout that was one: slow start, repairs in order, what was acknowledged selectively is not sent again. */
static void test_timeout_keeps_what_arrived(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 10, 0);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {4, 5}});
    rig_advance(&r, RTT_MS * MN_MS / 4);
    RIG_EXPECT(&r, A, f.us, f.them, MSS); /* 0 to 3 are lost */
    drain(&r);
    rig_advance(&r, MN_SECOND);
    drain(&r);
    CHECK(block(&r)->loss.in_timeout);
    uint32_t copies[10] = {0};
    for (uint32_t next = 1; next <= 4; next++) {
        uint32_t number = next < 4 ? next : 5;
        ack(&r, &f, (struct says){.number = number, .count = 1, .sack = {4, 5}});
        while (rig_take(&r))
            copies[(r.seen.seq - f.us) / MSS]++;
        rig_advance(&r, 5 * MN_MS);
    }
    CHECK_INT(copies[4], 0);
    ack(&r, &f, (struct says){.number = 10});
    drain(&r);
    CHECK(!block(&r)->loss.in_timeout);
    rig_stop(&r);
}

static void test_reneging(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 10, 0);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {1, 10}});
    RIG_EXPECT(&r, A, f.us, f.them, MSS);
    drain(&r);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.number = 1}); /* where are the others? */
    drain(&r);
    rig_advance(&r, RTT_MS * MN_MS);
    RIG_EXPECT(&r, A, f.us + MSS, f.them, MSS);
    CHECK_INT(block(&r)->sent.sacked, 0);
    drain(&r);
    ack(&r, &f, (struct says){.number = 10});
    drain(&r);
    rig_stop(&r);
}

/* ---- lies ---- */

static void test_blocks_that_lie(void)
{
    struct rig r;
    struct rig_flow f = start(&r, 10, 0);
    rig_advance(&r, RTT_MS * MN_MS);
    ack(&r, &f, (struct says){.count = 1, .sack = {8, 11}});                          /* never sent */
    ack(&r, &f, (struct says){.count = 1, .sack = {5, 5}});                           /* empty */
    ack(&r, &f, (struct says){.count = 1, .sack = {6, 5}});                           /* backwards */
    ack(&r, &f, (struct says){.count = 2, .sack = {1U << 20, 1U << 21, 3000000, 9}}); /* far away */
    CHECK_INT(block(&r)->sent.sacked, 0);
    rig_none(&r);
    ack(&r, &f, (struct says){.count = 1, .sack = {0, 10}}); /* all but not by number: believed, and never complete */
    CHECK_INT(block(&r)->sent.sacked, 10 * MSS);
    rig_advance(&r, 400 * MN_MS);
    RIG_EXPECT(&r, A, f.us, f.them, MSS); /* so it is sent again */
    drain(&r);
    ack(&r, &f, (struct says){.number = 10});
    drain(&r);
    CHECK_INT(block(&r)->sent.count, 0);
    rig_stop(&r);
}

/* Random blocks of random ACKs: whatever they say, what is out stays bounded and the stream can be finished. */
static void test_random_blocks(void)
{
    for (uint64_t seed = 1; seed <= 300 / MN_TEST_SLOW; seed++) {
        struct rig r;
        uint64_t rng = seed;
        struct rig_flow f = start(&r, 30, 0);
        uint32_t una = 0;
        for (int i = 0; i < 200; i++) {
            struct says w = {.number = una, .count = (uint32_t)(test_random(&rng) % 5)};
            uint32_t sent = (block(&r)->snd.nxt - f.us) / MSS;
            if (test_random(&rng) % 4 == 0 && sent > una)
                w.number = una + (uint32_t)(test_random(&rng) % (sent - una + 1));
            una = w.number;
            for (uint32_t k = 0; k < 8; k++)
                w.sack[k] = (uint32_t)(test_random(&rng) % 45);
            ack(&r, &f, w);
            rig_advance(&r, test_random(&rng) % (20 * MN_MS));
            drain(&r);
            const struct mn_sent *t = &block(&r)->sent;
            CHECK_INT(t->out + t->lost + t->sacked, block(&r)->snd.nxt - block(&r)->snd.una);
        }
        for (int i = 0; una < 30 && i < 200; i++) {
            una = (block(&r)->snd.nxt - f.us) / MSS;
            ack(&r, &f, (struct says){.number = una});
            rig_advance(&r, RTT_MS * MN_MS);
            drain(&r);
        }
        CHECK_INT(una, 30);
        rig_stop(&r);
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof g_bytes; i++)
        g_bytes[i] = (uint8_t)(i * 2654435761U >> 13);
    RUN(test_three_behind_a_hole);
    RUN(test_reordering_timer);
    RUN(test_reordering_is_remembered);
    RUN(test_many_holes);
    RUN(test_lost_retransmission);
    RUN(test_rate_is_reduced_in_proportion);
    RUN(test_sparse_losses_are_borne);
    RUN(test_tail_loss_probe);
    RUN(test_probe_that_repairs);
    RUN(test_probe_prefers_new_data);
    RUN(test_undo_by_dsack);
    RUN(test_undo_by_timestamp);
    RUN(test_undo_by_originals);
    RUN(test_timeout_keeps_what_arrived);
    RUN(test_reneging);
    RUN(test_blocks_that_lie);
    RUN(test_random_blocks);
    return 0;
}
