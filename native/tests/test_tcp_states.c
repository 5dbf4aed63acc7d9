/* Opening and closing: every state and transition of RFC 9293 3.3.2, resets, TIME-WAIT (T-01, T-18, T-23, T-24, T-26).
 */
#include "rig.h"

enum {
    S = MN_TCP_SYN,
    A = MN_TCP_ACK,
    F = MN_TCP_FIN,
    R = MN_TCP_RST,
};

static void test_passive_open(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        rig_start(&r);
        r.v6 = v6 != 0;
        rig_accept(&r, (struct rig_open){.mss = 1240, .wscale = 7, .ts = true});
        struct mn_ep local, remote;
        uint32_t peer;
        CHECK_INT(mn_tcp_addrs(r.s, r.conn, &local, &remote, &peer), 0);
        CHECK(mn_ip_equal(&local.ip, r.v6 ? &r.own6 : &r.own4) && local.port == RIG_PORT);
        CHECK(mn_ip_equal(&remote.ip, r.v6 ? &r.peer6 : &r.peer4) && remote.port == RIG_PEER_PORT);
        CHECK_INT(peer, RIG_PEER);
        CHECK_INT(rig_state(&r), MN_ESTABLISHED);
        rig_stop(&r);
    }
}

static void test_active_open(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        rig_start(&r);
        r.v6 = v6 != 0;
        rig_connected_flow(&r, true);
        CHECK_INT(rig_state(&r), MN_ESTABLISHED);
        rig_stop(&r);
    }
}

static void test_syn_to_closed_port(void)
{
    struct rig r;
    struct rig_flow f = {.them = 77, .port = 81, .peer_port = 4000};
    rig_start(&r);
    struct mn_segment g = rig_segment(&f, S, "ab", 2);
    rig_in(&r, g);
    RIG_EXPECT(&r, R | A, 0, 77 + 3, 0); /* the SYN and its two bytes */
    rig_stop(&r);
}

static void test_reset_rules_for_strays(void)
{
    struct rig r;
    struct rig_flow f = {.them = 77, .us = 5555, .port = 81, .peer_port = 4000};
    rig_start(&r);
    rig_in(&r, rig_segment(&f, A, "abc", 3));
    RIG_EXPECT(&r, R, 5555, 0, 0);
    rig_in(&r, rig_segment(&f, R | A, NULL, 0));
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    rig_none(&r);
    rig_in(&r, rig_segment(&f, 0, "abc", 3)); /* no ACK: answered with ACK of what it held */
    RIG_EXPECT(&r, R | A, 0, 80, 0);
    rig_stop(&r);
}

static void test_connect_refused(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    f.us -= 1;
    rig_in(&r, rig_segment(&f, R | A, NULL, 0)); /* acknowledges nothing of ours: ignored */
    CHECK_INT(r.failed, 0);
    f.us += 1;
    rig_in(&r, rig_segment(&f, R | A, NULL, 0));
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, ECONNREFUSED);
    CHECK_INT(mn_tcp_addrs(r.s, r.conn, NULL, NULL, NULL), -EBADF);
    rig_stop(&r);
}

static void test_bad_ack_in_syn_sent(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    f.us += 5;
    rig_in(&r, rig_segment(&f, S | A, NULL, 0));
    RIG_EXPECT(&r, R, f.us, 0, 0);
    CHECK_INT(r.connected + r.failed, 0);
    CHECK_INT(rig_state(&r), MN_SYN_SENT);
    rig_stop(&r);
}

static void test_connect_gives_up(void)
{
    struct rig r;
    rig_start(&r);
    uint64_t began = r.now, waits[] = {1, 2, 4, 8, 16, 32, 64};
    rig_connect(&r);
    for (int i = 0; i < 6; i++) {
        rig_advance(&r, waits[i] * MN_SECOND - 1);
        rig_none(&r);
        rig_advance(&r, 1);
        CHECK(rig_take(&r));
        CHECK_INT(r.seen.flags, S);
    }
    rig_advance(&r, waits[6] * MN_SECOND);
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, ETIMEDOUT);
    CHECK_INT((r.now - began) / MN_SECOND, 127);
    rig_stop(&r);
}

