/* Receiving: options, acceptability, trimming, reassembly, windows, acknowledgements, PAWS, blind attacks
 * (T-02 … T-05, T-16, T-19, T-20, T-21). */
#include "rig.h"

enum {
    S = MN_TCP_SYN,
    A = MN_TCP_ACK,
    F = MN_TCP_FIN,
    R = MN_TCP_RST,
};

static uint8_t g_bytes[200000];

static void drain(struct rig *r)
{
    while (rig_take(r))
        ;
}

/* ---- options (T-02, T-03, T-04) ---- */

static void test_mss_bounds(void)
{
    static const struct {
        uint16_t offered;
        bool v6;
        uint32_t used;
    } cases[] = {{0, false, 536},   {0, true, 1220},     {1, false, 88},
                 {600, false, 600}, {9000, false, 1240}, {9000, true, 1220}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rig r;
        struct mn_tcp_info info;
        rig_start(&r);
        r.v6 = cases[i].v6;
        rig_accept(&r, (struct rig_open){.mss = cases[i].offered});
        CHECK_INT(mn_tcp_info(r.s, r.conn, &info), 0);
        CHECK_INT(info.mss, cases[i].used);
        rig_stop(&r);
    }
}

static void test_syn_ack_offers_what_was_offered(void)
{
    for (int mask = 0; mask < 4; mask++) {
        struct rig r;
        struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = 9, .ts = (mask & 1) != 0, .tsval = 33};
        rig_start(&r);
        CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
        struct mn_segment g = rig_segment(&f, S, NULL, 0);
        g.wscale = (mask & 2) != 0 ? 15 : -1;
        rig_in(&r, g);
        CHECK(rig_take(&r));
        CHECK_INT(r.seen.mss, 1240);
        CHECK_INT(r.seen.has_ts, (mask & 1) != 0);
        CHECK_INT(r.seen.tsecr, (mask & 1) != 0 ? 33 : 0);
        CHECK_INT(r.seen.wscale, (mask & 2) != 0 ? 8 : -1); /* 65535 << 8 covers 8 MiB */
        CHECK_INT(r.seen.wnd, 65535);                       /* never scaled in a SYN */
        f.us = r.seen.seq + 1;
        f.them++;
        f.tsecr = r.seen.tsval;
        g = rig_segment(&f, A, NULL, 0);
        g.wnd = 4;
        rig_in(&r, g);
        struct mn_tcp_info info;
        CHECK_INT(mn_tcp_info(r.s, r.conn, &info), 0);
        CHECK_INT(info.snd_wnd, (mask & 2) != 0 ? 4 << 14 : 4); /* shift 15 counts as 14 */
        rig_stop(&r);
    }
}

static void test_malformed_options_are_ignored(void)
{
    static const struct {
        const char *options;
        uint32_t mss;
    } cases[] = {
        {"02040200 00000000", 512},
        {"02000200 01010101", 536},
        {"0204", 536},
        {"01010204 02000000", 512},
        {"02030200", 536},
        {"fe0a0000 00000000 00000204 02000000", 512},
        {"0204ffff 03", 1240},
        {"05", 536},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rig r;
        uint8_t pkt[RIG_MTU], options[40] = {0};
        struct rig_flow f = {.them = 1000, .port = RIG_PORT, .peer_port = 9};
        rig_start(&r);
        CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
        struct mn_segment g = rig_segment(&f, S, NULL, 0);
        rig_build(&r, pkt, &g);
        size_t n = (test_hex(cases[i].options, options, sizeof options) + 3) / 4 * 4, tcp = 20 + n;
        uint8_t *h = pkt + 20;
        memcpy(h + 20, options, n);
        h[12] = (uint8_t)(tcp / 4 << 4);
        mn_packet_write_header(pkt, &r.peer4, &r.own4, MN_PROTO_TCP, tcp);
        mn_store16(h + 16, 0);
        mn_csum_store(h + 16, mn_csum_add(mn_csum_pseudo(&r.peer4, &r.own4, MN_PROTO_TCP, tcp), h, tcp));
        rig_ip_in(&r, pkt, 20 + tcp);
        CHECK(rig_take(&r));
        f.us = r.seen.seq + 1;
        f.them++;
        rig_in(&r, rig_segment(&f, A, NULL, 0));
        struct mn_tcp_info info;
        CHECK_INT(mn_tcp_info(r.s, r.conn, &info), 0);
        CHECK_INT(info.mss, cases[i].mss);
        rig_stop(&r);
    }
}

