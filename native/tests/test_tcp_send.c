/* Sending: initial window, retransmission, loss recovery, closed and silly windows, errors from the path
 * (T-08 … T-10, T-13, T-20 … T-23, IP-06). */
#include "rig.h"

enum {
    A = MN_TCP_ACK,
    F = MN_TCP_FIN,
    R = MN_TCP_RST,
    MSS = 1240,
};

static uint8_t g_bytes[400000];
static const struct mn_stack_config g_reno = {.cc = "newreno"}; /* where the test counts on halves */

static void drain(struct rig *r)
{
    while (rig_take(r))
        ;
}

static struct mn_conn *block(struct rig *r)
{
    return r->s->slots[r->conn & (MN_MAX_CONNS - 1)].conn;
}

static void ack(struct rig *r, const struct rig_flow *f, uint32_t number)
{
    struct mn_segment g = rig_segment(f, A, NULL, 0);
    g.ack = number;
    rig_in(r, g);
}

static uint32_t count_out(struct rig *r)
{
    uint32_t bytes = 0;
    while (rig_take(r))
        bytes += r->seen.len;
    return bytes;
}

static void test_small_writes_leave_at_once(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    for (uint32_t i = 0; i < 5; i++) { /* unacknowledged before: no Nagle */
        CHECK_INT(rig_write(&r, g_bytes, 10), 10);
        RIG_EXPECT(&r, A, f.us + 10 * i, f.them, 10);
        CHECK((r.seen_packet.l4[13] & MN_TCP_PSH) != 0);
    }
    rig_stop(&r);
}

/* One write, many cuts: full segments, sums good (rig_take checks), bytes right, PSH on the last only. */
static void test_one_write_many_segments(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        for (int ts = 0; ts < 2; ts++) {
            struct rig r;
            rig_start(&r);
            r.v6 = v6 != 0;
            struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 9000, .ts = ts != 0});
            uint32_t size = 5001, mss = (v6 != 0 ? 1220U : 1240U) - (ts != 0 ? 12U : 0U);
            CHECK_INT(rig_write(&r, g_bytes, size), size);
            for (uint32_t at = 0; at < size; at += r.seen.len) {
                CHECK(rig_take(&r));
                CHECK_INT(r.seen.seq, f.us + at);
                CHECK_INT(r.seen.len, size - at < mss ? size - at : mss);
                CHECK(memcmp(r.seen.data, g_bytes + at, r.seen.len) == 0);
                CHECK_INT((r.seen.flags & MN_TCP_PSH) != 0, at + r.seen.len == size);
                CHECK(r.seen_packet.ip_len <= RIG_MTU);
            }
            rig_none(&r);
            rig_stop(&r);
        }
    }
}

/* Every offset of the ring's end within a segment: pieces of odd length sum right. */
static void test_cuts_across_the_ring_end(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    uint64_t sent = 0;
    for (int i = 0; i < 400; i++) {
        uint32_t n = 1001 + (uint32_t)i * 3;
        CHECK_INT(rig_write(&r, g_bytes + sent % 1000, n), n);
        uint32_t got = 0;
        while (rig_take(&r)) {
            CHECK(memcmp(r.seen.data, g_bytes + sent % 1000 + got, r.seen.len) == 0);
            got += r.seen.len;
        }
        CHECK_INT(got, n);
        f.us += n;
        sent += n;
        ack(&r, &f, f.us);
        drain(&r);
    }
    CHECK(sent > 3 * MN_SND_RING_FIRST);
    rig_stop(&r);
}

static void test_initial_window_is_ten(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    CHECK_INT(rig_write(&r, g_bytes, 40000), 40000);
    CHECK_INT(count_out(&r), 10 * MSS);
    f.us += 4 * MSS;
    ack(&r, &f, f.us); /* slow start: what was acknowledged and as much again */
    CHECK_INT(count_out(&r), 8 * MSS);
    rig_stop(&r);
}

static void test_window_grows_only_when_it_limits(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    uint32_t before = block(&r)->cc.cwnd;
    for (int i = 0; i < 500; i++) {
        CHECK_INT(rig_write(&r, g_bytes, 100), 100);
        drain(&r);
        f.us += 100;
        ack(&r, &f, f.us);
    }
    CHECK_INT(block(&r)->cc.cwnd, before);
    rig_stop(&r);
}

