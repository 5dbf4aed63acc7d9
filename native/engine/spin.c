/* Adaptive polling as arithmetic. See spin.h. */
#include "spin.h"

enum { GAP_MAX_NS = 1000000000, SHARE = 8 };

void mn_spin_init(struct mn_spin *s, uint64_t now)
{
    s->worked_at = now;
    s->gap_ns = GAP_MAX_NS;
    s->rests_until = 0;
}

void mn_spin_worked(struct mn_spin *s, uint64_t began_at, uint64_t now)
{
    uint64_t gap = began_at - s->worked_at;
    s->gap_ns = (s->gap_ns * (SHARE - 1) + (gap < GAP_MAX_NS ? gap : GAP_MAX_NS)) / SHARE;
    s->worked_at = now;
}

bool mn_spin_wanted(const struct mn_spin *s, uint64_t now)
{
    return s->gap_ns < MN_SPIN_GAP_NS && now - s->worked_at < MN_SPIN_NS && now >= s->rests_until;
}

void mn_spin_yielded(struct mn_spin *s, uint64_t before, uint64_t now)
{
    if (now - before > MN_SPIN_LONG_YIELD_NS)
        s->rests_until = now + MN_SPIN_REST_NS;
}
