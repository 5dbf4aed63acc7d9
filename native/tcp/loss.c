/* The state machine behind loss.h. */
#include "internal.h"

enum {
    DUP_THRESH = 3,       /* RFC 5681 */
    LEAST_SEGMENTS = 2,   /* RFC 5681 3.1, equation 4: no loss makes the window smaller */
    REORDER_ROUNDS = 16,  /* RFC 8985 6.2: recoveries a widened reordering window lasts */
    REORDER_FACTOR = 200, /* more never is less than a round trip */
};

#define REORDER_LEAST (1 * MN_MS)   /* grain of clocks and batches: narrower would see reordering in them */
#define PROBE_SLACK (2 * MN_MS)     /* a peer's batch */
#define PROBE_DELAYED (200 * MN_MS) /* a lone segment's ACK may be delayed so long (RFC 8985 7.2) */

void mn_loss_start(struct mn_conn *c)
{
    c->loss = (struct mn_loss){.recover = c->snd.iss, .farthest = c->snd.iss, .reorder_factor = 1};
}

uint32_t mn_loss_flight(const struct mn_conn *c)
{
    return c->sent.out > c->loss.dup_bytes ? c->sent.out - c->loss.dup_bytes : 0;
}

uint32_t mn_loss_window(const struct mn_conn *c)
{
    return mn_loss_is_reducing(c) ? c->loss.window : c->cc.cwnd;
}

/* What the sender had in use: the bytes out, but no more than it was allowed. Selective acknowledgements let more bytes
 * lie between una and nxt than are in the network. */
static uint32_t used_window(const struct mn_conn *c)
{
    uint32_t out = c->snd.nxt - c->snd.una;
    return out < c->cc.cwnd ? out : c->cc.cwnd;
}

/* ---- undo (RFC 4015, and by D-SACK as RFC 3708 has it) ---- */

static void start_undo(struct mn_conn *c)
{
    struct mn_loss *l = &c->loss;
    l->may_undo = true;
    l->has_resent = false;
    l->undo_bytes = 0;
    l->undo_from = c->snd.una;
    l->undo_to = c->snd.nxt;
}

static void undo(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_loss *l = &c->loss;
    s->stats.tcp_undone++;
    l->may_undo = l->in_recovery = l->is_standing = l->in_timeout = l->is_forced = false;
    l->has_reordering = true;
    l->dupacks = l->dup_bytes = 0;
    c->rtt.backoff = 0;
    c->cc.ops->undo(&c->cc, s->now);
    mn_sent_unlose(s, c);
}

/* The ACK that moves una was caused by an original: its stamp is older than the first retransmission's. */
static bool is_from_original(const struct mn_conn *c, const struct mn_segment *g, const struct mn_ack_news *n)
{
    const struct mn_loss *l = &c->loss;
    if (c->snd.una == n->before || !l->may_undo)
        return false;
    if (!l->has_resent)
        return (l->in_timeout || l->in_recovery) && mn_seq_le(l->recover, c->snd.una);
    if (c->ts.on && g->has_ts && g->tsecr != 0 && mn_seq_lt(g->tsecr, l->undo_stamp))
        return true;
    /* F-RTO (RFC 5682 3): what seemed lost and was not sent again arrives. */
    return l->in_timeout && c->may_sack && n->arrived.has_original;
}

/* Count a D-SACK against the retransmissions it explains. True: none of them was needed. */
static bool take_dsack(struct mn_conn *c, const struct mn_ack_news *n)
{
    struct mn_loss *l = &c->loss;
    if (++l->dsacks > c->retransmits)
        return false; /* the network doubles segments */
    if (!l->in_dsack_round) {
        l->in_dsack_round = true;
        l->dsack_round = c->snd.nxt;
        if (l->reorder_factor < REORDER_FACTOR)
            l->reorder_factor++;
        l->reorder_rounds = REORDER_ROUNDS;
    }
    l->has_reordering = true;
    if (!l->may_undo || !l->has_resent || mn_seq_lt(n->dsack_first, l->undo_from) ||
        mn_seq_lt(l->undo_to, n->dsack_end))
        return false;
    uint32_t bytes = n->dsack_end - n->dsack_first;
    l->undo_bytes = l->undo_bytes > bytes ? l->undo_bytes - bytes : 0;
    return l->undo_bytes == 0;
}

