/* The chunks behind sent.h. */
#include <stdlib.h>

#include "internal.h"

enum {
    SLAB = 256, /* nodes */
    SLABS_KEPT = 16,
    FIRST_ROOM = 16,
    /* Scoreboards are charged together, to no peer: one that is over its share must not be blind to its losses. The
     * first node and the first room of a connection are not charged, so that it can always send. */
    OWNER = 0,
};

struct mn_chunk *mn_sent_chunk(const struct mn_stack *s, uint32_t id)
{
    return &s->chunks.slabs[id / SLAB][id % SLAB];
}

/* ---- the pool ---- */

static bool add_slab(struct mn_chunks *p)
{
    if (p->slab_count == p->slab_room) {
        uint32_t room = p->slab_room == 0 ? 8 : p->slab_room * 2;
        struct mn_chunk **slabs = realloc(p->slabs, room * sizeof(struct mn_chunk *));
        if (slabs == NULL)
            return false;
        p->slabs = slabs;
        p->slab_room = room;
    }
    struct mn_chunk *slab = malloc(SLAB * sizeof *slab);
    if (slab == NULL)
        return false;
    uint32_t base = p->slab_count * SLAB;
    p->slabs[p->slab_count++] = slab;
    for (uint32_t i = SLAB; i-- > (base == 0 ? 1U : 0U);) {
        slab[i].after = p->first_free;
        p->first_free = base + i;
    }
    return true;
}

/* A node can be taken. Every connection may have one; of the rest there is a bound. */
static bool pool_is_ready(struct mn_stack *s, const struct mn_conn *c)
{
    struct mn_chunks *p = &s->chunks;
    if (c->sent.count > 0 && (p->used >= MN_SENT_POOL_MAX || !mn_budget_has(s, OWNER, sizeof(struct mn_chunk))))
        return false;
    return p->first_free != 0 || add_slab(p);
}

/* Called when pool_is_ready, and before t->count tells of it. */
static uint32_t take_node(struct mn_stack *s, const struct mn_sent *t)
{
    if (t->count > 0)
        (void)mn_budget_take(s, OWNER, sizeof(struct mn_chunk));
    uint32_t id = s->chunks.first_free;
    s->chunks.first_free = mn_sent_chunk(s, id)->after;
    s->chunks.used++;
    return id;
}

/* Called while t->count still counts it. */
static void give_node(struct mn_stack *s, const struct mn_sent *t, uint32_t id)
{
    if (t->count > 1)
        mn_budget_give(s, OWNER, sizeof(struct mn_chunk));
    mn_sent_chunk(s, id)->after = s->chunks.first_free;
    s->chunks.first_free = id;
    s->chunks.used--;
    if (s->chunks.used == 0 && s->chunks.slab_count > SLABS_KEPT)
        mn_chunks_free(s);
}

void mn_chunks_free(struct mn_stack *s)
{
    for (uint32_t i = 0; i < s->chunks.slab_count; i++)
        free(s->chunks.slabs[i]);
    free(s->chunks.slabs);
    s->chunks = (struct mn_chunks){0};
}

/* ---- the order ---- */

/* One more place at the end: amortised, since moving all to the front makes half the array free. */
static bool order_is_ready(struct mn_stack *s, struct mn_sent *t)
{
    if (t->first + t->count < t->room)
        return true;
    if (t->room > 0 && t->first >= t->room / 2) {
        memmove(t->order, t->order + t->first, t->count * sizeof *t->order);
        t->first = 0;
        return true;
    }
    uint32_t room = t->room == 0 ? FIRST_ROOM : t->room * 2;
    uint64_t more = t->room == 0 ? 0 : t->room * sizeof *t->order;
    if (more > 0 && !mn_budget_take(s, OWNER, more))
        return false;
    uint32_t *order = realloc(t->order, room * sizeof *order);
    if (order == NULL) {
        mn_budget_give(s, OWNER, more);
        return false;
    }
    t->order = order;
    t->room = room;
    return true;
}

static void insert(struct mn_sent *t, uint32_t i, uint32_t id)
{
    uint32_t *o = t->order + t->first;
    if (t->first > 0 && i < t->count / 2) {
        memmove(o - 1, o, i * sizeof *o);
        t->first--;
    } else {
        memmove(o + i + 1, o + i, (t->count - i) * sizeof *o);
    }
    t->count++;
    t->order[t->first + i] = id;
}

