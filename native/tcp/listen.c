/* Passive opens: a SYN becomes a small record, and only the handshake's last ACK a connection. Both are bounded; where
 * there is no room for a record, or one peer has filled its share, the peer remembers for us (SYN cookies). */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static struct mn_listener *listener_of(struct mn_stack *s, uint32_t id)
{
    return mn_ports_get(&s->listeners, id) == NULL ? NULL : &s->listener_data[mn_ports_slot(id)];
}

/* ---- records ---- */

static void link_last(struct mn_stack *s, struct mn_half *h)
{
    h->prev = s->half_last;
    h->next = NULL;
    if (s->half_last != NULL)
        s->half_last->next = h;
    else
        s->half_first = h;
    s->half_last = h;
}

void mn_half_free(struct mn_stack *s, struct mn_half *h)
{
    struct mn_listener *l = listener_of(s, h->listener);
    if (l != NULL)
        l->half_open--;
    s->half_by_peer[h->owner]--;
    if (h->prev != NULL)
        h->prev->next = h->next;
    else
        s->half_first = h->next;
    if (h->next != NULL)
        h->next->prev = h->prev;
    else
        s->half_last = h->prev;
    mn_demux_remove(&s->demux, &h->node);
    mn_timers_cancel(&s->timers, &h->timer);
    s->stats.tcp_half_open--;
    free(h);
}

/* Room for one more? The oldest that has already been asked twice gives way: it is the least likely to answer. */
static bool make_room(struct mn_stack *s, const struct mn_listener *l, uint32_t listener)
{
    bool is_own = l->half_open >= l->backlog;
    if (!is_own && s->stats.tcp_half_open < s->cfg.max_half_open)
        return true;
    int looked = 0;
    for (struct mn_half *h = s->half_first; h != NULL && h->tries > 0 && looked < MN_HALF_LOOK; h = h->next, looked++) {
        if (is_own && h->listener != listener)
            continue;
        mn_half_free(s, h);
        return true;
    }
    s->stats.tcp_half_open_full++;
    return false;
}

/* One peer's flood must not take the places of the others, nor push their records out. */
static bool has_share(const struct mn_stack *s, const struct mn_listener *l, uint32_t peer)
{
    uint32_t share = l->backlog / 4 < MN_HALF_SHARE ? MN_HALF_SHARE : l->backlog / 4;
    return s->half_by_peer[peer % MN_BUCKETS] < share;
}

/* ---- segments ---- */

static uint32_t half_ts(const struct mn_stack *s, const struct mn_half *h)
{
    return (uint32_t)(s->now / MN_MS) + h->ts_offset;
}

static uint32_t first_window(const struct mn_stack *s)
{
    uint32_t size = s->cfg.rcvbuf_max < MN_RCVBUF_FIRST ? s->cfg.rcvbuf_max : MN_RCVBUF_FIRST;
    size -= 1U << mn_conn_shift(s);
    return size < 65535 ? size : 65535;
}

static void emit_syn_ack(struct mn_stack *s, const struct mn_half *h, uint32_t tsval)
{
    struct mn_segment g = {.seq = h->iss, .ack = h->irs + 1, .flags = MN_TCP_SYN | MN_TCP_ACK};
    if (h->ecn_on)
        g.flags |= MN_TCP_ECE;
    g.mss = mn_conn_advertised_mss(s, &h->node.tuple);
    g.wscale = -1;
    if (h->wscale >= 0)
        g.wscale = (int8_t)mn_conn_shift(s);
    g.may_sack = h->may_sack;
    g.has_ts = h->has_ts;
    g.tsval = tsval;
    g.tsecr = h->ts_recent;
    g.wnd = (uint16_t)first_window(s);
    mn_tcp_emit(s, &h->node.tuple, &g);
}

static void send_syn_ack(struct mn_stack *s, struct mn_half *h)
{
    emit_syn_ack(s, h, half_ts(s, h));
    mn_timers_arm(&s->timers, &h->timer, s->now + (MN_RTO_INITIAL_NS << h->tries));
}