/* ---- RACK ---- */

static void note_newest(struct mn_stack *s, struct mn_conn *c, const struct mn_delivery *d)
{
    struct mn_loss *l = &c->loss;
    if (d->has_reordered)
        l->has_reordering = true;
    if (!d->has_newest)
        return;
    uint64_t rtt = s->now - d->newest_at;
    if (d->newest_resent && rtt < c->rtt.min_ns)
        return; /* rather the original's */
    l->newest_rtt = rtt;
    bool is_later = !l->has_newest || d->newest_at > l->newest_at ||
                    (d->newest_at == l->newest_at && mn_seq_lt(l->newest_end, d->newest_end));
    if (is_later) {
        l->has_newest = true;
        l->newest_at = d->newest_at;
        l->newest_end = d->newest_end;
    }
}

static uint64_t reorder_window(const struct mn_conn *c)
{
    const struct mn_loss *l = &c->loss;
    if (!l->has_reordering && (l->in_recovery || l->in_timeout || c->sent.sacked >= DUP_THRESH * c->snd.mss))
        return 0;
    uint64_t w = c->rtt.min_ns / 4 * l->reorder_factor;
    w = w < c->rtt.srtt_ns ? w : c->rtt.srtt_ns;
    return w > REORDER_LEAST ? w : REORDER_LEAST;
}

/* Mark what was sent before something that has arrived, long enough ago. True: there is more to lose. */
static bool detect(struct mn_stack *s, struct mn_conn *c)
{
    const struct mn_loss *l = &c->loss;
    struct mn_sent *t = &c->sent;
    uint64_t wait = l->newest_rtt + reorder_window(c);
    bool any = false;
    uint32_t id;
    c->due[MN_T_REORDER] = MN_DEADLINE_NONE;
    if (!l->has_newest || !c->may_sack)
        return false;
    while ((id = t->out_first) != 0) {
        const struct mn_chunk *k = mn_sent_chunk(s, id);
        bool is_earlier = k->sent_at < l->newest_at || (k->sent_at == l->newest_at && mn_seq_lt(k->seq, l->newest_end));
        if (!is_earlier)
            break;
        if (k->sent_at + wait > s->now) {
            mn_conn_set_timer(s, c, MN_T_REORDER, k->sent_at + wait);
            break;
        }
        if (k->unit <= c->snd.mss) { /* one that was too large on trial says nothing of congestion */
            any = true;
            mn_cc_count(&c->cc, 0, k->len);
        }
        mn_sent_lose(s, c, id);
    }
    return any;
}

/* ---- fast recovery ---- */

static void grant(struct mn_conn *c, uint32_t delivered, bool is_safe)
{
    struct mn_loss *l = &c->loss;
    uint32_t pipe = mn_loss_flight(c), mss = c->snd.mss, send, ssthresh = c->cc.ssthresh;
    l->prr_delivered += delivered;
    if (pipe > ssthresh) {
        uint64_t share = ((uint64_t)l->prr_delivered * ssthresh + l->prr_from - 1) / l->prr_from;
        send = share > l->prr_out ? (uint32_t)(share - l->prr_out) : 0;
    } else {
        send = l->prr_delivered > l->prr_out ? l->prr_delivered - l->prr_out : 0;
        if (send < delivered)
            send = delivered;
        if (is_safe)
            send += mss;
        if (send > ssthresh - pipe)
            send = ssthresh - pipe;
    }
    if (l->prr_out == 0 && send < mss)
        send = mss; /* the fast retransmission itself */
    /* RFC 6675 would fill the least window at once. Were only the retransmission out, nothing but the timer could find
     * that it was lost as well. */
    l->window = pipe + send > LEAST_SEGMENTS * mss ? pipe + send : LEAST_SEGMENTS * mss;
}