static void test_connect_without_route(void)
{
    struct rig r;
    rig_start(&r);
    struct mn_ep to = {.ip = mn_ip_from4((const uint8_t[4]){100, 64, 9, 9}), .port = 80};
    CHECK_INT(mn_tcp_connect(r.s, &to, NULL, &r.conn, r.now), -EHOSTUNREACH);
    to.ip = mn_ip_from4((const uint8_t[4]){224, 0, 0, 1});
    CHECK_INT(mn_tcp_connect(r.s, &to, NULL, &r.conn, r.now), -EINVAL);
    to = (struct mn_ep){.ip = r.peer4, .port = 80};
    CHECK_INT(mn_tcp_connect(r.s, &to, &r.peer4, &r.conn, r.now), -EADDRNOTAVAIL);
    CHECK_INT(mn_tcp_connect(r.s, &to, &r.own6, &r.conn, r.now), -EINVAL);
    rig_stop(&r);
}

static void test_simultaneous_open(void)
{
    for (int ts = 0; ts < 2; ts++) {
        struct rig r;
        rig_start(&r);
        struct rig_flow f = rig_connect(&r);
        f.ts = ts != 0;
        f.tsval = 1;
        struct mn_segment g = rig_segment(&f, S, NULL, 0);
        rig_in(&r, g);
        RIG_EXPECT(&r, S | A, f.us - 1, f.them + 1, 0);
        CHECK_INT(rig_state(&r), MN_SYN_RCVD);
        f.them++;
        rig_in(&r, rig_segment(&f, A, NULL, 0));
        CHECK_INT(r.connected, 1);
        CHECK_INT(rig_state(&r), MN_ESTABLISHED);
        rig_stop(&r);
    }
}

/* A small receive buffer needs no shift, but the option must be there or the peer may not use its own. */
static void test_simultaneous_open_scales(void)
{
    struct rig r;
    struct mn_stack_config cfg = {.rcvbuf_max = 16384};
    rig_start_with(&r, &cfg);
    struct rig_flow f = rig_connect(&r);
    CHECK_INT(r.seen.wscale, 0);
    struct mn_segment g = rig_segment(&f, S, NULL, 0);
    g.wscale = 3;
    rig_in(&r, g);
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.wscale, 0);
    f.them++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    struct mn_tcp_info info;
    CHECK_INT(mn_tcp_info(r.s, r.conn, &info), 0);
    CHECK_INT(info.snd_wnd, 65535 << 3);
    rig_stop(&r);
}

/* The peer answers our SYN-ACK with its own SYN-ACK, as Linux does. */
static void test_simultaneous_open_by_syn_ack(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    RIG_EXPECT(&r, S | A, f.us - 1, f.them + 1, 0);
    rig_in(&r, rig_segment(&f, S | A, NULL, 0));
    CHECK_INT(r.connected, 1);
    RIG_EXPECT(&r, A, f.us, f.them + 1, 0);
    rig_stop(&r);
}

static void test_simultaneous_open_refused(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    rig_take(&r);
    f.them++;
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, ECONNREFUSED);
    rig_stop(&r);
}

static void test_half_open(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, &r.own4, RIG_PORT, 2, &r.listener), 0);
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = 1};
    struct mn_segment syn = rig_segment(&f, S, NULL, 0);
    rig_in(&r, syn);
    RIG_EXPECT(&r, S | A, r.seen.seq, 1001, 0);
    uint32_t iss = r.seen.seq;
    rig_in(&r, syn); /* again: the same answer */
    RIG_EXPECT(&r, S | A, iss, 1001, 0);
    f.them = 4444; /* another connection from the same port: ask whether the old one is meant */
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    RIG_EXPECT(&r, A, iss + 1, 1001, 0);
    f = (struct rig_flow){.them = 1001, .us = iss + 9, .port = RIG_PORT, .peer_port = 1};
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    RIG_EXPECT(&r, R, iss + 9, 0, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 1);
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    CHECK_INT(r.accepted, 0);
    rig_stop(&r);
}

