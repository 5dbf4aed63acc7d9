/* What size of segments a path takes when no ICMP says so: after two full ones in a row sent again in vain smaller ones
 * are tried, and now and then a full one again, since the path may only have been away (RFC 4821 4, 7.7). */
#include "internal.h"

enum {
    LARGE = 1220, /* fits 1280, which most paths take */
    SMALL = 536,  /* fits 576, which all do */
    STEP = 100,   /* less is not worth a step */
};

#define TRY_FIRST MN_SECOND
#define TRY_LAST (600 * MN_SECOND)

static void set_mss(struct mn_conn *c, uint32_t mss)
{
    c->snd.mss = mss;
    c->cc.mss = mss;
    if (c->cc.cwnd < mss)
        c->cc.cwnd = mss; /* or no full segment could ever leave */
}

/* Has a segment as long as these arrived of what lies behind the one that does not? It was sent after it. */
static bool has_taken_full(const struct mn_stack *s, const struct mn_conn *c)
{
    uint32_t end = c->sent.first + c->sent.count;
    for (uint32_t i = c->sent.first + 1; i < end && c->sent.sacked > 0; i++) {
        const struct mn_chunk *k = mn_sent_chunk(s, c->sent.order[i]);
        if (k->state == MN_CHUNK_SACKED && k->len >= c->snd.mss && (k->unit == 0 || k->unit >= c->snd.mss))
            return true;
    }
    return false;
}

void mn_path_on_timeout(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_send *d = &c->snd;
    uint32_t options = c->ts.on ? MN_TCP_TS_OPTION : 0;
    if (c->rtt.backoff < 2 || c->sent.count == 0)
        return; /* twice sent again in full may be chance, but not a third time */
    const struct mn_chunk *k = mn_sent_chunk(s, c->sent.order[c->sent.first]);
    uint32_t next = d->mss + options >= LARGE + STEP ? LARGE - options : SMALL - options;
    if (k->len < d->mss || d->mss <= next || has_taken_full(s, c))
        return;
    s->stats.tcp_black_holes++;
    if (d->full_mss == 0) {
        d->full_mss = d->mss;
        d->try_wait = TRY_FIRST;
    }
    d->try_at = s->now + d->try_wait;
    set_mss(c, next);
}

bool mn_path_is_to_try(const struct mn_stack *s, const struct mn_conn *c)
{
    return c->snd.full_mss != 0 && s->now >= c->snd.try_at && !c->loss.in_recovery && !c->loss.in_timeout;
}

void mn_path_on_try(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_send *d = &c->snd;
    d->try_wait = d->try_wait * 4 < TRY_LAST ? d->try_wait * 4 : TRY_LAST;
    d->try_at = s->now + d->try_wait;
}

void mn_path_on_arrival(struct mn_conn *c, uint32_t size)
{
    if (c->snd.full_mss == 0 || size <= c->snd.mss || size > c->snd.full_mss)
        return;
    set_mss(c, size);
    if (size == c->snd.full_mss)
        c->snd.full_mss = 0;
}