static void test_every_segment_carries_timestamps(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .ts = true});
    f.tsval = 777;
    rig_in(&r, rig_segment(&f, A, "x", 1));
    f.them++;
    rig_advance(&r, MN_SECOND);
    CHECK(rig_take(&r));
    CHECK(r.seen.has_ts);
    CHECK_INT(r.seen.tsecr, 777);
    f.ts = false; /* one without is taken, and counted */
    rig_in(&r, rig_segment(&f, A, "y", 1));
    CHECK_INT(r.got, 2);
    CHECK_INT(mn_stack_stats(r.s)->tcp_no_timestamp, 1);
    rig_advance(&r, MN_SECOND);
    drain(&r);
    rig_stop(&r);
}

static void test_paws(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .ts = true});
    f.tsval = 0x7fffffff;
    f.tsval += 400; /* beyond the sign bit is still newer */
    rig_in(&r, rig_segment(&f, A, "a", 1));
    f.them++;
    rig_advance(&r, MN_SECOND);
    drain(&r);
    CHECK_INT(r.got, 1);
    uint32_t newest = f.tsval;
    f.tsval -= MN_PAWS_LATE + 1;
    rig_in(&r, rig_segment(&f, A, "b", 1)); /* old duplicate from a wrapped sequence: refused, acknowledged */
    CHECK_INT(r.got, 1);
    CHECK_INT(mn_stack_stats(r.s)->tcp_paws, 1);
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    rig_in(&r, rig_segment(&f, R, NULL, 0)); /* RST is not subject to PAWS */
    CHECK_INT(r.closed, 1);
    CHECK(newest != f.tsval);
    rig_stop(&r);
}

static void test_paws_lets_go_after_24_days(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .ts = true});
    for (int i = 0; i < 25 * 24 * 60; i++) { /* kept alive all the while, without a stamp */
        r.now += 60 * MN_SECOND;
        struct mn_segment g = rig_segment(&f, A, NULL, 0);
        g.has_ts = false;
        rig_in(&r, g);
    }
    drain(&r);
    f.tsval -= 100;
    rig_in(&r, rig_segment(&f, A, "b", 1));
    CHECK_INT(r.got, 1);
    CHECK_INT(mn_stack_stats(r.s)->tcp_paws, 0);
    rig_advance(&r, MN_SECOND);
    drain(&r);
    rig_stop(&r);
}

/* ---- acceptability and trimming (T-05) ---- */

static void test_acceptability_table(void)
{
    /* Window 65535 from nxt on; offset of the segment's first byte, its length, whether bytes are taken, whether it is
     * answered at once. */
    static const struct {
        int32_t at;
        uint32_t len;
        uint32_t taken;
        bool answered;
    } cases[] = {
        {0, 0, 0, false},          {-1, 0, 0, true},     {-1, 1, 0, true},    {-5, 5, 0, true},
        {-5, 6, 1, false},         {0, 100, 100, false}, {65534, 1, 0, true}, {65534, 9, 0, true},
        {65535, 1, 0, true},       {65535, 0, 0, false}, {65536, 0, 0, true}, {-70000, 10, 0, true},
        {-2000000000, 3, 0, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rig r;
        rig_start(&r);
        struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
        uint32_t nxt = f.them;
        f.them += (uint32_t)cases[i].at;
        rig_in(&r, rig_segment(&f, A | MN_TCP_PSH, g_bytes, cases[i].len));
        CHECK_INT(r.got, cases[i].taken);
        CHECK_INT(rig_take(&r), cases[i].answered);
        if (cases[i].answered)
            CHECK_INT(r.seen.ack, nxt + cases[i].taken);
        drain(&r);
        rig_stop(&r);
    }
}

static void test_fin_beyond_the_window_is_cut_off(void)
{
    struct rig r;
    struct mn_stack_config cfg = {.rcvbuf_max = 16384};
    rig_start_with(&r, &cfg);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    r.limit = 0;
    uint32_t room = r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn->rcv.size, start = f.them;
    while (room > 1000) {
        rig_in(&r, rig_segment(&f, A, g_bytes, 1000));
        f.them += 1000;
        room -= 1000;
    }
    drain(&r);
    rig_in(&r, rig_segment(&f, F | A, g_bytes, room + 1));
    f.them += room;
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.ack, f.them); /* neither the last byte nor the FIN */
    CHECK_INT(r.seen.wnd, 0);
    r.limit = RIG_DATA;
    mn_tcp_recv_resume(r.s, r.conn, r.now);
    CHECK_INT(r.got, f.them - start);
    CHECK(rig_take(&r)); /* window update */
    CHECK(r.seen.wnd > 0);
    rig_in(&r, rig_segment(&f, F | A, g_bytes, 1));
    CHECK_INT(r.fins, 1);
    CHECK_INT(r.got, f.them + 1 - start);
    drain(&r);
    rig_stop(&r);
}