static bool may_stand(const struct mn_conn *c)
{
    return c->may_sack && c->cc.ops->stands != NULL && c->cc.ops->stands(&c->cc);
}

/* At the first loss, and at each further one of a recovery in which the window stands. */
static void enter_recovery(struct mn_stack *s, struct mn_conn *c, uint32_t delivered)
{
    struct mn_loss *l = &c->loss;
    bool is_first = !l->in_recovery;
    s->stats.tcp_fast_retransmits += is_first;
    l->in_recovery = true;
    l->is_standing = may_stand(c);
    if (l->is_standing) {
        s->stats.tcp_losses_borne += is_first;
        l->recover = is_first ? c->snd.nxt : l->recover;
        l->may_undo = l->probe_out = false;
        return;
    }
    start_undo(c);
    c->cc.ops->on_loss(&c->cc, used_window(c), s->now);
    l->owes_cwr = c->ecn_on;
    l->recover = c->snd.nxt;
    l->prr_delivered = l->prr_out = 0;
    l->prr_from = c->snd.nxt - c->snd.una - c->sent.sacked + delivered;
    if (l->prr_from == 0)
        l->prr_from = 1;
    l->probe_out = false;
}

static void leave_recovery(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_loss *l = &c->loss;
    if (mn_loss_is_reducing(c))
        c->cc.ops->on_recovered(&c->cc, s->now);
    l->in_recovery = l->is_standing = l->in_timeout = l->is_forced = false;
    if (l->reorder_rounds > 0 && --l->reorder_rounds == 0)
        l->reorder_factor = 1;
}

/* ---- without SACK: NewReno ---- */

static bool count_duplicate(struct mn_stack *s, struct mn_conn *c, struct mn_ack_news *n)
{
    struct mn_loss *l = &c->loss;
    if (l->in_timeout)
        return false;
    l->dupacks++;
    if (l->dup_bytes + c->snd.mss < c->sent.out) {
        l->dup_bytes += c->snd.mss;
        n->arrived.bytes = c->snd.mss; /* somewhere */
    }
    /* Below recover they are echoes of our own retransmissions. */
    if (l->in_recovery || mn_seq_lt(c->snd.una, l->recover) || l->dupacks < DUP_THRESH)
        return false;
    mn_sent_lose_head(s, c, c->snd.mss);
    return true;
}

static bool count_partial(struct mn_stack *s, struct mn_conn *c, struct mn_ack_news *n)
{
    struct mn_loss *l = &c->loss;
    uint32_t acked = c->snd.una - n->before, over = acked > c->snd.mss ? acked - c->snd.mss : 0;
    l->dup_bytes = l->in_recovery && l->dup_bytes > over ? l->dup_bytes - over : 0;
    l->dupacks = 0;
    if (!l->in_recovery)
        return false;
    n->arrived.bytes = acked < c->snd.mss ? acked : c->snd.mss; /* the rest has been counted by duplicates */
    mn_sent_lose_head(s, c, c->snd.mss);
    return true;
}

/* ---- probes ---- */

bool mn_loss_wants_probe(const struct mn_conn *c)
{
    const struct mn_loss *l = &c->loss;
    return c->may_sack && !l->in_recovery && !l->in_timeout && !l->probe_out && c->sent.out > 0 && c->sent.lost == 0 &&
           c->sent.sacked == 0;
}

uint64_t mn_loss_probe_delay(const struct mn_conn *c)
{
    if (c->rtt.srtt_ns == 0)
        return MN_SECOND;
    return 2 * c->rtt.srtt_ns + (c->sent.out <= c->snd.mss ? PROBE_DELAYED : PROBE_SLACK);
}

void mn_loss_on_probe(struct mn_conn *c, bool is_copy)
{
    c->loss.probe_out = true;
    c->loss.probe_is_copy = is_copy;
    c->loss.probe_end = c->snd.nxt;
}

