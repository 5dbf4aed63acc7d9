/* CUBIC against RFC 9438: its curve in floating point over all ranges, its response to loss, each event, undo. */
#include <math.h>

#include "../tcp/cc.h"
#include "check.h"

enum {
    MSS = 1228,
};

#define MS 1000000ULL
#define SECOND 1000000000ULL
#define UNIT (1.0 / 8192) /* grain of time in the integer curve, seconds */

static struct mn_cc make(uint32_t mss)
{
    struct mn_cc cc;
    mn_cc_start(&cc, &mn_cc_cubic, mss);
    return cc;
}

static struct mn_cc_ack acked(const struct mn_cc *cc, uint32_t bytes, uint64_t rtt_ns, uint64_t now_ns)
{
    return (struct mn_cc_ack){.bytes = bytes,
                              .flight = cc->cwnd,
                              .rtt_ns = rtt_ns,
                              .min_rtt_ns = rtt_ns,
                              .srtt_ns = rtt_ns,
                              .now_ns = now_ns,
                              .is_limited = true};
}

static void feed(struct mn_cc *cc, uint32_t bytes, uint64_t rtt_ns, uint64_t now_ns)
{
    struct mn_cc_ack a = acked(cc, bytes, rtt_ns, now_ns);
    cc->ops->on_ack(cc, &a);
}

static double random_between(uint64_t *rng, double low, double high) /* evenly by magnitude */
{
    double u = (double)(test_random(rng) >> 11) / 9007199254740992.0;
    return exp(log(low) + u * (log(high) - log(low)));
}

static double clamp_window(double w)
{
    return w < 0 ? 0 : w > MN_CC_MAX_WINDOW ? MN_CC_MAX_WINDOW : w;
}

/* Bytes of RFC 9438 figure 1. */
static double curve(double t, double k, double origin, double mss)
{
    return clamp_window(0.4 * mss * pow(t - k, 3) + origin);
}

/* One ACK from a random state, anywhere: the integers give what the formulas do, give or take the grain of time. */
static void test_every_step_is_the_formulas(void)
{
    uint64_t rng = 9438;
    int cubic = 0, reno = 0;
    for (int i = 0; i < 3000000 / MN_TEST_SLOW; i++) {
        uint32_t mss = (uint32_t)random_between(&rng, 76, 9001);
        struct mn_cc cc = make(mss);
        uint32_t w_max = (uint32_t)random_between(&rng, 2 * mss, MN_CC_MAX_WINDOW);
        uint64_t rtt = (uint64_t)random_between(&rng, 0.5, 10e9);
        uint64_t age = (uint64_t)random_between(&rng, 1, 4 * 3600e9), now = 12345 * SECOND;
        cc.ssthresh = cc.cwnd = (uint32_t)random_between(&rng, mss, w_max);
        cc.own.cubic.stage.w_max = w_max;
        cc.own.cubic.stage.prior = (uint32_t)random_between(&rng, mss, MN_CC_MAX_WINDOW);
        uint32_t began = cc.cwnd;
        feed(&cc, 1, rtt, now); /* begins the stage */
        double k = cbrt((w_max - began) / 0.4 / mss);
        CHECK(fabs(cc.own.cubic.stage.k * UNIT - k) < 1.01 * UNIT + k * 1e-6);
        CHECK(cc.cwnd >= began && cc.cwnd <= began + 1);
        uint32_t bytes = (uint32_t)random_between(&rng, 1, cc.cwnd), before = cc.cwnd;
        double est = cc.own.cubic.stage.w_est;
        est = clamp_window(est + (est < cc.own.cubic.stage.prior ? 9 / 17.0 : 1) * mss * bytes / before);
        feed(&cc, bytes, rtt, now + age);
        CHECK(fabs(cc.own.cubic.stage.w_est - est) <= 2);
        CHECK(cc.cwnd >= before); /* no ACK lowers it */
        double t = (double)age / 1e9, ahead = t + (double)rtt / 1e9, origin = w_max;
        if (curve(t + 2.1 * UNIT, k, origin, mss) + 2 < est) {
            reno++;
            CHECK(fabs(cc.cwnd - fmax(est, before)) <= 2);
        } else if (curve(t - 2.1 * UNIT, k, origin, mss) - 2 > est) {
            cubic++;
            double low = fmin(curve(ahead - 2.1 * UNIT, k, origin, mss) - 2, 1.5 * before);
            double high = fmin(curve(ahead + 2.1 * UNIT, k, origin, mss) + 2, 1.5 * before);
            low = before + fmax(low - before, 0) * bytes / before;
            high = before + fmax(high - before, 0) * bytes / before;
            CHECK(cc.cwnd >= low - 2 && cc.cwnd <= high + 2);
        }
    }
    CHECK(cubic > 1000 && reno > 1000);
}

