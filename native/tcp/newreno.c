/* Reno's additive increase and halving (RFC 5681), counting acknowledged bytes (RFC 3465) without its limit of two
 * segments: receivers here acknowledge whole batches. */
#include "cc.h"

static uint32_t half_of(const struct mn_cc *cc, uint32_t flight)
{
    return flight / 2 > 2 * cc->mss ? flight / 2 : 2 * cc->mss;
}

static void start(struct mn_cc *cc)
{
    cc->own.reno = (struct mn_reno){0};
}

static void on_ack(struct mn_cc *cc, const struct mn_cc_ack *ack)
{
    struct mn_reno *r = &cc->own.reno;
    mn_cc_note_path(cc, ack);
    if (!ack->is_limited || !mn_cc_is_used(cc))
        return;
    if (mn_cc_in_slow_start(cc)) {
        mn_cc_grow(cc, ack->bytes);
        return;
    }
    r->acked += ack->bytes;
    while (r->acked >= cc->cwnd) {
        r->acked -= cc->cwnd;
        cc->cwnd = mn_cc_clamp((uint64_t)cc->cwnd + cc->mss);
    }
}

static void on_loss(struct mn_cc *cc, uint32_t flight, uint64_t now_ns)
{
    (void)now_ns;
    mn_cc_remember(cc);
    cc->ssthresh = half_of(cc, flight);
    cc->cwnd = cc->ssthresh;
    cc->own.reno.acked = 0;
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
        mn_cc_remember(cc);
        cc->ssthresh = half_of(cc, flight);
    }
    cc->cwnd = cc->mss;
    cc->own.reno.acked = 0;
}

static void undo(struct mn_cc *cc, uint64_t now_ns)
{
    (void)now_ns;
    mn_cc_restore(cc);
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
    .pacing_rate = mn_cc_pace_window,
};