static void test_half_open_retries(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = 1};
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    int answers = 0;
    rig_advance(&r, 200 * MN_SECOND);
    while (rig_take(&r))
        answers += r.seen.flags == (S | A);
    CHECK_INT(answers, 6);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    rig_stop(&r);
}

/* What finds no room is not remembered, and an old record that was asked twice gives way. */
static void test_backlog(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 4, &r.listener), 0);
    for (uint16_t i = 1; i <= 10; i++) {
        struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = i};
        rig_in(&r, rig_segment(&f, S, NULL, 0));
        RIG_EXPECT(&r, S | A, r.seen.seq, 1001, 0);
    }
    rig_none(&r);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 4);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open_full, 6);
    CHECK_INT(mn_stack_stats(r.s)->tcp_cookies_sent, 6);
    rig_advance(&r, MN_SECOND + MN_MS);
    while (rig_take(&r))
        ;
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = 11};
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    RIG_EXPECT(&r, S | A, r.seen.seq, 1001, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 4);
    CHECK_INT(mn_stack_stats(r.s)->tcp_cookies_sent, 6);
    mn_tcp_unlisten(r.s, r.listener);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    rig_stop(&r);
}

static void test_conn_table_full(void)
{
    struct rig r;
    struct mn_stack_config cfg = {.max_conns = 1};
    rig_start_with(&r, &cfg);
    rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t first = r.conn;
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = 2};
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    CHECK(rig_take(&r));
    f.us = r.seen.seq + 1;
    f.them++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.accepted, 1);
    rig_none(&r); /* no reset: the peer tries again */
    mn_tcp_abort(r.s, first, r.now);
    rig_take(&r);
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.accepted, 2);
    CHECK(r.conn != first);
    CHECK_INT(mn_tcp_addrs(r.s, first, NULL, NULL, NULL), -EBADF);
    rig_stop(&r);
}

/* ---- closing ---- */

static void test_close_by_peer_first(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    rig_in(&r, rig_segment(&f, F | A, "bye", 3));
    f.them += 4;
    CHECK_INT(r.got, 3);
    CHECK_INT(r.fins, 1);
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    CHECK_INT(rig_state(&r), MN_CLOSE_WAIT);
    CHECK_INT(rig_write(&r, (const uint8_t *)"more", 4), 4); /* half-closed: we may still write */
    RIG_EXPECT(&r, A, f.us, f.them, 4);
    f.us += 4;
    mn_tcp_shutdown(r.s, r.conn, r.now);
    RIG_EXPECT(&r, F | A, f.us, f.them, 0);
    CHECK_INT(rig_state(&r), MN_LAST_ACK);
    f.us++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 0);
    rig_stop(&r);
}

static void test_close_by_us_first(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_tcp_shutdown(r.s, r.conn, r.now);
    RIG_EXPECT(&r, F | A, f.us, f.them, 0);
    CHECK_INT(rig_state(&r), MN_FIN_WAIT_1);
    f.us++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(rig_state(&r), MN_FIN_WAIT_2);
    rig_in(&r, rig_segment(&f, A, "late", 4)); /* still receiving */
    f.them += 4;
    CHECK_INT(r.got, 4);
    rig_advance(&r, 3 * 60 * MN_SECOND - MN_SECOND); /* not an orphan: no FIN-WAIT-2 timeout; keepalives run */
    while (rig_take(&r))
        ;
    CHECK_INT(rig_state(&r), MN_FIN_WAIT_2);
    rig_in(&r, rig_segment(&f, F | A, NULL, 0));
    f.them++;
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    CHECK_INT(r.fins, 1);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 1);
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    rig_advance(&r, 60 * MN_SECOND);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 0);
    rig_stop(&r);
}

