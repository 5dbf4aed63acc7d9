/* Segment arrival (RFC 9293 3.10.7): sequence, RST, SYN, ACK, text, FIN, in that order. */
#include <errno.h>

#include "internal.h"

/* ---- answers ---- */

void mn_tcp_send_reset_for(struct mn_stack *s, const struct mn_tuple *t, const struct mn_segment *g)
{
    struct mn_segment r;
    if (!mn_segment_make_reset(&r, g))
        return;
    if (mn_tcp_emit(s, t, &r) == 0)
        s->stats.tcp_rst_out++;
}

static void answer_now(struct mn_stack *s, struct mn_conn *c)
{
    c->ack.now = true;
    mn_conn_mark(s, c);
}

/* An ACK that a stranger could be provoking: bounded per connection. */
static void answer_limited(struct mn_stack *s, struct mn_conn *c)
{
    if (s->now - c->challenge_at >= MN_SECOND) {
        c->challenge_at = s->now;
        c->challenges = 0;
    }
    if (c->challenges >= MN_CHALLENGES_PER_S)
        return;
    c->challenges++;
    answer_now(s, c);
}

void mn_tcp_challenge(struct mn_stack *s, struct mn_conn *c)
{
    s->stats.tcp_challenge++;
    answer_limited(s, c);
}

/* ---- opening ---- */

bool mn_tcp_may_agree_on_ecn(const struct mn_stack *s, const struct mn_segment *syn)
{
    const uint8_t both = MN_TCP_ECE | MN_TCP_CWR;
    return s->cfg.ecn != MN_ECN_OFF && (syn->flags & both) == both && syn->ecn == MN_ECN_NONE;
}

/* A SYN asks with both flags and a SYN-ACK agrees with one; both on a SYN-ACK come from peers that merely reflect
 * (RFC 3168 6.1.1). A SYN whose packet is marked went through something that rewrites marks. */
static bool agrees_on_ecn(const struct mn_stack *s, const struct mn_conn *c, const struct mn_segment *g)
{
    uint8_t flags = g->flags & (MN_TCP_ECE | MN_TCP_CWR);
    if ((g->flags & MN_TCP_ACK) != 0)
        return c->ecn_asked && flags == MN_TCP_ECE;
    return mn_tcp_may_agree_on_ecn(s, g);
}

static void take_syn_options(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    c->ts.on = g->has_ts;
    if (g->has_ts) {
        c->ts.recent = g->tsval;
        c->ts.recent_at = s->now;
    }
    c->may_sack = g->may_sack; /* ours always does */
    c->ecn_on = agrees_on_ecn(s, c, g);
    c->snd.has_scale = g->wscale >= 0;
    if (c->snd.has_scale) {
        c->snd.shift = (uint8_t)g->wscale;
    } else {
        c->snd.shift = c->rcv.shift = 0;
        if (c->rcv.size > 65535)
            c->rcv.size = 65535;
    }
    mn_conn_set_mss(s, c, g->mss);
    mn_cc_start(&c->cc, s->cc, c->snd.mss);
    c->rcv.irs = g->seq;
    c->rcv.nxt = c->rcv.read = g->seq + 1;
    c->rcv.edge = c->rcv.nxt + (c->rcv.size < 65535 ? c->rcv.size : 65535);
    c->snd.wnd = c->snd.max_wnd = g->wnd; /* never scaled in a SYN */
    c->snd.wl1 = g->seq;
    c->snd.wl2 = g->ack;
}

static void opened(struct mn_stack *s, struct mn_conn *c)
{
    c->state = MN_ESTABLISHED;
    mn_conn_heard(s, c);
    c->rtt.backoff = 0;
    c->rcv.tuned_at = s->now;
    c->rcv.rtt_ns = c->rtt.srtt_ns;
    c->rcv.rtt_since = s->now;
    if (c->rtt.srtt_ns == 0 && c->syn_tries > 0)
        c->rtt.rto_ns = 3 * MN_RTO_INITIAL_NS; /* RFC 6298 5.7 */
    mn_conn_stop_timer(s, c, MN_T_RETX);
    mn_conn_set_timer(s, c, MN_T_KEEP, s->now + MN_KEEP_IDLE);
    s->stats.tcp_opened++;
    s->ops.tcp_connected(s->ops.ctx, c->id);
}