static void test_zero_window_still_takes_acks_and_resets(void)
{
    struct rig r;
    struct mn_stack_config cfg = {.rcvbuf_max = 16384};
    rig_start_with(&r, &cfg);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    r.limit = 0;
    uint32_t room = r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn->rcv.size;
    for (uint32_t n; room > 0; room -= n, f.them += n) {
        n = room < 1000 ? room : 1000;
        rig_in(&r, rig_segment(&f, A, g_bytes, n));
    }
    drain(&r);
    CHECK_INT(rig_write(&r, g_bytes, 10), 10);
    RIG_EXPECT(&r, A, f.us, f.them, 10);
    CHECK_INT(r.seen.wnd, 0);
    f.us += 10;
    rig_in(&r, rig_segment(&f, A, g_bytes, 1)); /* a probe with an ACK */
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    struct mn_tcp_info info;
    CHECK_INT(mn_tcp_info(r.s, r.conn, &info), 0);
    CHECK_INT(info.flight, 0);
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    CHECK_INT(r.closed, 1);
    rig_stop(&r);
}

/* ---- order ---- */

static void test_out_of_order_permutations(void)
{
    /* Five segments, one with the FIN, in every order; each must end the same. */
    int order[5] = {0, 1, 2, 3, 4}, count = 0;
    for (int n = 0; n < 120; n++) {
        int k = n, pool[5] = {0, 1, 2, 3, 4};
        for (int i = 0; i < 5; i++) {
            int left = 5 - i, pick = k % left;
            k /= left;
            order[i] = pool[pick];
            for (int j = pick; j + 1 < left; j++)
                pool[j] = pool[j + 1];
        }
        struct rig r;
        rig_start(&r);
        struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
        uint32_t base = f.them;
        for (int i = 0; i < 5; i++) {
            f.them = base + (uint32_t)order[i] * 700;
            rig_in(&r, rig_segment(&f, order[i] == 4 ? F | A : A, g_bytes + order[i] * 700, 700));
        }
        CHECK_INT(r.got, 3500);
        CHECK(memcmp(r.data, g_bytes, 3500) == 0);
        CHECK_INT(r.fins, 1);
        rig_advance(&r, 10 * MN_MS);
        drain(&r);
        CHECK_INT(r.seen.ack, base + 3501);
        CHECK_INT(r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn->rcv.early.count, 0);
        rig_stop(&r);
        count++;
    }
    CHECK_INT(count, 120);
}

