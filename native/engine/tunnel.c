/* Paths and messages. See tunnel.h. What Python hears of them is in tell.c. */
#include "tunnel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../ip/ecn.h"
#include "../udp/classify.h"
#include "../udp/geneve.h"
#include "internal.h"
#include "tell.h"
#include "way.h"

enum { PEERS_FIRST = 16, UNSENT_FRESH_S = 5, HEARD_EVERY_S = 1 };

static const struct mn_ip any_source;

int mn_tunnel_init(struct mn_engine *e)
{
    struct mn_tunnel *t = &e->tunnel;
    t->scratch = malloc(e->mtu + MN_WG_OVERHEAD + MN_WG_PADDING);
    mn_waiting_init(&t->waiting);
    t->out_peer = MN_PEER_NONE;
    return t->scratch != NULL ? 0 : -ENOMEM;
}

void mn_tunnel_destroy(struct mn_engine *e)
{
    free(e->tunnel.scratch);
    free(e->tunnel.peers);
    mn_waiting_destroy(&e->tunnel.waiting);
}

static struct mn_peer *peer_of(const struct mn_engine *e, uint32_t peer)
{
    if (peer >= e->tunnel.cap || !e->tunnel.peers[peer].is_used)
        return NULL;
    return &e->tunnel.peers[peer];
}

const uint8_t *mn_tunnel_key(const struct mn_engine *e, uint32_t peer)
{
    const struct mn_peer *p = peer_of(e, peer);
    return p != NULL ? p->key : e->tunnel.own_key;
}

/* ---- which way ---- */

static void put(struct mn_engine *e, const struct mn_ep *to, const struct mn_ip *source, const uint8_t *pkt, size_t len,
                uint8_t ecn)
{
    uint8_t *at = ecn != MN_ECN_NONE ? mn_sock_reserve(&e->socks, to, source, len) : NULL;
    if (at == NULL) {
        mn_sock_put(&e->socks, to, source, pkt, len);
        return;
    }
    memcpy(at, pkt, len);
    mn_sock_commit(&e->socks, len, ecn);
}

/* To the peer's endpoint, and to those that get copies. */
static void send_direct(struct mn_engine *e, struct mn_peer *p, const uint8_t *pkt, size_t len, uint8_t ecn)
{
    p->tx_direct += len;
    p->direct_at = e->now_ns;
    put(e, &p->direct, &p->source, pkt, len, ecn);
    for (unsigned i = 0; i < p->n_others; i++) {
        p->tx_direct += len;
        put(e, &p->others[i], &any_source, pkt, len, ecn);
    }
}

/* To one endpoint of those there are, another one at each attempt. */
static void send_to_one(struct mn_engine *e, struct mn_peer *p, unsigned attempt, const uint8_t *pkt, size_t len)
{
    unsigned which = attempt % (1U + p->n_others);
    p->tx_direct += len;
    if (which == 0)
        mn_sock_put(&e->socks, &p->direct, &p->source, pkt, len);
    else
        mn_sock_put(&e->socks, &p->others[which - 1], &any_source, pkt, len);
}

static void send_by_relay(struct mn_engine *e, struct mn_peer *p, const uint8_t *pkt, size_t len)
{
    p->tx_relay += len;
    e->stats.tx_relay++;
    if (!mn_links_send(e, p->region, p->key, pkt, len))
        mn_tell_relay_send(e, p->key, p->region, pkt, len);
}

static void send_initiation(struct mn_engine *e, struct mn_peer *p, unsigned attempt, const uint8_t *pkt, size_t len)
{
    bool direct = mn_way_has_direct(p), relay = mn_way_has_relay(p);
    if (attempt > 0)
        p->source = any_source; /* no answer: perhaps ours was the wrong address to ask from */
    if (!direct && !relay) {
        e->stats.tx_no_path++;
        if (len <= sizeof p->unsent) {
            memcpy(p->unsent, pkt, len);
            p->unsent_len = (uint16_t)len;
            p->unsent_at = e->now_ns;
        }
        mn_tell_peer_send(e, p, true);
    } else if (direct && (!relay || attempt % 2 == 1)) {
        send_to_one(e, p, attempt, pkt, len);
    } else {
        send_by_relay(e, p, pkt, len);
    }
}