static void take_out(struct mn_sent *t, uint32_t i)
{
    uint32_t *o = t->order + t->first;
    if (i < t->count / 2) {
        memmove(o + 1, o, i * sizeof *o);
        t->first++;
    } else {
        memmove(o + i, o + i + 1, (t->count - i - 1) * sizeof *o);
    }
    t->count--;
}

static struct mn_chunk *at(const struct mn_stack *s, const struct mn_sent *t, uint32_t i)
{
    return mn_sent_chunk(s, t->order[t->first + i]);
}

/* The chunk that holds seq, which is not before the first: found from the end of those that begin before it. */
static uint32_t find(const struct mn_stack *s, const struct mn_sent *t, uint32_t seq)
{
    uint32_t low = 0, high = t->count; /* low begins at or before seq, high behind it */
    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;
        if (mn_seq_le(at(s, t, mid)->seq, seq))
            low = mid;
        else
            high = mid;
    }
    return low;
}

/* ---- the lists ---- */

static uint32_t *bytes_of(struct mn_sent *t, uint8_t state)
{
    return state == MN_CHUNK_OUT ? &t->out : state == MN_CHUNK_LOST ? &t->lost : &t->sacked;
}

static void unlink_chunk(struct mn_stack *s, struct mn_sent *t, struct mn_chunk *k)
{
    bool is_out = k->state == MN_CHUNK_OUT;
    *bytes_of(t, k->state) -= k->len;
    if (k->state == MN_CHUNK_SACKED)
        return;
    *(k->before != 0 ? &mn_sent_chunk(s, k->before)->after : is_out ? &t->out_first : &t->lost_first) = k->after;
    *(k->after != 0 ? &mn_sent_chunk(s, k->after)->before : is_out ? &t->out_last : &t->lost_last) = k->before;
}

static void link_last(struct mn_stack *s, struct mn_sent *t, uint32_t id, uint8_t state)
{
    struct mn_chunk *k = mn_sent_chunk(s, id);
    uint32_t *first = state == MN_CHUNK_OUT ? &t->out_first : &t->lost_first;
    uint32_t *last = state == MN_CHUNK_OUT ? &t->out_last : &t->lost_last;
    k->state = state;
    *bytes_of(t, state) += k->len;
    k->after = 0;
    k->before = *last;
    if (*last != 0)
        mn_sent_chunk(s, *last)->after = id;
    else
        *first = id;
    *last = id;
}

/* Directly behind its twin, of which it was cut off. */
static void link_behind(struct mn_stack *s, struct mn_sent *t, uint32_t id, uint32_t twin)
{
    struct mn_chunk *k = mn_sent_chunk(s, id), *w = mn_sent_chunk(s, twin);
    if (k->state == MN_CHUNK_SACKED)
        return;
    k->before = twin;
    k->after = w->after;
    if (w->after != 0)
        mn_sent_chunk(s, w->after)->before = id;
    else if (k->state == MN_CHUNK_OUT)
        t->out_last = id;
    else
        t->lost_last = id;
    w->after = id;
}

/* Cut the chunk at place i after n bytes; the rest comes at i + 1. False: no room. */
static bool split(struct mn_stack *s, struct mn_conn *c, uint32_t i, uint32_t n)
{
    struct mn_sent *t = &c->sent;
    if (t->count >= MN_SENT_MAX || !pool_is_ready(s, c) || !order_is_ready(s, t))
        return false;
    uint32_t twin = t->order[t->first + i], id = take_node(s, t);
    struct mn_chunk *k = mn_sent_chunk(s, twin), *rest = mn_sent_chunk(s, id);
    *rest = *k;
    rest->seq += n;
    rest->len -= n;
    k->len = n;
    link_behind(s, t, id, twin);
    insert(t, i + 1, id);
    return true;
}

/* ---- leaving ---- */

