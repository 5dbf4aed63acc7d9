/* Text and FIN: in-order bytes go to the application straight from the packets; what it does not take, and what came
 * early, lies in the receive ring under its sequence numbers. */
#include <stdlib.h>

#include "internal.h"

/* ---- the ring ---- */

static bool make_room(struct mn_stack *s, struct mn_conn *c, uint32_t end)
{
    struct mn_receive *r = &c->rcv;
    uint32_t least = mn_budget_is_tight(s) ? MN_RING_LEAST : MN_RING_FIRST;
    uint32_t need = end - r->read, cap = r->ring.cap < least ? least : r->ring.cap;
    r->ring.owner = mn_budget_owner(c);
    while (cap < need)
        cap *= 2;
    if (cap == r->ring.cap)
        return true;
    uint32_t kept = r->early.count > 0 ? r->early.ranges[r->early.count - 1].end : r->nxt;
    return mn_ring_resize(s, &r->ring, cap, r->read, r->ring.data == NULL ? r->read : kept);
}

static void write_pieces(struct mn_ring *ring, uint32_t seq, const struct iovec *v, int n, size_t skip)
{
    for (int i = 0; i < n; i++) {
        if (skip >= v[i].iov_len) {
            skip -= v[i].iov_len;
            continue;
        }
        uint32_t k = (uint32_t)(v[i].iov_len - skip);
        mn_ring_write(ring, seq, (const uint8_t *)v[i].iov_base + skip, k);
        seq += k;
        skip = 0;
    }
}

/* ---- the window ---- */

/* How much of a window, taken within one round trip or less, asks for a larger one: half. A sender that doubles what it
 * sends has the next round trip's bytes under way already, so there a quarter: it must not meet the edge first. A short
 * path is asked often enough. */
static uint32_t reason_to_grow(const struct mn_receive *r, uint64_t rtt_ns)
{
    bool is_rising = rtt_ns >= MN_RISING_RTT && r->copied > r->copied_before + r->copied_before / 2;
    return is_rising ? r->size / 4 : r->size / 2;
}

static void tune(struct mn_stack *s, struct mn_conn *c, uint32_t taken)
{
    struct mn_receive *r = &c->rcv;
    uint64_t rtt = r->rtt_ns != 0 ? r->rtt_ns : 100 * MN_MS;
    bool is_over = s->now - r->tuned_at >= (rtt < MN_MS ? MN_MS : rtt);
    r->copied += taken;
    uint32_t slack = 1U << r->shift, limit = s->cfg.rcvbuf_max - slack;
    if (r->shift == 0 && limit > 65535)
        limit = 65535;
    if (mn_budget_is_tight(s)) {
        /* What was promised stays promised: the edge waits until the reader has caught up. */
        if (is_over && r->size > MN_RCVBUF_TIGHT)
            r->size = r->size / 2 < MN_RCVBUF_TIGHT ? MN_RCVBUF_TIGHT : r->size / 2;
    } else if (r->copied > reason_to_grow(r, rtt) && r->size < limit) {
        uint32_t size = (r->size + slack) * 2 - slack;
        r->size = size < limit ? size : limit;
    }
    if (!is_over)
        return;
    r->copied_before = r->copied;
    r->copied = 0;
    r->tuned_at = s->now;
}

uint32_t mn_receive_window(const struct mn_conn *c, uint32_t *edge)
{
    const struct mn_receive *r = &c->rcv;
    uint32_t want = r->read + r->size, step = c->snd.mss < r->size / 2 ? c->snd.mss : r->size / 2;
    /* Small steps invite small segments (RFC 9293 3.8.6.2.2). */
    if (!mn_seq_lt(r->edge, want) || want - r->edge < step)
        want = r->edge;
    uint32_t window = mn_seq_lt(r->nxt, want) ? (want - r->nxt) >> r->shift : 0;
    if (window > 65535)
        window = 65535;
    /* Rounding may tell up to a shift less than was promised before (RFC 7323 2.4); what was promised is still taken.
     */
    *edge = mn_seq_max(r->edge, r->nxt + (window << r->shift));
    return window;
}

/* ---- delivery ---- */

static size_t deliver(struct mn_stack *s, struct mn_conn *c, const struct iovec *v, int n)
{
    size_t taken = s->ops.tcp_deliver(s->ops.ctx, c->id, v, n);
    if (!c->is_dead)
        tune(s, c, (uint32_t)taken);
    return taken;
}

void mn_receive_offer(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_receive *r = &c->rcv;
    uint32_t unread = mn_conn_unread(c);
    if (c->is_orphan)
        return;
    if (unread > 0 && !r->is_blocked) {
        struct iovec v[2];
        int n = mn_ring_pieces(&r->ring, r->read, unread, v);
        size_t taken = deliver(s, c, v, n);
        if (c->is_dead)
            return;
        r->read += (uint32_t)taken;
        r->is_blocked = taken < unread;
        unread = mn_conn_unread(c);
    }
    if (unread > 0)
        return;
    if (r->fin_taken && !r->fin_told) {
        r->fin_told = true;
        s->ops.tcp_peer_fin(s->ops.ctx, c->id);
    }
    if (!c->is_dead && c->state == MN_CLOSED)
        mn_conn_end(s, c, 0);
}

