/* Passive opens under pressure: SYN cookies, shares of the backlog, a full application (T-25, T-26; RFC 4987). */
#include "rig.h"

enum {
    S = MN_TCP_SYN,
    A = MN_TCP_ACK,
    R = MN_TCP_RST,
};

static const struct mn_stack_stats *stats(const struct rig *r)
{
    return mn_stack_stats(r->s);
}

static struct mn_conn *conn_of(const struct rig *r)
{
    return mn_conn_get(r->s, r->conn);
}

/* A listener whose table is full, so that every SYN is answered by a cookie. */
static void start_full(struct rig *r)
{
    rig_start(r);
    CHECK_INT(mn_tcp_listen(r->s, NULL, RIG_PORT, 1, &r->listener), 0);
    struct rig_flow f = {.them = 1, .port = RIG_PORT, .peer_port = 1};
    rig_in(r, rig_segment(&f, S, NULL, 0));
    CHECK(rig_take(r));
    CHECK_INT(stats(r)->tcp_half_open, 1);
}

struct offer {
    uint16_t mss;
    int8_t wscale;
    bool ts, sack, ecn;
};

/* SYN and SYN-ACK; the flow is ready for the last ACK. */
static struct rig_flow half_way(struct rig *r, struct offer o)
{
    struct rig_flow f = {.them = 70000, .port = RIG_PORT, .peer_port = 900, .ts = o.ts, .tsval = 4000};
    struct mn_segment g = rig_segment(&f, S, NULL, 0);
    g.ack = 0;
    g.mss = o.mss;
    g.wscale = o.wscale;
    g.may_sack = o.sack;
    if (o.ecn)
        g.flags |= MN_TCP_ECE | MN_TCP_CWR;
    uint64_t before = stats(r)->tcp_cookies_sent;
    rig_in(r, g);
    CHECK(rig_take(r));
    CHECK_INT(r->seen.flags & (S | A), S | A);
    CHECK_INT(r->seen.ack, 70001);
    CHECK_INT(stats(r)->tcp_cookies_sent, before + 1);
    f.us = r->seen.seq + 1;
    f.them = 70001;
    f.tsecr = r->seen.tsval;
    return f;
}

/* Whatever was offered beside a timestamp lives on; without one, only the segment size does. */
static void test_cookie_keeps_the_offers(void)
{
    static const uint16_t sizes[][2] = {{0, 536}, {100, 88}, {536, 536}, {1240, 1240}, {1300, 1240}, {9000, 1240}};
    for (unsigned mask = 0; mask < 16; mask++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            struct rig r;
            struct offer o = {sizes[i][0], (mask & 1) != 0 ? (int8_t)(i * 2) : -1, (mask & 2) != 0, (mask & 4) != 0,
                              (mask & 8) != 0};
            start_full(&r);
            r.now += i * 137 * MN_MS; /* other low bits of the stamp */
            struct rig_flow f = half_way(&r, o);
            CHECK_INT(r.seen.has_ts, o.ts);
            CHECK_INT(r.seen.may_sack, o.ts && o.sack);
            CHECK_INT(r.seen.wscale >= 0, o.ts && o.wscale >= 0);
            CHECK_INT((r.seen.flags & MN_TCP_ECE) != 0, o.ts && o.ecn);
            r.now += 30 * MN_MS;
            rig_in(&r, rig_segment(&f, A, NULL, 0));
            CHECK_INT(r.accepted, 1);
            CHECK_INT(stats(&r)->tcp_cookies_taken, 1);
            const struct mn_conn *c = conn_of(&r);
            CHECK_INT(c->snd.peer_mss, sizes[i][1]);
            CHECK_INT(c->ts.on, o.ts);
            CHECK_INT(c->may_sack, o.ts && o.sack);
            CHECK_INT(c->ecn_on, o.ts && o.ecn);
            CHECK_INT(c->snd.shift, o.ts && o.wscale > 0 ? o.wscale : 0);
            CHECK_INT(c->rcv.shift != 0, o.ts && o.wscale >= 0);
            rig_none(&r);
            rig_in(&r, rig_segment(&f, A | MN_TCP_PSH, "hello", 5)); /* and it works */
            CHECK_INT(r.got, 5);
            rig_advance(&r, 5 * MN_MS);
            RIG_EXPECT(&r, A, f.us, f.them + 5, 0);
            CHECK(!o.ts || mn_seq_le(f.tsecr, r.seen.tsval)); /* its clock goes on from the stamp */
            rig_stop(&r);
        }
    }
}

