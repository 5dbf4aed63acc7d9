/* What the owner asks of TCP connections. */
#include <errno.h>

#include "internal.h"

/* ---- opening ---- */

enum {
    EPHEMERAL_FIRST = 32768,
    EPHEMERAL_SPAN = 65536 - EPHEMERAL_FIRST,
};

/* RFC 6056 algorithm 3: an offset nobody can guess, then one after the other. */
static bool choose_port(struct mn_stack *s, struct mn_tuple *t)
{
    t->lport = 0;
    uint32_t offset = (uint32_t)mn_secret_number(s, t, MN_SECRET_PORT);
    for (uint32_t i = 0; i < EPHEMERAL_SPAN; i++) {
        t->lport = (uint16_t)(EPHEMERAL_FIRST + (offset + s->port_counter++) % EPHEMERAL_SPAN);
        bool is_itself = t->lport == t->rport && mn_ip_equal(&t->local, &t->remote);
        if (!is_itself && mn_demux_find(&s->demux, t) == NULL)
            return true;
    }
    return false;
}

static int choose_tuple(struct mn_stack *s, const struct mn_ep *remote, const struct mn_ip *local, struct mn_tuple *t)
{
    if (remote->port == 0 || mn_packet_destination_is_special(&remote->ip) || mn_ip_is_zero(&remote->ip))
        return -EINVAL;
    *t = (struct mn_tuple){.remote = remote->ip, .rport = remote->port};
    if (local != NULL) {
        if (mn_ip_is4(local) != mn_ip_is4(&remote->ip))
            return -EINVAL;
        if (!mn_stack_is_own(s, local))
            return -EADDRNOTAVAIL;
        t->local = *local;
    } else if (!mn_stack_choose_source(s, &remote->ip, &t->local)) {
        return -EADDRNOTAVAIL;
    }
    return choose_port(s, t) ? 0 : -EADDRINUSE;
}

int mn_tcp_connect(struct mn_stack *s, const struct mn_ep *remote, const struct mn_ip *local_or_null, uint32_t *conn,
                   uint64_t now_ns)
{
    struct mn_tuple t;
    int err = choose_tuple(s, remote, local_or_null, &t);
    if (err != 0)
        return err;
    uint32_t peer = mn_stack_route(s, &remote->ip);
    if (peer == MN_PEER_NONE)
        return -EHOSTUNREACH;
    mn_turn_enter(s, now_ns);
    struct mn_conn *c = mn_conn_new(s, &t, &err);
    if (c != NULL) {
        c->state = MN_SYN_SENT;
        c->peer = peer;
        mn_conn_start_sequence(s, c, mn_secret_isn(s, &t, &c->ts.offset));
        mn_tcp_send_syn(s, c);
        *conn = c->id;
    }
    mn_turn_leave(s);
    return c != NULL ? 0 : -err;
}

/* ---- sending ---- */

static bool can_send(const struct mn_conn *c)
{
    return c != NULL && !c->snd.fin_queued && (c->state == MN_ESTABLISHED || c->state == MN_CLOSE_WAIT);
}

ssize_t mn_tcp_send_space(struct mn_stack *s, uint32_t conn)
{
    struct mn_conn *c = mn_conn_get(s, conn);
    if (c == NULL)
        return -EBADF;
    if (!can_send(c))
        return -EPIPE;
    return c->snd.ring.cap != 0 ? (ssize_t)mn_conn_room(c) : (ssize_t)MN_SND_RING_FIRST;
}

/* A flight that has outgrown the ring deserves a larger one. A window says less: without loss it grows for ever. */
static void fit_ring(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_send *d = &c->snd;
    uint32_t first = d->una, used = mn_conn_used(c), cap = d->ring.cap;
    d->ring.owner = mn_budget_owner(c);
    if (d->ring.data == NULL)
        cap = mn_budget_is_tight(s)                   ? MN_RING_LEAST
              : s->cfg.sndbuf_max < MN_SND_RING_FIRST ? s->cfg.sndbuf_max
                                                      : MN_SND_RING_FIRST;
    else if (used > cap / 4 * 3 && cap < s->cfg.sndbuf_max && (cap < MN_SND_RING_FREE || d->most_out > cap / 2))
        cap *= 2;
    if (cap != d->ring.cap)
        d->most_out = 0; /* to be seen again, or a moment's flight would double it for ever */
    if (cap != d->ring.cap)
        mn_ring_resize(s, &d->ring, cap, first, first + used);
}

uint8_t *mn_tcp_send_reserve(struct mn_stack *s, uint32_t conn, size_t *room)
{
    struct mn_conn *c = mn_conn_get(s, conn);
    *room = 0;
    if (!can_send(c))
        return NULL;
    fit_ring(s, c);
    const struct mn_ring *r = &c->snd.ring;
    uint32_t free_bytes = mn_conn_room(c);
    if (free_bytes == 0) {
        c->snd.wants_room = true;
        if (r->data == NULL)
            mn_budget_wait(s, c);
        return NULL;
    }
    uint32_t at = c->snd.end & (r->cap - 1);
    *room = free_bytes < r->cap - at ? free_bytes : r->cap - at;
    return r->data + at;
}

void mn_tcp_send_commit(struct mn_stack *s, uint32_t conn, size_t n, uint64_t now_ns)
{
    struct mn_conn *c = mn_conn_get(s, conn);
    if (!can_send(c) || n == 0 || n > c->snd.ring.cap - mn_conn_used(c))
        return;
    mn_turn_enter(s, now_ns);
    c->snd.end += (uint32_t)n;
    mn_conn_mark(s, c);
    mn_turn_leave(s);
}