static void send_ack(struct mn_stack *s, struct mn_half *h)
{
    struct mn_segment g = {.seq = h->iss + 1, .ack = h->irs + 1, .flags = MN_TCP_ACK, .wscale = -1};
    g.has_ts = h->has_ts;
    g.tsval = half_ts(s, h);
    g.tsecr = h->ts_recent;
    g.wnd = (uint16_t)(h->wscale < 0 ? first_window(s) : first_window(s) >> mn_conn_shift(s));
    mn_tcp_emit(s, &h->node.tuple, &g);
}

static void take_offers(const struct mn_stack *s, struct mn_half *h, const struct mn_segment *g)
{
    h->irs = g->seq;
    h->mss = g->mss;
    h->wscale = g->wscale;
    h->has_ts = g->has_ts;
    h->ts_recent = g->tsval;
    h->may_sack = g->may_sack;
    h->ecn_on = mn_tcp_may_agree_on_ecn(s, g);
}

static void answer_with_cookie(struct mn_stack *s, struct mn_listener *l, const struct mn_tuple *t,
                               const struct mn_segment *g, uint32_t min_iss)
{
    struct mn_half h = {.node.tuple = *t};
    mn_secret_isn(s, t, &h.ts_offset);
    take_offers(s, &h, g);
    h.iss = mn_syncookie_make(s, t, h.irs, h.mss);
    if (min_iss != 0 && mn_seq_lt(h.iss, min_iss))
        return; /* inside the numbers of a connection that just ended: a later SYN finds others */
    if (!h.has_ts) {
        h.wscale = -1; /* nothing would bring it back */
        h.may_sack = h.ecn_on = false;
    }
    l->cookies_until = s->now + 2 * MN_COOKIE_PERIOD;
    s->stats.tcp_cookies_sent++;
    emit_syn_ack(s, &h, mn_syncookie_stamp(half_ts(s, &h), &h));
}

void mn_listen_input(struct mn_stack *s, uint32_t peer, const struct mn_tuple *t, const struct mn_segment *g,
                     uint32_t listener, uint32_t min_iss)
{
    struct mn_listener *l = listener_of(s, listener);
    if (l == NULL)
        return;
    if (!has_share(s, l, peer) || !make_room(s, l, listener)) {
        answer_with_cookie(s, l, t, g, min_iss);
        return;
    }
    struct mn_half *h = calloc(1, sizeof *h);
    if (h == NULL) {
        s->stats.tcp_no_memory++;
        return;
    }
    h->node = (struct mn_node){.tuple = *t, .kind = MN_NODE_HALF};
    if (!mn_timers_reserve(&s->timers, s->stats.tcp_conns + s->stats.tcp_half_open + 2) ||
        !mn_demux_add(&s->demux, &h->node)) {
        s->stats.tcp_no_memory++;
        free(h);
        return;
    }
    h->timer.kind = MN_DEADLINE_HALF;
    h->listener = listener;
    h->peer = peer;
    h->owner = (uint8_t)(peer % MN_BUCKETS);
    take_offers(s, h, g);
    h->iss = mn_secret_isn(s, t, &h->ts_offset);
    if (min_iss != 0 && mn_seq_lt(h->iss, min_iss))
        h->iss = min_iss; /* beyond what the connection before it in TIME-WAIT used */
    h->sent_at = s->now;
    l->half_open++;
    s->half_by_peer[h->owner]++;
    s->stats.tcp_half_open++;
    link_last(s, h);
    send_syn_ack(s, h);
}

/* ---- the last step ---- */