static void take_syn_ack(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    c->snd.una = g->ack;
    if (c->rtt.is_timing)
        mn_rtt_take(&c->rtt, s->now - c->rtt.timed_at);
    c->rtt.is_timing = false;
    answer_now(s, c);
    opened(s, c);
    if (!c->is_dead && (g->len > 0 || (g->flags & MN_TCP_FIN) != 0)) {
        struct mn_segment text = *g;
        text.seq++;
        mn_receive_text(s, c, &text);
    }
}

static void arrive_syn_sent(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    bool has_ack = (g->flags & MN_TCP_ACK) != 0;
    if (has_ack && (mn_seq_le(g->ack, c->snd.iss) || mn_seq_lt(c->snd.nxt, g->ack))) {
        s->stats.tcp_bad_ack++;
        mn_tcp_send_reset_for(s, &c->node.tuple, g);
        return;
    }
    if ((g->flags & MN_TCP_RST) != 0) {
        if (has_ack)
            mn_conn_end(s, c, ECONNREFUSED);
        return;
    }
    if ((g->flags & MN_TCP_SYN) == 0)
        return;
    take_syn_options(s, c, g);
    if (has_ack) {
        take_syn_ack(s, c, g);
        return;
    }
    /* Both sides opened at once. Text that came along is not acknowledged and comes again. */
    c->state = MN_SYN_RCVD;
    mn_tcp_send_syn(s, c);
}

/* ---- synchronized states ---- */

static bool is_acceptable(const struct mn_conn *c, const struct mn_segment *g)
{
    uint32_t space = mn_segment_space(g), nxt = c->rcv.nxt;
    uint32_t window = mn_seq_lt(nxt, c->rcv.edge) ? c->rcv.edge - nxt : 0;
    /* An empty segment at the right edge is what a peer sends whose data before it was lost. */
    if (space == 0)
        return g->seq - nxt <= window;
    if (window == 0)
        return g->seq == nxt; /* its text finds no room, its ACK counts */
    return mn_seq_lt(nxt, g->seq + space) && mn_seq_lt(g->seq, c->rcv.edge);
}

/* RFC 7323 5: false if g is an old duplicate. A little older than the newest is what a reordering network makes of an
 * original that a retransmission has overtaken, or of an ACK: refusing those would make losses of them. */
static bool check_stamps(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    if (!c->ts.on)
        return true;
    if (!g->has_ts) {
        if ((g->flags & MN_TCP_RST) == 0)
            s->stats.tcp_no_timestamp++;
        return true;
    }
    if (mn_seq_lt(g->tsval + MN_PAWS_LATE, c->ts.recent) && (g->flags & MN_TCP_RST) == 0 &&
        s->now - c->ts.recent_at < MN_PAWS_IDLE) {
        s->stats.tcp_paws++;
        return false;
    }
    return true;
}

/* RFC 7323 4.3: what to echo is the stamp of the segment that our last ACK was waiting for. */
void mn_tcp_note_stamp(struct mn_stack *s, struct mn_conn *c, uint32_t seq, uint32_t tsval, uint32_t tsecr)
{
    if (!mn_seq_le(seq, c->ts.last_ack))
        return;
    if (!mn_seq_lt(tsval, c->ts.recent) || s->now - c->ts.recent_at >= MN_PAWS_IDLE) {
        c->ts.recent = tsval;
        c->ts.recent_at = s->now;
    }
    /* An upper bound of the round trip, for the receive window's tuning. */
    struct mn_receive *r = &c->rcv;
    uint64_t rtt = (mn_conn_ts_now(s, c) - tsecr) * MN_MS;
    if (tsecr == 0)
        return;
    rtt = rtt < MN_MS ? MN_MS : rtt;
    if (r->rtt_ns == 0 || rtt < r->rtt_ns)
        r->rtt_ns = rtt;
    if (r->rtt_next_ns == 0 || rtt < r->rtt_next_ns)
        r->rtt_next_ns = rtt;
    if (s->now - r->rtt_since < MN_RTT_SPAN)
        return;
    r->rtt_ns = r->rtt_next_ns;
    r->rtt_next_ns = 0;
    r->rtt_since = s->now;
}