static void test_idle_returns_to_the_initial_window(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wscale = 7});
    for (int i = 0; i < 6; i++) {
        rig_write(&r, g_bytes, 60000);
        f.us += count_out(&r);
        ack(&r, &f, f.us);
    }
    while (count_out(&r) > 0)
        ;
    f.us = block(&r)->snd.nxt;
    ack(&r, &f, f.us);
    drain(&r);
    CHECK(block(&r)->cc.cwnd > 20 * MSS);
    rig_advance(&r, 10 * MN_SECOND);
    rig_write(&r, g_bytes, 60000);
    uint32_t sent = count_out(&r);
    CHECK(sent > 9 * MSS && sent <= 10 * MSS); /* where the ring ends, a segment is cut short */
    rig_stop(&r);
}

/* ---- timers (T-10) ---- */

static void test_retransmission_backs_off(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    CHECK_INT(rig_write(&r, g_bytes, 100), 100);
    RIG_EXPECT(&r, A, f.us, f.them, 100);
    uint64_t rto = 200 * MN_MS; /* the handshake took no time: the minimum */
    for (int i = 0; i < 6; i++) {
        rig_advance(&r, rto - 1);
        rig_none(&r);
        rig_advance(&r, 1);
        RIG_EXPECT(&r, A, f.us, f.them, 100);
        rto *= 2;
    }
    f.us += 100;
    ack(&r, &f, f.us);
    CHECK_INT(block(&r)->rtt.backoff, 0);
    rig_stop(&r);
}

static void test_sender_gives_up_after_fifteen_minutes(void)
{
    struct rig r;
    rig_start(&r);
    rig_accept(&r, (struct rig_open){.mss = MSS});
    rig_write(&r, g_bytes, 100);
    rig_advance(&r, 14 * 60 * MN_SECOND);
    drain(&r);
    CHECK_INT(r.closed, 0);
    rig_advance(&r, 5 * 60 * MN_SECOND);
    drain(&r);
    CHECK((r.seen.flags & R) != 0);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, ETIMEDOUT);
    rig_stop(&r);
}

/* An RFC 6298 model in floating point against the integers. */
static void test_rtt_estimator(void)
{
    struct mn_rtt r;
    double srtt = 0, var = 0;
    uint64_t rng = 5;
    mn_rtt_start(&r);
    CHECK_INT(mn_rtt_timeout(&r), MN_SECOND);
    for (int i = 0; i < 1000; i++) {
        double sample = 100e6 + (double)(test_random(&rng) % 20000000);
        if (i == 0) {
            srtt = sample;
            var = sample / 2;
        } else {
            double off = sample > srtt ? sample - srtt : srtt - sample;
            if (sample + var < srtt)
                off /= 8;
            var = 0.75 * var + 0.25 * off;
            srtt = 0.875 * srtt + 0.125 * sample;
        }
        mn_rtt_take(&r, (uint64_t)sample);
        double want = srtt + 4 * var, got = (double)r.rto_ns;
        CHECK(got > (want < 200e6 ? 200e6 : want) - 1000 && got < (want < 200e6 ? 200e6 : want) + 1000);
    }
    for (int i = 0; i < 20; i++)
        r.backoff++;
    CHECK_INT(mn_rtt_timeout(&r), MN_RTO_MAX_NS);
}

static void test_karn(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    uint64_t before = block(&r)->rtt.srtt_ns;
    rig_write(&r, g_bytes, 100);
    rig_advance(&r, 900 * MN_MS);
    drain(&r);
    f.us += 100;
    ack(&r, &f, f.us); /* of which of them? nobody knows without timestamps */
    CHECK_INT(block(&r)->rtt.srtt_ns, before);
    rig_stop(&r);
}

static void test_timeout_goes_back_and_slow_starts(void)
{
    struct rig r;
    rig_start_with(&r, &g_reno);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    rig_write(&r, g_bytes, 30000);
    CHECK_INT(count_out(&r), 10 * MSS);
    rig_advance(&r, 200 * MN_MS);
    RIG_EXPECT(&r, A, f.us, f.them, MSS); /* one segment only */
    rig_none(&r);
    CHECK_INT(block(&r)->cc.ssthresh, 5 * MSS);
    ack(&r, &f, f.us + MSS);
    for (uint32_t i = 1; i <= 2; i++)
        RIG_EXPECT(&r, A, f.us + i * MSS, f.them, MSS);
    rig_none(&r);
    ack(&r, &f, f.us + 10 * MSS); /* the rest had arrived after all: no more is sent twice */
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.seq, f.us + 10 * MSS);
    drain(&r);
    rig_stop(&r);
}

