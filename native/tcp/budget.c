/* Memory of all connections together: one bound, less for everybody when it runs short, a share for each peer, and
 * turns for those who wait. Row 34 of the TCP features: a slow reader or a hostile peer costs the others nothing.
 *
 * Calm, below three quarters: whoever asks gets it. Tight: windows stop growing and shrink as they are used up, empty
 * rings are given back at once, new ones start small, and a peer that holds an eighth of the whole gets no more. Short
 * (somebody was refused): early bytes are forgotten, which peers must expect (RFC 2018 8), a few connections per turn.
 * Bytes in order that find no memory are not acknowledged and come again; an application that finds none for what it
 * writes is told when there is some. */
#include "internal.h"

enum {
    WAKE_BYTES = 4096, /* a waiting connection per so many free bytes */
    WAKE_MOST = 64,
    LOOK_MOST = 64,
};

bool mn_budget_is_tight(const struct mn_stack *s)
{
    return s->stats.ring_bytes > s->cfg.memory_max / 4 * 3;
}

uint8_t mn_budget_owner(struct mn_conn *c)
{
    if (c->owner == 0)
        c->owner = (uint8_t)(1 + c->peer % MN_BUCKETS);
    return c->owner;
}

bool mn_budget_has(struct mn_stack *s, uint8_t owner, uint64_t bytes)
{
    uint64_t all = s->stats.ring_bytes + bytes, max = s->cfg.memory_max;
    bool fits = all <= max && (all <= max / 4 * 3 || s->memory_by_peer[owner] + bytes <= max / 8);
    if (!fits) {
        s->stats.memory_refused++;
        s->is_memory_short = true;
    }
    return fits;
}

bool mn_budget_take(struct mn_stack *s, uint8_t owner, uint64_t bytes)
{
    if (!mn_budget_has(s, owner, bytes))
        return false;
    s->stats.ring_bytes += bytes;
    s->memory_by_peer[owner] += bytes;
    return true;
}

void mn_budget_give(struct mn_stack *s, uint8_t owner, uint64_t bytes)
{
    s->stats.ring_bytes -= bytes;
    s->memory_by_peer[owner] -= bytes;
}

/* ---- waiting ---- */

void mn_budget_wait(struct mn_stack *s, struct mn_conn *c)
{
    if (c->is_hungry || c->is_dead)
        return;
    c->is_hungry = true;
    c->next_hungry = NULL;
    c->prev_hungry = s->hungry_last;
    if (s->hungry_last != NULL)
        s->hungry_last->next_hungry = c;
    else
        s->hungry_first = c;
    s->hungry_last = c;
}

void mn_budget_forget(struct mn_stack *s, struct mn_conn *c)
{
    if (!c->is_hungry)
        return;
    c->is_hungry = false;
    if (c->prev_hungry != NULL)
        c->prev_hungry->next_hungry = c->next_hungry;
    else
        s->hungry_first = c->next_hungry;
    if (c->next_hungry != NULL)
        c->next_hungry->prev_hungry = c->prev_hungry;
    else
        s->hungry_last = c->prev_hungry;
}

/* ---- giving back ---- */

static void shrink(struct mn_stack *s, struct mn_ring *r, uint32_t first, uint32_t end)
{
    uint32_t cap = MN_RING_LEAST;
    while (cap < end - first)
        cap *= 2;
    if (cap < r->cap)
        mn_ring_resize(s, r, cap, first, end);
}

void mn_budget_trim(struct mn_stack *s, struct mn_conn *c)
{
    if (c->snd.ring.data != NULL && mn_conn_used(c) == 0)
        mn_ring_free(s, &c->snd.ring);
    if (c->rcv.ring.data != NULL && c->rcv.early.count == 0 && mn_conn_unread(c) == 0)
        mn_ring_free(s, &c->rcv.ring);
    if (c->rcv.early.count == 0)
        mn_receive_forget_early(s, c);
    if (c->sent.count == 0)
        mn_sent_free(s, c);
}

static void reclaim_from(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_receive *r = &c->rcv;
    if (r->early.count > 0) {
        mn_early_cut(&r->early, r->nxt);
        s->stats.tcp_ooo_reclaimed++;
    }
    mn_budget_trim(s, c);
    if (r->ring.data != NULL)
        shrink(s, &r->ring, r->read, r->read + mn_conn_unread(c));
    if (c->snd.ring.data != NULL)
        shrink(s, &c->snd.ring, c->snd.una, c->snd.una + mn_conn_used(c));
}

static void reclaim(struct mn_stack *s)
{
    for (uint32_t i = 0; i < LOOK_MOST && i < s->slot_used && mn_budget_is_tight(s); i++) {
        s->reclaim_at = (s->reclaim_at + 1) % s->slot_used;
        struct mn_conn *c = s->slots[s->reclaim_at].conn;
        if (c != NULL)
            reclaim_from(s, c);
    }
}

void mn_budget_settle(struct mn_stack *s)
{
    if (s->is_memory_short)
        reclaim(s);
    s->is_memory_short = false;
    uint64_t limit = s->cfg.memory_max / 4 * 3;
    uint64_t turns = s->stats.ring_bytes < limit ? (limit - s->stats.ring_bytes) / WAKE_BYTES : 0;
    for (uint64_t i = 0; i < turns && i < WAKE_MOST && s->hungry_first != NULL; i++) {
        struct mn_conn *c = s->hungry_first;
        mn_budget_forget(s, c);
        mn_conn_mark(s, c); /* serving it tells the application */
    }
}
