/* Explicit congestion notification: agreeing on it, the receiver's echo, the sender's answer (T-27; RFC 3168 6.1). */
#include "rig.h"

enum {
    S = MN_TCP_SYN,
    A = MN_TCP_ACK,
    E = MN_TCP_ECE,
    W = MN_TCP_CWR,
};

static uint8_t g_bytes[4096];

static struct mn_conn *conn_of(const struct rig *r)
{
    return mn_conn_get(r->s, r->conn);
}

static void drain(struct rig *r)
{
    while (rig_take(r))
        ;
}

/* What a SYN with these flags and this mark is answered with. */
static uint8_t answer_to(uint8_t mode, uint8_t flags, uint8_t mark, bool *is_on)
{
    struct rig r;
    struct mn_stack_config cfg = {.ecn = mode};
    rig_start_with(&r, &cfg);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = RIG_PEER_PORT};
    struct mn_segment g = rig_segment(&f, S | flags, NULL, 0);
    g.ecn = mark;
    rig_in(&r, g);
    CHECK(rig_take(&r));
    uint8_t answer = r.seen.flags;
    CHECK_INT(r.seen.ecn, MN_ECN_NONE); /* no SYN is ECN-capable itself */
    f.us = r.seen.seq + 1;
    f.them++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.accepted, 1);
    *is_on = conn_of(&r)->ecn_on;
    rig_stop(&r);
    return answer;
}

static void test_passive_side(void)
{
    bool on;
    CHECK_INT(answer_to(MN_ECN_ACCEPT, E | W, 0, &on), S | A | E);
    CHECK(on);
    CHECK_INT(answer_to(MN_ECN_ASK, E | W, 0, &on), S | A | E);
    CHECK(on);
    CHECK_INT(answer_to(MN_ECN_OFF, E | W, 0, &on), S | A);
    CHECK(!on);
    CHECK_INT(answer_to(MN_ECN_ACCEPT, 0, 0, &on), S | A);
    CHECK(!on);
    CHECK_INT(answer_to(MN_ECN_ACCEPT, E, 0, &on), S | A);
    CHECK(!on);
    CHECK_INT(answer_to(MN_ECN_ACCEPT, E | W, MN_ECN_CE, &on), S | A); /* something on the way rewrites marks */
    CHECK(!on);
}

static void test_a_second_syn_without_withdraws(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = RIG_PEER_PORT};
    rig_in(&r, rig_segment(&f, S | E | W, NULL, 0));
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.flags, S | A | E);
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.flags, S | A);
    f.us = r.seen.seq + 1;
    f.them++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK(!conn_of(&r)->ecn_on);
    rig_stop(&r);
}

static bool agreed_after(uint8_t mode, uint8_t answer)
{
    struct rig r;
    struct mn_stack_config cfg = {.ecn = mode};
    rig_start_with(&r, &cfg);
    struct mn_ep to = {.ip = r.peer4, .port = RIG_PEER_PORT};
    CHECK_INT(mn_tcp_connect(r.s, &to, NULL, &r.conn, r.now), 0);
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.flags, mode == MN_ECN_ASK ? S | E | W : S);
    struct rig_flow f = {.us = r.seen.seq + 1, .them = 9000, .port = r.seen.sport, .peer_port = RIG_PEER_PORT};
    rig_in(&r, rig_segment(&f, S | A | answer, NULL, 0));
    CHECK_INT(r.connected, 1);
    bool on = conn_of(&r)->ecn_on;
    drain(&r);
    CHECK_INT(r.seen.flags, A);
    rig_stop(&r);
    return on;
}

static void test_active_side(void)
{
    CHECK(agreed_after(MN_ECN_ASK, E));
    CHECK(!agreed_after(MN_ECN_ASK, 0));
    CHECK(!agreed_after(MN_ECN_ASK, E | W)); /* a peer that only reflects */
    CHECK(!agreed_after(MN_ECN_ACCEPT, E));  /* we did not ask */
    CHECK(!agreed_after(MN_ECN_OFF, E));
}

