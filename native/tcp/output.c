/* What to send now: lost ranges first, then new data as far as both windows reach, FIN with the last byte, else an ACK.
 * One decision, many segments: each is cut from the send ring straight into the packet, copied and summed in one pass.
 */
#include <errno.h>

#include "internal.h"

/* ---- cutting ---- */

/* Headers of one burst: all but length, sequence number, flags and checksums stays the same. */
struct mn_cut {
    uint8_t head[MN_IP6_HEADER + MN_TCP_MAX_HEADER];
    size_t ip_len, head_len;
    uint64_t ip_sum, tcp_sum; /* of what stays the same */
};

static uint64_t word(uint16_t v)
{
    uint8_t b[2];
    uint16_t w;
    mn_store16(b, v);
    memcpy(&w, b, 2);
    return w;
}

static void prepare_cut(struct mn_stack *s, struct mn_conn *c, struct mn_cut *k)
{
    const struct mn_tuple *t = &c->node.tuple;
    uint32_t edge, window = mn_receive_window(c, &edge);
    size_t tcp = MN_TCP_HEADER + (c->ts.on ? (size_t)MN_TCP_TS_OPTION : 0U);
    k->ip_len = mn_packet_write_header(k->head, &t->local, &t->remote, MN_PROTO_TCP, 0);
    k->head_len = k->ip_len + tcp;
    uint8_t *h = k->head + k->ip_len;
    memset(h, 0, tcp);
    mn_store16(h, t->lport);
    mn_store16(h + 2, t->rport);
    mn_store32(h + 8, c->rcv.nxt);
    h[12] = (uint8_t)(tcp / 4 << 4);
    mn_store16(h + 14, window);
    if (c->ts.on) {
        mn_store32(h + 20, 0x0101080a);
        mn_store32(h + 24, mn_conn_ts_now(s, c));
        mn_store32(h + 28, c->ts.recent);
    }
    c->rcv.edge = edge;
    c->ts.last_ack = c->rcv.nxt;
    k->tcp_sum = mn_csum_add(mn_csum_pseudo(&t->local, &t->remote, MN_PROTO_TCP, 0), h, tcp);
    k->ip_sum = 0;
    if (k->ip_len == MN_IP4_HEADER) {
        mn_store16(k->head + 2, 0);
        mn_store16(k->head + 10, 0);
        k->ip_sum = mn_csum_add(0, k->head, MN_IP4_HEADER);
    }
}

/* What follows is new data: it may be marked instead of dropped (RFC 3168 6.1.5: never what is sent again). */
static void mark_capable(struct mn_cut *k)
{
    if (k->ip_len != MN_IP4_HEADER) {
        mn_packet_set_ecn(k->head, MN_ECN_ECT0);
        return;
    }
    k->head[1] |= MN_ECN_ECT0;
    k->ip_sum = mn_csum_add(0, k->head, MN_IP4_HEADER);
}

/* One segment: payload is n bytes of the send ring at seq. 0 or -errno. */
static int cut_segment(struct mn_stack *s, struct mn_conn *c, const struct mn_cut *k, uint32_t seq, uint32_t n,
                       uint8_t flags)
{
    int err = 0;
    uint8_t *out = mn_stack_begin(s, &c->node.tuple.remote, k->head_len + n, &err);
    if (out == NULL)
        return -err;
    memcpy(out, k->head, k->head_len);
    size_t tcp = k->head_len - k->ip_len + n;
    uint8_t *h = out + k->ip_len;
    mn_store32(h + 4, seq);
    h[13] = flags;
    uint64_t sum = k->tcp_sum + word((uint16_t)tcp) + word(flags);
    sum = mn_csum_add(sum, h + 4, 4);
    struct iovec v[2];
    int pieces = mn_ring_pieces(&c->snd.ring, seq, n, v);
    uint8_t *body = out + k->head_len;
    if (pieces >= 1)
        sum = mn_csum_copy(sum, body, v[0].iov_base, v[0].iov_len);
    if (pieces == 2) {
        uint64_t second = mn_csum_copy(0, body + v[0].iov_len, v[1].iov_base, v[1].iov_len);
        sum += v[0].iov_len % 2 == 0 ? second : mn_csum_shift(second);
    }
    mn_csum_store(h + 16, sum);
    if (k->ip_len == MN_IP4_HEADER) {
        mn_store16(out + 2, (uint32_t)(k->ip_len + tcp));
        mn_csum_store(out + 10, k->ip_sum + word((uint16_t)(k->ip_len + tcp)));
    } else {
        mn_store16(out + 4, (uint32_t)tcp);
    }
    mn_stack_commit(s, k->head_len + n);
    s->stats.tcp_out++;
    return 0;
}