/* RFC 8985 7.4: an ACK of a copied tail that names no duplicate means that the original was lost. */
static void judge_probe(struct mn_stack *s, struct mn_conn *c, const struct mn_ack_news *n)
{
    struct mn_loss *l = &c->loss;
    if (!l->probe_out || mn_seq_lt(c->snd.una, l->probe_end))
        return;
    bool is_repair = l->probe_is_copy && !n->has_dsack && mn_seq_lt(l->probe_end, c->snd.una);
    if (is_repair)
        mn_cc_count(&c->cc, 0, c->snd.mss);
    if (is_repair && !may_stand(c)) {
        c->cc.ops->on_loss(&c->cc, used_window(c), s->now);
        c->cc.ops->on_recovered(&c->cc, s->now);
    }
    /* Up to the probe and no farther: a duplicate of that ACK tells that both it and the original came. */
    bool is_open = l->probe_is_copy && !n->has_dsack && !is_repair && !n->is_duplicate;
    l->probe_out = is_open;
}

/* ---- ACKs ---- */

static void sample_rate(struct mn_stack *s, struct mn_conn *c, const struct mn_delivery *d)
{
    struct mn_loss *l = &c->loss;
    if (d->bytes == 0)
        return;
    l->delivered += d->bytes;
    mn_cc_count(&c->cc, d->bytes, 0);
    if (l->app_limited_until != 0 && l->delivered > l->app_limited_until)
        l->app_limited_until = 0;
    if (d->has_newest && d->rate_at != 0 && s->now > d->rate_at) {
        uint64_t bytes = l->delivered - d->rate_delivered;
        uint64_t rate = (uint64_t)((double)bytes * 1e9 / (double)(s->now - d->rate_at));
        if (!d->is_app_limited || rate > l->rate)
            l->rate = rate;
    }
    l->delivered_at = s->now;
}

static void grow(struct mn_stack *s, struct mn_conn *c, const struct mn_ack_news *n)
{
    /* Out of order may mean lost: no reason to send more, unless the path is known to reorder. */
    bool is_in_order = c->snd.una != n->before;
    bool is_welcome = is_in_order || c->loss.is_standing || (c->may_sack && c->loss.has_reordering);
    if (n->arrived.bytes == 0 || !is_welcome)
        return;
    struct mn_cc_ack a = {
        .bytes = n->arrived.bytes,
        .flight = n->flight,
        .una = c->snd.una,
        .nxt = c->snd.nxt,
        .rtt_ns = n->rtt_ns,
        .min_rtt_ns = c->rtt.min_ns,
        .srtt_ns = c->rtt.srtt_ns,
        .now_ns = s->now,
        .is_limited = c->snd.is_limited || c->loss.in_timeout,
    };
    c->cc.ops->on_ack(&c->cc, &a);
}

static void draw_along(struct mn_conn *c)
{
    struct mn_loss *l = &c->loss;
    uint32_t una = c->snd.una;
    l->farthest = mn_seq_max(l->farthest, una);
    if (!l->in_recovery && !l->in_timeout && mn_seq_le(l->recover, una))
        l->recover = una; /* or it would seem to lie ahead once the numbers have gone half way round */
    if (l->in_dsack_round && mn_seq_le(l->dsack_round, una))
        l->in_dsack_round = false;
    if (l->is_marked && mn_seq_le(l->mark_edge, una))
        l->is_marked = false;
    if (l->may_undo && c->snd.nxt - l->undo_from > 1U << 30)
        l->may_undo = false;
}