/* Data by every way it takes, the relay first: nothing may delay the copy that arrives. False if there is none. */
static bool send_by_ways(struct mn_engine *e, struct mn_peer *p, const uint8_t *pkt, size_t len, uint8_t ecn)
{
    unsigned ways = mn_way_of_data(p, len, e->now_ns);
    if ((ways & MN_WAY_RELAY) != 0)
        send_by_relay(e, p, pkt, len);
    if ((ways & MN_WAY_DIRECT) != 0)
        send_direct(e, p, pkt, len, ecn);
    return ways != 0;
}

/* The same; what has no way waits for one. */
static bool send_data(struct mn_engine *e, struct mn_peer *p, const uint8_t *pkt, size_t len, uint8_t ecn)
{
    if (send_by_ways(e, p, pkt, len, ecn))
        return true;
    e->stats.tx_no_path++;
    mn_waiting_put(&e->tunnel.waiting, (uint32_t)(p - e->tunnel.peers), pkt, len, e->now_ns);
    return false;
}

static void send_waiting(struct mn_engine *e, struct mn_peer *p)
{
    struct mn_waiting_packet *w;
    uint32_t peer = (uint32_t)(p - e->tunnel.peers);
    while ((w = mn_waiting_take(&e->tunnel.waiting, peer, e->now_ns)) != NULL) {
        (void)send_by_ways(e, p, w->pkt, w->len, MN_ECN_NONE);
        free(w);
    }
}

/* An answer goes where its question came from; by relay to the node that asked. */
static void send_answer(struct mn_engine *e, uint32_t peer, const struct mn_path *to, const uint8_t *pkt, size_t len)
{
    struct mn_peer *p = peer_of(e, peer);
    if (to->region == 0) {
        if (p != NULL)
            p->tx_direct += len;
        mn_sock_put(&e->socks, &to->ep, &e->tunnel.local, pkt, len);
        return;
    }
    const uint8_t *key = p != NULL ? p->key : e->tunnel.sender;
    if (key == NULL)
        return;
    if (p != NULL)
        p->tx_relay += len;
    e->stats.tx_relay++;
    if (!mn_links_send(e, to->region, key, pkt, len))
        mn_tell_relay_send(e, key, to->region, pkt, len);
}

/* ---- the device's upcalls ---- */

static void send_now(struct mn_engine *e, uint32_t peer, enum mn_wg_kind kind, unsigned attempt, const uint8_t *pkt,
                     size_t len)
{
    struct mn_peer *p = peer_of(e, peer);
    if (p == NULL)
        return;
    if (kind == MN_WG_INITIATION) {
        send_initiation(e, p, attempt, pkt, len);
        return;
    }
    /* A keepalive is not worth waiting. */
    bool sent = kind == MN_WG_DATA ? send_data(e, p, pkt, len, MN_ECN_NONE) : send_by_ways(e, p, pkt, len, MN_ECN_NONE);
    if (kind == MN_WG_DATA || !sent)
        mn_tell_peer_send(e, p, !sent);
}

/* While a packet is being sealed at the tail of a send buffer, that tail is not to be written. */
static void defer(struct mn_engine *e, uint32_t peer, enum mn_wg_kind kind, unsigned attempt, const uint8_t *pkt,
                  size_t len)
{
    struct mn_tunnel *t = &e->tunnel;
    if (t->n_deferred == MN_DEFERRED_MAX || len > sizeof t->deferred[0].pkt) {
        e->stats.tx_deferred_lost++;
        return;
    }
    struct mn_deferred *d = &t->deferred[t->n_deferred++];
    d->peer = peer;
    d->kind = (int)kind;
    d->attempt = attempt;
    d->len = (uint16_t)len;
    memcpy(d->pkt, pkt, len);
}

static void send_deferred(struct mn_engine *e)
{
    struct mn_tunnel *t = &e->tunnel;
    for (unsigned i = 0; i < t->n_deferred; i++) {
        struct mn_deferred *d = &t->deferred[i];
        send_now(e, d->peer, (enum mn_wg_kind)d->kind, d->attempt, d->pkt, d->len);
    }
    t->n_deferred = 0;
}

