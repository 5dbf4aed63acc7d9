/* The stack as a whole: packets in, batches, packets out, own addresses and the loopback, rules, deadlines. */
#include "stack.h"

#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* ---- creation ---- */

static struct mn_stack_config complete_config(const struct mn_stack_config *given)
{
    struct mn_stack_config c = {0};
    if (given != NULL)
        c = *given;
    c.mtu = c.mtu == 0 ? 1280 : c.mtu < 576 ? 576 : c.mtu > 65535 ? 65535 : c.mtu;
    c.max_conns = c.max_conns == 0 ? 16384 : c.max_conns > MN_MAX_CONNS ? MN_MAX_CONNS : c.max_conns;
    c.max_half_open = c.max_half_open == 0 ? 4096 : c.max_half_open;
    c.max_time_wait = c.max_time_wait == 0 ? 32768 : c.max_time_wait;
    c.rcvbuf_max = c.rcvbuf_max == 0 ? 8U << 20 : c.rcvbuf_max;
    c.memory_max = c.memory_max == 0 ? 256U << 20 : c.memory_max < 1U << 20 ? 1U << 20 : c.memory_max;
    c.sndbuf_max = c.sndbuf_max == 0 ? 8U << 20 : c.sndbuf_max;
    /* Rings are powers of two; 64 MiB is far beyond any path and keeps windows within half the sequence space. */
    uint32_t rcv = 16U << 10, snd = 16U << 10;
    while (rcv * 2 <= c.rcvbuf_max && rcv < 64U << 20)
        rcv *= 2;
    while (snd * 2 <= c.sndbuf_max && snd < 64U << 20)
        snd *= 2;
    c.rcvbuf_max = rcv;
    c.sndbuf_max = snd;
    return c;
}

struct mn_stack *mn_stack_create(const struct mn_stack_ops *ops, const struct mn_stack_config *config, uint64_t now_ns)
{
    struct mn_stack *s = calloc(1, sizeof *s);
    if (s == NULL)
        return NULL;
    s->ops = *ops;
    s->cfg = complete_config(config);
    s->now = now_ns;
    s->free_first = s->free_last = MN_NO_SLOT;
    s->runs = calloc(MN_RUNS, sizeof *s->runs);
    s->cc = mn_cc_find(s->cfg.cc);
    if (s->runs == NULL || s->cc == NULL || !mn_secret_start(s)) {
        mn_stack_destroy(s);
        return NULL;
    }
    uint64_t seeds[2];
    ops->random(ops->ctx, (uint8_t *)seeds, sizeof seeds);
    ops->random(ops->ctx, (uint8_t *)&s->port_counter, sizeof s->port_counter);
    s->demux.seed = seeds[0];
    mn_flows_init(&s->flows, seeds[1]);
    return s;
}

void mn_stack_destroy(struct mn_stack *s)
{
    if (s == NULL)
        return;
    while (s->half_first != NULL)
        mn_half_free(s, s->half_first);
    while (s->wait_first != NULL)
        mn_wait_free(s, s->wait_first);
    mn_conn_free_all(s);
    mn_fragments_free(&s->fragments);
    mn_chunks_free(s);
    free(s->demux.buckets);
    mn_timers_free(&s->timers);
    mn_ports_free(&s->listeners);
    mn_ports_free(&s->udp);
    mn_flows_free(&s->flows);
    mn_rules_free(s->rules);
    mn_secret_stop(s);
    free(s->listener_data);
    free(s->loop.slots);
    free(s->runs);
    free(s);
}

const struct mn_stack_stats *mn_stack_stats(const struct mn_stack *s)
{
    return &s->stats;
}

/* ---- addresses ---- */

int mn_stack_set_addresses(struct mn_stack *s, const struct mn_ip *addresses, size_t n)
{
    if (n > MN_STACK_MAX_ADDRESSES)
        return -E2BIG;
    for (size_t i = 0; i < n; i++)
        s->addresses[i] = addresses[i];
    s->address_count = n;
    s->sweep_due = true;
    return 0;
}

bool mn_stack_is_own(const struct mn_stack *s, const struct mn_ip *ip)
{
    for (size_t i = 0; i < s->address_count; i++)
        if (mn_ip_equal(&s->addresses[i], ip))
            return true;
    return false;
}

bool mn_stack_choose_source(const struct mn_stack *s, const struct mn_ip *dst, struct mn_ip *src)
{
    if (mn_stack_is_own(s, dst)) {
        *src = *dst;
        return true;
    }
    for (size_t i = 0; i < s->address_count; i++) {
        if (mn_ip_is4(&s->addresses[i]) == mn_ip_is4(dst)) {
            *src = s->addresses[i];
            return true;
        }
    }
    return false;
}