static struct mn_conn *promote(struct mn_stack *s, const struct mn_half *h, const struct mn_segment *g)
{
    int err;
    if (s->ops.tcp_may_accept != NULL && !s->ops.tcp_may_accept(s->ops.ctx, h->listener)) {
        s->stats.tcp_accept_full++;
        return NULL;
    }
    struct mn_conn *c = mn_conn_new(s, &h->node.tuple, &err);
    if (c == NULL)
        return NULL;
    c->is_passive = true;
    c->may_sack = h->may_sack;
    c->ecn_on = h->ecn_on;
    c->state = MN_ESTABLISHED;
    mn_conn_start_sequence(s, c, h->iss);
    c->snd.una = c->snd.nxt = h->iss + 1;
    c->snd.shift = h->wscale < 0 ? 0 : (uint8_t)h->wscale;
    if (h->wscale < 0) {
        c->rcv.shift = 0;
        c->rcv.size = first_window(s);
    }
    c->ts = (struct mn_stamps){h->has_ts, h->ts_recent, h->ts_offset, h->irs + 1, s->now};
    mn_conn_set_mss(s, c, h->mss);
    mn_cc_start(&c->cc, s->cc, c->snd.mss);
    c->rcv.irs = h->irs;
    c->rcv.nxt = c->rcv.read = h->irs + 1;
    c->rcv.edge = c->rcv.nxt + first_window(s);
    c->rcv.tuned_at = s->now;
    c->snd.wnd = c->snd.max_wnd = (uint32_t)g->wnd << c->snd.shift;
    c->snd.wl1 = g->seq;
    c->snd.wl2 = g->ack;
    if (h->tries == 0)
        mn_rtt_take(&c->rtt, s->now - h->sent_at);
    else if (!h->has_ts)
        c->rtt.rto_ns = 3 * MN_RTO_INITIAL_NS;
    c->rcv.rtt_ns = c->rtt.srtt_ns;
    c->rcv.rtt_since = s->now;
    mn_conn_set_timer(s, c, MN_T_KEEP, s->now + MN_KEEP_IDLE);
    return c;
}

static void hand_over(struct mn_stack *s, struct mn_conn *c, uint32_t peer, uint32_t listener,
                      const struct mn_segment *g)
{
    c->peer = peer;
    s->stats.tcp_accepted++;
    s->ops.tcp_accepted(s->ops.ctx, c->id, listener);
    if (!c->is_dead)
        mn_tcp_arrive(s, c, g);
}

static void complete(struct mn_stack *s, struct mn_half *h, uint32_t peer, const struct mn_segment *g)
{
    uint32_t listener = h->listener;
    struct mn_conn *c = promote(s, h, g);
    if (c == NULL)
        return; /* full: the peer sends again */
    mn_half_free(s, h);
    hand_over(s, c, peer, listener, g);
}

bool mn_listen_cookie_input(struct mn_stack *s, uint32_t peer, const struct mn_tuple *t, const struct mn_segment *g)
{
    const struct mn_port *p = mn_ports_find(&s->listeners, &t->local, t->lport);
    struct mn_listener *l = p == NULL ? NULL : listener_of(s, p->id);
    if (l == NULL || s->now >= l->cookies_until || (g->flags & (MN_TCP_ACK | MN_TCP_SYN | MN_TCP_RST)) != MN_TCP_ACK)
        return false;
    struct mn_half h = {.node.tuple = *t, .listener = p->id, .irs = g->seq - 1, .iss = g->ack - 1};
    if (!mn_syncookie_check(s, t, h.irs, h.iss, &h.mss)) {
        /* No reset: with the ACK of the handshake lost, a later segment of an honest peer looks like this too. */
        s->stats.tcp_cookies_refused++;
        return true;
    }
    mn_secret_isn(s, t, &h.ts_offset);
    h.tries = 1; /* unknown: no round trip was measured */
    h.wscale = -1;
    h.has_ts = g->has_ts;
    h.ts_recent = g->tsval;
    if (h.has_ts)
        mn_syncookie_unstamp(g->tsecr, &h);
    struct mn_conn *c = promote(s, &h, g);
    if (c == NULL)
        return true;
    s->stats.tcp_cookies_taken++;
    hand_over(s, c, peer, p->id, g);
    return true;
}

