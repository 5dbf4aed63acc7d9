/* What the congestion control algorithms share: names, the start, pacing by the window, and undo. */
#include "cc.h"

#include <stddef.h>
#include <string.h>

/* Below this round trip a millisecond's timer slack is the whole window: pacing would only add stalls. */
#define PACED_RTT_NS 2000000ULL

const struct mn_cc_ops *mn_cc_find(const char *name)
{
    static const struct mn_cc_ops *const known[] = {&mn_cc_cubic, &mn_cc_newreno};
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

/* Twice the window per round trip while it may double in one, 1.2 times after: enough to find room that appears, little
 * enough for shallow queues. The shortest round trip decides whether to pace at all, because a long one may be our own
 * queue on a fast path. */
uint64_t mn_cc_pace_window(const struct mn_cc *cc, uint64_t srtt_ns)
{
    if (cc->min_rtt_ns < PACED_RTT_NS || srtt_ns < PACED_RTT_NS)
        return 0;
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
