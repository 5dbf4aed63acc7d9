/* Ranges of early bytes: kept sorted, merged as they touch, told newest first. */
#include "early.h"

#include <stdlib.h>

/* The first range that does not end before seq. */
static uint16_t first_reaching(const struct mn_early *e, uint32_t seq)
{
    uint16_t low = 0, high = e->count;
    while (low < high) {
        uint16_t mid = (uint16_t)((low + high) / 2);
        if (mn_seq_lt(e->ranges[mid].end, seq))
            low = (uint16_t)(mid + 1);
        else
            high = mid;
    }
    return low;
}

static bool grow(struct mn_early *e)
{
    if (e->count < e->room)
        return true;
    uint16_t room = e->room == 0 ? 8 : (uint16_t)(e->room * 2);
    if (room > MN_EARLY_RANGES)
        return false;
    struct mn_block *ranges = realloc(e->ranges, room * sizeof *ranges);
    if (ranges == NULL)
        return false;
    e->ranges = ranges;
    e->room = room;
    return true;
}

static bool is_within(uint32_t seq, const struct mn_block *b)
{
    return seq - b->first < b->end - b->first;
}

/* Range b changed: it is the newest now, and what it swallowed is no range of its own any more. */
static void note_newest(struct mn_early *e, const struct mn_block *b)
{
    uint32_t kept[MN_EARLY_NEWEST] = {b->first};
    uint8_t n = 1, untold = 1;
    for (uint8_t i = 0; i < e->newest_count && n < MN_EARLY_NEWEST; i++) {
        if (is_within(e->newest[i], b))
            continue;
        untold = (uint8_t)(untold + (i < e->untold ? 1 : 0));
        kept[n++] = e->newest[i];
    }
    memcpy(e->newest, kept, sizeof kept);
    e->newest_count = n;
    e->untold = untold;
}

bool mn_early_add(struct mn_early *e, uint32_t first, uint32_t end)
{
    uint16_t at = first_reaching(e, first), stop = at;
    while (stop < e->count && mn_seq_le(e->ranges[stop].first, end))
        stop++;
    if (stop == at) {
        if (!grow(e))
            return false;
        memmove(e->ranges + at + 1, e->ranges + at, (size_t)(e->count - at) * sizeof *e->ranges);
        e->count++;
    } else {
        if (mn_seq_lt(e->ranges[at].first, first))
            first = e->ranges[at].first;
        end = mn_seq_max(end, e->ranges[stop - 1].end);
        memmove(e->ranges + at + 1, e->ranges + stop, (size_t)(e->count - stop) * sizeof *e->ranges);
        e->count = (uint16_t)(e->count - (stop - at) + 1);
    }
    e->ranges[at] = (struct mn_block){first, end};
    note_newest(e, &e->ranges[at]);
    return true;
}

/* The ranges are gone that some of the newest named. */
static void forget_lost_names(struct mn_early *e)
{
    uint8_t n = 0, untold = 0;
    for (uint8_t i = 0; i < e->newest_count; i++) {
        if (mn_early_find(e, e->newest[i]) == NULL)
            continue;
        untold = (uint8_t)(untold + (i < e->untold ? 1 : 0));
        e->newest[n++] = e->newest[i];
    }
    e->newest_count = n;
    e->untold = untold;
}

bool mn_early_absorb(struct mn_early *e, uint32_t *nxt)
{
    uint16_t n = 0;
    while (n < e->count && mn_seq_le(e->ranges[n].first, *nxt)) {
        *nxt = mn_seq_max(*nxt, e->ranges[n].end);
        n++;
    }
    if (n == 0)
        return false;
    e->count = (uint16_t)(e->count - n);
    memmove(e->ranges, e->ranges + n, e->count * sizeof *e->ranges);
    forget_lost_names(e);
    return true;
}

void mn_early_cut(struct mn_early *e, uint32_t end)
{
    while (e->count > 0 && mn_seq_le(end, e->ranges[e->count - 1].first))
        e->count--;
    if (e->count > 0 && mn_seq_lt(end, e->ranges[e->count - 1].end))
        e->ranges[e->count - 1].end = end;
    forget_lost_names(e);
}

void mn_early_free(struct mn_early *e)
{
    free(e->ranges);
    *e = (struct mn_early){0};
}

const struct mn_block *mn_early_find(const struct mn_early *e, uint32_t seq)
{
    uint16_t at = first_reaching(e, seq + 1);
    return at < e->count && is_within(seq, &e->ranges[at]) ? &e->ranges[at] : NULL;
}

bool mn_early_overlap(const struct mn_early *e, uint32_t first, uint32_t end, struct mn_block *part)
{
    uint16_t at = first_reaching(e, first + 1);
    if (at == e->count || !mn_seq_lt(e->ranges[at].first, end))
        return false;
    const struct mn_block *b = &e->ranges[at];
    *part = (struct mn_block){mn_seq_max(first, b->first), mn_seq_lt(b->end, end) ? b->end : end};
    return true;
}

bool mn_early_note_twice(struct mn_early *e, uint32_t first, uint32_t end)
{
    if (e->has_twice && e->twice.end == first) {
        e->twice.end = end;
        return true;
    }
    if (e->has_twice)
        return e->twice.first == first && e->twice.end == end;
    e->has_twice = true;
    e->twice = (struct mn_block){first, end};
    return true;
}

static bool is_told(const struct mn_block *out, uint8_t from, uint8_t n, const struct mn_block *b)
{
    for (uint8_t i = from; i < n; i++)
        if (out[i].first == b->first)
            return true;
    return false;
}

uint8_t mn_early_tell(struct mn_early *e, struct mn_block *out, uint8_t max)
{
    uint8_t n = 0, from = 0;
    if (e->has_twice) {
        out[n++] = e->twice;
        e->has_twice = false;
        from = 1;
        /* RFC 2883 4: the range that the second copy lies in comes right behind it. */
        const struct mn_block *around = mn_early_find(e, out[0].first);
        if (around != NULL && n < max)
            out[n++] = *around;
    }
    for (uint8_t i = 0; i < e->newest_count && n < max; i++) {
        const struct mn_block *b = mn_early_find(e, e->newest[i]);
        if (b != NULL && !is_told(out, from, n, b))
            out[n++] = *b;
    }
    for (uint16_t i = 0; i < e->count && n < max; i++)
        if (!is_told(out, from, n, &e->ranges[i]))
            out[n++] = e->ranges[i];
    e->untold = 0;
    return n;
}