static void test_a_lost_syn_is_repeated_without(void)
{
    struct rig r;
    struct mn_stack_config cfg = {.ecn = MN_ECN_ASK};
    rig_start_with(&r, &cfg);
    struct mn_ep to = {.ip = r.peer4, .port = RIG_PEER_PORT};
    CHECK_INT(mn_tcp_connect(r.s, &to, NULL, &r.conn, r.now), 0);
    CHECK(rig_take(&r));
    rig_advance(&r, MN_SECOND + MN_MS);
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.flags, S);
    struct rig_flow f = {.us = r.seen.seq + 1, .them = 9000, .port = r.seen.sport, .peer_port = RIG_PEER_PORT};
    rig_in(&r, rig_segment(&f, S | A | E, NULL, 0));
    CHECK(!conn_of(&r)->ecn_on);
    drain(&r);
    rig_stop(&r);
}

/* An accepted connection with ECN agreed on. */
static struct rig_flow accept_with_ecn(struct rig *r)
{
    rig_start(r);
    CHECK_INT(mn_tcp_listen(r->s, NULL, RIG_PORT, 0, &r->listener), 0);
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = RIG_PEER_PORT};
    struct mn_segment g = rig_segment(&f, S | E | W, NULL, 0);
    g.mss = 1240;
    rig_in(r, g);
    CHECK(rig_take(r));
    f.us = r->seen.seq + 1;
    f.them++;
    rig_in(r, rig_segment(&f, A, NULL, 0));
    CHECK(conn_of(r)->ecn_on);
    conn_of(r)->ack.quick = 0;
    return f;
}

static void put(struct rig *r, struct rig_flow *f, uint8_t flags, uint8_t mark)
{
    struct mn_segment g = rig_segment(f, A | flags, g_bytes, 1000);
    g.ecn = mark;
    rig_in(r, g);
    f->them += 1000;
}

/* ECE on every ACK from the first mark until CWR; the mark is told at once, not with the second segment. */
static void test_echo(void)
{
    struct rig r;
    struct rig_flow f = accept_with_ecn(&r);
    put(&r, &f, 0, MN_ECN_ECT0);
    rig_none(&r);
    put(&r, &f, 0, MN_ECN_CE);
    RIG_EXPECT(&r, A | E, f.us, f.them, 0);
    put(&r, &f, 0, MN_ECN_ECT0);
    put(&r, &f, 0, MN_ECN_ECT0);
    RIG_EXPECT(&r, A | E, f.us, f.them, 0);
    CHECK_INT(rig_write(&r, g_bytes, 10), 10); /* on data as well */
    RIG_EXPECT(&r, A | E, f.us, f.them, 10);
    f.us += 10;
    put(&r, &f, W, MN_ECN_ECT0);
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    put(&r, &f, W, MN_ECN_CE); /* marked again */
    RIG_EXPECT(&r, A | E, f.us, f.them, 0);
    put(&r, &f, W, MN_ECN_CE); /* and on the very segment that says CWR */
    put(&r, &f, 0, MN_ECN_ECT0);
    RIG_EXPECT(&r, A | E, f.us, f.them, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_ecn_ce, 3);
    drain(&r);
    rig_stop(&r);
}

/* A mark in the middle of a batch is not lost in the run. */
static void test_mark_within_a_batch(void)
{
    struct rig r;
    struct rig_flow f = accept_with_ecn(&r);
    struct mn_segment g[8];
    for (uint32_t i = 0; i < 8; i++) {
        g[i] = rig_segment(&f, A, g_bytes, 400);
        g[i].ecn = i == 3 ? MN_ECN_CE : MN_ECN_ECT0;
        f.them += 400;
    }
    rig_batch(&r, g, 8);
    CHECK_INT(r.got, 3200);
    RIG_EXPECT(&r, A | E, f.us, f.them, 0);
    rig_none(&r);
    rig_stop(&r);
}

/* Marks mean nothing on pure ACKs, nor where nobody agreed. */
static void test_marks_that_do_not_count(void)
{
    struct rig r;
    struct rig_flow f = accept_with_ecn(&r);
    struct mn_segment g = rig_segment(&f, A, NULL, 0);
    g.ecn = MN_ECN_CE;
    rig_in(&r, g);
    CHECK(!conn_of(&r)->ecn_echo);
    rig_none(&r);
    rig_stop(&r);
    rig_start(&r);
    f = rig_accept(&r, (struct rig_open){.mss = 1240});
    put(&r, &f, 0, MN_ECN_CE);
    drain(&r);
    CHECK_INT(r.seen.flags, A);
    CHECK_INT(mn_stack_stats(r.s)->tcp_ecn_ce, 0);
    rig_stop(&r);
}