void mn_half_input(struct mn_stack *s, struct mn_half *h, uint32_t peer, const struct mn_segment *g)
{
    uint32_t nxt = h->irs + 1;
    h->peer = peer;
    if ((g->flags & MN_TCP_RST) != 0) {
        s->stats.tcp_rst_in++;
        if (g->seq == nxt)
            mn_half_free(s, h);
        else if (g->seq - nxt < first_window(s))
            send_ack(s, h);
        return;
    }
    if ((g->flags & MN_TCP_SYN) != 0) {
        /* The same again: our answer was lost. Another: if it is real, our ACK makes the peer reset this one. */
        if (g->seq == h->irs && (g->flags & MN_TCP_ACK) == 0) {
            h->ecn_on = h->ecn_on && mn_tcp_may_agree_on_ecn(s, g); /* it may have stopped asking */
            send_syn_ack(s, h);
        } else {
            send_ack(s, h);
        }
        return;
    }
    if ((g->flags & MN_TCP_ACK) == 0)
        return;
    if (g->ack != h->iss + 1) {
        s->stats.tcp_bad_ack++;
        mn_tcp_send_reset_for(s, &h->node.tuple, g);
        return;
    }
    bool is_old = h->has_ts && g->has_ts && mn_seq_lt(g->tsval, h->ts_recent);
    if (is_old || g->seq - nxt > first_window(s)) {
        s->stats.tcp_out_of_window++;
        send_ack(s, h);
        return;
    }
    complete(s, h, peer, g);
}

void mn_half_on_deadline(struct mn_stack *s, struct mn_half *h)
{
    if (h->tries >= MN_SYN_ACK_RETRIES) {
        mn_half_free(s, h);
        return;
    }
    h->tries++;
    send_syn_ack(s, h);
}

void mn_half_sweep(struct mn_stack *s)
{
    for (struct mn_half *h = s->half_first, *next; h != NULL; h = next) {
        const struct mn_tuple *t = &h->node.tuple;
        next = h->next;
        if (h->peer != MN_PEER_SELF && (!mn_stack_is_own(s, &t->local) ||
                                        !mn_rules_allow_port(s->rules, MN_PROTO_TCP, &t->remote, &t->local, t->lport)))
            mn_half_free(s, h);
    }
}

/* ---- listeners ---- */

int mn_tcp_listen(struct mn_stack *s, const struct mn_ip *addr_or_null, uint16_t port, unsigned backlog,
                  uint32_t *listener)
{
    static const struct mn_ip any;
    uint16_t start;
    if (addr_or_null != NULL && !mn_stack_is_own(s, addr_or_null))
        return -EADDRNOTAVAIL;
    if (s->listener_data == NULL) {
        s->listener_data = calloc(MN_PORTS_MAX, sizeof *s->listener_data);
        if (s->listener_data == NULL)
            return -ENOMEM;
    }
    s->ops.random(s->ops.ctx, (uint8_t *)&start, sizeof start);
    int err = mn_ports_open(&s->listeners, addr_or_null != NULL ? addr_or_null : &any, port, start, listener);
    if (err != 0)
        return err;
    uint32_t bound = backlog == 0 ? 1024 : backlog;
    s->listener_data[mn_ports_slot(*listener)] = (struct mn_listener){.backlog = bound};
    return 0;
}

void mn_tcp_unlisten(struct mn_stack *s, uint32_t listener)
{
    if (mn_ports_get(&s->listeners, listener) == NULL)
        return;
    for (struct mn_half *h = s->half_first, *next; h != NULL; h = next) {
        next = h->next;
        if (h->listener == listener)
            mn_half_free(s, h);
    }
    mn_ports_close(&s->listeners, listener);
}

uint16_t mn_tcp_listener_port(const struct mn_stack *s, uint32_t listener)
{
    const struct mn_port *p = mn_ports_get(&s->listeners, listener);
    return p == NULL ? 0 : p->local.port;
}
