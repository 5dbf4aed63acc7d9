/* Congestion control beside CUBIC's own curve: Reno, HyStart++, pacing, names, and how flows share a bottleneck. */
#include "cc_link.h"

#define MS 1000000ULL
#define SECOND 1000000000ULL

enum {
    MSS = 1228,
};

static void test_names(void)
{
    CHECK(mn_cc_find(NULL) == &mn_cc_forbearing);
    CHECK(mn_cc_find("forbearing") == &mn_cc_forbearing);
    CHECK(mn_cc_find("cubic") == &mn_cc_cubic);
    CHECK(mn_cc_find("newreno") == &mn_cc_newreno);
    CHECK(mn_cc_find("bbr") == NULL && mn_cc_find("") == NULL);
}

/* ---- Reno ---- */

static void feed(struct mn_cc *cc, uint32_t bytes, bool is_limited)
{
    struct mn_cc_ack a = {.bytes = bytes, .flight = cc->cwnd, .is_limited = is_limited};
    cc->ops->on_ack(cc, &a);
}

static void test_reno(void)
{
    struct mn_cc cc;
    mn_cc_start(&cc, &mn_cc_newreno, 1000);
    CHECK_INT(cc.cwnd, 10000);
    feed(&cc, 10000, false);
    CHECK_INT(cc.cwnd, 10000);
    feed(&cc, 10000, true);
    CHECK_INT(cc.cwnd, 20000);
    cc.ops->on_loss(&cc, 20000, 0);
    cc.ops->on_recovered(&cc, 0);
    CHECK_INT(cc.cwnd, 10000);
    for (int i = 0; i < 10; i++) /* one segment per window */
        feed(&cc, 1000, true);
    CHECK_INT(cc.cwnd, 11000);
    cc.ops->on_timeout(&cc, 11000, true, 0);
    CHECK_INT(cc.cwnd, 1000);
    CHECK_INT(cc.ssthresh, 5500);
    feed(&cc, 60000, true); /* a batch does not carry slow start beyond its threshold */
    CHECK_INT(cc.cwnd, 5500);
    cc.ops->undo(&cc, 0);
    CHECK_INT(cc.cwnd, 11000);
    CHECK_INT(cc.ssthresh, 10000);
}

/* ---- HyStart++ ---- */

struct start {
    struct mn_hystart h;
    uint32_t una, window, batch; /* segments per ACK */
};

/* One round trip of ACKs, each with its sample; returns the last advice. */
static enum mn_hystart_advice round_of(struct start *s, uint64_t (*rtt)(void *ctx), void *ctx)
{
    enum mn_hystart_advice advice = MN_HYSTART_FAST;
    uint32_t grown = s->window;
    for (uint32_t at = 0; at < s->window; at += s->batch) {
        uint32_t n = s->batch < s->window - at ? s->batch : s->window - at;
        s->una += n * MSS;
        grown = grown + n < 4096 ? grown + n : 4096;
        struct mn_cc_ack a = {.bytes = n * MSS, .una = s->una, .nxt = s->una + grown * MSS, .rtt_ns = rtt(ctx)};
        advice = mn_hystart_on_ack(&s->h, &a, MSS);
        if (advice == MN_HYSTART_DONE)
            break;
    }
    s->window = grown;
    return advice;
}

static uint64_t fixed(void *ctx)
{
    return *(uint64_t *)ctx;
}

static void test_longer_rounds_end_slow_start(void)
{
    for (uint32_t batch = 1; batch <= 64; batch *= 4) {
        struct start s = {.una = 0xffff0000U, .window = 256, .batch = batch}; /* the numbers wrap */
        uint64_t rtt = 80 * MS;
        for (int i = 0; i < 4; i++)
            CHECK(round_of(&s, fixed, &rtt) == MN_HYSTART_FAST);
        rtt = 89 * MS; /* below an eighth */
        CHECK(round_of(&s, fixed, &rtt) == MN_HYSTART_FAST);
        rtt = 101 * MS;
        CHECK(round_of(&s, fixed, &rtt) == MN_HYSTART_SLOW);
        int rounds = 1;
        while (round_of(&s, fixed, &rtt) == MN_HYSTART_SLOW)
            CHECK(++rounds < 10);
        CHECK_INT(rounds, 5);
    }
}

static void test_a_spike_is_taken_back(void)
{
    struct start s = {.window = 64, .batch = 1};
    uint64_t rtt = 40 * MS;
    round_of(&s, fixed, &rtt);
    rtt = 60 * MS;
    CHECK(round_of(&s, fixed, &rtt) == MN_HYSTART_SLOW);
    rtt = 41 * MS;
    CHECK(round_of(&s, fixed, &rtt) == MN_HYSTART_FAST);
    CHECK(round_of(&s, fixed, &rtt) == MN_HYSTART_FAST);
}