uint32_t mn_stack_route(struct mn_stack *s, const struct mn_ip *dst)
{
    return mn_stack_is_own(s, dst) ? MN_PEER_SELF : s->ops.route(s->ops.ctx, dst);
}

/* ---- packets out ---- */

static uint8_t *begin_loopback(struct mn_stack *s, int *err)
{
    struct mn_loopback *l = &s->loop;
    *err = ENOBUFS;
    if (l->slots == NULL) {
        l->slots = malloc(s->cfg.mtu * MN_LOOPBACK_SLOTS);
        if (l->slots == NULL)
            return NULL;
    }
    if (l->count == MN_LOOPBACK_SLOTS) {
        s->stats.loopback_full++;
        return NULL;
    }
    s->out_is_loop = true;
    return l->slots + (size_t)((l->head + l->count) % MN_LOOPBACK_SLOTS) * s->cfg.mtu;
}

uint8_t *mn_stack_begin(struct mn_stack *s, const struct mn_ip *dst, size_t max, int *err)
{
    s->out_is_loop = false;
    *err = ENOBUFS;
    if (mn_stack_is_own(s, dst))
        return begin_loopback(s, err);
    uint8_t *out = s->ops.out_begin(s->ops.ctx, dst, max, err);
    if (out == NULL && *err == ENOBUFS)
        s->stats.tx_no_buffer++;
    else if (out == NULL)
        s->stats.tx_no_route++;
    return out;
}

void mn_stack_commit(struct mn_stack *s, size_t len)
{
    struct mn_loopback *l = &s->loop;
    if (s->out_is_loop) {
        l->lens[(l->head + l->count) % MN_LOOPBACK_SLOTS] = (uint16_t)len;
        l->count++;
        return;
    }
    s->stats.tx_packets++;
    s->stats.tx_bytes += len;
    s->ops.out_commit(s->ops.ctx, len);
}

/* ---- packets in ---- */

static void count_parse_error(struct mn_stack *s, int err)
{
    if (err == MN_PACKET_CHECKSUM)
        s->stats.drop_checksum++;
    else
        s->stats.drop_malformed++;
}

static bool passes_addresses(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    if (!mn_packet_source_is_sane(&p->src) || (peer != MN_PEER_SELF && mn_stack_is_own(s, &p->src))) {
        s->stats.drop_source++;
        return false;
    }
    if (mn_packet_destination_is_special(&p->dst) || !mn_stack_is_own(s, &p->dst)) {
        s->stats.drop_not_local++;
        return false;
    }
    return true;
}

static void input_other(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    if (peer != MN_PEER_SELF && !mn_rules_allow_proto(s->rules, p->proto, &p->src, &p->dst)) {
        s->stats.filter_drop++;
        return;
    }
    s->stats.drop_protocol++;
    mn_stack_send_error(s, peer, MN_ICMP_PROTO_UNREACHABLE, p);
}

static void dispatch(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    if (p->proto == MN_PROTO_TCP)
        mn_tcp_input(s, peer, p);
    else if (p->proto == MN_PROTO_UDP)
        mn_stack_input_udp(s, peer, p);
    else if (p->proto == (p->version == 4 ? MN_PROTO_ICMP : MN_PROTO_ICMP6))
        mn_stack_input_icmp(s, peer, p);
    else if (p->proto == MN_PROTO_TSMP)
        mn_stack_input_tsmp(s, peer, p);
    else
        input_other(s, peer, p);
}

/* The rules see the whole datagram, never a piece. */
static void input_fragment(struct mn_stack *s, uint32_t peer, const struct mn_packet *piece)
{
    struct mn_packet p;
    const uint8_t *whole;
    size_t len;
    if (s->fragments.whole_count == MN_FRAGMENTS_WHOLE) {
        mn_run_flush_all(s); /* nothing points into those any more */
        mn_fragments_release(&s->fragments);
    }
    bool is_whole = mn_fragments_take(&s->fragments, peer, piece, s->now, &whole, &len);
    s->stats.drop_fragment = s->fragments.dropped;
    if (!is_whole)
        return;
    s->stats.reassembled++;
    if (mn_packet_parse(&p, whole, len) == 0 && !p.is_fragment)
        dispatch(s, peer, &p);
    else
        s->stats.drop_malformed++;
}