static void test_close_both_at_once(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_tcp_shutdown(r.s, r.conn, r.now);
    RIG_EXPECT(&r, F | A, f.us, f.them, 0);
    rig_in(&r, rig_segment(&f, F | A, NULL, 0)); /* does not acknowledge our FIN */
    f.us++;
    f.them++;
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    CHECK_INT(rig_state(&r), MN_CLOSING);
    CHECK_INT(r.fins, 1);
    CHECK_INT(r.closed, 0);
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.closed, 1);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 1);
    rig_stop(&r);
}

static void test_fin_answers_fin_at_once(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_tcp_shutdown(r.s, r.conn, r.now);
    RIG_EXPECT(&r, F | A, f.us, f.them, 0);
    f.us++;
    rig_in(&r, rig_segment(&f, F | A, NULL, 0)); /* FIN and ACK of ours in one */
    RIG_EXPECT(&r, A, f.us, f.them + 1, 0);
    CHECK_INT(r.closed, 1);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 1);
    rig_stop(&r);
}

static void test_lost_fin_is_sent_again(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    rig_in(&r, rig_segment(&f, F | A, NULL, 0));
    f.them++;
    rig_take(&r);
    mn_tcp_shutdown(r.s, r.conn, r.now);
    RIG_EXPECT(&r, F | A, f.us, f.them, 0);
    rig_advance(&r, MN_SECOND);
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.flags, F | A);
    CHECK_INT(r.seen.seq, f.us);
    while (rig_take(&r))
        ;
    f.us++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.closed, 1);
    rig_stop(&r);
}

static void test_orphan_fin_wait_2_ends(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_tcp_close(r.s, r.conn, r.now);
    RIG_EXPECT(&r, F | A, f.us, f.them, 0);
    f.us++;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 1);
    rig_advance(&r, 59 * MN_SECOND);
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 1);
    rig_advance(&r, 2 * MN_SECOND);
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    CHECK_INT(r.closed, 0); /* the application had said goodbye: no upcall */
    rig_stop(&r);
}

static void test_close_with_unread_resets(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    r.limit = 2;
    rig_in(&r, rig_segment(&f, A, "hello", 5));
    f.them += 5;
    while (rig_take(&r))
        ;
    mn_tcp_close(r.s, r.conn, r.now);
    RIG_EXPECT(&r, R | A, f.us, f.them, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    rig_stop(&r);
}

static void test_close_inside_deliver_with_rest_resets(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    r.limit = 2;
    r.close_on_data = true;
    rig_in(&r, rig_segment(&f, A, "hello", 5));
    CHECK(rig_take(&r));
    CHECK((r.seen.flags & R) != 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    rig_stop(&r);
}

static void test_data_after_close_resets(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_tcp_close(r.s, r.conn, r.now);
    RIG_EXPECT(&r, F | A, f.us, f.them, 0);
    rig_in(&r, rig_segment(&f, A, "hello", 5));
    CHECK(rig_take(&r));
    CHECK((r.seen.flags & R) != 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    rig_stop(&r);
}

static void test_fin_is_told_after_every_byte(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_tcp_shutdown(r.s, r.conn, r.now);
    f.us++;
    r.limit = 3;
    rig_in(&r, rig_segment(&f, F | A, "hello", 5));
    while (rig_take(&r))
        ;
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 1); /* for the peer it is over */
    CHECK_INT(r.fins, 0);
    CHECK_INT(r.closed, 0);
    r.limit = RIG_DATA;
    mn_tcp_recv_resume(r.s, r.conn, r.now);
    CHECK_INT(r.got, 5);
    CHECK_INT(r.fins, 1);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, 0);
    rig_stop(&r);
}

static void test_reset_by_peer(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, ECONNRESET);
    rig_none(&r);
    rig_stop(&r);
}

static void test_abort(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_tcp_abort(r.s, r.conn, r.now);
    RIG_EXPECT(&r, R | A, f.us, f.them, 0);
    CHECK_INT(r.closed, 0);
    rig_in(&r, rig_segment(&f, A, "x", 1));
    RIG_EXPECT(&r, R, f.us, 0, 0);
    rig_stop(&r);
}