void mn_receive_fin(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_receive *r = &c->rcv;
    if (!r->fin_known || r->fin_taken || r->nxt != r->fin_seq)
        return;
    r->nxt++;
    r->fin_taken = true;
    c->ack.now = true;
    mn_tcp_peer_finished(s, c);
}

void mn_receive_run(struct mn_stack *s, struct mn_conn *c, const struct iovec *pieces, int n, uint32_t len)
{
    struct mn_receive *r = &c->rcv;
    uint32_t taken = 0;
    if (!r->is_blocked && mn_conn_unread(c) == 0) {
        taken = (uint32_t)deliver(s, c, pieces, n);
        if (c->is_dead)
            return;
        r->read += taken;
        r->is_blocked = taken < len;
    }
    if (taken < len && c->is_orphan) {
        /* Closed from within the upcall with bytes left: nobody will ever read them. */
        mn_tcp_send_reset(s, c);
        mn_conn_kill(s, c);
        return;
    }
    uint32_t kept = len;
    if (taken < len) {
        if (make_room(s, c, r->nxt + len))
            write_pieces(&r->ring, r->nxt + taken, pieces, n, taken);
        else
            kept = taken; /* no memory: not acknowledged, so it comes again */
    }
    r->nxt += kept;
    c->bytes_in += kept;
    c->ack.pending += kept;
    mn_conn_mark(s, c);
    if (kept < len)
        return;
    if (r->early.count > 0) {
        c->ack.now = true;
        if (mn_early_absorb(&r->early, &r->nxt) && !r->is_blocked)
            mn_receive_offer(s, c);
    }
    if (!c->is_dead)
        mn_receive_fin(s, c);
}

/* ---- out of order ---- */

/* The list grows by doubling; its memory counts like any other. */
static bool add_early(struct mn_stack *s, struct mn_conn *c, uint32_t first, uint32_t end)
{
    struct mn_early *e = &c->rcv.early;
    uint16_t room = e->room;
    uint64_t more = (room == 0 ? 8U : room) * sizeof *e->ranges;
    bool may_grow = e->count == room && room < MN_EARLY_RANGES;
    if (may_grow && !mn_budget_take(s, mn_budget_owner(c), more))
        return false;
    bool is_kept = mn_early_add(e, first, end);
    if (may_grow && e->room == room)
        mn_budget_give(s, mn_budget_owner(c), more);
    return is_kept;
}

void mn_receive_forget_early(struct mn_stack *s, struct mn_conn *c)
{
    if (c->rcv.early.room > 0)
        mn_budget_give(s, mn_budget_owner(c), c->rcv.early.room * sizeof *c->rcv.early.ranges);
    mn_early_free(&c->rcv.early);
}

static void keep_early(struct mn_stack *s, struct mn_conn *c, uint32_t seq, const uint8_t *p, uint32_t len)
{
    struct mn_block again;
    s->stats.tcp_ooo++;
    if (mn_early_overlap(&c->rcv.early, seq, seq + len, &again))
        mn_ack_note_twice(s, c, again.first, again.end);
    if (!make_room(s, c, seq + len) || !add_early(s, c, seq, seq + len)) {
        s->stats.tcp_ooo_dropped++;
        return;
    }
    mn_ring_write(&c->rcv.ring, seq, p, len);
}

/* Text of an acceptable segment: cut to the window, in order or early. */
void mn_receive_text(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    struct mn_receive *r = &c->rcv;
    uint32_t seq = g->seq, end = g->seq + g->len;
    if ((g->flags & MN_TCP_FIN) != 0 && !r->fin_known && mn_seq_le(end, r->edge)) {
        r->fin_known = true;
        r->fin_seq = end;
        /* A peer that ends its stream before bytes it has sent already contradicts itself; the end counts. */
        mn_early_cut(&r->early, end);
    }
    if (mn_seq_lt(r->edge, end)) {
        end = r->edge;
        c->ack.now = true; /* the peer believes in room that is not there */
    }
    if (r->fin_known && mn_seq_lt(r->fin_seq, end))
        end = r->fin_seq;
    if (mn_seq_lt(seq, r->nxt) && mn_seq_lt(seq, end))
        mn_ack_note_twice(s, c, seq, mn_seq_lt(end, r->nxt) ? end : r->nxt);
    seq = mn_seq_max(seq, r->nxt);
    if (!mn_seq_lt(seq, end)) {
        if (seq == r->nxt)
            mn_receive_fin(s, c);
        else
            mn_ack_owe_duplicate(s, c);
        if (g->len > 0 && !c->is_dead)
            c->ack.now = true; /* all of it was known, or had no room */
        mn_conn_mark(s, c);
        return;
    }
    const uint8_t *data = g->data + (seq - g->seq);
    uint32_t len = end - seq;
    if (seq != r->nxt) {
        keep_early(s, c, seq, data, len);
        mn_ack_owe_duplicate(s, c);
        return;
    }
    struct iovec v = mn_piece(data, len);
    if (g->len > r->largest)
        r->largest = g->len;
    c->ack.last_was_full = g->len == r->largest && (g->flags & MN_TCP_PSH) == 0;
    mn_receive_run(s, c, &v, 1, len);
}