static void ack_with(struct rig *r, const struct rig_flow *f, uint8_t flags)
{
    rig_in(r, rig_segment(f, A | flags, NULL, 0));
}

/* New data is capable, copies and pure ACKs are not. */
static void test_what_may_be_marked(void)
{
    struct rig r;
    struct rig_flow f = accept_with_ecn(&r);
    CHECK_INT(rig_write(&r, g_bytes, 3000), 3000);
    while (rig_take(&r))
        CHECK_INT(r.seen.ecn, MN_ECN_ECT0);
    for (int i = 0; i < 3; i++)
        ack_with(&r, &f, 0);
    RIG_EXPECT(&r, A, f.us, f.them, 1240);
    CHECK_INT(r.seen.ecn, MN_ECN_NONE);
    rig_none(&r);
    put(&r, &f, 0, 0);
    put(&r, &f, 0, 0);
    RIG_EXPECT(&r, A, f.us + 3000, f.them, 0);
    CHECK_INT(r.seen.ecn, MN_ECN_NONE);
    rig_stop(&r);
}

/* One reduction a round trip, CWR on the next new segment and on none after it. */
static void test_answer_to_marks(void)
{
    struct rig r;
    struct rig_flow f = accept_with_ecn(&r);
    CHECK_INT(rig_write(&r, g_bytes, 4000), 4000);
    drain(&r);
    uint32_t before = conn_of(&r)->cc.cwnd;
    f.us += 1240;
    ack_with(&r, &f, E);
    uint32_t reduced = conn_of(&r)->cc.cwnd;
    CHECK(reduced < before);
    CHECK_INT(rig_write(&r, g_bytes, 10), 10);
    RIG_EXPECT(&r, A | W, f.us + 2760, f.them, 10);
    CHECK_INT(rig_write(&r, g_bytes, 10), 10);
    RIG_EXPECT(&r, A, f.us + 2770, f.them, 10);
    f.us += 1240;
    ack_with(&r, &f, E); /* of before the peer saw CWR */
    CHECK(conn_of(&r)->cc.cwnd >= reduced);
    f.us += 1540;
    ack_with(&r, &f, 0);
    CHECK_INT(rig_write(&r, g_bytes, 4000), 4000);
    drain(&r);
    f.us += 1240;
    ack_with(&r, &f, E); /* a new mark, a round trip later */
    CHECK(conn_of(&r)->cc.cwnd < reduced);
    CHECK_INT(mn_stack_stats(r.s)->tcp_ecn_marks, 2);
    CHECK_INT(mn_stack_stats(r.s)->tcp_retransmits, 0);
    drain(&r);
    rig_stop(&r);
}

/* A loss is an answer too: the peer is told, the window is not reduced twice. */
static void test_marks_in_recovery(void)
{
    struct rig r;
    struct rig_flow f = accept_with_ecn(&r);
    CHECK_INT(rig_write(&r, g_bytes, 4096), 4096);
    drain(&r);
    for (int i = 0; i < 3; i++)
        ack_with(&r, &f, 0);
    uint32_t threshold = conn_of(&r)->cc.ssthresh;
    ack_with(&r, &f, E);
    CHECK_INT(conn_of(&r)->cc.ssthresh, threshold);
    drain(&r);
    f.us += 4096;
    ack_with(&r, &f, E);
    CHECK_INT(rig_write(&r, g_bytes, 10), 10);
    RIG_EXPECT(&r, A | W, f.us, f.them, 10);
    rig_stop(&r);
}

int main(void)
{
    RUN(test_passive_side);
    RUN(test_a_second_syn_without_withdraws);
    RUN(test_active_side);
    RUN(test_a_lost_syn_is_repeated_without);
    RUN(test_echo);
    RUN(test_mark_within_a_batch);
    RUN(test_marks_that_do_not_count);
    RUN(test_what_may_be_marked);
    RUN(test_answer_to_marks);
    RUN(test_marks_in_recovery);
    return 0;
}
