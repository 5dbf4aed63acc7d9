/* Runs: in-order data segments of a batch, gathered per connection and handed up as one list of pieces with one ACK.
 * Looser than what an offload may merge, since nothing is cut again: only order, flags and sane numbers matter. */
#include "internal.h"

static bool state_takes_text(const struct mn_conn *c)
{
    return !c->is_orphan && (c->state == MN_ESTABLISHED || c->state == MN_FIN_WAIT_1 || c->state == MN_FIN_WAIT_2);
}

/* Plain data, next in order after `next`, with an ACK and a timestamp that need no second thought. */
static bool is_plain(const struct mn_conn *c, const struct mn_segment *g, uint32_t next, uint32_t ts_recent)
{
    if ((g->flags & ~MN_TCP_PSH) != MN_TCP_ACK || g->len == 0 || g->seq != next)
        return false;
    if (c->ts.on && (!g->has_ts || mn_seq_lt(g->tsval, ts_recent)))
        return false;
    if (mn_seq_lt(c->rcv.edge, g->seq + g->len))
        return false;
    if (g->ecn == MN_ECN_CE && c->ecn_on && !c->ecn_echo)
        return false; /* the first mark changes what ACKs say */
    return mn_seq_le(c->snd.una, g->ack) && mn_seq_le(g->ack, c->snd.nxt);
}

static void append(struct mn_run *r, const struct mn_segment *g)
{
    r->pieces[r->count++] = mn_piece(g->data, g->len);
    r->len += g->len;
    r->last = *g;
    if (g->len > r->largest)
        r->largest = g->len;
}

static bool start_run(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    if (!state_takes_text(c) || c->rcv.early.count > 0 || c->rcv.fin_known || !is_plain(c, g, c->rcv.nxt, c->ts.recent))
        return false;
    if (s->run_count == MN_RUNS)
        mn_run_flush_all(s);
    if (c->is_dead)
        return true;
    struct mn_run *r = &s->runs[s->run_count++];
    r->conn = c;
    r->count = 0;
    r->len = r->largest = 0;
    r->seq = g->seq;
    r->tsval = g->tsval;
    r->tsecr = g->tsecr;
    c->run = (uint8_t)s->run_count;
    append(r, g);
    return true;
}

/* True: g is taken (or its connection died); false: process it now, alone. */
bool mn_run_take(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    if (c->run == 0)
        return start_run(s, c, g);
    struct mn_run *r = &s->runs[c->run - 1];
    if (r->count < MN_RUN_PIECES && mn_seq_le(r->last.ack, g->ack) &&
        is_plain(c, g, r->seq + r->len, c->ts.on ? r->last.tsval : 0)) {
        append(r, g);
        return true;
    }
    mn_run_flush(s, c);
    return c->is_dead || start_run(s, c, g);
}

void mn_run_forget(struct mn_stack *s, struct mn_conn *c)
{
    if (c->run == 0)
        return;
    s->runs[c->run - 1].conn = NULL;
    c->run = 0;
}

void mn_run_flush(struct mn_stack *s, struct mn_conn *c)
{
    if (c->run == 0)
        return;
    struct mn_run *r = &s->runs[c->run - 1];
    mn_run_forget(s, c);
    s->stats.tcp_runs++;
    if (c->ts.on)
        mn_tcp_note_stamp(s, c, r->seq, r->tsval, r->tsecr);
    /* Numbers of the last one; its length tells take_ack that this is no duplicate ACK. */
    if (!mn_tcp_take_ack(s, c, &r->last) || c->is_dead)
        return;
    mn_conn_heard(s, c);
    if (r->largest > c->rcv.largest)
        c->rcv.largest = r->largest;
    c->ack.last_was_full = r->last.len == c->rcv.largest && (r->last.flags & MN_TCP_PSH) == 0;
    mn_receive_run(s, c, r->pieces, r->count, r->len);
}

void mn_run_flush_all(struct mn_stack *s)
{
    for (uint32_t i = 0; i < s->run_count; i++)
        if (s->runs[i].conn != NULL)
            mn_run_flush(s, s->runs[i].conn);
    s->run_count = 0;
}