/* Everything at once, in any order and at any value: within bounds, and no ACK lowers the window. */
static void test_any_sequence_stays_in_bounds(void)
{
    uint64_t rng = 7;
    for (int i = 0; i < 20000 / MN_TEST_SLOW; i++) {
        struct mn_cc cc = make(76 + (uint32_t)(test_random(&rng) % 8925));
        uint64_t now = 0;
        for (int k = 0; k < 200; k++) {
            uint32_t before = cc.cwnd, flight = (uint32_t)random_between(&rng, 1, cc.cwnd * 1.5);
            now += (uint64_t)random_between(&rng, 0.5, k % 50 == 0 ? 7200e9 : 1e9);
            switch (test_random(&rng) % 24) {
            case 0:
                cc.ops->on_loss(&cc, flight, now);
                break;
            case 1:
                cc.ops->on_mark(&cc, flight, now);
                break;
            case 2:
                cc.ops->on_timeout(&cc, flight, k % 2 == 0, now);
                break;
            case 3:
                cc.ops->on_recovered(&cc, now);
                break;
            case 4:
                cc.ops->on_idle(&cc, (uint64_t)random_between(&rng, 2e8, 7200e9), now);
                break;
            case 5:
                cc.ops->undo(&cc, now);
                CHECK(cc.cwnd >= before);
                break;
            case 6:
                cc.mss = 76 + (uint32_t)(test_random(&rng) % 8925); /* the path has changed */
                break;
            default: {
                struct mn_cc_ack a = acked(&cc, flight, (uint64_t)random_between(&rng, 0.5, 10e9), now);
                a.is_limited = test_random(&rng) % 4 != 0;
                cc.ops->on_ack(&cc, &a);
                CHECK(cc.cwnd >= before);
            }
            }
            CHECK(cc.cwnd >= 76 && cc.cwnd <= MN_CC_MAX_WINDOW);
            CHECK(cc.ssthresh >= 2 * 76 && cc.ssthresh <= MN_CC_MAX_WINDOW);
            CHECK(cc.ops->pacing_rate(&cc, (uint64_t)random_between(&rng, 0.5, 10e9)) <= 2ULL * SECOND / 1000000 << 28);
        }
    }
}

/* Average window, in segments, when every n-th segment is lost, after a few losses. */
static double window_at_loss(double n, uint64_t rtt)
{
    struct mn_cc cc = make(MSS);
    uint64_t now = SECOND;
    double until = n, sum = 0, time = 0;
    cc.ssthresh = cc.cwnd; /* no slow start */
    for (int losses = 0; losses < 12;) {
        double round = (double)cc.cwnd / MSS;
        uint32_t left = cc.cwnd;
        if (losses >= 6) {
            sum += round;
            time += 1;
        }
        while (left > 0) { /* ACKs spread over the round trip */
            uint32_t bytes = cc.cwnd / 16 < 2 * MSS ? 2 * MSS : cc.cwnd / 16;
            bytes = bytes < left ? bytes : left;
            feed(&cc, bytes, rtt, now + rtt - (uint64_t)((double)rtt * left / (round * MSS)));
            left -= bytes;
        }
        now += rtt;
        until -= round;
        if (until <= 0) {
            until += n;
            losses++;
            cc.ops->on_loss(&cc, cc.cwnd, now);
            cc.ops->on_recovered(&cc, now);
        }
    }
    return sum / time;
}

/* RFC 9438 5.1: the greater of 1.054 RTT^0.75 / p^0.75 and, in the friendly region, of Reno's 1.22 / p^0.5. */
static void test_response_function(void)
{
    for (uint32_t ms = 10; ms <= 100; ms *= 10)
        for (double n = 1e2; n <= 1e7; n *= 10) {
            double got = window_at_loss(n, ms * MS);
            double cubic = 1.054 * pow(ms / 1e3, 0.75) * pow(n, 0.75), reno = sqrt(1.5 * n);
            double want = fmax(cubic, reno);
            printf("  rtt %u ms, p %.0e: %.1f segments, RFC %.1f\n", ms, 1 / n, got, want);
            CHECK(got > 0.85 * want && got < 1.25 * want);
        }
}