/* ---- fast retransmit (T-08 as far as NewReno goes) ---- */

static void test_three_duplicates_retransmit(void)
{
    struct rig r;
    rig_start_with(&r, &g_reno);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    rig_write(&r, g_bytes, 40000);
    CHECK_INT(count_out(&r), 10 * MSS);
    ack(&r, &f, f.us);
    RIG_EXPECT(&r, A, f.us + 10 * MSS, f.them, MSS); /* limited transmit */
    ack(&r, &f, f.us);
    RIG_EXPECT(&r, A, f.us + 11 * MSS, f.them, MSS);
    ack(&r, &f, f.us);
    RIG_EXPECT(&r, A, f.us, f.them, MSS); /* the lost one, at once */
    CHECK_INT(mn_stack_stats(r.s)->tcp_fast_retransmits, 1);
    CHECK_INT(block(&r)->cc.ssthresh, 5 * MSS); /* what limited transmit added does not count (RFC 5681 3.2) */
    rig_none(&r);
    for (int i = 0; i < 4; i++) /* one for two and a half that leave: down to the threshold by the end */
        ack(&r, &f, f.us);
    rig_none(&r);
    ack(&r, &f, f.us);
    RIG_EXPECT(&r, A, f.us + 12 * MSS, f.them, MSS);
    f.us += 12 * MSS;
    ack(&r, &f, f.us); /* all that was out when it began: recovery is over */
    CHECK(!block(&r)->loss.in_recovery);
    CHECK_INT(block(&r)->cc.cwnd, 5 * MSS);
    drain(&r);
    rig_stop(&r);
}

static void test_partial_ack_retransmits_the_next_hole(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    rig_write(&r, g_bytes, 10 * MSS);
    CHECK_INT(count_out(&r), 10 * MSS);
    for (int i = 0; i < 3; i++)
        ack(&r, &f, f.us);
    RIG_EXPECT(&r, A, f.us, f.them, MSS);
    ack(&r, &f, f.us + 4 * MSS); /* and another one is missing there */
    RIG_EXPECT(&r, A, f.us + 4 * MSS, f.them, MSS);
    ack(&r, &f, f.us + 7 * MSS);
    RIG_EXPECT(&r, A, f.us + 7 * MSS, f.them, MSS);
    CHECK(block(&r)->loss.in_recovery);
    ack(&r, &f, f.us + 10 * MSS);
    CHECK(!block(&r)->loss.in_recovery);
    rig_none(&r);
    CHECK_INT(mn_stack_stats(r.s)->tcp_timeouts, 0);
    rig_stop(&r);
}

static void test_window_updates_are_no_duplicates(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    rig_write(&r, g_bytes, 5000);
    drain(&r);
    for (uint16_t i = 0; i < 10; i++) {
        struct mn_segment g = rig_segment(&f, A, NULL, 0);
        g.wnd = (uint16_t)(60000 + i);
        rig_in(&r, g);
    }
    for (int i = 0; i < 10; i++) { /* nor are segments with data */
        rig_in(&r, rig_segment(&f, A, "x", 1));
        f.them++;
    }
    CHECK_INT(mn_stack_stats(r.s)->tcp_fast_retransmits, 0);
    drain(&r);
    rig_stop(&r);
}

/* ---- windows of the peer (T-21, T-22) ---- */

static void test_zero_window_is_probed_for_ever(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 1000});
    rig_write(&r, g_bytes, 5000);
    CHECK_INT(count_out(&r), 1000);
    f.us += 1000;
    struct mn_segment shut = rig_segment(&f, A, NULL, 0);
    shut.wnd = 0;
    rig_in(&r, shut);
    rig_none(&r);
    uint64_t wait = 200 * MN_MS;
    for (int i = 0; i < 50; i++) { /* more than an hour */
        rig_advance(&r, wait);
        RIG_EXPECT(&r, A, f.us - 1, f.them, 0);
        rig_in(&r, shut);
        rig_none(&r);
        wait = wait * 2 > 120 * MN_SECOND ? 120 * MN_SECOND : wait * 2;
    }
    CHECK_INT(r.closed, 0);
    ack(&r, &f, f.us); /* open again */
    CHECK_INT(count_out(&r), 4000);
    f.us += 4000;
    ack(&r, &f, f.us);
    rig_stop(&r);
}