static void test_one_batch_is_no_round(void)
{
    struct mn_hystart h = {0};
    uint64_t rtt = 40 * MS;
    for (uint32_t una = 0; una < 20U * 64 * MSS; una += 64 * MSS, rtt += 20 * MS) {
        struct mn_cc_ack a = {.bytes = 64 * MSS, .una = una, .nxt = una + 64 * MSS, .rtt_ns = rtt};
        CHECK(mn_hystart_on_ack(&h, &a, MSS) == MN_HYSTART_FAST);
    }
}

static uint64_t local_noise(void *ctx)
{
    uint64_t r = test_random(ctx), rtt = 100000 + r % 400000;
    if (r % 20 == 0)
        rtt += r % (20 * MS); /* somebody else had the processor */
    return rtt;
}

/* A tunnel inside one machine: samples of 100 to 500 us, one in twenty up to 20 ms late, whatever the batches are. */
static void test_local_noise_ends_nothing(void)
{
    uint64_t rng = 1;
    for (int i = 0; i < 400 / MN_TEST_SLOW; i++) {
        struct start s = {.window = 10, .batch = 1 + (uint32_t)(test_random(&rng) % 100)};
        for (int k = 0; k < 40; k++)
            CHECK(round_of(&s, local_noise, &rng) != MN_HYSTART_DONE);
    }
}

/* ---- pacing ---- */

static void test_pacing_rate(void)
{
    for (int which = 0; which < 2; which++) {
        struct mn_cc cc;
        mn_cc_start(&cc, which == 0 ? &mn_cc_cubic : &mn_cc_newreno, 1000);
        CHECK_INT(cc.ops->pacing_rate(&cc, 40 * MS), 0); /* no round trip known */
        cc.path.min_ns = 40 * MS;
        cc.cwnd = 400000;
        CHECK_INT(cc.ops->pacing_rate(&cc, 40 * MS), 20000000);
        cc.ssthresh = 400000;
        CHECK_INT(cc.ops->pacing_rate(&cc, 40 * MS), 12000000);
        cc.cwnd = MN_CC_MAX_WINDOW;
        CHECK_INT(cc.ops->pacing_rate(&cc, 2 * MS), (uint64_t)MN_CC_MAX_WINDOW * 500 / 5 * 6);
        cc.path.min_ns = MS / 5; /* a local path whose queue is ours */
        CHECK_INT(cc.ops->pacing_rate(&cc, 40 * MS), 0);
    }
}

/* The round trip that pacing goes by is the path's: neither a slow handshake nor one late ACK lowers the rate. */
static void test_pacing_forgets_one_delay(void)
{
    for (int which = 0; which < 2; which++) {
        struct mn_cc cc;
        mn_cc_start(&cc, which == 0 ? &mn_cc_cubic : &mn_cc_newreno, 1000);
        cc.cwnd = cc.ssthresh = 400000;
        struct mn_cc_ack a = {.bytes = 1000, .flight = 1000, .min_rtt_ns = 40 * MS, .srtt_ns = 300 * MS};
        for (uint32_t i = 0; i < 100; i++) {
            a.una = i * 1000;
            a.nxt = a.una + 10000;
            a.rtt_ns = i < 50 ? 40 * MS : i == 50 ? 900 * MS : 80 * MS;
            cc.ops->on_ack(&cc, &a);
            uint64_t rate = (uint64_t)cc.cwnd * 1000000000U / (i < 70 ? 40 * MS : 80 * MS) / 5 * 6;
            if (i > 0 && (i < 60 || i > 75)) /* for a while either may be right */
                CHECK(cc.ops->pacing_rate(&cc, 300 * MS) / 10 == rate / 10);
        }
        CHECK_INT(cc.ops->pacing_rate(&cc, 20 * MS), (uint64_t)cc.cwnd * 50 / 5 * 6); /* the timer's, if shorter */
    }
}

/* ---- a short path ---- */

/* ACKs of a whole window each for so long, all with this round trip. */
static void pass(struct mn_cc *cc, uint64_t *now, uint64_t ns, uint64_t min, uint64_t rtt)
{
    for (uint64_t until = *now + ns; *now < until; *now += rtt) {
        struct mn_cc_ack a = {.bytes = cc->cwnd,
                              .flight = cc->cwnd,
                              .rtt_ns = rtt,
                              .srtt_ns = rtt,
                              .min_rtt_ns = min,
                              .now_ns = *now,
                              .is_limited = true};
        cc->ops->on_ack(cc, &a);
    }
}