static void on_send(void *ctx, uint32_t peer, const struct mn_path *to, enum mn_wg_kind kind, unsigned attempt,
                    const uint8_t *pkt, size_t len)
{
    struct mn_engine *e = ctx;
    if (to != NULL)
        send_answer(e, peer, to, pkt, len);
    else if (e->tunnel.is_sealing)
        defer(e, peer, kind, attempt, pkt, len);
    else
        send_now(e, peer, kind, attempt, pkt, len);
}

static void on_event(void *ctx, uint32_t peer, enum mn_wg_event event)
{
    struct mn_engine *e = ctx;
    struct mn_peer *p = peer_of(e, peer);
    if (p == NULL)
        return;
    if (event == MN_WG_SESSION_UP) {
        p->unsent_len = 0;
        mn_tell_handshake(e, p, true);
    } else if (event == MN_WG_HANDSHAKE_FAILED) {
        p->unsent_len = 0;
        mn_tell_handshake(e, p, false);
        mn_stack_path_failed(e->stack, peer, e->now_ns);
    } else if (event == MN_WG_SILENT) {
        p->source = any_source;
    } else {
        mn_tell_keys(e, p, event == MN_WG_SESSION_GONE ? MN_KEYS_GONE : MN_KEYS_CLOCK_BEHIND);
    }
}

static void on_heard(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct mn_engine *e = ctx;
    struct mn_peer *p = peer_of(e, peer);
    if (p != NULL)
        mn_tell_peer_recv(e, p, from, MN_WHAT_HANDSHAKE);
}

static bool on_wants_copy(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct mn_engine *e = ctx;
    struct mn_peer *p = peer_of(e, peer);
    return p != NULL && mn_tell_wants_recv(e, p, from, MN_WHAT_KEEPALIVE);
}

/* Without this a path slower than the relay would never be seen to carry while both do. */
static void on_copied(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct mn_engine *e = ctx;
    struct mn_peer *p = peer_of(e, peer);
    if (p != NULL)
        mn_tell_peer_recv(e, p, from, MN_WHAT_KEEPALIVE);
}

/* Plain WireGuard: whoever proves to be the peer is where the peer is. */
static void on_roamed(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct mn_peer *p = peer_of(ctx, peer);
    if (p == NULL || from->region != 0 || from->ep.vni != 0 ||
        (mn_way_has_direct(p) && mn_ep_equal(&p->direct, &from->ep)))
        return;
    p->direct = from->ep;
    p->source = ((struct mn_engine *)ctx)->tunnel.local;
    p->mode |= MN_MODE_DIRECT;
    ((struct mn_engine *)ctx)->stats.rx_roamed++;
}

static uint64_t wall_ns(void *ctx)
{
    struct timespec ts;
    (void)ctx;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * MN_NS_PER_S + (uint64_t)ts.tv_nsec;
}

void mn_tunnel_set_wg_ops(struct mn_wg_ops *ops)
{
    ops->random = mn_random;
    ops->wall_ns = wall_ns;
    ops->send = on_send;
    ops->event = on_event;
    ops->heard = on_heard;
    ops->roamed = on_roamed;
    ops->wants_copy = on_wants_copy;
    ops->copied = on_copied;
}

/* ---- outbound: from the stack ---- */

static uint32_t on_route(void *ctx, const struct mn_ip *dst)
{
    return mn_wg_route(((struct mn_engine *)ctx)->wg, dst);
}

size_t mn_tunnel_mtu(void *ctx, const struct mn_ip *dst)
{
    const struct mn_engine *e = ctx;
    const struct mn_peer *p = peer_of(e, mn_wg_route(e->wg, dst));
    return p != NULL && p->mtu != 0 ? p->mtu : e->mtu;
}

/* Everything is too long for the direct path and goes by relay: a peer that never hears us directly would take that for
 * a path that carries nothing. */
static void keep_heard(struct mn_engine *e, uint32_t peer, struct mn_peer *p)
{
    bool is_in_use = p->limit != 0 && p->region != 0 && mn_way_has_direct(p) && (p->mode & MN_MODE_RELAY_FIRST) == 0;
    if (!is_in_use || e->now_ns - p->direct_at < HEARD_EVERY_S * MN_NS_PER_S)
        return;
    p->direct_at = e->now_ns;
    mn_wg_send_keepalive(e->wg, peer, e->now_ns);
}

/* Room for a packet at the tail of the socket's buffer if it is sure to go there and nowhere else direct, else in the
 * scratch buffer. */