/* A window shut over what is out: an hour of it is the peer's right, and once it opens the peer has its time again. */
static void test_window_opens_after_an_hour_over_what_is_out(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 10000});
    rig_write(&r, g_bytes, 2 * MSS);
    CHECK_INT(count_out(&r), 2 * MSS);
    struct mn_segment shut = rig_segment(&f, A, NULL, 0);
    shut.wnd = 0;
    for (int i = 0; i < 360; i++) {
        rig_in(&r, shut);
        drain(&r);
        rig_advance(&r, 10 * MN_SECOND);
    }
    CHECK_INT(r.closed, 0);
    ack(&r, &f, f.us); /* open again, and nothing of what is out was taken */
    for (int i = 0; i < 60; i++) {
        drain(&r);
        rig_advance(&r, 10 * MN_SECOND);
    }
    CHECK_INT(r.closed, 0);
    drain(&r);
    f.us += 2 * MSS;
    ack(&r, &f, f.us);
    rig_none(&r);
    rig_stop(&r);
}

/* A peer that answers whatever comes, through an open window, and never acknowledges: answers are no progress. */
static void test_answers_without_progress_end(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 10000});
    rig_write(&r, g_bytes, 2 * MSS);
    int seconds = 0;
    for (; seconds < 2000 && r.closed == 0; seconds++) {
        drain(&r);
        ack(&r, &f, f.us);
        rig_advance(&r, MN_SECOND);
    }
    drain(&r);
    CHECK_INT(r.err, ETIMEDOUT);
    CHECK(seconds >= 900 && seconds < 1100);
    rig_stop(&r);
}

static void test_lost_window_update_is_recovered(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 1000});
    rig_write(&r, g_bytes, 3000);
    CHECK_INT(count_out(&r), 1000);
    f.us += 1000;
    struct mn_segment shut = rig_segment(&f, A, NULL, 0);
    shut.wnd = 0;
    rig_in(&r, shut);
    rig_advance(&r, 200 * MN_MS); /* the update got lost; the probe's answer tells the same */
    RIG_EXPECT(&r, A, f.us - 1, f.them, 0);
    ack(&r, &f, f.us);
    CHECK_INT(count_out(&r), 2000);
    rig_stop(&r);
}

static void test_silent_peer_with_zero_window_times_out(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 1000});
    rig_write(&r, g_bytes, 3000);
    drain(&r);
    f.us += 1000;
    struct mn_segment shut = rig_segment(&f, A, NULL, 0);
    shut.wnd = 0;
    rig_in(&r, shut);
    rig_advance(&r, 30 * 60 * MN_SECOND);
    drain(&r);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, ETIMEDOUT);
    rig_stop(&r);
}

static void test_orphan_does_not_probe_for_ever(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 1000});
    rig_write(&r, g_bytes, 3000);
    drain(&r);
    f.us += 1000;
    struct mn_segment shut = rig_segment(&f, A, NULL, 0);
    shut.wnd = 0;
    rig_in(&r, shut);
    mn_tcp_close(r.s, r.conn, r.now);
    for (int i = 0; i < 60; i++) {
        rig_advance(&r, 10 * MN_SECOND);
        drain(&r);
        rig_in(&r, shut);
        drain(&r);
    }
    CHECK_INT(mn_stack_stats(r.s)->tcp_conns, 0);
    rig_stop(&r);
}

static void test_window_taken_back_by_the_peer(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 10000});
    rig_write(&r, g_bytes, 9000);
    CHECK_INT(count_out(&r), 9000);
    struct mn_segment g = rig_segment(&f, A, NULL, 0);
    g.wnd = 500; /* behind what is out already */
    rig_in(&r, g);
    rig_none(&r);
    rig_advance(&r, 200 * MN_MS);
    RIG_EXPECT(&r, A, f.us, f.them, MSS); /* the oldest is tried all the same */
    rig_none(&r);
    f.us += 9000;
    ack(&r, &f, f.us);
    rig_write(&r, g_bytes, 100);
    RIG_EXPECT(&r, A, f.us, f.them, 100);
    rig_stop(&r);
}

static void test_sender_avoids_silly_windows(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 10000});
    rig_write(&r, g_bytes, 30000);
    CHECK_INT(count_out(&r), 8 * MSS); /* 80 bytes of window remain unused */
    f.us += 8 * MSS;
    struct mn_segment g = rig_segment(&f, A, NULL, 0);
    g.wnd = 300;
    rig_in(&r, g);
    rig_none(&r);
    rig_advance(&r, 200 * MN_MS); /* the override: what fits, rather than nothing for ever */
    RIG_EXPECT(&r, A, f.us, f.them, 300);
    rig_stop(&r);
}