static bool can_continue(const struct mn_stack *s, const struct mn_conn *c)
{
    const struct mn_sent *t = &c->sent;
    if (t->count == 0)
        return false;
    const struct mn_chunk *k = at(s, t, t->count - 1);
    return k->state == MN_CHUNK_OUT && k->resent == 0 && k->sent_at == s->now && k->unit == c->snd.mss &&
           k->len % k->unit == 0 && k->len < MN_SENT_CHUNK_MAX;
}

bool mn_sent_ready(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_sent *t = &c->sent;
    if (can_continue(s, c) || (t->count < MN_SENT_MAX && pool_is_ready(s, c) && order_is_ready(s, t)))
        return true;
    if (t->count > 0 && at(s, t, t->count - 1)->state == MN_CHUNK_OUT)
        return true; /* without knowing where its segments begin */
    s->stats.tcp_no_memory++;
    return false;
}

static void mark_rate(const struct mn_stack *s, const struct mn_conn *c, struct mn_chunk *k)
{
    k->sent_at = s->now;
    k->delivered = c->loss.delivered;
    k->delivered_at = c->loss.delivered_at;
    k->is_app_limited = c->loss.app_limited_until != 0;
}

void mn_sent_append(struct mn_stack *s, struct mn_conn *c, uint32_t n)
{
    struct mn_sent *t = &c->sent;
    struct mn_chunk *k;
    if (can_continue(s, c)) {
        at(s, t, t->count - 1)->len += n;
        t->out += n;
        return;
    }
    uint32_t seq = c->snd.una;
    if (t->count > 0) {
        k = at(s, t, t->count - 1);
        seq = k->seq + k->len;
        if (t->count >= MN_SENT_MAX || !pool_is_ready(s, c) || !order_is_ready(s, t)) {
            /* The newest sending stands for all of it: what is lost is found later, never too early. */
            uint32_t id = t->order[t->first + t->count - 1];
            unlink_chunk(s, t, k);
            k->len += n;
            k->unit = 0;
            mark_rate(s, c, k);
            link_last(s, t, id, MN_CHUNK_OUT);
            return;
        }
    }
    uint32_t id = take_node(s, t);
    k = mn_sent_chunk(s, id);
    *k = (struct mn_chunk){.seq = seq, .len = n, .unit = (uint16_t)c->snd.mss};
    mark_rate(s, c, k);
    link_last(s, t, id, MN_CHUNK_OUT);
    t->order[t->first + t->count++] = id;
}

/* ---- arriving ---- */

/* n bytes of k, the last of them before end, have arrived. */
static void note(const struct mn_conn *c, const struct mn_chunk *k, uint32_t n, uint32_t end, struct mn_delivery *d)
{
    d->bytes += n;
    if (k->resent > 0)
        d->has_resent = true;
    if (k->resent > 0 && d->has_echo && mn_seq_lt(d->echo, (uint32_t)(k->sent_at / MN_MS) + c->ts.offset))
        return; /* the original's; nothing is known of the copy */
    bool is_newer =
        !d->has_newest || k->sent_at > d->newest_at || (k->sent_at == d->newest_at && mn_seq_lt(d->newest_end, end));
    if (is_newer) {
        d->has_newest = true;
        d->newest_resent = k->resent > 0;
        d->newest_end = end;
        d->newest_at = k->sent_at;
        d->rate_delivered = k->delivered;
        d->rate_at = k->delivered_at;
        d->is_app_limited = k->is_app_limited;
    }
    if (k->resent > 0)
        return;
    if (d->first_at == 0 || k->sent_at < d->first_at)
        d->first_at = k->sent_at;
    if (k->sent_at > d->last_at)
        d->last_at = k->sent_at;
    if (n >= k->unit && k->unit > d->largest)
        d->largest = k->unit;
    if (k->state == MN_CHUNK_LOST)
        d->has_original = true;
    if (mn_seq_lt(end, c->loss.farthest))
        d->has_reordered = true;
}