static void test_a_short_path_is_not_filled_without_end(void)
{
    struct mn_cc cc;
    uint64_t now = SECOND;
    mn_cc_start(&cc, &mn_cc_cubic, MSS);
    pass(&cc, &now, 60 * SECOND, MS / 4, 3 * MS); /* a queue at the other end */
    CHECK(cc.cwnd >= 1 << 20 && cc.cwnd < 1 << 22);
    uint32_t before = cc.cwnd;
    pass(&cc, &now, SECOND, MS / 4, MS); /* room: as fast as ever */
    CHECK(cc.cwnd > 8 * before);
}

/* Moved from one room to another continent: what the short path taught is forgotten. */
static void test_a_path_that_became_long(void)
{
    struct mn_cc cc;
    uint64_t now = SECOND;
    mn_cc_start(&cc, &mn_cc_cubic, MSS);
    pass(&cc, &now, 20 * SECOND, MS / 4, 3 * MS);
    CHECK_INT(cc.ops->pacing_rate(&cc, 100 * MS), 0);
    pass(&cc, &now, 11 * SECOND, MS / 4, 100 * MS);
    CHECK(cc.ops->pacing_rate(&cc, 100 * MS) > 0);
    pass(&cc, &now, SECOND, MS / 4, 100 * MS);
    CHECK(cc.cwnd > 4 << 20);
}

/* ---- a bottleneck ---- */

static void test_slow_start_ends_before_the_queue_does(void)
{
    for (int which = 0; which < 2; which++) {
        struct link l;
        link_start(&l, 100000000, 10000000); /* 100 Mb/s, 100 ms: the queue holds eight times that */
        l.is_paced = true;
        struct link_flow *f = link_add(&l, which == 0 ? &mn_cc_cubic : &mn_cc_newreno, 100 * MS, 0);
        link_run(&l, 5 * SECOND);
        printf("  %s: %" PRIu64 " lost, threshold %u\n", f->cc.ops->name, f->lost, f->cc.ssthresh);
        if (which == 0) {
            CHECK_INT(f->lost, 0);
            CHECK(f->cc.ssthresh > 1250000 && f->cc.ssthresh < 10000000);
        } else {
            CHECK(f->lost > 100); /* or the link would show nothing */
        }
        link_stop(&l);
    }
}

static void test_one_flow_fills_the_link(void)
{
    const uint64_t rtts[] = {1 * MS, 20 * MS, 150 * MS};
    for (size_t i = 0; i < 3; i++) {
        struct link l;
        uint64_t rtt = rtts[i], product = 50000000 / 8 * rtt / SECOND;
        link_start(&l, 50000000, product / 2 + 20 * LINK_SEGMENT);
        l.is_paced = true;
        struct link_flow *f = link_add(&l, &mn_cc_cubic, rtt, 0);
        link_run(&l, 10 * SECOND);
        uint64_t since = f->delivered;
        link_run(&l, 30 * SECOND);
        double rate = link_rate(f, since, 30 * SECOND);
        printf("  %" PRIu64 " ms: %.1f of 50 Mb/s, %" PRIu64 " timeouts\n", (uint64_t)(rtt / MS), rate / 1e6,
               f->timeouts);
        CHECK(rate > 0.95 * 50e6);
        link_stop(&l);
    }
}

static double jain(const double *x, int n)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        sum += x[i];
        squares += x[i] * x[i];
    }
    return sum * sum / (n * squares);
}

/* Four flows that come one after the other have even shares in the end, with and without ECN. */
static void test_cubic_is_fair_to_itself(void)
{
    for (int ecn = 0; ecn < 2; ecn++) {
        struct link l;
        double rate[4];
        uint64_t since[4];
        link_start(&l, 50000000, 250000);
        l.is_paced = true;
        l.mark_above_ns = ecn == 0 ? 0 : 10 * MS;
        for (int i = 0; i < 4; i++)
            link_add(&l, &mn_cc_cubic, 40 * MS, (uint64_t)i * 5 * SECOND);
        link_run(&l, 60 * SECOND);
        for (int i = 0; i < 4; i++)
            since[i] = l.flow[i].delivered;
        link_run(&l, 60 * SECOND);
        double sum = 0;
        uint64_t lost = 0;
        for (int i = 0; i < 4; i++) {
            sum += rate[i] = link_rate(&l.flow[i], since[i], 60 * SECOND);
            lost += l.flow[i].lost;
        }
        printf("  ecn %d: fairness %.3f, together %.1f of 50 Mb/s, %" PRIu64 " lost\n", ecn, jain(rate, 4), sum / 1e6,
               lost);
        CHECK(jain(rate, 4) > 0.9);
        CHECK(sum > 0.93 * 50e6);
        link_stop(&l);
    }
}

/* Where Reno does well, CUBIC leaves it a share (RFC 9438 4.3): not an even one, because queues that drop at the tail
 * make all lose at once, and CUBIC then gives back less. */