uint8_t *mn_tunnel_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct mn_engine *e = ctx;
    struct mn_tunnel *t = &e->tunnel;
    t->out_peer = mn_wg_route(e->wg, dst);
    struct mn_peer *p = peer_of(e, t->out_peer);
    if (p == NULL || max > e->mtu) {
        *err = p == NULL ? EHOSTUNREACH : EMSGSIZE;
        return NULL;
    }
    t->out_at = NULL;
    if (mn_way_is_plain(p))
        t->out_at = mn_sock_reserve(&e->socks, &p->direct, &p->source, max + MN_WG_OVERHEAD + MN_WG_PADDING);
    t->out_in_scratch = t->out_at == NULL;
    if (t->out_in_scratch)
        t->out_at = t->scratch;
    return t->out_at + MN_WG_HEADER;
}

size_t mn_tunnel_out_mtu(const struct mn_engine *e)
{
    const struct mn_peer *p = peer_of(e, e->tunnel.out_peer);
    return p != NULL && p->mtu != 0 ? p->mtu : e->mtu;
}

void mn_tunnel_commit(void *ctx, size_t len)
{
    struct mn_engine *e = ctx;
    struct mn_tunnel *t = &e->tunnel;
    struct mn_peer *p = peer_of(e, t->out_peer);
    if (len == 0 || p == NULL)
        return;
    uint8_t ecn = mn_ecn_get(t->out_at + MN_WG_HEADER);
    t->is_sealing = true;
    int sealed = mn_wg_seal(e->wg, t->out_peer, t->out_at, len, e->now_ns);
    t->is_sealing = false;
    if (sealed > 0 && t->out_in_scratch) {
        (void)send_data(e, p, t->out_at, (size_t)sealed, ecn);
    } else if (sealed > 0) {
        if ((mn_way_of_data(p, (size_t)sealed, e->now_ns) & MN_WAY_RELAY) != 0)
            send_by_relay(e, p, t->out_at, (size_t)sealed);
        p->tx_direct += (size_t)sealed;
        mn_sock_commit(&e->socks, (size_t)sealed, ecn);
    }
    mn_tell_peer_send(e, p, !mn_way_has_direct(p) && !mn_way_has_relay(p));
    if (t->n_deferred > 0)
        send_deferred(e);
    keep_heard(e, t->out_peer, p);
}

static void on_disco_key(void *ctx, uint32_t peer, const uint8_t key[32])
{
    struct mn_engine *e = ctx;
    struct mn_peer *p = peer_of(e, peer);
    if (p != NULL)
        mn_tell_disco_key(e, p, key);
}

void mn_tunnel_set_stack_ops(struct mn_stack_ops *ops)
{
    ops->disco_key = on_disco_key;
    ops->random = mn_random;
    ops->route = on_route;
    ops->path_mtu = mn_tunnel_mtu;
    ops->out_begin = mn_tunnel_begin;
    ops->out_commit = mn_tunnel_commit;
}

/* ---- inbound ---- */

/* An authentic message on the path we use: our side of it is the address it came to. */
static void pin(struct mn_engine *e, struct mn_peer *p, const struct mn_path *from)
{
    if (from->region == 0 && mn_ep_equal(&p->direct, &from->ep))
        p->source = e->tunnel.local;
}

static void open_message(struct mn_engine *e, const struct mn_path *from, uint8_t *data, size_t len)
{
    uint8_t *inner = NULL;
    uint32_t peer = MN_PEER_NONE;
    uint8_t type = data[0];
    int n = mn_wg_input(e->wg, data, len, from, e->now_ns, &inner, &peer);
    struct mn_peer *p = n >= 0 ? peer_of(e, peer) : NULL;
    if (p == NULL)
        return;
    if (from->region != 0)
        p->rx_relay += len;
    else
        p->rx_direct += len;
    pin(e, p, from);
    if (n > 0) {
        mn_tell_peer_recv(e, p, from, MN_WHAT_DATA);
        if (e->tunnel.ecn != MN_ECN_NONE && !mn_ecn_decapsulate(inner, e->tunnel.ecn)) {
            e->stats.rx_ecn_drops++;
            return;
        }
        mn_stack_input(e->stack, peer, inner, (size_t)n, e->now_ns);
    } else if (type == 4) {
        mn_tell_peer_recv(e, p, from, MN_WHAT_KEEPALIVE);
    }
}