static void arrive_reset(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    s->stats.tcp_rst_in++;
    if (g->seq != c->rcv.nxt) {
        mn_tcp_challenge(s, c); /* in the window, but not exact: RFC 5961 3.2 */
        return;
    }
    if (c->state == MN_SYN_RCVD)
        mn_conn_end(s, c, ECONNREFUSED);
    else if ((c->state == MN_CLOSING || c->state == MN_LAST_ACK) && mn_conn_used(c) == 0)
        mn_conn_finish(s, c); /* both sides had already said all, and heard it */
    else
        mn_conn_end(s, c, ECONNRESET);
}

/* The handshake's last ACK after a simultaneous open. False: not that. */
static bool complete_open(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    if (!mn_seq_lt(c->snd.una, g->ack) || mn_seq_lt(c->snd.nxt, g->ack)) {
        s->stats.tcp_bad_ack++;
        mn_tcp_send_reset_for(s, &c->node.tuple, g);
        return false;
    }
    c->snd.una = g->ack;
    c->snd.wnd = (g->flags & MN_TCP_SYN) != 0 ? g->wnd : (uint32_t)g->wnd << c->snd.shift;
    c->snd.max_wnd = c->snd.wnd;
    c->snd.wl1 = g->seq;
    c->snd.wl2 = g->ack;
    if (c->rtt.is_timing)
        mn_rtt_take(&c->rtt, s->now - c->rtt.timed_at);
    c->rtt.is_timing = false;
    opened(s, c);
    return !c->is_dead;
}

void mn_tcp_peer_finished(struct mn_stack *s, struct mn_conn *c)
{
    switch (c->state) {
    case MN_ESTABLISHED:
        c->state = MN_CLOSE_WAIT;
        break;
    case MN_FIN_WAIT_1:
        c->state = MN_CLOSING; /* had our FIN been acknowledged we would be in FIN-WAIT-2 */
        break;
    case MN_FIN_WAIT_2:
        mn_wait_enter(s, c);
        return; /* it told the application */
    default:
        break;
    }
    mn_receive_offer(s, c);
}

static void arrive_text(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    if (g->len == 0 && (g->flags & MN_TCP_FIN) == 0)
        return;
    if (c->state != MN_ESTABLISHED && c->state != MN_FIN_WAIT_1 && c->state != MN_FIN_WAIT_2)
        return; /* after its FIN there is no text */
    if (c->is_orphan && mn_seq_lt(c->rcv.nxt, g->seq + g->len)) {
        /* Nobody will read it: say so (RFC 9293 3.6.1). */
        mn_tcp_send_reset(s, c);
        mn_conn_kill(s, c);
        return;
    }
    mn_receive_text(s, c, g);
}

/* False: g was dealt with or is of no use. */
static bool pass_checks(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    bool is_reset = (g->flags & MN_TCP_RST) != 0;
    bool is_current = check_stamps(s, c, g);
    if (!is_current || !is_acceptable(c, g)) {
        s->stats.tcp_out_of_window++;
        if (is_reset)
            return false;
        /* The crossing SYN of a simultaneous open, or our SYN-ACK was lost. */
        if (c->state == MN_SYN_RCVD && (g->flags & MN_TCP_SYN) != 0 && g->seq == c->rcv.irs) {
            if ((g->flags & MN_TCP_ACK) == 0)
                mn_tcp_send_syn(s, c);
            return (g->flags & MN_TCP_ACK) != 0;
        }
        /* Also of what its stamp shows to be old: a late original, whose sender must learn that it sent twice. */
        if (g->len > 0 && mn_seq_le(g->seq + g->len, c->rcv.nxt))
            mn_ack_note_twice(s, c, g->seq, g->seq + g->len);
        if (mn_segment_space(g) > 0)
            answer_now(s, c);
        else
            answer_limited(s, c);
        return false;
    }
    if (is_reset) {
        arrive_reset(s, c, g);
        return false;
    }
    if ((g->flags & MN_TCP_SYN) != 0) {
        mn_tcp_challenge(s, c);
        return false;
    }
    return (g->flags & MN_TCP_ACK) != 0;
}