/* Random pieces of one stream, overlapping, repeated, partly out of the window, against a bitmap of what has come. */
static void test_reassembly_differential(void)
{
    for (uint64_t seed = 1; seed <= 300 / MN_TEST_SLOW; seed++) {
        struct rig r;
        uint64_t rng = seed;
        rig_start(&r);
        struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
        uint32_t base = f.them, size = 20000;
        uint8_t *have = calloc(1, size);
        CHECK(have != NULL);
        r.limit = seed % 2 == 0 ? RIG_DATA : 0;
        for (int i = 0; i < 400; i++) {
            uint32_t at = (uint32_t)(test_random(&rng) % size), len = (uint32_t)(1 + test_random(&rng) % 900);
            if (at + len > size)
                len = size - at;
            f.them = base + at;
            rig_in(&r, rig_segment(&f, A, g_bytes + at, len));
            memset(have + at, 1, len);
            uint32_t whole = 0;
            while (whole < size && have[whole] != 0)
                whole++;
            if (seed % 2 != 0) {
                r.limit = r.got + test_random(&rng) % 3000;
                mn_tcp_recv_resume(r.s, r.conn, r.now);
            } else {
                CHECK_INT(r.got, whole);
            }
            struct mn_tcp_info info;
            CHECK_INT(mn_tcp_info(r.s, r.conn, &info), 0);
            CHECK_INT(r.got + info.unread, whole);
            drain(&r);
        }
        r.limit = RIG_DATA;
        mn_tcp_recv_resume(r.s, r.conn, r.now);
        CHECK(memcmp(r.data, g_bytes, r.got) == 0);
        rig_advance(&r, 5 * MN_SECOND);
        drain(&r);
        free(have);
        rig_stop(&r);
    }
}

static void test_out_of_order_is_bounded(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t base = f.them;
    for (uint32_t i = 0; i < 5000; i++) { /* every other byte: each its own range */
        f.them = base + 1 + 2 * i;
        rig_in(&r, rig_segment(&f, A, g_bytes + 1 + 2 * i, 1));
        drain(&r);
    }
    struct mn_conn *c = r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn;
    CHECK(c->rcv.early.count <= MN_EARLY_RANGES);
    CHECK(mn_stack_stats(r.s)->tcp_ooo_dropped >= 5000 - MN_EARLY_RANGES);
    f.them = base; /* the hole-filler for all of it still goes through */
    rig_in(&r, rig_segment(&f, A, g_bytes, 1200));
    CHECK(r.got >= 1200);
    CHECK(memcmp(r.data, g_bytes, r.got) == 0);
    drain(&r);
    rig_stop(&r);
}

/* A stream that is said to end before bytes that came already: the end counts, and nothing is left behind. */
static void test_fin_before_early_bytes(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t base = f.them;
    f.them = base + 100;
    rig_in(&r, rig_segment(&f, A, g_bytes + 100, 100));
    f.them = base + 120;
    rig_in(&r, rig_segment(&f, F | A, g_bytes + 120, 30));
    f.them = base;
    rig_in(&r, rig_segment(&f, A, g_bytes, 100));
    CHECK_INT(r.got, 150);
    CHECK_INT(r.fins, 1);
    drain(&r);
    CHECK_INT(r.seen.ack, base + 151);
    CHECK_INT(r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn->rcv.early.count, 0);
    rig_stop(&r);
}

/* ---- batches ---- */

/* T-19: a batch is one delivery and one ACK. */
static void test_one_ack_per_batch(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .ts = true});
    struct mn_segment g[49];
    for (uint32_t i = 0; i < 49; i++) {
        g[i] = rig_segment(&f, A, g_bytes + i * 1000, 1000);
        f.them += 1000;
    }
    rig_batch(&r, g, 49);
    CHECK_INT(r.got, 49000);
    CHECK(memcmp(r.data, g_bytes, 49000) == 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_runs, 1);
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    rig_none(&r);
    rig_stop(&r);
}

static void test_early_segments_owe_an_ack_each(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t hole = f.them;
    struct mn_segment g[5];
    for (uint32_t i = 0; i < 5; i++) {
        f.them += 1000;
        g[i] = rig_segment(&f, A, g_bytes + (i + 1) * 1000, 1000);
    }
    rig_batch(&r, g, 5);
    for (int i = 0; i < 5; i++)
        RIG_EXPECT(&r, A, f.us, hole, 0);
    f.them = hole;
    rig_in(&r, rig_segment(&f, A, g_bytes, 1000));
    RIG_EXPECT(&r, A, f.us, hole + 6000, 0); /* the hole is filled: at once */
    CHECK_INT(r.got, 6000);
    rig_stop(&r);
}

