/* Reno's additive increase and halving (RFC 5681), counting acknowledged bytes (RFC 3465) without its limit of two
 * segments: receivers here acknowledge whole batches. */
#include "cc.h"

static uint32_t clamp_window(uint64_t w)
{
    return w > MN_CC_MAX_WINDOW ? MN_CC_MAX_WINDOW : (uint32_t)w;
}

static uint32_t half_of(const struct mn_cc *cc, uint32_t flight)
{
    return flight / 2 > 2 * cc->mss ? flight / 2 : 2 * cc->mss;
}

static void start(struct mn_cc *cc)
{
    cc->own[0] = 0; /* bytes acknowledged towards the next step of congestion avoidance */
}

static void on_ack(struct mn_cc *cc, const struct mn_cc_ack *ack)
{
    if (!ack->is_limited)
        return;
    if (cc->cwnd < cc->ssthresh) {
        cc->cwnd = clamp_window((uint64_t)cc->cwnd + ack->bytes);
        return;
    }
    cc->own[0] += ack->bytes;
    while (cc->own[0] >= cc->cwnd) {
        cc->own[0] -= cc->cwnd;
        cc->cwnd = clamp_window((uint64_t)cc->cwnd + cc->mss);
    }
}

static void remember(struct mn_cc *cc)
{
    cc->before_cwnd = cc->cwnd;
    cc->before_ssthresh = cc->ssthresh;
}

static void on_loss(struct mn_cc *cc, uint32_t flight, uint64_t now_ns)
{
    (void)now_ns;
    remember(cc);
    cc->ssthresh = half_of(cc, flight);
    cc->cwnd = cc->ssthresh;
    cc->own[0] = 0;
}

static void on_recovered(struct mn_cc *cc, uint64_t now_ns)
{
    (void)now_ns;
    cc->cwnd = cc->ssthresh;
}

static void on_timeout(struct mn_cc *cc, uint32_t flight, bool is_first, uint64_t now_ns)
{
    (void)now_ns;
    if (is_first) {
        remember(cc);
        cc->ssthresh = half_of(cc, flight);
    }
    cc->cwnd = cc->mss;
    cc->own[0] = 0;
}

static void undo(struct mn_cc *cc, uint64_t now_ns)
{
    (void)now_ns;
    if (cc->before_cwnd == 0)
        return;
    cc->cwnd = cc->cwnd > cc->before_cwnd ? cc->cwnd : cc->before_cwnd;
    cc->ssthresh = cc->before_ssthresh;
    cc->before_cwnd = 0;
}

static uint64_t pacing_rate(const struct mn_cc *cc, uint64_t srtt_ns)
{
    (void)cc;
    (void)srtt_ns;
    return 0;
}

static void on_idle(struct mn_cc *cc, uint64_t idle_ns, uint64_t now_ns)
{
    (void)idle_ns;
    (void)now_ns;
    uint32_t restart = MN_CC_INITIAL_SEGMENTS * cc->mss;
    if (cc->cwnd > restart)
        cc->cwnd = restart;
}

const struct mn_cc_ops mn_cc_newreno = {
    .name = "newreno",
    .start = start,
    .on_ack = on_ack,
    .on_loss = on_loss,
    .on_mark = on_loss,
    .on_recovered = on_recovered,
    .on_timeout = on_timeout,
    .on_idle = on_idle,
    .undo = undo,
    .pacing_rate = pacing_rate,
};
