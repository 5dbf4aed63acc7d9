/* The ACK field: what a segment says of what we sent, and of the room the peer has. */
#include "internal.h"

static void take_window(struct mn_conn *c, const struct mn_segment *g)
{
    struct mn_send *d = &c->snd;
    if (!mn_seq_lt(d->wl1, g->seq) && !(d->wl1 == g->seq && mn_seq_le(d->wl2, g->ack)))
        return;
    d->wnd = (uint32_t)g->wnd << d->shift;
    d->wl1 = g->seq;
    d->wl2 = g->ack;
    if (d->wnd > d->max_wnd)
        d->max_wnd = d->wnd;
}

/* Timestamps tell retransmissions apart (RFC 7323 4), at the price of a millisecond's grain. But an ACK that was lost
 * and sent again echoes an old stamp: if the last retransmission can have caused it, it is measured from there, and
 * otherwise one such sample is not worth more than a doubled timeout. */
static uint64_t sample_stamp(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    uint64_t ms = mn_conn_ts_now(s, c) - g->tsecr, since = s->now - c->rtt.resent_at + 1;
    if (ms == 0)
        return since < MN_MS ? since : MN_MS;
    if (c->rtt.min_ns != 0 && since >= c->rtt.min_ns / 4 * 3 && since <= ms * MN_MS)
        return since;
    if (ms >= 120000)
        return 0;
    return ms * MN_MS < 2 * c->rtt.rto_ns ? ms * MN_MS : 2 * c->rtt.rto_ns;
}

/* A round-trip sample that came with this ACK; 0: none. */
static uint64_t sample_rtt(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    struct mn_rtt *r = &c->rtt;
    uint64_t sample = 0;
    if (r->is_timing && mn_seq_le(r->timed_seq, g->ack)) {
        sample = s->now - r->timed_at;
        r->is_timing = false;
    } else if (c->ts.on && g->has_ts && (c->loss.in_recovery || c->loss.in_timeout)) {
        sample = sample_stamp(s, c, g);
        if (sample == 0)
            return 0;
    } else {
        return 0;
    }
    mn_rtt_take(r, sample);
    return sample == 0 ? 1 : sample;
}

static bool fin_is_acked(const struct mn_conn *c)
{
    return c->snd.fin_sent && c->snd.una == c->snd.end + 1;
}

static void advance(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    uint32_t bytes = g->ack - c->snd.una;
    uint64_t rtt = sample_rtt(s, c, g);
    c->snd.una = g->ack;
    c->rtt.backoff = 0;
    mn_loss_on_ack(c, bytes, rtt, s->now);
    c->snd.stuck_at = s->now;
    if (c->snd.una == c->snd.nxt) {
        mn_conn_stop_timer(s, c, MN_T_RETX);
        c->snd.stuck_at = 0;
    } else {
        mn_conn_set_timer(s, c, MN_T_RETX, s->now + mn_rtt_timeout(&c->rtt));
    }
    mn_conn_mark(s, c);
}

static void note_duplicate(struct mn_stack *s, struct mn_conn *c)
{
    if (mn_loss_on_dupack(c, s->now))
        s->stats.tcp_fast_retransmits++;
    mn_conn_mark(s, c);
}

/* Our FIN was acknowledged: the step it means in each state. */
static void take_fin_ack(struct mn_stack *s, struct mn_conn *c)
{
    switch (c->state) {
    case MN_FIN_WAIT_1:
        c->state = MN_FIN_WAIT_2;
        if (c->is_orphan)
            mn_conn_set_timer(s, c, MN_T_LIFE, s->now + MN_FIN_WAIT_2_NS);
        break;
    case MN_CLOSING:
        mn_wait_enter(s, c);
        break;
    case MN_LAST_ACK:
        mn_conn_finish(s, c);
        break;
    default:
        break;
    }
}

/* The ACK field of an acceptable segment. False: the segment goes no further. */
bool mn_tcp_take_ack(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    struct mn_send *d = &c->snd;
    uint32_t old_wnd = d->wnd;
    if (mn_seq_lt(d->nxt, g->ack) || mn_seq_lt(g->ack, d->una - d->max_wnd)) {
        s->stats.tcp_bad_ack++;
        mn_tcp_challenge(s, c);
        return false;
    }
    if (mn_seq_lt(g->ack, d->una))
        return true; /* old, harmless */
    take_window(c, g);
    if (d->wnd != old_wnd)
        mn_conn_mark(s, c);
    if (g->ack != d->una) {
        advance(s, c, g);
        if (fin_is_acked(c))
            take_fin_ack(s, c);
        return !c->is_dead;
    }
    if (g->len == 0 && (g->flags & MN_TCP_FIN) == 0 && d->wnd == old_wnd && d->una != d->nxt)
        note_duplicate(s, c);
    if (d->wnd > 0 && d->una == d->nxt)
        c->rtt.backoff = 0; /* the persist timer's: the window is open again */
    return true;
}