static void arrive_synchronized(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    if (!pass_checks(s, c, g))
        return;
    if (c->ts.on && g->has_ts)
        mn_tcp_note_stamp(s, c, g->seq, g->tsval, g->tsecr);
    if (c->state == MN_SYN_RCVD) {
        if (!complete_open(s, c, g))
            return;
        if ((g->flags & MN_TCP_SYN) != 0) {
            answer_now(s, c); /* the peer's SYN-ACK: its SYN is known already */
            return;
        }
    } else if (!mn_tcp_take_ack(s, c, g)) {
        return;
    }
    mn_conn_heard(s, c);
    if (c->is_dead || c->state == MN_CLOSED)
        return;
    if (c->ecn_on && g->len > 0)
        mn_ack_note_ecn(s, c, g);
    arrive_text(s, c, g);
}

void mn_tcp_arrive(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    if (c->state == MN_SYN_SENT)
        arrive_syn_sent(s, c, g);
    else if (c->state != MN_CLOSED)
        arrive_synchronized(s, c, g);
}

/* ---- demultiplexing ---- */

/* Nobody is here. What strangers learn depends on the rules: a closed port is told only to those who might use it. */
static void arrive_nowhere(struct mn_stack *s, uint32_t peer, const struct mn_packet *p, const struct mn_tuple *t,
                           const struct mn_segment *g, uint32_t min_iss)
{
    bool is_syn = (g->flags & (MN_TCP_SYN | MN_TCP_ACK)) == MN_TCP_SYN;
    if (peer != MN_PEER_SELF && !mn_rules_allow_port(s->rules, MN_PROTO_TCP, &t->remote, &t->local, t->lport)) {
        s->stats.filter_drop++;
        if (is_syn && (g->flags & MN_TCP_RST) == 0)
            mn_stack_send_tsmp_reject(s, peer, p, g);
        return;
    }
    s->stats.filter_accept++;
    const struct mn_port *l = is_syn ? mn_ports_find(&s->listeners, &t->local, t->lport) : NULL;
    if (l != NULL && (g->flags & (MN_TCP_RST | MN_TCP_FIN)) == 0)
        mn_listen_input(s, peer, t, g, l->id, min_iss);
    else if (!mn_listen_cookie_input(s, peer, t, g))
        mn_tcp_send_reset_for(s, t, g);
}

static void arrive_conn(struct mn_stack *s, uint32_t peer, struct mn_conn *c, const struct mn_segment *g)
{
    c->peer = peer; /* the address may have moved to another peer: the device has checked that it is its own */
    if (mn_run_take(s, c, g))
        return;
    mn_tcp_arrive(s, c, g);
}

void mn_tcp_input(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    struct mn_segment g;
    int err = mn_segment_parse(&g, p);
    if (err != 0) {
        if (err == MN_PACKET_CHECKSUM)
            s->stats.drop_checksum++;
        else
            s->stats.drop_malformed++;
        return;
    }
    s->stats.tcp_in++;
    struct mn_tuple t = {p->dst, p->src, g.dport, g.sport};
    struct mn_node *n = mn_demux_find(&s->demux, &t);
    uint32_t min_iss = 0;
    if (n != NULL && n->kind == MN_NODE_CONN) {
        arrive_conn(s, peer, (struct mn_conn *)n, &g);
        return;
    }
    if (n != NULL && n->kind == MN_NODE_HALF) {
        mn_half_input(s, (struct mn_half *)n, peer, &g);
        return;
    }
    if (n != NULL && !mn_wait_input(s, (struct mn_wait *)n, &g, &min_iss))
        return;
    arrive_nowhere(s, peer, p, &t, &g, min_iss);
}