static void test_cubic_lives_with_reno(void)
{
    struct link l;
    link_start(&l, 20000000, 50000);
    l.is_paced = true;
    for (int i = 0; i < 4; i++)
        link_add(&l, i % 2 == 0 ? &mn_cc_cubic : &mn_cc_newreno, 20 * MS, (uint64_t)i * 100 * MS);
    link_run(&l, 20 * SECOND);
    uint64_t since[4];
    for (int i = 0; i < 4; i++)
        since[i] = l.flow[i].delivered;
    link_run(&l, 100 * SECOND);
    double cubic = 0, reno = 0;
    for (int i = 0; i < 4; i++)
        *(i % 2 == 0 ? &cubic : &reno) += link_rate(&l.flow[i], since[i], 100 * SECOND);
    printf("  cubic %.1f, reno %.1f of 20 Mb/s\n", cubic / 1e6, reno / 1e6);
    CHECK(cubic / reno > 0.67 && cubic / reno < 2.5);
    CHECK(cubic + reno > 0.93 * 20e6);
    link_stop(&l);
}

/* ---- losses that no queue explains ---- */

/* The path of a flow whose losses are one in so many, with round trips of so long beside a shortest of 40 ms. */
static bool bears(uint32_t one_in, uint64_t rtt)
{
    struct mn_cc cc;
    mn_cc_start(&cc, &mn_cc_forbearing, 1000);
    struct mn_cc_ack a = {.bytes = 1000, .flight = 10000, .min_rtt_ns = 40 * MS, .srtt_ns = 40 * MS, .rtt_ns = rtt};
    for (uint32_t i = 0; i < 3000; i++) {
        a.una = i * 1000;
        a.nxt = a.una + 10000;
        cc.ops->on_ack(&cc, &a);
        mn_cc_count(&cc, 1000, i % one_in == one_in - 1 ? 1000 : 0);
    }
    return cc.ops->stands(&cc);
}

static void test_sparse_losses_are_borne(void)
{
    CHECK(bears(100, 40 * MS) && bears(60, 41 * MS));
    CHECK(!bears(20, 40 * MS));  /* too many */
    CHECK(!bears(100, 43 * MS)); /* a queue */
    CHECK(!bears(100, 80 * MS));
    struct mn_cc cc;
    mn_cc_start(&cc, &mn_cc_forbearing, 1000);
    CHECK(!cc.ops->stands(&cc)); /* nothing is known of the path */
    CHECK(mn_cc_cubic.stands == NULL && mn_cc_newreno.stands == NULL);
}

/* Beside CUBIC in queues of one bandwidth-delay product down to a fifteenth: each has its share. */
static void test_forbearing_lives_with_cubic(void)
{
    const uint64_t queues[] = {250000, 125000, 62500, 16000};
    for (size_t q = 0; q < 4; q++) {
        struct link l;
        link_start(&l, 50000000, queues[q]);
        l.is_paced = true;
        uint64_t since[4];
        for (int i = 0; i < 4; i++)
            link_add(&l, i % 2 == 0 ? &mn_cc_forbearing : &mn_cc_cubic, 40 * MS, (uint64_t)i * 100 * MS);
        link_run(&l, 20 * SECOND);
        for (int i = 0; i < 4; i++)
            since[i] = l.flow[i].delivered;
        link_run(&l, 100 * SECOND);
        double ours = 0, cubic = 0;
        uint64_t lost = 0;
        for (int i = 0; i < 4; i++) {
            *(i % 2 == 0 ? &ours : &cubic) += link_rate(&l.flow[i], since[i], 100 * SECOND);
            lost += l.flow[i].lost;
        }
        printf("  queue %" PRIu64 ": forbearing %.1f, cubic %.1f of 50 Mb/s, %" PRIu64 " lost\n", queues[q], ours / 1e6,
               cubic / 1e6, lost);
        CHECK(ours + cubic > 0.85 * 50e6);
        CHECK(ours < 1.5 * cubic && cubic < 1.5 * ours);
        link_stop(&l);
    }
}

int main(void)
{
    RUN(test_names);
    RUN(test_reno);
    RUN(test_longer_rounds_end_slow_start);
    RUN(test_a_spike_is_taken_back);
    RUN(test_one_batch_is_no_round);
    RUN(test_local_noise_ends_nothing);
    RUN(test_pacing_rate);
    RUN(test_pacing_forgets_one_delay);
    RUN(test_a_short_path_is_not_filled_without_end);
    RUN(test_a_path_that_became_long);
    RUN(test_slow_start_ends_before_the_queue_does);
    RUN(test_one_flow_fills_the_link);
    RUN(test_cubic_is_fair_to_itself);
    RUN(test_cubic_lives_with_reno);
    RUN(test_sparse_losses_are_borne);
    RUN(test_forbearing_lives_with_cubic);
    return 0;
}
