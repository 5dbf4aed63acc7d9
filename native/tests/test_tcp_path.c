/* A path that swallows large segments and says nothing: smaller ones are found, larger ones again when it takes them;
 * and a path that was only away keeps its size. What the connection tells of itself on the way. */
#include "rig.h"

enum {
    A = MN_TCP_ACK,
    MSS = 1240,
    STEP_MS = 20,
    TOTAL = 1 << 20,
};

static uint8_t g_bytes[16384];
static bool g_has[TOTAL];

/* The far end: takes what is no longer than `limit`, acknowledges with one block after every step. */
struct far {
    struct rig r;
    struct rig_flow f;
    uint32_t base, limit, next, highest;
    uint32_t deaf; /* copies of the first segment still to be lost */
};

static void start(struct far *p, uint16_t mss)
{
    memset(g_has, 0, sizeof g_has);
    struct mn_stack_config cfg = {.mtu = 1280};
    rig_start_with(&p->r, &cfg);
    p->f = rig_accept(&p->r, (struct rig_open){.mss = mss, .sack = true, .wscale = 7});
    p->base = p->f.us;
    p->limit = 1U << 16;
    p->next = p->highest = p->deaf = 0;
}

static struct mn_conn *block(struct far *p)
{
    return mn_conn_get(p->r.s, p->r.conn);
}

static void step(struct far *p, bool answers)
{
    rig_advance(&p->r, STEP_MS * MN_MS);
    bool any = false;
    while (rig_take(&p->r)) {
        uint32_t at = p->r.seen.seq - p->base, n = p->r.seen.len;
        if (!answers || n > p->limit || n == 0)
            continue;
        if (at == 0 && p->deaf > 0) {
            p->deaf--;
            continue;
        }
        any = true;
        CHECK(at + n <= TOTAL);
        memset(g_has + at, 1, n);
        p->highest = at + n > p->highest ? at + n : p->highest;
    }
    if (!any)
        return;
    while (p->next < TOTAL && g_has[p->next])
        p->next++;
    struct mn_segment g = rig_segment(&p->f, A, NULL, 0);
    g.ack = p->base + p->next;
    if (p->highest > p->next) {
        uint32_t first = p->highest;
        while (g_has[first - 1])
            first--;
        g.sack_count = 1;
        g.sack[0] = (struct mn_block){p->base + first, p->base + p->highest};
    }
    rig_in(&p->r, g);
}

static void run(struct far *p, uint32_t steps, bool writes)
{
    for (uint32_t i = 0; i < steps; i++) {
        if (writes && block(p)->snd.end - p->base < TOTAL - 20000)
            rig_write(&p->r, g_bytes, 1500);
        step(p, true);
    }
}

static void test_black_hole(void)
{
    struct far p;
    start(&p, MSS);
    p.limit = 900;
    run(&p, 100, true);
    CHECK_INT(mn_stack_stats(p.r.s)->tcp_black_holes, 1);
    CHECK_INT(block(&p)->snd.mss, 536);
    CHECK(p.next > 10000);
    uint64_t timeouts = mn_stack_stats(p.r.s)->tcp_timeouts;
    run(&p, 300, true); /* tries of full ones cost no timeout and no window */
    CHECK_INT(block(&p)->snd.mss, 536);
    CHECK(mn_stack_stats(p.r.s)->tcp_timeouts <= timeouts + 1);
    CHECK(block(&p)->snd.try_wait > 4 * MN_SECOND);
    p.limit = MSS;
    for (int i = 0; i < 5000 && block(&p)->snd.mss < MSS; i++)
        run(&p, 1, i % 10 == 0);
    CHECK_INT(block(&p)->snd.mss, MSS);
    CHECK_INT(block(&p)->snd.full_mss, 0);
    run(&p, 2000, false);
    CHECK_INT(p.next, block(&p)->snd.end - p.base);
    rig_stop(&p.r);
}

/* One segment is lost again and again while full ones sent after it have arrived: the path takes them. */
static void test_bad_luck_is_no_black_hole(void)
{
    struct far p;
    start(&p, MSS);
    p.deaf = 6;
    rig_write(&p.r, g_bytes, 8 * MSS);
    run(&p, 600, false);
    CHECK_INT(p.deaf, 0);
    CHECK_INT(mn_stack_stats(p.r.s)->tcp_black_holes, 0);
    CHECK_INT(block(&p)->snd.mss, MSS);
    CHECK_INT(p.next, 8 * MSS);
    rig_stop(&p.r);
}

/* Nothing passed for a while, then everything does: full segments are back with the first that is tried. */
static void test_path_that_was_away(void)
{
    struct far p;
    start(&p, MSS);
    run(&p, 10, true);
    for (int i = 0; i < 200; i++) {
        rig_write(&p.r, g_bytes, 6000);
        step(&p, false);
    }
    CHECK(block(&p)->snd.mss < MSS);
    run(&p, 400, true);
    CHECK_INT(block(&p)->snd.mss, MSS);
    run(&p, 2000, false);
    CHECK_INT(p.next, block(&p)->snd.end - p.base);
    rig_stop(&p.r);
}

/* The size is back while the window is still one small segment: it holds a full one at once, or none would leave. */
static void test_window_holds_a_full_segment(void)
{
    struct far p;
    start(&p, MSS);
    for (int i = 0; i < 200; i++) {
        rig_write(&p.r, g_bytes, 1500);
        step(&p, false);
    }
    struct mn_conn *c = block(&p);
    CHECK_INT(c->snd.mss, 536);
    CHECK(c->cc.cwnd < MSS);
    mn_path_on_arrival(c, MSS);
    CHECK_INT(c->snd.mss, MSS);
    CHECK(c->cc.cwnd >= MSS);
    rig_stop(&p.r);
}