static void test_batch_with_two_flows_and_a_fin(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    struct mn_segment g[4] = {
        rig_segment(&f, A, g_bytes, 500),
        rig_segment(&f, A, g_bytes + 500, 500),
        rig_segment(&f, A, g_bytes + 500, 500), /* twice */
        rig_segment(&f, F | A, g_bytes + 1000, 500),
    };
    g[1].seq += 500;
    g[2].seq += 500;
    g[3].seq += 1000;
    rig_batch(&r, g, 4);
    CHECK_INT(r.got, 1500);
    CHECK(memcmp(r.data, g_bytes, 1500) == 0);
    CHECK_INT(r.fins, 1);
    drain(&r);
    CHECK_INT(r.seen.ack, f.them + 1501);
    rig_stop(&r);
}

/* ---- acknowledgements ---- */

static void test_small_write_waits_a_millisecond_for_its_answer(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    rig_in(&r, rig_segment(&f, A | MN_TCP_PSH, "ping", 4));
    f.them += 4;
    rig_none(&r);
    CHECK_INT(rig_write(&r, (const uint8_t *)"pong", 4), 4); /* the answer carries the ACK */
    RIG_EXPECT(&r, A, f.us, f.them, 4);
    f.us += 4;
    rig_in(&r, rig_segment(&f, A | MN_TCP_PSH, "ping", 4));
    f.them += 4;
    rig_none(&r);
    rig_advance(&r, MN_ACK_REPLY); /* no answer: the ACK goes alone, after a millisecond and not forty */
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    rig_in(&r, rig_segment(&f, A | MN_TCP_PSH, "ping", 4));
    f.them += 4;
    RIG_EXPECT(&r, A, f.us, f.them, 0); /* from now on at once */
    rig_stop(&r);
}

static void test_two_full_segments_are_acknowledged(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    for (int i = 0; i < MN_QUICK_ACKS; i++) { /* a young connection: every one */
        rig_in(&r, rig_segment(&f, A, g_bytes, 1240));
        f.them += 1240;
        RIG_EXPECT(&r, A, f.us, f.them, 0);
    }
    rig_in(&r, rig_segment(&f, A, g_bytes, 1240));
    f.them += 1240;
    rig_none(&r);
    rig_in(&r, rig_segment(&f, A, g_bytes, 1240));
    f.them += 1240;
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    rig_in(&r, rig_segment(&f, A, g_bytes, 1240));
    f.them += 1240;
    rig_advance(&r, MN_ACK_BULK);
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    rig_stop(&r);
}

/* ---- windows (T-21) ---- */

static void test_silly_window_avoidance(void)
{
    struct rig r;
    struct mn_stack_config cfg = {.rcvbuf_max = 16384};
    rig_start_with(&r, &cfg);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    r.limit = 0;
    uint32_t room = r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn->rcv.size;
    for (uint32_t n; room > 0; room -= n, f.them += n) {
        n = room < 1000 ? room : 1000;
        rig_in(&r, rig_segment(&f, A, g_bytes, n));
    }
    rig_advance(&r, 10 * MN_MS);
    drain(&r);
    CHECK_INT(r.seen.wnd, 0);
    for (int i = 0; i < 20; i++) { /* the application sips: no update until it is worth one */
        r.limit += 100;
        mn_tcp_recv_resume(r.s, r.conn, r.now);
        rig_none(&r);
    }
    r.limit += 1000;
    mn_tcp_recv_resume(r.s, r.conn, r.now);
    RIG_EXPECT(&r, A, f.us, f.them, 0);
    CHECK_INT(r.seen.wnd, 3000);
    rig_stop(&r);
}