static void test_abort_inside_accept(void)
{
    struct rig r;
    rig_start(&r);
    r.abort_on_accept = true;
    rig_accept(&r, (struct rig_open){.mss = 1240});
    CHECK(rig_take(&r));
    CHECK((r.seen.flags & R) != 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    rig_stop(&r);
}

/* ---- TIME-WAIT (T-18) ---- */

static struct rig_flow into_time_wait(struct rig *r, bool ts)
{
    struct rig_flow f = rig_accept(r, (struct rig_open){.mss = 1240, .ts = ts});
    mn_tcp_close(r->s, r->conn, r->now);
    CHECK(rig_take(r));
    f.us++;
    f.tsval++;
    rig_in(r, rig_segment(&f, F | A, NULL, 0));
    f.them++;
    RIG_EXPECT(r, A, f.us, f.them, 0);
    CHECK_INT(mn_stack_stats(r->s)->tcp_time_wait, 1);
    return f;
}

static void test_time_wait_ignores_resets_and_answers_fins(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = into_time_wait(&r, false);
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 1);
    rig_advance(&r, 59 * MN_SECOND);
    f.them--;
    rig_in(&r, rig_segment(&f, F | A, NULL, 0));
    RIG_EXPECT(&r, A, f.us, f.them + 1, 0);
    rig_advance(&r, 59 * MN_SECOND); /* the wait began anew */
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 1);
    rig_advance(&r, 2 * MN_SECOND);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 0);
    rig_stop(&r);
}

static void test_time_wait_reuse(void)
{
    for (int ts = 0; ts < 2; ts++) {
        struct rig r;
        rig_start(&r);
        struct rig_flow f = into_time_wait(&r, ts != 0);
        uint32_t used = f.us;
        f.them -= 500; /* older numbers: refused without timestamps */
        struct mn_segment g = rig_segment(&f, S, NULL, 0);
        rig_in(&r, g);
        RIG_EXPECT(&r, A, f.us, f.them + 500, 0);
        if (ts != 0)
            g.tsval += 10;
        else
            g.seq += 1000;
        rig_in(&r, g);
        RIG_EXPECT(&r, S | A, r.seen.seq, g.seq + 1, 0);
        CHECK((int32_t)(r.seen.seq - used) > 0);
        CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 0);
        rig_stop(&r);
    }
}

static void test_time_wait_cap(void)
{
    struct rig r;
    struct mn_stack_config cfg = {.max_time_wait = 8};
    rig_start_with(&r, &cfg);
    for (uint16_t i = 0; i < 20; i++) {
        struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = (uint16_t)(100 + i)};
        if (r.listener == 0)
            CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
        rig_in(&r, rig_segment(&f, S, NULL, 0));
        rig_take(&r);
        f.us = r.seen.seq + 1;
        f.them++;
        rig_in(&r, rig_segment(&f, A, NULL, 0));
        mn_tcp_close(r.s, r.conn, r.now);
        f.us++;
        rig_in(&r, rig_segment(&f, F | A, NULL, 0));
        while (rig_take(&r))
            ;
    }
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait, 8);
    CHECK_INT(mn_stack_stats(r.s)->tcp_time_wait_full, 12);
    rig_stop(&r);
}

/* ---- the owner's events ---- */

static void test_peer_gone_and_path_failed(void)
{
    struct rig r;
    rig_start(&r);
    rig_accept(&r, (struct rig_open){.mss = 1240});
    mn_stack_peer_gone(r.s, RIG_PEER + 1, r.now);
    CHECK_INT(r.closed, 0);
    mn_stack_path_failed(r.s, RIG_PEER, r.now); /* an established connection waits for a path to come back */
    CHECK_INT(r.closed, 0);
    mn_stack_peer_gone(r.s, RIG_PEER, r.now);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, ECONNABORTED);
    rig_connect(&r);
    mn_stack_path_failed(r.s, RIG_PEER, r.now);
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, EHOSTUNREACH);
    rig_stop(&r);
}