/* ---- segments outside the stream ---- */

int mn_tcp_emit(struct mn_stack *s, const struct mn_tuple *t, const struct mn_segment *g)
{
    int err = 0;
    struct mn_ep from = {.ip = t->local, .port = t->lport}, to = {.ip = t->remote, .port = t->rport};
    uint8_t *out = mn_stack_begin(s, &t->remote, MN_IP6_HEADER + MN_TCP_MAX_HEADER, &err);
    if (out == NULL)
        return -err;
    mn_stack_commit(s, mn_segment_write(out, &from, &to, g));
    s->stats.tcp_out++;
    return 0;
}

/* SYN, or SYN and ACK after a simultaneous open. */
void mn_tcp_send_syn(struct mn_stack *s, struct mn_conn *c)
{
    bool is_answer = c->state == MN_SYN_RCVD;
    struct mn_segment g = {.seq = c->snd.iss, .flags = MN_TCP_SYN};
    g.wnd = (uint16_t)(c->rcv.size < 65535 ? c->rcv.size : 65535);
    g.mss = mn_conn_advertised_mss(s, &c->node.tuple);
    g.has_ts = !is_answer || c->ts.on;
    g.tsval = mn_conn_ts_now(s, c);
    g.may_sack = !is_answer || c->may_sack;
    /* Asked once only: a SYN that came to nothing may have met a network that drops those (RFC 3168 6.1.1.1). */
    c->ecn_asked = !is_answer && s->cfg.ecn == MN_ECN_ASK && c->syn_tries == 0;
    if (c->ecn_asked)
        g.flags |= MN_TCP_ECE | MN_TCP_CWR;
    else if (is_answer && c->ecn_on)
        g.flags |= MN_TCP_ECE;
    g.wscale = -1;
    if (!is_answer || c->snd.has_scale)
        g.wscale = (int8_t)c->rcv.shift;
    if (is_answer) {
        g.flags |= MN_TCP_ACK;
        g.ack = c->rcv.nxt;
        g.tsecr = c->ts.recent;
        c->ts.last_ack = c->rcv.nxt;
    }
    c->rtt.is_timing = c->syn_tries == 0 && !c->rtt.is_timing;
    if (c->rtt.is_timing) {
        c->rtt.timed_at = s->now;
        c->rtt.timed_seq = c->snd.iss + 1;
    }
    c->snd.nxt = c->snd.iss + 1;
    c->is_unsent = mn_tcp_emit(s, &c->node.tuple, &g) == -ENOBUFS;
    mn_conn_set_timer(s, c, MN_T_RETX, s->now + (c->is_unsent ? MN_RETRY_NS : mn_rtt_timeout(&c->rtt)));
}

void mn_tcp_send_reset(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_segment g = {.seq = c->snd.nxt, .flags = MN_TCP_RST, .wscale = -1};
    if (c->state == MN_SYN_SENT || c->state == MN_CLOSED)
        return; /* nothing a peer believes in; its SYN-ACK will find nobody */
    g.flags |= MN_TCP_ACK;
    g.ack = c->rcv.nxt;
    if (mn_tcp_emit(s, &c->node.tuple, &g) == 0)
        s->stats.tcp_rst_out++;
}