static void test_reductions(void)
{
    struct mn_cc cc = make(1000);
    cc.cwnd = 100000;
    cc.ops->on_loss(&cc, 100000, SECOND);
    CHECK_INT(cc.ssthresh, 70000);
    CHECK_INT(cc.own.cubic.stage.w_max, 100000);
    cc.ops->on_recovered(&cc, SECOND);
    CHECK_INT(cc.cwnd, 70000);
    /* A second one below the first: fast convergence. */
    cc.ops->on_loss(&cc, 70000, SECOND);
    CHECK_INT(cc.ssthresh, 49000);
    CHECK_INT(cc.own.cubic.stage.w_max, 59500);
    /* Marks cost less (RFC 8511). */
    cc = make(1000);
    cc.cwnd = 100000;
    cc.ops->on_mark(&cc, 100000, SECOND);
    CHECK_INT(cc.ssthresh, 85000);
    CHECK_INT(cc.cwnd, 85000);
    /* A window mostly unused was not tried. */
    cc = make(1000);
    cc.cwnd = 100000;
    cc.ops->on_loss(&cc, 20000, SECOND);
    CHECK_INT(cc.ssthresh, 28000);
    for (int i = 0; i < 20; i++)
        cc.ops->on_loss(&cc, cc.cwnd, SECOND);
    CHECK_INT(cc.ssthresh, 2000);
}

static void test_plateau_is_where_the_loss_was(void)
{
    struct mn_cc cc = make(1000);
    uint64_t now = SECOND;
    cc.cwnd = 1000000;
    cc.ops->on_loss(&cc, 1000000, now);
    cc.ops->on_recovered(&cc, now);
    double k = cbrt(300 / 0.4); /* 9.09 s */
    uint64_t rtt = 100 * MS, until = now + (uint64_t)(k * 1e9);
    for (; now < until; now += rtt)
        feed(&cc, cc.cwnd, rtt, now);
    CHECK(cc.cwnd > 990000 && cc.cwnd < 1010000);
    uint64_t flat = now + SECOND;
    for (; now < flat; now += rtt)
        feed(&cc, cc.cwnd, rtt, now);
    CHECK(cc.cwnd < 1010000);
    uint64_t far = now + 10 * SECOND;
    for (; now < far; now += rtt)
        feed(&cc, cc.cwnd, rtt, now);
    CHECK(cc.cwnd > 1400000 && cc.cwnd < 1700000);
}

static void test_timeout(void)
{
    struct mn_cc cc = make(1000);
    cc.cwnd = cc.ssthresh = 100000;
    cc.ops->on_timeout(&cc, 100000, true, SECOND);
    CHECK_INT(cc.cwnd, 1000);
    CHECK_INT(cc.ssthresh, 70000);
    cc.ops->on_timeout(&cc, 1000, false, 2 * SECOND); /* again: one reduction is enough */
    CHECK_INT(cc.ssthresh, 70000);
    uint64_t now = 3 * SECOND;
    for (; cc.cwnd < cc.ssthresh; now += 10 * MS)
        feed(&cc, cc.cwnd, 10 * MS, now);
    CHECK_INT(cc.cwnd, 70000); /* slow start ends at the threshold, not beyond */
    feed(&cc, cc.cwnd, 10 * MS, now);
    CHECK_INT(cc.own.cubic.stage.k, 0);
    CHECK_INT(cc.own.cubic.stage.origin, 70000);
}

static void test_undo_restores_the_curve(void)
{
    for (int how = 0; how < 3; how++) {
        struct mn_cc cc = make(1000);
        cc.cwnd = cc.ssthresh = 400000;
        cc.own.cubic.stage.w_max = cc.own.cubic.stage.prior = 500000;
        for (uint64_t now = SECOND; now < 3 * SECOND; now += 50 * MS)
            feed(&cc, cc.cwnd, 50 * MS, now);
        struct mn_cc before = cc, same = cc;
        if (how == 0)
            cc.ops->on_loss(&cc, cc.cwnd, 3 * SECOND);
        else if (how == 1)
            cc.ops->on_mark(&cc, cc.cwnd, 3 * SECOND);
        else
            cc.ops->on_timeout(&cc, cc.cwnd, true, 3 * SECOND);
        CHECK(cc.cwnd < before.cwnd);
        cc.ops->undo(&cc, 3 * SECOND);
        CHECK_INT(cc.cwnd, before.cwnd);
        CHECK_INT(cc.ssthresh, before.ssthresh);
        for (uint64_t now = 3 * SECOND; now < 9 * SECOND; now += 50 * MS) {
            feed(&cc, cc.cwnd, 50 * MS, now);
            feed(&same, same.cwnd, 50 * MS, now);
            CHECK_INT(cc.cwnd, same.cwnd);
        }
        cc.ops->undo(&cc, 9 * SECOND); /* once is all */
        CHECK_INT(cc.cwnd, same.cwnd);
    }
}

