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

/* A round-trip sample that came with this ACK; 0: none. For the timer the oldest segment counts, whose ACK may have
 * been delayed; congestion control wants the newest. Acknowledged by the dozen, each says less (RFC 7323 appendix G).
 */
static uint64_t sample_rtt(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g,
                           const struct mn_ack_news *n)
{
    const struct mn_delivery *d = &n->arrived;
    if (d->first_at != 0 && !d->has_resent) {
        uint64_t least = s->now - d->last_at;
        mn_rtt_take_one_of(&c->rtt, s->now - d->first_at, n->flight / (2 * c->snd.mss) + 1);
        if (least < c->rtt.min_ns)
            c->rtt.min_ns = least > 0 ? least : 1;
        return least > 0 ? least : 1;
    }
    if (!c->ts.on || !g->has_ts || c->snd.una == n->before || (!c->loss.in_recovery && !c->loss.in_timeout))
        return 0;
    uint64_t sample = sample_stamp(s, c, g);
    if (sample != 0 && c->rtt.min_ns != 0 && sample < c->rtt.min_ns)
        sample = c->rtt.min_ns; /* which retransmission it belongs to was a guess: no reason to call the path shorter */
    if (sample != 0)
        mn_rtt_take(&c->rtt, sample);
    return sample;
}

/* The blocks of RFC 2018, each checked against what is out, and the first as a D-SACK (RFC 2883 4). */
static void take_blocks(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g, struct mn_ack_news *n)
{
    const struct mn_send *d = &c->snd;
    for (uint8_t i = 0; i < g->sack_count; i++) {
        uint32_t first = g->sack[i].first, end = g->sack[i].end;
        if (!mn_seq_lt(first, end) || mn_seq_lt(d->nxt, end) || mn_seq_lt(first, d->una - d->max_wnd))
            continue;
        const struct mn_block *next = &g->sack[1];
        bool is_within = i == 0 && g->sack_count > 1 && mn_seq_le(next->first, first) && mn_seq_le(end, next->end);
        if (i == 0 && (mn_seq_le(end, g->ack) || is_within)) {
            n->has_dsack = true;
            n->dsack_first = first;
            n->dsack_end = end;
            continue;
        }
        mn_sent_sack(s, c, mn_seq_max(first, d->una), end, &n->arrived);
    }
}

/* The highest number that is known to have arrived, after all of the ACK was looked at. */
static void note_farthest(struct mn_conn *c, const struct mn_segment *g)
{
    for (uint8_t i = 0; i < g->sack_count; i++)
        if (mn_seq_lt(g->sack[i].first, g->sack[i].end) && mn_seq_le(g->sack[i].end, c->snd.nxt))
            c->loss.farthest = mn_seq_max(c->loss.farthest, g->sack[i].end);
}

static bool fin_is_acked(const struct mn_conn *c)
{
    return c->snd.fin_sent && c->snd.una == c->snd.end + 1;
}

static void advance(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g, struct mn_ack_news *n)
{
    const struct mn_sent *t = &c->sent;
    n->arrived.has_echo = c->ts.on && g->has_ts && g->tsecr != 0;
    n->arrived.echo = g->tsecr;
    mn_sent_retire(s, c, g->ack, &n->arrived);
    c->snd.una = g->ack;
    c->rtt.backoff = 0;
    c->snd.stuck_at = s->now;
    c->due[MN_T_PROBE] = MN_DEADLINE_NONE;
    if (c->snd.una == c->snd.nxt) {
        mn_conn_stop_timer(s, c, MN_T_RETX);
        c->snd.stuck_at = 0;
    } else {
        uint64_t wait = mn_rtt_timeout(&c->rtt);
        /* Acknowledged selectively but not by number: if it stays so, the peer has dropped it. */
        if (mn_sent_chunk(s, t->order[t->first])->state == MN_CHUNK_SACKED)
            wait = c->rtt.srtt_ns / 2 > MN_RENEGE_NS ? c->rtt.srtt_ns / 2 : MN_RENEGE_NS;
        mn_conn_set_timer(s, c, MN_T_RETX, s->now + wait);
    }
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
    struct mn_ack_news n = {.before = d->una};
    uint32_t old_wnd = d->wnd;
    bool has_blocks = c->may_sack && g->sack_count > 0;
    if (mn_seq_lt(d->nxt, g->ack) || mn_seq_lt(g->ack, d->una - d->max_wnd)) {
        s->stats.tcp_bad_ack++;
        mn_tcp_challenge(s, c);
        return false;
    }
    bool is_old = mn_seq_lt(g->ack, d->una);
    if (!is_old) {
        take_window(c, g);
        if (d->wnd != old_wnd)
            mn_conn_mark(s, c);
        n.is_duplicate =
            g->ack == d->una && d->una != d->nxt && g->len == 0 && (g->flags & MN_TCP_FIN) == 0 && d->wnd == old_wnd;
        if (d->wnd > 0 && d->una == d->nxt)
            c->rtt.backoff = 0; /* the persist timer's: the window is open again */
        if (d->wnd > 0 && old_wnd == 0 && d->stuck_at != 0 && !c->is_orphan)
            d->stuck_at = s->now; /* while it was shut there could be no progress */
    }
    if (c->ecn_on && (g->flags & MN_TCP_ECE) != 0 && !is_old)
        mn_loss_on_mark(s, c);
    bool advances = !is_old && g->ack != d->una;
    if (!has_blocks && !advances && !n.is_duplicate)
        return true;
    n.flight = mn_loss_flight(c);
    if (has_blocks)
        take_blocks(s, c, g, &n);
    if (advances)
        advance(s, c, g, &n);
    n.rtt_ns = sample_rtt(s, c, g, &n);
    mn_loss_on_ack(s, c, g, &n);
    if (has_blocks)
        note_farthest(c, g);
    if (n.arrived.bytes > 0 || n.is_duplicate)
        mn_conn_mark(s, c);
    if (advances && fin_is_acked(c))
        take_fin_ack(s, c);
    return !c->is_dead;
}