/* What a peer relay handed on, if it is of the kind wanted. Any relay may: WireGuard proves who wrote it, and the path
 * to answer by is for Python to know. */
static bool open_relayed(struct mn_engine *e, const struct mn_ep *relay, uint8_t *data, size_t len, bool handshakes)
{
    struct mn_path from = {.ep = *relay};
    uint8_t *msg = data + MN_GENEVE_LEN;
    if ((msg[0] != 4) != handshakes)
        return false;
    from.ep.vni = mn_geneve_vni(data);
    open_message(e, &from, msg, len - MN_GENEVE_LEN);
    return true;
}

/* One pass over a super-buffer's datagrams: data and the rare rest, or the handshakes that were left. Data goes first:
 * a flood of handshakes must not delay it. */
static unsigned read_pass(struct mn_engine *e, const struct mn_sock_rx *rx, bool handshakes)
{
    const struct mn_path from = {.ep = rx->from};
    unsigned left = 0;
    for (size_t at = 0; at < rx->len; at += rx->seg) {
        uint8_t *p = rx->buf + at;
        size_t len = rx->len - at < rx->seg ? rx->len - at : rx->seg;
        enum mn_class class = mn_classify(p, len);
        if (handshakes) {
            if (class == MN_CLASS_WG_HANDSHAKE)
                open_message(e, &from, p, len);
            else if (class == MN_CLASS_RELAYED_WG)
                open_relayed(e, &rx->from, p, len, true);
            continue;
        }
        switch (class) {
        case MN_CLASS_WG_DATA:
            open_message(e, &from, p, len);
            break;
        case MN_CLASS_WG_HANDSHAKE:
            left++;
            break;
        case MN_CLASS_RELAYED_WG:
            e->stats.rx_relayed++;
            left += !open_relayed(e, &rx->from, p, len, false);
            break;
        case MN_CLASS_RELAYED_DISCO:
        case MN_CLASS_DISCO:
            e->stats.rx_disco++;
            mn_tell_datagram(e, MN_EV_DISCO, &rx->from, p, len);
            break;
        case MN_CLASS_STUN:
            e->stats.rx_stun++;
            mn_tell_datagram(e, MN_EV_STUN, &rx->from, p, len);
            break;
        case MN_CLASS_UNKNOWN:
            e->stats.rx_unknown++;
            break;
        }
    }
    return left;
}

void mn_tunnel_read(struct mn_engine *e, const struct mn_sock_rx *rx)
{
    e->tunnel.local = rx->local;
    e->tunnel.ecn = rx->ecn;
    if (read_pass(e, rx, false) > 0)
        (void)read_pass(e, rx, true);
    e->tunnel.local = any_source;
    e->tunnel.ecn = MN_ECN_NONE;
}

void mn_tunnel_inject(struct mn_engine *e, uint16_t region, const uint8_t sender[32], uint8_t *data, size_t len)
{
    struct mn_path from = {.region = region};
    enum mn_class class = mn_classify(data, len);
    if (class != MN_CLASS_WG_DATA && class != MN_CLASS_WG_HANDSHAKE) {
        e->stats.rx_unknown++;
        return;
    }
    memcpy(from.ep.ip.b, sender, sizeof from.ep.ip.b); /* tells senders apart under load */
    e->tunnel.sender = sender;
    open_message(e, &from, data, len);
    e->tunnel.sender = NULL;
}

/* ---- peers ---- */

static bool make_room(struct mn_tunnel *t, uint32_t peer)
{
    if (peer < t->cap)
        return true;
    uint32_t cap = t->cap != 0 ? t->cap : PEERS_FIRST;
    while (cap <= peer)
        cap *= 2;
    struct mn_peer *bigger = realloc(t->peers, (size_t)cap * sizeof *bigger);
    if (bigger == NULL)
        return false;
    memset(bigger + t->cap, 0, (size_t)(cap - t->cap) * sizeof *bigger);
    t->peers = bigger;
    t->cap = cap;
    return true;
}