/* Ten seconds in which the application sent little do not count: growth goes on where it was. */
static void test_unused_time_is_no_age(void)
{
    struct mn_cc cc = make(1000);
    cc.cwnd = 1000000;
    cc.ops->on_loss(&cc, 1000000, SECOND);
    cc.ops->on_recovered(&cc, SECOND);
    uint64_t now = SECOND;
    for (; now < 3 * SECOND; now += 50 * MS)
        feed(&cc, cc.cwnd, 50 * MS, now);
    struct mn_cc same = cc;
    uint32_t before = cc.cwnd;
    for (uint64_t t = now; t < now + 10 * SECOND; t += 50 * MS) {
        struct mn_cc_ack a = acked(&cc, 1000, 50 * MS, t);
        a.is_limited = false;
        a.flight = 1000;
        cc.ops->on_ack(&cc, &a);
    }
    CHECK_INT(cc.cwnd, before);
    for (int i = 0; i < 40; i++) {
        feed(&same, same.cwnd, 50 * MS, now + (uint64_t)i * 50 * MS);
        feed(&cc, cc.cwnd, 50 * MS, now + 10 * SECOND + (uint64_t)i * 50 * MS);
    }
    CHECK(fabs((double)cc.cwnd - same.cwnd) < 0.01 * same.cwnd);
}

/* Held back for a moment by the gate, and most of the time by its ring or the peer's window: however often the first
 * happens, a window of which less than half was ever out does not grow; half of it in one of two rounds is enough. */
static void test_a_window_mostly_empty_does_not_grow(void)
{
    for (uint32_t threshold = 100000; threshold <= 1000000; threshold += 900000) {
        struct mn_cc cc = make(1000);
        cc.cwnd = 100000;
        cc.ssthresh = threshold;
        struct mn_cc_ack a = acked(&cc, 10000, 40 * MS, SECOND);
        a.flight = 49000;
        for (int i = 0; i < 100; i++, a.now_ns += 40 * MS, a.una += 10000, a.nxt = a.una + 49000)
            cc.ops->on_ack(&cc, &a);
        CHECK_INT(cc.cwnd, 100000);
        a.flight = 60000;
        cc.ops->on_ack(&cc, &a);
        uint32_t before = cc.cwnd;
        a.flight = 1000;
        a.una += 1000; /* the same round */
        cc.ops->on_ack(&cc, &a);
        CHECK(cc.cwnd > before);
    }
}

/* A paced path keeps what it had, for a while; a short one begins again; the time asleep is no age. */
static void test_idle(void)
{
    const struct {
        uint64_t rtt, idle;
        bool is_kept;
    } cases[] = {{40 * MS, 10 * SECOND, true}, {40 * MS, 3600 * SECOND, false}, {MS / 10, SECOND, false}};
    for (size_t i = 0; i < 3; i++) {
        struct mn_cc cc = make(1000);
        cc.cwnd = cc.ssthresh = 400000;
        feed(&cc, 1000, cases[i].rtt, SECOND);
        uint32_t before = cc.cwnd;
        struct mn_cc same = cc;
        cc.ops->on_idle(&cc, cases[i].idle, SECOND + cases[i].idle);
        CHECK_INT(cc.cwnd, cases[i].is_kept ? before : 10000);
        CHECK(cc.ssthresh >= before / 4 * 3); /* and is soon back */
        if (!cases[i].is_kept)
            continue;
        feed(&cc, cc.cwnd, cases[i].rtt, 2 * SECOND + cases[i].idle);
        feed(&same, same.cwnd, cases[i].rtt, 2 * SECOND);
        CHECK_INT(cc.cwnd, same.cwnd);
    }
}

int main(void)
{
    RUN(test_every_step_is_the_formulas);
    RUN(test_any_sequence_stays_in_bounds);
    RUN(test_response_function);
    RUN(test_reductions);
    RUN(test_plateau_is_where_the_loss_was);
    RUN(test_timeout);
    RUN(test_undo_restores_the_curve);
    RUN(test_unused_time_is_no_age);
    RUN(test_a_window_mostly_empty_does_not_grow);
    RUN(test_idle);
    return 0;
}