static void test_window_grows_with_use(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .wscale = 7, .ts = true});
    struct mn_conn *c = r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn;
    uint32_t first = c->rcv.size;
    c->rcv.rtt_ns = 20 * MN_MS;
    for (int i = 0; i < 40; i++) {
        struct mn_segment g[49];
        for (int turn = 0; turn < 10; turn++) {
            uint32_t n = 0;
            while (n < 49 && mn_seq_le(f.them + 1200, c->rcv.edge)) {
                g[n++] = rig_segment(&f, A, g_bytes, 1200);
                f.them += 1200;
            }
            r.got = 0;
            if (n > 0)
                rig_batch(&r, g, (int)n);
            drain(&r);
        }
        rig_advance(&r, 20 * MN_MS);
        drain(&r);
    }
    CHECK(c->rcv.size > first);
    CHECK(c->rcv.size <= 8U << 20);
    rig_stop(&r);
}

/* A sender that doubles what it sends each round trip, and learns of the window half of one later, never meets its
 * edge: what it sends in a round is known to fit before it is acknowledged. */
static void test_window_opens_ahead_of_slow_start(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240, .wscale = 7});
    struct mn_conn *c = r.s->slots[r.conn & (MN_MAX_CONNS - 1)].conn;
    c->rcv.rtt_ns = 40 * MN_MS;   /* no timestamps that would say otherwise */
    uint32_t known = c->rcv.edge; /* the edge as the sender knew it when the round began */
    for (int segments = 20; segments * 1200 < 3 << 20; segments *= 2) {
        for (int i = 0; i < segments; i += 20) { /* all through the round trip */
            struct mn_segment g[20];
            for (int n = 0; n < 20; n++, f.them += 1200)
                g[n] = rig_segment(&f, A, g_bytes, 1200);
            CHECK(mn_seq_le(f.them, known));
            r.got = 0;
            rig_batch(&r, g, 20);
            drain(&r);
            rig_advance(&r, 800 * MN_MS / (unsigned)segments);
        }
        known = c->rcv.edge;
    }
    CHECK(c->rcv.size <= 8U << 20);
    rig_stop(&r);
}

static void test_idle_connection_holds_no_ring(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    CHECK_INT(mn_stack_stats(r.s)->ring_bytes, 0);
    CHECK_INT(rig_write(&r, g_bytes, 100), 100);
    drain(&r);
    f.us += 100;
    f.them += 50; /* early, then the hole is filled: the list of ranges goes as well */
    rig_in(&r, rig_segment(&f, A, g_bytes + 50, 50));
    f.them -= 50;
    r.limit = 1;
    rig_in(&r, rig_segment(&f, A, g_bytes, 50));
    f.them += 100;
    CHECK(mn_stack_stats(r.s)->ring_bytes > 0);
    r.limit = RIG_DATA;
    mn_tcp_recv_resume(r.s, r.conn, r.now);
    rig_advance(&r, 3 * MN_SECOND);
    drain(&r);
    CHECK_INT(mn_stack_stats(r.s)->ring_bytes, 0);
    rig_stop(&r);
}

/* ---- blind attacks (T-16, RFC 5961) ---- */

static void test_reset_must_be_exact(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t nxt = f.them;
    f.them += 1;
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    RIG_EXPECT(&r, A, f.us, nxt, 0);
    f.them = nxt - 1;
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    f.them = nxt + 70000;
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    rig_none(&r);
    CHECK_INT(r.closed, 0);
    rig_stop(&r);
}

static void test_syn_in_connection_is_challenged(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t nxt = f.them;
    f.them += 10;
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    RIG_EXPECT(&r, A, f.us, nxt, 0);
    f.them = nxt - 5000;
    rig_in(&r, rig_segment(&f, S, NULL, 0));
    RIG_EXPECT(&r, A, f.us, nxt, 0);
    CHECK_INT(rig_state(&r), MN_ESTABLISHED);
    rig_stop(&r);
}

static void test_ack_outside_what_was_sent(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t us = f.us;
    f.us = us + 1;
    rig_in(&r, rig_segment(&f, A, "evil", 4));
    RIG_EXPECT(&r, A, us, f.them, 0);
    f.us = us - 70000;
    rig_in(&r, rig_segment(&f, A, "evil", 4));
    RIG_EXPECT(&r, A, us, f.them, 0);
    CHECK_INT(r.got, 0);
    rig_stop(&r);
}