void mn_loss_on_ack(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g, struct mn_ack_news *n)
{
    struct mn_loss *l = &c->loss;
    bool was_reducing = mn_loss_is_reducing(c), found = false, advances = c->snd.una != n->before;
    if (n->has_dsack && take_dsack(c, n)) {
        undo(s, c);
    } else if (is_from_original(c, g, n)) {
        undo(s, c);
        if (n->arrived.newest_resent)
            n->arrived.has_newest = false; /* nor did the copy arrive */
    }
    note_newest(s, c, &n->arrived);
    mn_path_on_arrival(c, n->arrived.largest);
    judge_probe(s, c, n);
    if ((l->in_recovery || l->in_timeout) && mn_seq_le(l->recover, c->snd.una))
        leave_recovery(s, c);
    if (c->may_sack)
        found = detect(s, c);
    else if (n->is_duplicate)
        found = count_duplicate(s, c, n);
    else if (advances)
        found = count_partial(s, c, n);
    sample_rate(s, c, &n->arrived);
    if (found && !mn_loss_is_reducing(c) && !l->in_timeout)
        enter_recovery(s, c, n->arrived.bytes);
    if (mn_loss_is_reducing(c))
        grant(c, n->arrived.bytes, advances && !found);
    else if (!was_reducing)
        grow(s, c, n);
    draw_along(c);
}

void mn_loss_on_reorder_timer(struct mn_stack *s, struct mn_conn *c)
{
    if (!detect(s, c))
        return;
    if (!mn_loss_is_reducing(c) && !c->loss.in_timeout)
        enter_recovery(s, c, 0);
    if (mn_loss_is_reducing(c))
        grant(c, 0, false);
    mn_conn_mark(s, c);
}

void mn_loss_on_timeout(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_loss *l = &c->loss;
    bool is_first = c->rtt.backoff == 0 && !mn_loss_is_reducing(c); /* of this loss, and not within a reduction */
    const struct mn_sent *t = &c->sent;
    if (is_first)
        start_undo(c);
    c->cc.ops->on_timeout(&c->cc, used_window(c), is_first, s->now);
    /* The first chunk acknowledged, and yet not: the peer has dropped what it said it had (RFC 2018 8). */
    if (t->count > 0 && mn_sent_chunk(s, t->order[t->first])->state == MN_CHUNK_SACKED)
        mn_sent_forget_sacks(s, c);
    uint64_t wait = l->newest_rtt + reorder_window(c), by = s->now;
    if (c->may_sack && l->has_newest)
        by = s->now > wait ? s->now - wait : 0;
    mn_sent_lose_old(s, c, by);
    l->dupacks = l->dup_bytes = 0;
    l->recover = c->snd.nxt;
    l->in_recovery = l->is_standing = l->probe_out = false;
    l->in_timeout = l->is_forced = true;
    l->owes_cwr = c->ecn_on;
    c->due[MN_T_REORDER] = MN_DEADLINE_NONE;
}

/* Once per round trip, and not on top of a loss: that has reduced the window already. */
void mn_loss_on_mark(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_loss *l = &c->loss;
    if (l->is_marked || c->snd.una == c->snd.nxt)
        return;
    l->is_marked = l->owes_cwr = true;
    l->mark_edge = c->snd.nxt;
    s->stats.tcp_ecn_marks++;
    if (mn_loss_is_reducing(c) || l->in_timeout)
        return;
    c->cc.ops->on_mark(&c->cc, used_window(c), s->now);
    l->may_undo = false;
}

void mn_loss_on_path_shrunk(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_loss *l = &c->loss;
    mn_sent_lose_old(s, c, s->now);
    l->dupacks = l->dup_bytes = 0;
    l->recover = c->snd.nxt; /* the duplicates that this will cause say nothing */
    l->is_forced = true;
}

/* ---- output's news ---- */

void mn_loss_on_sent(struct mn_conn *c, uint32_t bytes)
{
    c->loss.prr_out += bytes;
}

void mn_loss_on_resent(struct mn_stack *s, struct mn_conn *c, uint32_t bytes)
{
    struct mn_loss *l = &c->loss;
    l->prr_out += bytes;
    l->is_forced = false;
    if (!l->may_undo)
        return;
    if (!l->has_resent)
        l->undo_stamp = mn_conn_ts_now(s, c);
    l->has_resent = true;
    l->undo_bytes += bytes;
}