void mn_sent_retire(struct mn_stack *s, struct mn_conn *c, uint32_t ack, struct mn_delivery *d)
{
    struct mn_sent *t = &c->sent;
    while (t->count > 0) {
        struct mn_chunk *k = at(s, t, 0);
        if (!mn_seq_lt(k->seq, ack))
            break;
        uint32_t end = k->seq + k->len;
        if (mn_seq_lt(ack, end)) {
            uint32_t n = ack - k->seq;
            if (k->state != MN_CHUNK_SACKED)
                note(c, k, n, ack, d);
            *bytes_of(t, k->state) -= n;
            k->seq = ack;
            k->len -= n;
            break;
        }
        if (k->state != MN_CHUNK_SACKED)
            note(c, k, k->len, end, d);
        unlink_chunk(s, t, k);
        give_node(s, t, t->order[t->first]);
        t->first++;
        t->count--;
    }
    if (t->count == 0)
        t->first = 0;
}

/* Neighbours that are both acknowledged become one. */
static void merge(struct mn_stack *s, struct mn_sent *t, uint32_t i)
{
    if (i + 1 >= t->count)
        return;
    struct mn_chunk *a = at(s, t, i), *b = at(s, t, i + 1);
    if (a->state != MN_CHUNK_SACKED || b->state != MN_CHUNK_SACKED)
        return;
    a->len += b->len;
    give_node(s, t, t->order[t->first + i + 1]);
    take_out(t, i + 1);
}

static void sack_whole(struct mn_stack *s, struct mn_sent *t, uint32_t i)
{
    struct mn_chunk *k = at(s, t, i);
    unlink_chunk(s, t, k);
    k->state = MN_CHUNK_SACKED;
    t->sacked += k->len;
    merge(s, t, i);
    if (i > 0)
        merge(s, t, i - 1);
}

/* The first n bytes of the chunk at i go over to the acknowledged one before it. */
static void give_front(struct mn_stack *s, struct mn_sent *t, uint32_t i, uint32_t n)
{
    struct mn_chunk *k = at(s, t, i);
    *bytes_of(t, k->state) -= n;
    k->seq += n;
    k->len -= n;
    at(s, t, i - 1)->len += n;
    t->sacked += n;
}

static void give_back(struct mn_stack *s, struct mn_sent *t, uint32_t i, uint32_t n)
{
    struct mn_chunk *k = at(s, t, i), *next = at(s, t, i + 1);
    *bytes_of(t, k->state) -= n;
    k->len -= n;
    next->seq -= n;
    next->len += n;
    t->sacked += n;
}

static bool is_sacked(const struct mn_stack *s, const struct mn_sent *t, uint32_t i)
{
    return i < t->count && at(s, t, i)->state == MN_CHUNK_SACKED;
}

/* Bytes [from, to) of the chunk at i have arrived, on segment boundaries. */
static void sack_part(struct mn_stack *s, struct mn_conn *c, uint32_t i, uint32_t from, uint32_t to,
                      struct mn_delivery *d)
{
    struct mn_sent *t = &c->sent;
    struct mn_chunk k = *at(s, t, i);
    if (from == 0 && to == k.len) {
        sack_whole(s, t, i);
    } else if (from == 0 && i > 0 && is_sacked(s, t, i - 1)) {
        give_front(s, t, i, to);
    } else if (to == k.len && is_sacked(s, t, i + 1)) {
        give_back(s, t, i, to - from);
    } else {
        if (to < k.len && !split(s, c, i, to))
            return; /* not noted: it will be acknowledged in the end */
        if (from > 0) {
            if (!split(s, c, i, from))
                return;
            i++;
        }
        sack_whole(s, t, i);
    }
    note(c, &k, to - from, k.seq + to, d);
    d->sacked += to - from;
}

void mn_sent_sack(struct mn_stack *s, struct mn_conn *c, uint32_t first, uint32_t end, struct mn_delivery *d)
{
    struct mn_sent *t = &c->sent;
    if (t->count == 0 || !mn_seq_lt(first, end))
        return;
    uint32_t i = find(s, t, first), at_end = end;
    /* A chunk never grows to the left of where the walk stands, so each turn either ends or goes right. */
    while (i < t->count) {
        const struct mn_chunk *k = at(s, t, i);
        uint32_t behind = k->seq + k->len;
        if (!mn_seq_lt(k->seq, at_end))
            break;
        if (k->state != MN_CHUNK_SACKED) {
            uint32_t from = mn_seq_lt(k->seq, first) ? first - k->seq : 0;
            uint32_t to = mn_seq_lt(at_end, behind) ? at_end - k->seq : k->len;
            if (from > 0)
                from = k->unit == 0 ? k->len : (from + k->unit - 1) / k->unit * k->unit;
            if (to < k->len)
                to = k->unit == 0 ? 0 : to / k->unit * k->unit;
            if (from < to)
                sack_part(s, c, i, from, to, d);
        }
        if (!mn_seq_lt(behind, at_end))
            break;
        i = find(s, t, behind);
    }
}