/* ---- ring ---- */

static void test_full_ring_asks_to_be_filled_again(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    size_t done = rig_write(&r, g_bytes, sizeof g_bytes);
    CHECK_INT(done, MN_SND_RING_FREE);
    CHECK_INT(mn_tcp_send_space(r.s, r.conn), 0);
    f.us += count_out(&r);
    ack(&r, &f, f.us);
    CHECK_INT(r.writable, 0); /* a sip is not worth a call */
    while (r.writable == 0) {
        f.us += count_out(&r);
        ack(&r, &f, f.us);
    }
    CHECK(mn_tcp_send_space(r.s, r.conn) >= MN_SND_RING_FREE / 3);
    drain(&r);
    rig_stop(&r);
}

static void test_fin_follows_the_last_byte(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS, .wnd = 1000});
    rig_write(&r, g_bytes, 1500);
    CHECK_INT(count_out(&r), 1000);
    mn_tcp_shutdown(r.s, r.conn, r.now);
    size_t room;
    CHECK(mn_tcp_send_reserve(r.s, r.conn, &room) == NULL);
    CHECK_INT(mn_tcp_send_space(r.s, r.conn), -EPIPE);
    rig_none(&r);
    f.us += 1000;
    ack(&r, &f, f.us);
    RIG_EXPECT(&r, F | A, f.us, f.them, 500);
    rig_advance(&r, 200 * MN_MS);
    RIG_EXPECT(&r, F | A, f.us, f.them, 500); /* lost: both again */
    f.us += 501;
    ack(&r, &f, f.us);
    CHECK_INT(rig_state(&r), MN_FIN_WAIT_2);
    rig_stop(&r);
}

/* ---- errors of the path (T-23, IP-06) ---- */

static void icmp_in(struct rig *r, uint8_t type, uint8_t code, uint32_t word, uint8_t proto, uint16_t sport,
                    uint16_t dport, uint32_t seq)
{
    uint8_t pkt[RIG_MTU] = {0};
    struct mn_ip src = r->v6 ? r->peer6 : r->peer4, dst = r->v6 ? r->own6 : r->own4;
    size_t ip = mn_packet_header_len(&src), n = 8 + ip + 8;
    mn_packet_write_header(pkt, &src, &dst, r->v6 ? MN_PROTO_ICMP6 : MN_PROTO_ICMP, n);
    uint8_t *h = pkt + ip;
    h[0] = type;
    h[1] = code;
    mn_store32(h + 4, word);
    mn_packet_write_header(h + 8, &dst, &src, proto, 100);
    mn_store16(h + 8 + ip, sport);
    mn_store16(h + 8 + ip + 2, dport);
    mn_store32(h + 8 + ip + 4, seq);
    uint64_t sum = r->v6 ? mn_csum_pseudo(&src, &dst, MN_PROTO_ICMP6, n) : 0;
    mn_csum_store(h + 2, mn_csum_add(sum, h, n));
    rig_ip_in(r, pkt, ip + n);
}

static void test_too_big_lowers_the_mss(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        struct mn_stack_config cfg = {.mtu = 1280};
        rig_start_with(&r, &cfg);
        r.v6 = v6 != 0;
        struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 9000});
        uint32_t mss = v6 != 0 ? 1220 : 1240;
        uint8_t type = v6 != 0 ? 2 : 3, code = v6 != 0 ? 0 : 4;
        rig_write(&r, g_bytes, 3000);
        CHECK_INT(count_out(&r), 3000);
        icmp_in(&r, type, code, 900, MN_PROTO_TCP, RIG_PORT, RIG_PEER_PORT, f.us + 100000); /* never sent: forged */
        CHECK_INT(block(&r)->snd.mss, mss);
        CHECK_INT(mn_stack_stats(r.s)->icmp_error_unmatched, 1);
        icmp_in(&r, type, code, 900, MN_PROTO_TCP, RIG_PORT, RIG_PEER_PORT, f.us);
        uint32_t lower = v6 != 0 ? 1220 : 860; /* IPv6 paths take 1280 by definition */
        CHECK_INT(block(&r)->snd.mss, lower);
        if (v6 == 0) {
            RIG_EXPECT(&r, A, f.us, f.them, 860); /* cut anew at once */
            CHECK_INT(count_out(&r), 3000 - 860);
            icmp_in(&r, type, code, 68, MN_PROTO_TCP, RIG_PORT, RIG_PEER_PORT, f.us);
            CHECK_INT(block(&r)->snd.mss, 536); /* the floor */
            icmp_in(&r, type, code, 1200, MN_PROTO_TCP, RIG_PORT, RIG_PEER_PORT, f.us);
            CHECK_INT(block(&r)->snd.mss, 536); /* never up */
        }
        drain(&r);
        CHECK_INT(r.closed, 0);
        rig_stop(&r);
    }
}