/* A path that is back need not wait for the next try, and what was never tried in vain is left alone. */
static void test_nudge(void)
{
    struct rig r;
    uint8_t data[100] = {0};
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    CHECK_INT(rig_write(&r, data, sizeof data), sizeof data);
    RIG_EXPECT(&r, A, f.us, f.them, sizeof data);
    mn_stack_nudge(r.s, RIG_PEER, r.now); /* heard just now: what acknowledged that may be lost */
    rig_advance(&r, 0);
    RIG_EXPECT(&r, A, f.us + sizeof data, f.them, 0);
    rig_none(&r);
    rig_advance(&r, 20 * MN_SECOND);
    while (rig_take(&r))
        ;
    uint64_t before = mn_stack_stats(r.s)->tcp_timeouts;
    CHECK(before >= 4);
    mn_stack_nudge(r.s, RIG_PEER + 1, r.now); /* somebody else's path */
    rig_advance(&r, 0);
    rig_none(&r);
    mn_stack_nudge(r.s, RIG_PEER, r.now);
    rig_advance(&r, 0);
    RIG_EXPECT(&r, A, f.us, f.them, sizeof data);
    CHECK_INT(mn_stack_stats(r.s)->tcp_timeouts, before + 1);
    f.us += sizeof data;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    rig_advance(&r, 4 * MN_SECOND);
    mn_stack_nudge(r.s, RIG_PEER, r.now); /* nothing is missing, and nothing was heard lately */
    rig_advance(&r, 0);
    rig_none(&r);
    rig_stop(&r);
}

static void test_nudge_a_syn(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r); /* the SYN has left */
    mn_stack_nudge(r.s, RIG_PEER, r.now);
    rig_advance(&r, 0);
    rig_none(&r);
    rig_advance(&r, 8 * MN_SECOND);
    CHECK(rig_take(&r));
    while (rig_take(&r))
        ;
    mn_stack_nudge(r.s, RIG_PEER, r.now);
    RIG_EXPECT(&r, S, f.us - 1, 0, 0);
    rig_none(&r);
    rig_stop(&r);
}

static void test_keepalive(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    rig_advance(&r, 119 * MN_SECOND);
    rig_none(&r);
    rig_advance(&r, 2 * MN_SECOND);
    RIG_EXPECT(&r, A, f.us - 1, f.them, 0);
    rig_in(&r, rig_segment(&f, A, NULL, 0)); /* alive */
    rig_advance(&r, 119 * MN_SECOND);
    rig_none(&r);
    rig_advance(&r, 2 * MN_SECOND);
    for (int i = 0; i < 4; i++) {
        RIG_EXPECT(&r, A, f.us - 1, f.them, 0);
        CHECK_INT(r.closed, 0);
        rig_advance(&r, 30 * MN_SECOND);
    }
    RIG_EXPECT(&r, R | A, f.us, f.them, 0);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, ETIMEDOUT);
    rig_stop(&r);
}

/* Segments out of the window, or that acknowledge what was never sent, are no sign of the peer: anybody could send
 * them, and two sides that lost each other's numbers do, for ever. */
static void test_strangers_keep_nothing_alive(void)
{
    for (int has_data = 0; has_data < 2; has_data++) {
        struct rig r;
        rig_start(&r);
        struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
        if (has_data != 0)
            CHECK_INT(rig_write(&r, (const uint8_t *)"lost", 4), 4);
        for (int i = 0; i < 1000 && r.closed == 0; i++) {
            rig_advance(&r, MN_SECOND);
            struct mn_segment g = rig_segment(&f, A, NULL, 0);
            if (i % 2 == 0)
                g.seq += 1U << 30;
            else
                g.ack += 1U << 30;
            rig_in(&r, g);
            while (rig_take(&r))
                ;
        }
        CHECK_INT(r.closed, 1);
        CHECK_INT(r.err, ETIMEDOUT);
        rig_stop(&r);
    }
}

static void test_address_taken_away(void)
{
    struct rig r;
    rig_start(&r);
    rig_accept(&r, (struct rig_open){.mss = 1240});
    CHECK_INT(mn_stack_set_addresses(r.s, &r.own6, 1), 0);
    CHECK_INT(mn_stack_next_deadline(r.s), 0);
    mn_stack_on_deadline(r.s, r.now);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, ECONNABORTED);
    rig_stop(&r);
}

