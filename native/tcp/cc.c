/* What the congestion control algorithms share: names, the start, pacing by the window, and undo. */
#include "cc.h"

#include <stddef.h>
#include <string.h>

/* A path shorter than this is a machine or a room. A timer's slack is its whole window there: pacing would only add
 * stalls. */
#define SHORT_RTT_NS 2000000ULL
/* Where our own queue makes it look longer, no farther than this: beyond, the path itself must have changed. */
#define SHORT_LOADED_NS 8000000ULL
#define PERIOD_NS 5000000000ULL
/* On a short path a full queue of this much, for this long, is enough for any rate. What is more waits in the peer's
 * memory, out of its caches: a gVisor receiver spends 0.28 core-seconds per Gbit with 1 MiB in flight and 0.40 with 4.
 */
#define SHORT_WINDOW (1U << 20)
#define SHORT_QUEUE_NS 1000000ULL
/* Losses that are borne: one in fifty, as BBR version 3 bears, and two more, for one of the first few segments says
 * little. */
#define BORNE_SHARE 50
#define BORNE_MORE 2
#define SPAN_SEGMENTS 2000
#define COUNT_SHIFT 8
/* A round trip longer by less than this has met no queue to speak of. */
#define QUEUE_SHIFT 5
#define QUEUE_LEAST_NS 500000ULL

const struct mn_cc_ops *mn_cc_find(const char *name)
{
    static const struct mn_cc_ops *const known[] = {&mn_cc_forbearing, &mn_cc_cubic, &mn_cc_newreno};
    if (name == NULL)
        return known[0];
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i]->name, name) == 0)
            return known[i];
    return NULL;
}

void mn_cc_start(struct mn_cc *cc, const struct mn_cc_ops *ops, uint32_t mss)
{
    *cc = (struct mn_cc){.ops = ops, .mss = mss, .cwnd = MN_CC_INITIAL_SEGMENTS * mss, .ssthresh = MN_CC_MAX_WINDOW};
    ops->start(cc);
}

static uint64_t shorter(uint64_t a, uint64_t b) /* 0: none */
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

bool mn_cc_is_short(const struct mn_cc *cc)
{
    const struct mn_cc_path *p = &cc->path;
    if (p->min_ns >= SHORT_RTT_NS)
        return false;
    return shorter(p->recent_ns, p->before_ns) < SHORT_LOADED_NS;
}

void mn_cc_note_path(struct mn_cc *cc, const struct mn_cc_ack *ack)
{
    struct mn_cc_path *p = &cc->path;
    p->min_ns = ack->min_rtt_ns;
    if (ack->una - p->round_end < 1U << 31) {
        p->last_most = p->most;
        p->most = 0;
        if (p->round_min_us != 0)
            p->last_min_us = p->round_min_us;
        p->round_min_us = 0;
        p->round_end = ack->nxt;
    }
    p->most = p->most > ack->flight ? p->most : ack->flight;
    if (ack->rtt_ns == 0)
        return;
    uint64_t us = ack->rtt_ns / 1000;
    if (p->round_min_us == 0 || us < p->round_min_us)
        p->round_min_us = us == 0 ? 1 : us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
    if (ack->now_ns - p->period_at >= PERIOD_NS) {
        p->before_ns = p->recent_ns;
        p->recent_ns = 0;
        p->period_at = ack->now_ns;
    }
    if (p->recent_ns == 0 || ack->rtt_ns < p->recent_ns)
        p->recent_ns = ack->rtt_ns;
}

bool mn_cc_is_used(const struct mn_cc *cc)
{
    const struct mn_cc_path *p = &cc->path;
    return (p->most > p->last_most ? p->most : p->last_most) >= cc->cwnd / 2;
}

bool mn_cc_is_full(const struct mn_cc *cc, const struct mn_cc_ack *ack)
{
    return cc->cwnd >= SHORT_WINDOW && mn_cc_is_short(cc) && ack->srtt_ns > cc->path.min_ns + SHORT_QUEUE_NS;
}

static uint16_t add(uint16_t count, uint32_t bytes)
{
    uint32_t sum = count + ((bytes + (1U << COUNT_SHIFT) / 2) >> COUNT_SHIFT);
    return sum < UINT16_MAX ? (uint16_t)sum : UINT16_MAX;
}

void mn_cc_count(struct mn_cc *cc, uint32_t delivered, uint32_t lost)
{
    struct mn_cc_path *p = &cc->path;
    p->delivered = add(p->delivered, delivered);
    p->lost = add(p->lost, lost);
    if ((uint64_t)p->delivered << COUNT_SHIFT >= (uint64_t)SPAN_SEGMENTS * cc->mss) {
        p->delivered /= 2;
        p->lost /= 2;
    }
}

bool mn_cc_is_sparse(const struct mn_cc *cc)
{
    const struct mn_cc_path *p = &cc->path;
    uint64_t least = 1000ULL * (p->round_min_us != 0 ? p->round_min_us : p->last_min_us);
    if (p->delivered == 0 || p->min_ns < SHORT_RTT_NS ||
        least > p->min_ns + (p->min_ns >> QUEUE_SHIFT) + QUEUE_LEAST_NS)
        return false;
    uint64_t grace = ((uint64_t)BORNE_MORE * BORNE_SHARE * cc->mss) >> COUNT_SHIFT;
    return (uint64_t)p->lost * BORNE_SHARE <= p->delivered + grace;
}

/* Twice the window per round trip while it may double in one, 1.2 times after: enough to find room that appears, little
 * enough for shallow queues. The round trip is the shortest of the last two rounds: the timer's mean takes seconds to
 * come down from a slow handshake, and one delay on either machine would raise it for as long, with the link idle. */
uint64_t mn_cc_pace_window(const struct mn_cc *cc, uint64_t srtt_ns)
{
    if (srtt_ns < SHORT_RTT_NS || mn_cc_is_short(cc))
        return 0;
    uint64_t least = 1000 * shorter(cc->path.last_min_us, cc->path.round_min_us);
    if (least >= SHORT_RTT_NS && least < srtt_ns)
        srtt_ns = least;
    uint64_t rate = (uint64_t)cc->cwnd * 1000000000U / srtt_ns;
    return mn_cc_in_slow_start(cc) ? 2 * rate : rate + rate / 5;
}

void mn_cc_remember(struct mn_cc *cc)
{
    cc->before_cwnd = cc->cwnd;
    cc->before_ssthresh = cc->ssthresh;
}

bool mn_cc_restore(struct mn_cc *cc)
{
    if (cc->before_cwnd == 0)
        return false;
    cc->cwnd = cc->cwnd > cc->before_cwnd ? cc->cwnd : cc->before_cwnd;
    cc->ssthresh = cc->before_ssthresh;
    cc->before_cwnd = 0;
    return true;
}