/* No packet buffer just now: come back soon. Anything else is a lost packet, for the timers to find. */
void mn_tcp_wait_for_buffer(struct mn_stack *s, struct mn_conn *c, int err)
{
    if (err != -ENOBUFS || c->is_blocked)
        return;
    c->is_blocked = true;
    c->next_blocked = s->blocked;
    s->blocked = c;
    s->retry_at = s->now + MN_RETRY_NS;
}

int mn_tcp_send_bare(struct mn_stack *s, struct mn_conn *c, uint32_t seq)
{
    struct mn_cut k;
    prepare_cut(s, c, &k);
    return cut_segment(s, c, &k, seq, 0, mn_conn_ack_flags(c));
}

/* ---- the stream ---- */

struct burst {
    struct mn_cut cut;
    bool is_ready, is_capable;
    int left, sent; /* segments */
    int err;
};

/* Send n bytes from seq, and the FIN if it comes right behind them: of those sent again only if it was sent before. */
static bool send_piece(struct mn_stack *s, struct mn_conn *c, struct burst *b, uint32_t seq, uint32_t n, bool is_again)
{
    uint8_t flags = mn_conn_ack_flags(c);
    if (!b->is_ready)
        prepare_cut(s, c, &b->cut);
    b->is_ready = true;
    if (c->ecn_on && !is_again) {
        if (!b->is_capable)
            mark_capable(&b->cut);
        b->is_capable = true;
        if (c->loss.owes_cwr)
            flags |= MN_TCP_CWR;
    }
    if (seq + n == c->snd.end) {
        if (n > 0)
            flags |= MN_TCP_PSH;
        if (c->snd.fin_queued && (!is_again || c->snd.fin_sent))
            flags |= MN_TCP_FIN;
    }
    b->err = cut_segment(s, c, &b->cut, seq, n, flags);
    if (b->err != 0) {
        mn_tcp_wait_for_buffer(s, c, b->err);
        return false;
    }
    if (!is_again)
        c->loss.owes_cwr = false;
    b->sent++;
    b->left--;
    return true;
}

/* How far the peer lets us go. */
static uint32_t peer_edge(const struct mn_conn *c)
{
    return c->snd.una + c->snd.wnd;
}

static void note_limited(struct mn_conn *c)
{
    c->snd.is_limited = true;
    c->snd.limited_edge = c->snd.nxt;
    c->snd.limit = MN_LIMIT_CONGESTION;
}

/* Bytes of a lost chunk to send again from its offset `done`, a FIN among them; 0: not now. */
static uint32_t next_lost(struct mn_conn *c, const struct mn_chunk *k, uint32_t done)
{
    uint32_t seq = k->seq + done, n = k->len - done;
    if (n > c->snd.mss) {
        uint32_t data = c->snd.end - seq;
        n = data <= c->snd.mss ? n : c->snd.mss; /* a FIN goes with the last byte */
    }
    if (c->loss.is_forced && done == 0)
        return n;
    if (mn_seq_lt(peer_edge(c), seq + n - (c->snd.fin_sent && seq + n == c->snd.end + 1)))
        return 0;
    if (mn_loss_flight(c) + done + n > mn_loss_window(c)) {
        note_limited(c);
        return 0;
    }
    return n;
}

/* ---- pacing ---- */

enum {
    PACE_LEAST = 2,                     /* segments of a burst: one ACK's worth */
    PACE_FREE = MN_CC_INITIAL_SEGMENTS, /* a burst that any path takes: after idle */
    PACE_WINDOW = 32, /* segments a queue holds at once: the first round trips of slow start are not stretched */
};

#define PACE_GRAIN (MN_MS / 20) /* nearer than a timer is worth */

/* Segments that may leave now; 0: none before pace_at. */
static int pace_burst(struct mn_stack *s, struct mn_conn *c, uint64_t rate)
{
    const struct mn_send *d = &c->snd;
    uint64_t segments = rate / 1000 / d->mss;
    int burst = segments < PACE_LEAST ? PACE_LEAST : segments > MN_QUANTUM ? MN_QUANTUM : (int)segments;
    if (d->pace_at > s->now + PACE_GRAIN)
        return 0;
    bool was_idle = s->now - d->pace_at > c->rtt.srtt_ns && d->pace_at < s->now;
    return was_idle && burst < PACE_FREE ? PACE_FREE : burst;
}