static void input_packet(struct mn_stack *s, uint32_t peer, const uint8_t *pkt, size_t len)
{
    struct mn_packet p;
    int err = mn_packet_parse(&p, pkt, len);
    if (err != 0) {
        count_parse_error(s, err);
        return;
    }
    if (!passes_addresses(s, peer, &p))
        return;
    bool is_kernels =
        s->is_shared && peer != MN_PEER_SELF && !(p.is_fragment && mn_fragments_knows(&s->fragments, peer, &p));
    if (is_kernels && mn_kernel_input(s, peer, &p))
        return;
    if (p.is_fragment)
        input_fragment(s, peer, &p);
    else
        dispatch(s, peer, &p);
}

/* ---- turns ---- */

static void serve(struct mn_stack *s)
{
    struct mn_conn *c;
    while ((c = s->dirty_first) != NULL) {
        s->dirty_first = c->next_dirty;
        if (s->dirty_first == NULL)
            s->dirty_last = NULL;
        c->is_dirty = false;
        if (!c->is_dead)
            mn_run_flush(s, c); /* or the ACK below would miss what it holds */
        if (!c->is_dead && c->snd.wants_room && mn_conn_has_room(c)) {
            c->snd.wants_room = false;
            if (!c->is_orphan)
                s->ops.tcp_writable(s->ops.ctx, c->id);
        }
        mn_tcp_output(s, c);
        if (c->snd.wants_room && mn_conn_room(c) > 0 && mn_conn_has_room(c))
            mn_conn_mark(s, c); /* what has just left made room */
        if (c->snd.nxt - c->snd.una > c->snd.most_out)
            c->snd.most_out = c->snd.nxt - c->snd.una;
        if (!c->is_dead && mn_budget_is_tight(s))
            mn_budget_trim(s, c);
    }
}

void mn_turn_enter(struct mn_stack *s, uint64_t now_ns)
{
    s->depth++;
    if (now_ns > s->now)
        s->now = now_ns;
}

void mn_turn_leave(struct mn_stack *s)
{
    if (s->depth == 1) {
        serve(s);
        mn_conn_bury(s);
        mn_budget_settle(s);
        serve(s); /* those who had waited for memory */
    }
    s->depth--;
}

/* Flows that peers opened and the rules no longer allow, and those whose address is gone. */
static void sweep(struct mn_stack *s)
{
    if (!s->sweep_due)
        return;
    s->sweep_due = false;
    mn_half_sweep(s);
    for (uint32_t i = 0; i < s->slot_used; i++) {
        struct mn_conn *c = s->slots[i].conn;
        if (c == NULL || c->state == MN_CLOSED)
            continue;
        const struct mn_tuple *t = &c->node.tuple;
        if (!mn_stack_is_own(s, &t->local)) {
            mn_conn_end(s, c, ECONNABORTED);
        } else if (c->is_passive && c->peer != MN_PEER_SELF &&
                   !mn_rules_allow_port(s->rules, MN_PROTO_TCP, &t->remote, &t->local, t->lport)) {
            s->stats.filter_cut++;
            mn_tcp_send_reset(s, c);
            mn_conn_end(s, c, ECONNABORTED);
        }
    }
}

int mn_stack_set_filter(struct mn_stack *s, const uint8_t *blob, size_t len)
{
    struct mn_rules *rules = mn_rules_load(blob, len);
    if (rules == NULL)
        return -EINVAL;
    mn_rules_free(s->rules);
    s->rules = rules;
    s->rules_generation++;
    s->sweep_due = true;
    return 0;
}

void mn_stack_input(struct mn_stack *s, uint32_t peer, const uint8_t *pkt, size_t len, uint64_t now_ns)
{
    mn_turn_enter(s, now_ns);
    sweep(s);
    s->stats.rx_packets++;
    s->stats.rx_bytes += len;
    input_packet(s, peer, pkt, len);
    /* No leave: what is owed is sent once for the whole batch, by the flush. */
    s->depth--;
}

static void unblock(struct mn_stack *s)
{
    while (s->blocked != NULL) {
        struct mn_conn *c = s->blocked;
        s->blocked = c->next_blocked;
        c->is_blocked = false;
        mn_conn_mark(s, c);
    }
}

static void run_loopback(struct mn_stack *s)
{
    struct mn_loopback *l = &s->loop;
    for (int round = 0; round < MN_LOOPBACK_ROUNDS && l->count > 0; round++) {
        uint32_t n = l->count;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t at = (l->head + i) % MN_LOOPBACK_SLOTS;
            input_packet(s, MN_PEER_SELF, l->slots + (size_t)at * s->cfg.mtu, l->lens[at]);
        }
        mn_run_flush_all(s);
        serve(s);
        l->head = (l->head + n) % MN_LOOPBACK_SLOTS;
        l->count -= n;
        unblock(s);
        serve(s);
    }
}