static void test_listener_rules(void)
{
    struct rig r;
    uint32_t other;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &other), -EADDRINUSE);
    CHECK_INT(mn_tcp_listen(r.s, &r.peer4, RIG_PORT, 0, &other), -EADDRNOTAVAIL);
    CHECK_INT(mn_tcp_listen(r.s, NULL, 0, 0, &other), 0);
    CHECK(mn_tcp_listener_port(r.s, other) >= 32768);
    mn_tcp_unlisten(r.s, other);
    mn_tcp_unlisten(r.s, other);
    CHECK_INT(mn_tcp_listener_port(r.s, other), 0);
    rig_stop(&r);
}

/* T-17: numbers differ between tuples and stacks, and rise per tuple; so do the starts of ports and timestamps. */
static void test_sequence_numbers_are_keyed(void)
{
    uint32_t first[2], second, offset, stamps[2], ports[2];
    for (int i = 0; i < 2; i++) {
        struct rig r;
        rig_start(&r);
        r.s->secret[0] ^= (uint8_t)i;
        struct mn_tuple t = {r.own4, r.peer4, 80, 90};
        first[i] = mn_secret_isn(r.s, &t, &stamps[i]);
        ports[i] = (uint32_t)mn_secret_number(r.s, &t, MN_SECRET_PORT);
        r.s->now += 100 * MN_MS;
        second = mn_secret_isn(r.s, &t, &offset);
        CHECK_INT(second - first[i], (uint32_t)(100 * MN_MS >> 6));
        CHECK_INT(offset, stamps[i]); /* of one tuple the same, or PAWS would refuse what follows a TIME-WAIT */
        t.lport++;
        CHECK((uint32_t)(mn_secret_isn(r.s, &t, &offset) - second + 65536) > 131072);
        CHECK(offset != stamps[i]);
        CHECK((uint32_t)mn_secret_number(r.s, &t, MN_SECRET_PORT) != ports[i]);
        rig_stop(&r);
    }
    CHECK(first[0] != first[1] && stamps[0] != stamps[1] && ports[0] != ports[1]);
}

int main(void)
{
    RUN(test_passive_open);
    RUN(test_active_open);
    RUN(test_syn_to_closed_port);
    RUN(test_reset_rules_for_strays);
    RUN(test_connect_refused);
    RUN(test_bad_ack_in_syn_sent);
    RUN(test_connect_gives_up);
    RUN(test_connect_without_route);
    RUN(test_simultaneous_open);
    RUN(test_simultaneous_open_scales);
    RUN(test_simultaneous_open_by_syn_ack);
    RUN(test_simultaneous_open_refused);
    RUN(test_half_open);
    RUN(test_half_open_retries);
    RUN(test_backlog);
    RUN(test_conn_table_full);
    RUN(test_close_by_peer_first);
    RUN(test_close_by_us_first);
    RUN(test_close_both_at_once);
    RUN(test_fin_answers_fin_at_once);
    RUN(test_lost_fin_is_sent_again);
    RUN(test_orphan_fin_wait_2_ends);
    RUN(test_close_with_unread_resets);
    RUN(test_close_inside_deliver_with_rest_resets);
    RUN(test_data_after_close_resets);
    RUN(test_fin_is_told_after_every_byte);
    RUN(test_reset_by_peer);
    RUN(test_abort);
    RUN(test_abort_inside_accept);
    RUN(test_time_wait_ignores_resets_and_answers_fins);
    RUN(test_time_wait_reuse);
    RUN(test_time_wait_cap);
    RUN(test_peer_gone_and_path_failed);
    RUN(test_nudge);
    RUN(test_nudge_a_syn);
    RUN(test_keepalive);
    RUN(test_strangers_keep_nothing_alive);
    RUN(test_address_taken_away);
    RUN(test_listener_rules);
    RUN(test_sequence_numbers_are_keyed);
    return 0;
}