/* The burst of sent bytes takes its time at this rate, counted from when it should have left if that is near. */
static void pace_on(struct mn_stack *s, struct mn_conn *c, uint64_t rate, uint64_t bytes)
{
    struct mn_send *d = &c->snd;
    uint64_t late = d->pace_at < s->now ? s->now - d->pace_at : 0;
    if (late > MN_MS)
        d->pace_at = s->now;
    d->pace_at += bytes * 1000000000U / rate;
}

/* ---- what to send ---- */

/* What was lost comes first. True: nothing of it is left, and there is time for more. */
static bool resend_lost(struct mn_stack *s, struct mn_conn *c, struct burst *b)
{
    uint32_t id;
    while (b->left > 0 && (id = c->sent.lost_first) != 0) {
        const struct mn_chunk *k = mn_sent_chunk(s, id);
        uint32_t n, done = 0, before = (uint32_t)b->sent;
        while (b->left > 0 && done < k->len && (n = next_lost(c, k, done)) > 0) {
            uint32_t fin = c->snd.fin_sent && k->seq + done + n == c->snd.end + 1 ? 1 : 0;
            if (!send_piece(s, c, b, k->seq + done, n - fin, true))
                break;
            done += n;
        }
        if (done == 0)
            return false;
        c->rtt.resent_at = s->now;
        c->retransmits += (uint32_t)b->sent - before;
        s->stats.tcp_retransmits += (uint32_t)b->sent - before;
        if (k->seq == c->snd.una) /* its own time, from now */
            mn_conn_set_timer(s, c, MN_T_RETX, s->now + mn_rtt_timeout(&c->rtt));
        mn_loss_on_resent(s, c, done);
        mn_sent_resent(s, c, id, done);
    }
    return b->left > 0 && b->err == 0;
}

/* Bytes worth sending at snd.nxt now; 0: none. */
static uint32_t next_piece(struct mn_conn *c, uint32_t flight)
{
    const struct mn_send *d = &c->snd;
    if (!mn_seq_lt(d->nxt, d->end) || !mn_seq_lt(d->nxt, peer_edge(c)))
        return 0;
    uint32_t avail = d->end - d->nxt, allowed = peer_edge(c) - d->nxt;
    uint32_t n = avail < d->mss ? avail : d->mss;
    if (n > allowed) {
        if (allowed < d->max_wnd / 2)
            return 0; /* silly window: wait for more (RFC 9293 3.8.6.2.1); the persist timer overrides */
        n = allowed;
    }
    if (flight + n > mn_loss_window(c)) {
        note_limited(c);
        return 0;
    }
    return n;
}

/* n bytes and perhaps the FIN have left in one burst. */
static void note_sent(struct mn_stack *s, struct mn_conn *c, uint32_t n)
{
    struct mn_send *d = &c->snd;
    if (d->una == d->nxt - n) {
        d->stuck_at = s->now;
        c->due[MN_T_RETX] = MN_DEADLINE_NONE; /* what ran was the persist timer */
        if (c->loss.delivered_at < s->now)
            c->loss.delivered_at = s->now; /* a rate counts from where sending began */
    }
    c->bytes_out += n;
    d->sent_at = s->now;
    if (d->fin_queued && d->nxt == d->end) {
        d->fin_sent = true;
        d->nxt++;
        n++;
    }
    mn_sent_append(s, c, n);
    mn_loss_on_sent(c, n);
}