static void finish_turn(struct mn_stack *s)
{
    mn_run_flush_all(s);
    mn_fragments_release(&s->fragments);
    serve(s);
    run_loopback(s);
    mn_turn_leave(s);
}

void mn_stack_flush(struct mn_stack *s, uint64_t now_ns)
{
    mn_turn_enter(s, now_ns);
    sweep(s);
    unblock(s);
    finish_turn(s);
}

uint64_t mn_stack_next_deadline(const struct mn_stack *s)
{
    if (s->sweep_due || s->loop.count > 0 || s->dirty_first != NULL || s->run_count > 0)
        return 0;
    uint64_t at = mn_timers_next(&s->timers);
    if (s->wait_first != NULL && s->wait_first->expires_at < at)
        at = s->wait_first->expires_at;
    if (s->blocked != NULL && s->retry_at < at)
        at = s->retry_at;
    return at;
}

void mn_stack_on_deadline(struct mn_stack *s, uint64_t now_ns)
{
    struct mn_deadline *d;
    mn_turn_enter(s, now_ns);
    sweep(s);
    unblock(s);
    while ((d = mn_timers_pop(&s->timers, s->now)) != NULL) {
        if (d->kind == MN_DEADLINE_CONN)
            mn_conn_on_deadline(s, (struct mn_conn *)((uint8_t *)d - offsetof(struct mn_conn, timer)));
        else
            mn_half_on_deadline(s, (struct mn_half *)((uint8_t *)d - offsetof(struct mn_half, timer)));
    }
    mn_wait_expire(s);
    finish_turn(s);
}

/* ---- peers ---- */

static bool belongs_to(struct mn_stack *s, const struct mn_conn *c, uint32_t peer)
{
    return c->peer == peer || (c->state == MN_SYN_SENT && mn_stack_route(s, &c->node.tuple.remote) == peer);
}

void mn_stack_peer_gone(struct mn_stack *s, uint32_t peer, uint64_t now_ns)
{
    mn_turn_enter(s, now_ns);
    for (uint32_t i = 0; i < s->slot_used; i++) {
        struct mn_conn *c = s->slots[i].conn;
        if (c != NULL && c->peer == peer)
            mn_conn_end(s, c, ECONNABORTED);
    }
    for (struct mn_half *h = s->half_first, *next; h != NULL; h = next) {
        next = h->next;
        if (h->peer == peer)
            mn_half_free(s, h);
    }
    for (struct mn_wait *w = s->wait_first, *next; w != NULL; w = next) {
        next = w->next;
        if (w->peer == peer)
            mn_wait_free(s, w);
    }
    mn_turn_leave(s);
}

void mn_stack_path_failed(struct mn_stack *s, uint32_t peer, uint64_t now_ns)
{
    mn_turn_enter(s, now_ns);
    for (uint32_t i = 0; i < s->slot_used; i++) {
        struct mn_conn *c = s->slots[i].conn;
        if (c != NULL && c->state == MN_SYN_SENT && belongs_to(s, c, peer))
            mn_conn_end(s, c, EHOSTUNREACH);
    }
    mn_turn_leave(s);
}

#define NUDGE_FRESH (3 * MN_SECOND)

/* What was repeated in vain waits ever longer, though not because of the network that is there now. */
static void nudge(struct mn_stack *s, struct mn_conn *c)
{
    if (c->state == MN_SYN_SENT) {
        if (c->syn_tries > 0)
            mn_tcp_send_syn(s, c);
        return;
    }
    if (c->state >= MN_ESTABLISHED && s->now - c->heard_at < NUDGE_FRESH) {
        c->ack.now = true; /* the last one may have left by the way that is gone */
        mn_conn_mark(s, c);
    }
    if (c->rtt.backoff == 0 || c->due[MN_T_RETX] == MN_DEADLINE_NONE)
        return;
    if (c->rtt.backoff > 1)
        c->rtt.backoff--; /* the repetition itself counts */
    mn_conn_set_timer(s, c, MN_T_RETX, s->now);
}

void mn_stack_nudge(struct mn_stack *s, uint32_t peer, uint64_t now_ns)
{
    mn_turn_enter(s, now_ns);
    for (uint32_t i = 0; i < s->slot_used; i++) {
        struct mn_conn *c = s->slots[i].conn;
        if (c != NULL && belongs_to(s, c, peer))
            nudge(s, c);
    }
    mn_turn_leave(s);
}
