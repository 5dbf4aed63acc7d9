/* The window of counters already seen: a ring of 128 words of 64, of which 8128 counters are usable.
 *
 * Never commit a counter before its packet is authentic. Source: RFC 6479; docs/protocol/dataplane.md 1.9. */
#ifndef MN_WG_REPLAY_H
#define MN_WG_REPLAY_H

#include <stdbool.h>
#include <stdint.h>

#define MN_REJECT_AFTER_MESSAGES (UINT64_MAX - (1ULL << 13))

enum { MN_REPLAY_WORDS = 128, MN_REPLAY_WINDOW = (MN_REPLAY_WORDS - 1) * 64 };

struct mn_replay {
    uint64_t last1; /* highest counter accepted, plus one; 0: none */
    uint64_t map[MN_REPLAY_WORDS];
};

bool mn_replay_is_new(const struct mn_replay *r, uint64_t counter);  /* looks only */
bool mn_replay_is_copy(const struct mn_replay *r, uint64_t counter); /* was seen, and the window still knows it */
bool mn_replay_commit(struct mn_replay *r, uint64_t counter);        /* true: was new, now is seen */

#endif