/* One segment of the size that the path may take after all; its bytes, 0 if there is no room for it. */
static uint32_t try_full(struct mn_stack *s, struct mn_conn *c, struct burst *b, uint32_t flight)
{
    struct mn_send *d = &c->snd;
    uint32_t mss = d->mss, full = d->full_mss;
    bool fits = !mn_seq_lt(d->end, d->nxt + full) && !mn_seq_lt(peer_edge(c), d->nxt + full) &&
                flight + full <= mn_loss_window(c);
    if (!fits || !send_piece(s, c, b, d->nxt, full, false))
        return 0;
    d->mss = full; /* what the chunk remembers */
    d->nxt += full;
    note_sent(s, c, full);
    d->mss = mss;
    mn_path_on_try(s, c);
    return full;
}

static void send_new(struct mn_stack *s, struct mn_conn *c, struct burst *b)
{
    struct mn_send *d = &c->snd;
    uint32_t n, done = 0, flight = mn_loss_flight(c);
    if (d->una == d->nxt && d->sent_at != 0 && s->now - d->sent_at > c->rtt.rto_ns)
        c->cc.ops->on_idle(&c->cc, s->now - d->sent_at, s->now);
    n = next_piece(c, flight);
    bool is_fin = d->fin_queued && !d->fin_sent && d->nxt == d->end;
    if (n == 0 && !is_fin)
        return;
    if (!mn_sent_ready(s, c)) {
        b->err = -ENOBUFS;
        mn_tcp_wait_for_buffer(s, c, b->err);
        return;
    }
    if (n == d->mss && mn_path_is_to_try(s, c)) {
        n = try_full(s, c, b, flight);
        flight += n;
        n = n > 0 ? next_piece(c, flight) : d->mss;
        if (!mn_sent_ready(s, c))
            return;
    }
    while (b->left > 0 && n > 0 && send_piece(s, c, b, d->nxt, n, false)) {
        d->nxt += n;
        done += n;
        n = next_piece(c, flight + done);
    }
    if (done > 0) {
        note_sent(s, c, done);
        return;
    }
    /* A FIN alone fits into any window: if it does not, its retransmissions are the probes. */
    if (is_fin && b->left > 0 && send_piece(s, c, b, d->nxt, 0, false))
        note_sent(s, c, 0);
}

/* One segment more, new if there is one and the last again if not, so that its ACK tells what was lost before it.
 * False: there is none to send. */
bool mn_tcp_send_probe(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_send *d = &c->snd;
    struct burst b = {.left = 1};
    bool is_new = mn_seq_lt(d->nxt, d->end) && mn_seq_lt(d->nxt, peer_edge(c)) && mn_sent_ready(s, c);
    if (is_new) {
        uint32_t avail = d->end - d->nxt, allowed = peer_edge(c) - d->nxt, n = avail < d->mss ? avail : d->mss;
        n = n < allowed ? n : allowed;
        if (!send_piece(s, c, &b, d->nxt, n, false))
            return false;
        d->nxt += n;
        note_sent(s, c, n);
    } else {
        uint32_t id = mn_sent_tail(s, c);
        if (id == 0)
            return false;
        const struct mn_chunk *k = mn_sent_chunk(s, id);
        uint32_t fin = d->fin_sent ? 1 : 0, data = k->len - fin, n = data < d->mss ? data : d->mss;
        if (n < data || !send_piece(s, c, &b, k->seq, n, true))
            return false; /* cut for a larger path: the timer's */
        c->rtt.resent_at = s->now;
        c->retransmits++;
        s->stats.tcp_retransmits++;
        mn_sent_resent(s, c, id, k->len);
    }
    s->stats.tcp_tail_probes++;
    mn_loss_on_probe(c, !is_new);
    mn_ack_send(s, c, true);
    mn_conn_set_timer(s, c, MN_T_RETX, s->now + mn_rtt_timeout(&c->rtt));
    return true;
}

/* ---- timers that follow from what is out ---- */