static void test_challenges_are_bounded_per_connection(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    int answers = 0;
    f.them += 1;
    for (int i = 0; i < 100; i++) {
        rig_in(&r, rig_segment(&f, R, NULL, 0));
        while (rig_take(&r))
            answers++;
    }
    CHECK_INT(answers, MN_CHALLENGES_PER_S);
    r.now += MN_SECOND;
    rig_in(&r, rig_segment(&f, R, NULL, 0));
    CHECK(rig_take(&r));
    rig_stop(&r);
}

static void test_urgent_data_is_inline(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    rig_in(&r, rig_segment(&f, A | 0x20, "urgent", 6));
    CHECK_INT(r.got, 6);
    rig_advance(&r, 10 * MN_MS);
    drain(&r);
    rig_stop(&r);
}

static void test_no_buffer_is_retried(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    r.no_buffer = true;
    CHECK_INT(rig_write(&r, g_bytes, 5000), 5000);
    rig_none(&r);
    CHECK(mn_stack_next_deadline(r.s) <= r.now + MN_RETRY_NS);
    rig_advance(&r, 3 * MN_MS);
    r.no_buffer = false;
    rig_advance(&r, MN_MS);
    for (uint32_t n = 0; n < 5000; n += 1240)
        RIG_EXPECT(&r, A, f.us + n, f.them, 5000 - n < 1240 ? 5000 - n : 1240);
    rig_stop(&r);
}

static void test_syn_waits_for_a_buffer(void)
{
    struct rig r;
    rig_start(&r);
    struct mn_ep to = {.ip = r.peer4, .port = RIG_PEER_PORT};
    r.no_buffer = true;
    CHECK_INT(mn_tcp_connect(r.s, &to, NULL, &r.conn, r.now), 0);
    rig_advance(&r, 5 * MN_MS);
    rig_none(&r);
    r.no_buffer = false;
    rig_advance(&r, MN_MS); /* not after a second */
    CHECK(rig_take(&r));
    CHECK_INT(r.seen.flags, S);
    rig_none(&r);
    mn_tcp_abort(r.s, r.conn, r.now);
    r.no_buffer = true;
    CHECK_INT(mn_tcp_connect(r.s, &to, NULL, &r.conn, r.now), 0);
    rig_advance(&r, 121 * MN_SECOND);
    CHECK_INT(r.failed, 1);
    CHECK_INT(r.err, ETIMEDOUT);
    rig_stop(&r);
}

int main(void)
{
    for (size_t i = 0; i < sizeof g_bytes; i++)
        g_bytes[i] = (uint8_t)(i * 2654435761U >> 13);
    RUN(test_mss_bounds);
    RUN(test_syn_ack_offers_what_was_offered);
    RUN(test_malformed_options_are_ignored);
    RUN(test_every_segment_carries_timestamps);
    RUN(test_paws);
    RUN(test_paws_lets_go_after_24_days);
    RUN(test_acceptability_table);
    RUN(test_fin_beyond_the_window_is_cut_off);
    RUN(test_zero_window_still_takes_acks_and_resets);
    RUN(test_out_of_order_permutations);
    RUN(test_reassembly_differential);
    RUN(test_out_of_order_is_bounded);
    RUN(test_fin_before_early_bytes);
    RUN(test_one_ack_per_batch);
    RUN(test_early_segments_owe_an_ack_each);
    RUN(test_batch_with_two_flows_and_a_fin);
    RUN(test_small_write_waits_a_millisecond_for_its_answer);
    RUN(test_two_full_segments_are_acknowledged);
    RUN(test_silly_window_avoidance);
    RUN(test_window_grows_with_use);
    RUN(test_window_opens_ahead_of_slow_start);
    RUN(test_idle_connection_holds_no_ring);
    RUN(test_reset_must_be_exact);
    RUN(test_syn_in_connection_is_challenged);
    RUN(test_ack_outside_what_was_sent);
    RUN(test_challenges_are_bounded_per_connection);
    RUN(test_urgent_data_is_inline);
    RUN(test_no_buffer_is_retried);
    RUN(test_syn_waits_for_a_buffer);
    return 0;
}