static void test_port_unreachable_refuses_a_connect(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    icmp_in(&r, 3, 3, 0, MN_PROTO_TCP, f.port, RIG_PEER_PORT, f.us + 5);
    CHECK_INT(r.failed, 0);
    icmp_in(&r, 3, 3, 0, MN_PROTO_TCP, f.port, RIG_PEER_PORT, f.us - 1);
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, ECONNREFUSED);
    rig_stop(&r);
}

static void test_host_unreachable_is_remembered(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    icmp_in(&r, 3, 1, 0, MN_PROTO_TCP, f.port, RIG_PEER_PORT, f.us - 1);
    CHECK_INT(r.failed, 0); /* it may pass */
    rig_advance(&r, 130 * MN_SECOND);
    drain(&r);
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, EHOSTUNREACH);
    rig_stop(&r);
}

static void test_errors_do_not_end_connections(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = MSS});
    icmp_in(&r, 3, 3, 0, MN_PROTO_TCP, RIG_PORT, RIG_PEER_PORT, f.us);
    icmp_in(&r, 3, 1, 0, MN_PROTO_TCP, RIG_PORT, RIG_PEER_PORT, f.us);
    CHECK_INT(r.closed, 0);
    CHECK_INT(rig_state(&r), MN_ESTABLISHED);
    rig_stop(&r);
}

static void test_tsmp_reject_fails_a_connect(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_connect(&r);
    uint8_t pkt[64];
    size_t n = mn_packet_write_header(pkt, &r.peer4, &r.own4, MN_PROTO_TSMP, 7);
    const uint8_t body[] = {
        '!', MN_PROTO_TCP, 'A', (uint8_t)(f.port >> 8), (uint8_t)f.port, RIG_PEER_PORT >> 8, RIG_PEER_PORT & 255};
    memcpy(pkt + n, body, sizeof body);
    rig_ip_in(&r, pkt, n + 6); /* cut short: the header says 7 more */
    CHECK_INT(r.failed, 0);
    rig_ip_in(&r, pkt, n + 7);
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, EACCES);
    rig_stop(&r);
}

int main(void)
{
    for (size_t i = 0; i < sizeof g_bytes; i++)
        g_bytes[i] = (uint8_t)(i * 2654435761U >> 13);
    RUN(test_small_writes_leave_at_once);
    RUN(test_one_write_many_segments);
    RUN(test_cuts_across_the_ring_end);
    RUN(test_initial_window_is_ten);
    RUN(test_window_grows_only_when_it_limits);
    RUN(test_idle_returns_to_the_initial_window);
    RUN(test_retransmission_backs_off);
    RUN(test_sender_gives_up_after_fifteen_minutes);
    RUN(test_rtt_estimator);
    RUN(test_karn);
    RUN(test_timeout_goes_back_and_slow_starts);
    RUN(test_three_duplicates_retransmit);
    RUN(test_partial_ack_retransmits_the_next_hole);
    RUN(test_window_updates_are_no_duplicates);
    RUN(test_zero_window_is_probed_for_ever);
    RUN(test_window_opens_after_an_hour_over_what_is_out);
    RUN(test_answers_without_progress_end);
    RUN(test_lost_window_update_is_recovered);
    RUN(test_silent_peer_with_zero_window_times_out);
    RUN(test_orphan_does_not_probe_for_ever);
    RUN(test_window_taken_back_by_the_peer);
    RUN(test_sender_avoids_silly_windows);
    RUN(test_full_ring_asks_to_be_filled_again);
    RUN(test_fin_follows_the_last_byte);
    RUN(test_too_big_lowers_the_mss);
    RUN(test_port_unreachable_refuses_a_connect);
    RUN(test_host_unreachable_is_remembered);
    RUN(test_errors_do_not_end_connections);
    RUN(test_tsmp_reject_fails_a_connect);
    return 0;
}