static void arm_timers(struct mn_stack *s, struct mn_conn *c, bool has_sent)
{
    const struct mn_send *d = &c->snd;
    if (d->una != d->nxt) {
        if (c->due[MN_T_RETX] == MN_DEADLINE_NONE)
            mn_conn_set_timer(s, c, MN_T_RETX, s->now + mn_rtt_timeout(&c->rtt));
        /* From the last sending, or from the ACK that stopped it. */
        if (!mn_loss_wants_probe(c)) {
            c->due[MN_T_PROBE] = MN_DEADLINE_NONE;
        } else if (has_sent || c->due[MN_T_PROBE] == MN_DEADLINE_NONE) {
            /* Never behind the timeout, in whose place it is sent then (RFC 8985 7.2). */
            uint64_t at = s->now + mn_loss_probe_delay(c);
            mn_conn_set_timer(s, c, MN_T_PROBE, at < c->due[MN_T_RETX] ? at : c->due[MN_T_RETX]);
        }
    } else if (mn_seq_lt(d->nxt, d->end)) {
        /* Data, nothing out, and no window for it: persist (RFC 9293 3.8.6.1). */
        if (d->stuck_at == 0)
            c->snd.stuck_at = s->now;
        if (c->due[MN_T_RETX] == MN_DEADLINE_NONE && !c->is_blocked)
            mn_conn_set_timer(s, c, MN_T_RETX, s->now + mn_rtt_timeout(&c->rtt));
    }
    if ((c->snd.ring.data != NULL || c->rcv.ring.data != NULL) && c->due[MN_T_IDLE] == MN_DEADLINE_NONE)
        mn_conn_set_timer(s, c, MN_T_IDLE, s->now + MN_IDLE_RING);
}

/* A window no larger than what any path takes at once needs no gate, nor does the last little bit of a message; fast
 * recovery has the ACKs for a clock. */
static bool is_paced(const struct mn_conn *c, uint64_t rate)
{
    const struct mn_send *d = &c->snd;
    bool is_bulk = c->sent.lost > 0 || !mn_seq_lt(d->end, d->nxt + d->mss);
    return rate != 0 && is_bulk && c->cc.cwnd > PACE_WINDOW * d->mss && !c->loss.is_forced && !mn_loss_is_reducing(c);
}

void mn_tcp_output(struct mn_stack *s, struct mn_conn *c)
{
    if (c->is_dead || c->state < MN_ESTABLISHED)
        return;
    struct burst b;
    b.is_ready = b.is_capable = false;
    b.left = MN_QUANTUM;
    b.sent = b.err = 0;
    if (c->snd.is_limited && mn_seq_le(c->snd.limited_edge, c->snd.una))
        c->snd.is_limited = false;
    bool has_more = c->sent.lost > 0 || mn_seq_lt(c->snd.nxt, c->snd.end);
    uint64_t rate = has_more ? c->cc.ops->pacing_rate(&c->cc, c->rtt.srtt_ns) : 0;
    if (is_paced(c, rate))
        b.left = pace_burst(s, c, rate);
    else
        rate = 0;
    c->snd.limit = MN_LIMIT_PEER;
    int burst = b.left;
    if (burst > 0 && resend_lost(s, c, &b))
        send_new(s, c, &b);
    if (rate != 0 && b.sent > 0)
        pace_on(s, c, rate, (uint64_t)b.sent * c->snd.mss);
    if (c->sent.lost == 0 && !mn_seq_lt(c->snd.nxt, c->snd.end)) {
        c->snd.limit = MN_LIMIT_APPLICATION;
        c->loss.app_limited_until = c->loss.delivered + mn_loss_flight(c) + 1;
    }
    mn_ack_send(s, c, b.sent > 0);
    arm_timers(s, c, b.sent > 0);
    if (b.left > 0)
        return;
    if (rate == 0) {
        mn_conn_mark(s, c); /* more to send, after the others had their turn */
    } else if (mn_loss_flight(c) + c->snd.mss <= mn_loss_window(c)) {
        note_limited(c);
        c->snd.limit = MN_LIMIT_PACING;
        if (c->snd.pace_at > s->now)
            mn_conn_set_timer(s, c, MN_T_PACE, c->snd.pace_at);
        else
            mn_conn_mark(s, c);
    }
}