static void test_small_segments_suspect_nothing(void)
{
    struct far p;
    start(&p, MSS);
    rig_write(&p.r, g_bytes, 1000);
    for (int i = 0; i < 500; i++)
        step(&p, false);
    CHECK(mn_stack_stats(p.r.s)->tcp_timeouts > 4);
    CHECK_INT(mn_stack_stats(p.r.s)->tcp_black_holes, 0);
    rig_stop(&p.r);
    start(&p, 500); /* nor is there anything below what all paths take */
    rig_write(&p.r, g_bytes, 1000);
    for (int i = 0; i < 500; i++)
        step(&p, false);
    CHECK_INT(mn_stack_stats(p.r.s)->tcp_black_holes, 0);
    rig_stop(&p.r);
}

/* The way there is another one: what has backed off for seconds is sent again within one timeout, and no sooner than
 * one after the last time; and each change buys one try, not a new start of the timer. */
static void test_another_way_is_tried_soon(void)
{
    struct far p;
    start(&p, MSS);
    run(&p, 10, true);
    rig_write(&p.r, g_bytes, 6000);
    for (int i = 0; i < 500; i++)
        step(&p, false);
    struct mn_conn *c = block(&p);
    CHECK(c->due[MN_T_RETX] > p.r.now + MN_SECOND);
    mn_stack_path_changed(p.r.s, c->peer + 1, p.r.now);
    CHECK(c->due[MN_T_RETX] > p.r.now + MN_SECOND);
    uint64_t before = mn_stack_stats(p.r.s)->tcp_timeouts;
    for (int i = 0; i < 20; i++) {
        mn_stack_path_changed(p.r.s, c->peer, p.r.now);
        rig_advance(&p.r, MN_MS);
        while (rig_take(&p.r))
            ;
    }
    CHECK_INT(mn_stack_stats(p.r.s)->tcp_timeouts, before + 1);
    CHECK(c->due[MN_T_RETX] > p.r.now);
    run(&p, 400, true);
    CHECK_INT(p.next, c->snd.end - p.base);
    rig_stop(&p.r);
}

/* ---- what is told ---- */

static struct mn_tcp_info info_of(struct far *p)
{
    struct mn_tcp_info info;
    CHECK_INT(mn_tcp_info(p->r.s, p->r.conn, &info), 0);
    return info;
}

static void test_info(void)
{
    struct far p;
    start(&p, MSS);
    CHECK_INT(info_of(&p).limit, MN_LIMIT_APPLICATION);
    block(&p)->rtt = (struct mn_rtt){.rto_ns = MN_RTO_INITIAL_NS};
    mn_rtt_take(&block(&p)->rtt, STEP_MS * MN_MS);
    rig_write(&p.r, g_bytes, 16000);
    CHECK_INT(info_of(&p).limit, MN_LIMIT_CONGESTION);
    CHECK_INT(info_of(&p).in_network, 10 * MSS);
    run(&p, 1, false);
    struct mn_tcp_info info = info_of(&p);
    CHECK_INT(info.delivered, 10 * MSS);
    CHECK_INT(info.min_rtt_ns, STEP_MS * MN_MS);
    CHECK(info.delivery_rate > 500000 && info.delivery_rate < 700000);
    CHECK_INT(info.limit, MN_LIMIT_APPLICATION);
    run(&p, 1, false);
    struct mn_segment g = rig_segment(&p.f, A, NULL, 0);
    g.ack = p.base + p.next;
    g.wnd = 0;
    rig_in(&p.r, g);
    rig_write(&p.r, g_bytes, 16000);
    CHECK_INT(info_of(&p).limit, MN_LIMIT_PEER);
    CHECK_INT(info_of(&p).unsent, 16000);
    rig_stop(&p.r);
}

/* However large the ring has become, what waits in it unsent is little more than a window. */
static void test_unsent_is_bounded(void)
{
    struct far p;
    struct mn_stack_config cfg = {.sndbuf_max = 4U << 20};
    rig_start_with(&p.r, &cfg);
    p.f = rig_accept(&p.r, (struct rig_open){.mss = MSS, .sack = true, .wscale = 7});
    CHECK(mn_ring_resize(p.r.s, &block(&p)->snd.ring, 1U << 20, p.f.us, p.f.us));
    size_t done = 0, n;
    while ((n = rig_write(&p.r, g_bytes, sizeof g_bytes)) > 0)
        done += n;
    CHECK_INT(done, 10 * MSS + MN_UNSENT_MOST);
    CHECK_INT(mn_tcp_send_space(p.r.s, p.r.conn), 0);
    CHECK_INT(p.r.writable, 0);
    uint32_t out = 0;
    while (p.r.writable == 0) {
        while (rig_take(&p.r))
            out += p.r.seen.len;
        p.f.us += out;
        CHECK(out > 0);
        out = 0;
        rig_in(&p.r, rig_segment(&p.f, A, NULL, 0));
    }
    CHECK(mn_tcp_send_space(p.r.s, p.r.conn) >= MN_UNSENT_MOST / 2);
    while (rig_take(&p.r))
        ;
    rig_stop(&p.r);
}

int main(void)
{
    RUN(test_black_hole);
    RUN(test_bad_luck_is_no_black_hole);
    RUN(test_path_that_was_away);
    RUN(test_window_holds_a_full_segment);
    RUN(test_small_segments_suspect_nothing);
    RUN(test_another_way_is_tried_soon);
    RUN(test_info);
    RUN(test_unsent_is_bounded);
    return 0;
}
