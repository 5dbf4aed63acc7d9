/* The replay window. See replay.h. */
#include "replay.h"

enum { WORD_BITS = 64, RING_MASK = MN_REPLAY_WORDS - 1 };

static bool in_window(const struct mn_replay *r, uint64_t counter)
{
    return counter < MN_REJECT_AFTER_MESSAGES && counter + 1 + MN_REPLAY_WINDOW >= r->last1;
}

bool mn_replay_is_new(const struct mn_replay *r, uint64_t counter)
{
    if (!in_window(r, counter))
        return false;
    uint64_t c1 = counter + 1;
    return c1 > r->last1 || (r->map[c1 / WORD_BITS & RING_MASK] >> c1 % WORD_BITS & 1) == 0;
}

bool mn_replay_is_copy(const struct mn_replay *r, uint64_t counter)
{
    return in_window(r, counter) && !mn_replay_is_new(r, counter);
}

bool mn_replay_commit(struct mn_replay *r, uint64_t counter)
{
    if (!in_window(r, counter))
        return false;
    uint64_t c1 = counter + 1, word = c1 / WORD_BITS;
    if (c1 > r->last1) {
        uint64_t last = r->last1 / WORD_BITS, entered = word - last;
        if (entered > MN_REPLAY_WORDS)
            entered = MN_REPLAY_WORDS;
        for (uint64_t i = 1; i <= entered; i++)
            r->map[(last + i) & RING_MASK] = 0;
        r->last1 = c1;
    }
    uint64_t bit = 1ULL << c1 % WORD_BITS, *slot = &r->map[word & RING_MASK];
    if (*slot & bit)
        return false;
    *slot |= bit;
    return true;
}