int mn_tunnel_add_peer(struct mn_engine *e, const uint8_t key[32], uint32_t *peer)
{
    int err = mn_wg_peer_add(e->wg, key, peer);
    if (err < 0)
        return err;
    if (!make_room(&e->tunnel, *peer)) {
        (void)mn_wg_peer_remove(e->wg, *peer);
        return -ENOMEM;
    }
    struct mn_peer *p = &e->tunnel.peers[*peer];
    if (!p->is_used || memcmp(p->key, key, sizeof p->key) != 0) { /* new, or the device gave the slot anew */
        memset(p, 0, sizeof *p);
        p->is_used = true;
        memcpy(p->key, key, sizeof p->key);
    }
    return 0;
}

void mn_tunnel_drop_peer(struct mn_engine *e, uint32_t peer)
{
    struct mn_peer *p = peer_of(e, peer);
    mn_stack_peer_gone(e->stack, peer, e->now_ns);
    (void)mn_wg_peer_remove(e->wg, peer);
    mn_waiting_forget(&e->tunnel.waiting, peer);
    if (p != NULL)
        p->is_used = false;
}

void mn_tunnel_drop_unknown(struct mn_engine *e)
{
    for (uint32_t peer = 0; peer < e->tunnel.cap; peer++) {
        struct mn_peer *p = &e->tunnel.peers[peer];
        uint32_t found = MN_PEER_NONE;
        if (!p->is_used || (mn_wg_peer_find(e->wg, p->key, &found) == 0 && found == peer))
            continue;
        mn_stack_peer_gone(e->stack, peer, e->now_ns);
        mn_waiting_forget(&e->tunnel.waiting, peer);
        p->is_used = false;
    }
}

static void set_others(struct mn_peer *p, const struct mn_command *cmd)
{
    p->n_others = 0;
    for (size_t at = 0; at + MN_OTHER_LEN <= cmd->len && p->n_others < MN_OTHERS_MAX; at += MN_OTHER_LEN) {
        struct mn_ep *other = &p->others[p->n_others++];
        memset(other, 0, sizeof *other);
        memcpy(other->ip.b, cmd->blob + at, sizeof other->ip.b);
        other->port = (uint16_t)((cmd->blob[at + 16] << 8) | cmd->blob[at + 17]);
    }
}

/* Connections take smaller segments at once; larger ones only those that are opened from then on. */
static void set_mtu(struct mn_engine *e, uint32_t peer, struct mn_peer *p)
{
    size_t was = p->mtu != 0 ? p->mtu : e->mtu, mtu = mn_way_inner_mtu(p, e->mtu);
    p->mtu = mtu < e->mtu ? (uint16_t)mtu : 0;
    if (mtu < was)
        mn_stack_path_shrunk(e->stack, peer, mtu, e->now_ns);
}

void mn_tunnel_set_path(struct mn_engine *e, uint32_t peer, const struct mn_command *cmd)
{
    struct mn_peer *p = peer_of(e, peer);
    if (p == NULL)
        return;
    bool is_elsewhere = !mn_ep_equal(&p->direct, &cmd->ep);
    bool is_another = is_elsewhere || p->mode != cmd->mode || p->region != cmd->region;
    p->mode = cmd->mode;
    p->region = cmd->region;
    if (is_elsewhere)
        p->source = any_source;
    p->direct = cmd->ep;
    p->limit = (uint16_t)cmd->number;
    set_others(p, cmd);
    set_mtu(e, peer, p);
    if (is_another)
        mn_stack_path_changed(e->stack, peer, e->now_ns);
    uint16_t len = p->unsent_len;
    if (!mn_way_has_direct(p) && !mn_way_has_relay(p))
        return;
    send_waiting(e, p);
    p->unsent_len = 0;
    if (len > 0 && e->now_ns - p->unsent_at < UNSENT_FRESH_S * MN_NS_PER_S)
        send_initiation(e, p, 0, p->unsent, len);
}

void mn_tunnel_unpin(void *engine, const struct mn_ep *to)
{
    struct mn_engine *e = engine;
    for (uint32_t peer = 0; peer < e->tunnel.cap; peer++)
        if (mn_ep_equal(&e->tunnel.peers[peer].direct, to))
            e->tunnel.peers[peer].source = any_source;
}

void mn_tunnel_unpin_all(struct mn_engine *e)
{
    for (uint32_t peer = 0; peer < e->tunnel.cap; peer++)
        e->tunnel.peers[peer].source = any_source;
}
