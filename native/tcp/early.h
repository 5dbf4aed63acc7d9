/* Bytes that arrived before their turn, as ranges of sequence numbers, and what selective acknowledgements say of them
 * (RFC 2018, RFC 2883). Knows no connection; the bytes themselves lie in the receive ring.
 *
 * Work per call: a binary search, and moving at most MN_EARLY_RANGES blocks of eight bytes (a range far below every
 * other moves them all: 16 KiB). Merging pays for itself: a range is merged away once.
 */
#ifndef MN_TCP_EARLY_H
#define MN_TCP_EARLY_H

#include "segment.h"

enum {
    MN_EARLY_RANGES = 2048, /* a window of 8 MiB with a fifth of its segments lost has about a thousand */
    MN_EARLY_NEWEST = 4,
};

struct mn_early {
    struct mn_block *ranges; /* sorted, disjoint, not touching, all beyond what is in order */
    uint16_t count, room;
    uint8_t newest_count;
    uint8_t untold; /* of the newest: how many no ACK has named since they changed */
    bool has_twice;
    uint32_t newest[MN_EARLY_NEWEST]; /* a number within each range that changed last, newest first */
    struct mn_block twice;            /* what came although we had it, for the next ACK to tell */
};

/* Remember [first, end). False: too many ranges, or no memory; nothing changed then. */
bool mn_early_add(struct mn_early *e, uint32_t first, uint32_t end);
/* Drop the ranges that *nxt has reached, and move it over them. True: there were some. */
bool mn_early_absorb(struct mn_early *e, uint32_t *nxt);
/* Forget everything from end on. */
void mn_early_cut(struct mn_early *e, uint32_t end);
void mn_early_free(struct mn_early *e);

/* The range that holds seq, or NULL. */
const struct mn_block *mn_early_find(const struct mn_early *e, uint32_t seq);
/* The first part of [first, end) that is there already; false: all of it is new. */
bool mn_early_overlap(const struct mn_early *e, uint32_t first, uint32_t end, struct mn_block *part);

/* [first, end) came a second time. False: another such report still waits for its ACK and this one does not join it. */
bool mn_early_note_twice(struct mn_early *e, uint32_t first, uint32_t end);
/* At most max blocks for an ACK: what came twice, then the ranges that changed last, then others. They count as told.
 */
uint8_t mn_early_tell(struct mn_early *e, struct mn_block *out, uint8_t max);

#endif