/* ---- receiving ---- */

void mn_tcp_recv_resume(struct mn_stack *s, uint32_t conn, uint64_t now_ns)
{
    struct mn_conn *c = mn_conn_get(s, conn);
    if (c == NULL || !c->rcv.is_blocked)
        return;
    mn_turn_enter(s, now_ns);
    c->rcv.is_blocked = false;
    mn_receive_offer(s, c);
    if (!c->is_dead && c->state >= MN_ESTABLISHED && !c->rcv.fin_taken) {
        uint32_t edge, step = 2 * c->snd.mss < c->rcv.size / 2 ? 2 * c->snd.mss : c->rcv.size / 2;
        mn_receive_window(c, &edge);
        if (edge - c->rcv.edge >= step) {
            c->ack.now = true;
            mn_conn_mark(s, c);
        }
    }
    mn_turn_leave(s);
}

/* ---- ending ---- */

static void queue_fin(struct mn_stack *s, struct mn_conn *c)
{
    if (c->snd.fin_queued)
        return;
    c->snd.fin_queued = true;
    c->state = c->state == MN_CLOSE_WAIT ? MN_LAST_ACK : MN_FIN_WAIT_1;
    mn_conn_mark(s, c);
}

void mn_tcp_shutdown(struct mn_stack *s, uint32_t conn, uint64_t now_ns)
{
    struct mn_conn *c = mn_conn_get(s, conn);
    if (!can_send(c))
        return;
    mn_turn_enter(s, now_ns);
    queue_fin(s, c);
    mn_turn_leave(s);
}

void mn_tcp_abort(struct mn_stack *s, uint32_t conn, uint64_t now_ns)
{
    struct mn_conn *c = mn_conn_get(s, conn);
    if (c == NULL)
        return;
    mn_turn_enter(s, now_ns);
    mn_tcp_send_reset(s, c);
    mn_conn_kill(s, c);
    mn_turn_leave(s);
}

void mn_tcp_close(struct mn_stack *s, uint32_t conn, uint64_t now_ns)
{
    struct mn_conn *c = mn_conn_get(s, conn);
    if (c == NULL)
        return;
    bool has_unread = mn_conn_unread(c) > 0 || c->run != 0;
    mn_turn_enter(s, now_ns);
    if (c->state < MN_ESTABLISHED || has_unread) {
        mn_tcp_send_reset(s, c);
        mn_conn_kill(s, c);
    } else {
        c->is_orphan = true;
        queue_fin(s, c);
        if (c->state == MN_FIN_WAIT_2)
            mn_conn_set_timer(s, c, MN_T_LIFE, s->now + MN_FIN_WAIT_2_NS);
    }
    mn_turn_leave(s);
}

/* ---- looking ---- */

int mn_tcp_addrs(const struct mn_stack *s, uint32_t conn, struct mn_ep *local, struct mn_ep *remote, uint32_t *peer)
{
    const struct mn_conn *c = mn_conn_get(s, conn);
    if (c == NULL)
        return -EBADF;
    const struct mn_tuple *t = &c->node.tuple;
    if (local != NULL)
        *local = (struct mn_ep){.ip = t->local, .port = t->lport};
    if (remote != NULL)
        *remote = (struct mn_ep){.ip = t->remote, .port = t->rport};
    if (peer != NULL)
        *peer = c->peer;
    return 0;
}

int mn_tcp_info(const struct mn_stack *s, uint32_t conn, struct mn_tcp_info *info)
{
    const struct mn_conn *c = mn_conn_get(s, conn);
    if (c == NULL)
        return -EBADF;
    *info = (struct mn_tcp_info){
        .state = c->state,
        .mss = c->snd.mss,
        .cwnd = c->cc.cwnd,
        .ssthresh = c->cc.ssthresh,
        .snd_wnd = c->snd.wnd,
        .rcv_wnd = c->rcv.edge - c->rcv.nxt,
        .flight = c->snd.nxt - c->snd.una,
        .unsent = mn_seq_lt(c->snd.nxt, c->snd.end) ? c->snd.end - c->snd.nxt : 0,
        .unread = mn_conn_unread(c),
        .srtt_ns = c->rtt.srtt_ns,
        .rttvar_ns = c->rtt.rttvar_ns,
        .rto_ns = mn_rtt_timeout(&c->rtt),
        .retransmits = c->retransmits,
        .timeouts = c->timeouts,
        .min_rtt_ns = c->rtt.min_ns,
        .pacing_rate = c->cc.ops != NULL ? c->cc.ops->pacing_rate(&c->cc, c->rtt.srtt_ns) : 0, /* none before a SYN */
        .delivery_rate = c->loss.rate,
        .delivered = c->loss.delivered,
        .in_network = mn_loss_flight(c),
        .sacked = c->sent.sacked,
        .lost = c->sent.lost,
        .reordering = c->loss.has_reordering ? c->loss.reorder_factor : 0,
        .is_recovering = c->loss.in_recovery || c->loss.in_timeout,
        .limit = (enum mn_tcp_limit)c->snd.limit,
        .bytes_in = c->bytes_in,
        .bytes_out = c->bytes_out,
    };
    return 0;
}

uint32_t mn_tcp_count_delivering(const struct mn_stack *s)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->slot_used; i++) {
        const struct mn_conn *c = s->slots[i].conn;
        count += c != NULL && c->is_orphan && c->state != MN_FIN_WAIT_2;
    }
    return count;
}