/* The stamp is never ahead of the clock it stands for, and less than a tenth of a second behind. */
static void test_cookie_stamp(void)
{
    for (uint32_t now = 0xffffff80U; now != 0x80; now++) {
        for (int8_t scale = -1; scale <= 14; scale++) {
            struct mn_half h = {.wscale = scale, .may_sack = (now & 1) != 0, .ecn_on = (now & 2) != 0}, got = {0};
            uint32_t stamp = mn_syncookie_stamp(now, &h);
            CHECK(now - stamp < 64);
            mn_syncookie_unstamp(stamp, &got);
            CHECK_INT(got.wscale, h.wscale);
            CHECK_INT(got.may_sack, h.may_sack);
            CHECK_INT(got.ecn_on, h.ecn_on);
        }
    }
}

static void test_forged_and_old_cookies(void)
{
    struct rig r;
    start_full(&r);
    struct rig_flow f = half_way(&r, (struct offer){1240, 7, true, true, false});
    struct rig_flow forged = f;
    for (int bit = 0; bit < 32; bit++) { /* any other number is refused, and in silence: the peer may be honest */
        forged.us = f.us ^ 1U << bit;
        rig_in(&r, rig_segment(&forged, A, NULL, 0));
        forged.us = f.us;
        forged.them = f.them ^ 1U << bit;
        rig_in(&r, rig_segment(&forged, A, NULL, 0));
        forged.them = f.them;
    }
    forged.peer_port++;
    rig_in(&r, rig_segment(&forged, A, NULL, 0));
    CHECK_INT(stats(&r)->tcp_cookies_refused, 65);
    CHECK_INT(r.accepted, 0);
    rig_none(&r);
    r.now += MN_COOKIE_PERIOD; /* the next period still takes it */
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.accepted, 1);
    mn_tcp_abort(r.s, r.conn, r.now);
    while (rig_take(&r))
        ;
    r.now += 2 * MN_COOKIE_PERIOD; /* nobody was sent a cookie lately: a stray ACK is a stray ACK again */
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.accepted, 1);
    RIG_EXPECT(&r, R, f.us, 0, 0);
    rig_stop(&r);
}

/* A cookie may be as old as it likes to look: after two periods it is worth nothing even while others are taken. */
static void test_cookie_expires(void)
{
    struct rig r;
    start_full(&r);
    struct rig_flow f = half_way(&r, (struct offer){1240, -1, false, false, false});
    rig_advance(&r, 2 * MN_COOKIE_PERIOD);
    while (rig_take(&r))
        ;
    struct mn_listener *l = &r.s->listener_data[mn_ports_slot(r.listener)];
    l->cookies_until = r.now + MN_SECOND;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.accepted, 0);
    CHECK_INT(stats(&r)->tcp_cookies_refused, 1);
    rig_none(&r);
    rig_stop(&r);
}

/* The ACK was lost: the first data does as well. */
static void test_cookie_by_data(void)
{
    struct rig r;
    start_full(&r);
    struct rig_flow f = half_way(&r, (struct offer){1240, -1, false, false, false});
    rig_in(&r, rig_segment(&f, A | MN_TCP_PSH, "hello", 5));
    CHECK_INT(r.accepted, 1);
    CHECK_INT(r.got, 5);
    rig_advance(&r, 10 * MN_MS);
    RIG_EXPECT(&r, A, f.us, f.them + 5, 0);
    rig_stop(&r);
}

/* T-25: one peer's flood fills its share and no more; the others keep full service. */
static void test_one_peer_cannot_fill_the_table(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 256, &r.listener), 0);
    for (uint16_t i = 1; i <= 5000; i++) {
        struct rig_flow f = {.them = i, .port = RIG_PORT, .peer_port = i};
        rig_in_from(&r, 3, rig_segment(&f, S, NULL, 0));
        CHECK(rig_take(&r));
    }
    CHECK_INT(stats(&r)->tcp_half_open, 64);
    CHECK_INT(stats(&r)->tcp_cookies_sent, 5000 - 64);
    struct rig_flow f = {.them = 500, .port = RIG_PORT, .peer_port = 60000};
    rig_in_from(&r, 4, rig_segment(&f, S, NULL, 0));
    CHECK(rig_take(&r));
    CHECK_INT(stats(&r)->tcp_half_open, 65);
    CHECK_INT(stats(&r)->tcp_cookies_sent, 5000 - 64);
    rig_advance(&r, 70 * MN_SECOND); /* all of it goes by itself */
    while (rig_take(&r))
        ;
    CHECK_INT(stats(&r)->tcp_half_open, 0);
    for (int i = 0; i < MN_BUCKETS; i++)
        CHECK_INT(r.s->half_by_peer[i], 0);
    rig_stop(&r);
}