/* ---- losing and finding again ---- */

void mn_sent_lose(struct mn_stack *s, struct mn_conn *c, uint32_t id)
{
    unlink_chunk(s, &c->sent, mn_sent_chunk(s, id));
    link_last(s, &c->sent, id, MN_CHUNK_LOST);
}

void mn_sent_lose_head(struct mn_stack *s, struct mn_conn *c, uint32_t n)
{
    struct mn_sent *t = &c->sent;
    if (t->count == 0 || at(s, t, 0)->state != MN_CHUNK_OUT)
        return;
    if (n < at(s, t, 0)->len)
        split(s, c, 0, n); /* no room: all of it, then */
    mn_sent_lose(s, c, t->order[t->first]);
}

void mn_sent_lose_old(struct mn_stack *s, struct mn_conn *c, uint64_t sent_by)
{
    struct mn_sent *t = &c->sent;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct mn_chunk *k = at(s, t, i);
        if (k->state == MN_CHUNK_LOST || (k->state == MN_CHUNK_OUT && (i == 0 || k->sent_at <= sent_by)))
            mn_sent_lose(s, c, t->order[t->first + i]);
    }
}

void mn_sent_forget_sacks(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_sent *t = &c->sent;
    for (uint32_t i = 0; i < t->count; i++) {
        struct mn_chunk *k = at(s, t, i);
        if (k->state != MN_CHUNK_SACKED)
            continue;
        if (k->unit == 0)
            k->unit = (uint16_t)c->snd.mss;
        mn_sent_lose(s, c, t->order[t->first + i]);
    }
}

void mn_sent_unlose(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_sent *t = &c->sent;
    uint32_t id;
    while ((id = t->lost_last) != 0) {
        struct mn_chunk *k = mn_sent_chunk(s, id);
        unlink_chunk(s, t, k);
        k->state = MN_CHUNK_OUT;
        t->out += k->len;
        k->before = 0;
        k->after = t->out_first;
        if (t->out_first != 0)
            mn_sent_chunk(s, t->out_first)->before = id;
        else
            t->out_last = id;
        t->out_first = id;
    }
}

static uint32_t place_of(const struct mn_stack *s, const struct mn_sent *t, uint32_t id)
{
    return find(s, t, mn_sent_chunk(s, id)->seq);
}

void mn_sent_resent(struct mn_stack *s, struct mn_conn *c, uint32_t id, uint32_t n)
{
    struct mn_sent *t = &c->sent;
    struct mn_chunk *k = mn_sent_chunk(s, id);
    /* No room to cut it: all counts as sent again, and the rest will be missed again. */
    if (n < k->len)
        split(s, c, place_of(s, t, id), n);
    unlink_chunk(s, t, k);
    k->unit = (uint16_t)c->snd.mss;
    if (k->resent < 255)
        k->resent++;
    mark_rate(s, c, k);
    link_last(s, t, id, MN_CHUNK_OUT);
}

uint32_t mn_sent_tail(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_sent *t = &c->sent;
    if (t->count == 0)
        return 0;
    const struct mn_chunk *k = at(s, t, t->count - 1);
    if (k->state != MN_CHUNK_OUT)
        return 0;
    uint32_t fin = c->snd.fin_sent ? 1 : 0, data = k->len - fin, unit = k->unit;
    if (data > unit && unit > 0 && !split(s, c, t->count - 1, (data - 1) / unit * unit))
        return 0;
    return t->order[t->first + t->count - 1];
}

void mn_sent_free(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_sent *t = &c->sent;
    for (; t->count > 0; t->count--)
        give_node(s, t, t->order[t->first + t->count - 1]);
    if (t->room > FIRST_ROOM)
        mn_budget_give(s, OWNER, (t->room - FIRST_ROOM) * sizeof *t->order);
    free(t->order);
    *t = (struct mn_sent){0};
}