/* T-25: a hundred thousand SYNs a second for a second, from many peers and with forged ports; an honest client among
 * them connects every millisecond, at its first try, and keeps what it offered. */
static void test_flood_leaves_the_honest_working(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 128, &r.listener), 0);
    uint64_t rng = 9;
    int tries = 0;
    for (uint32_t i = 0; i < 100000 / MN_TEST_SLOW; i++) {
        uint64_t v = test_random(&rng);
        struct rig_flow f = {.them = (uint32_t)v, .port = RIG_PORT, .peer_port = (uint16_t)(1 + (v >> 32) % 59999)};
        rig_in_from(&r, 100 + (uint32_t)(v >> 48) % 500, rig_segment(&f, S, NULL, 0));
        rig_advance(&r, 10000);
        while (rig_take(&r))
            ;
        if (i % 100 != 99)
            continue;
        f = (struct rig_flow){
            .them = 70000, .port = RIG_PORT, .peer_port = (uint16_t)(60000 + tries % 5000), .ts = true};
        f.tsval = i;
        struct mn_segment g = rig_segment(&f, S, NULL, 0);
        g.mss = 1240;
        g.wscale = 9;
        g.may_sack = true;
        rig_in_from(&r, 5, g);
        CHECK(rig_take(&r));
        f.us = r.seen.seq + 1;
        f.them++;
        f.tsecr = r.seen.tsval;
        rig_in_from(&r, 5, rig_segment(&f, A, NULL, 0));
        CHECK_INT(r.accepted, ++tries);
        CHECK(conn_of(&r)->may_sack && conn_of(&r)->snd.shift == 9);
        mn_tcp_abort(r.s, r.conn, r.now);
        while (rig_take(&r))
            ;
        CHECK(stats(&r)->tcp_half_open <= 128);
    }
    CHECK_INT(tries, 1000 / MN_TEST_SLOW);
    CHECK(stats(&r)->tcp_cookies_taken > 0);
    CHECK_INT(stats(&r)->tcp_conns, 0);
    rig_stop(&r);
}

/* T-26: the application takes no more. The last ACK is dropped without a word, and a later one gets in. */
static void test_full_application(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
    struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = 2};
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    CHECK(rig_take(&r));
    f.us = r.seen.seq + 1;
    f.them++;
    r.is_full = true;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    rig_in(&r, rig_segment(&f, A, "early", 5));
    CHECK_INT(r.accepted, 0);
    CHECK_INT(stats(&r)->tcp_accept_full, 2);
    rig_none(&r);
    rig_advance(&r, MN_SECOND); /* it is asked again */
    RIG_EXPECT(&r, S | A, f.us - 1, f.them, 0);
    r.is_full = false;
    rig_in(&r, rig_segment(&f, A, "early", 5));
    CHECK_INT(r.accepted, 1);
    CHECK_INT(r.got, 5);
    while (rig_take(&r))
        ;
    rig_stop(&r);
}

static void test_full_application_with_cookies(void)
{
    struct rig r;
    start_full(&r);
    struct rig_flow f = half_way(&r, (struct offer){1240, 7, true, true, false});
    r.is_full = true;
    rig_in(&r, rig_segment(&f, A, NULL, 0));
    CHECK_INT(r.accepted, 0);
    rig_none(&r);
    r.is_full = false;
    rig_in(&r, rig_segment(&f, A, "late", 4));
    CHECK_INT(r.accepted, 1);
    CHECK_INT(r.got, 4);
    while (rig_take(&r))
        ;
    rig_stop(&r);
}

int main(void)
{
    RUN(test_cookie_keeps_the_offers);
    RUN(test_cookie_stamp);
    RUN(test_forged_and_old_cookies);
    RUN(test_cookie_expires);
    RUN(test_cookie_by_data);
    RUN(test_one_peer_cannot_fill_the_table);
    RUN(test_flood_leaves_the_honest_working);
    RUN(test_full_application);
    RUN(test_full_application_with_cookies);
    return 0;
}
