/* Commands carried out, and what they leave behind. See requests.h. */
#include "requests.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "stats.h"

enum { BATCH = 64, PER_TURN = 512, PSK_LEN = 32, HALF_OPEN = 1024 };

int mn_requests_init(struct mn_engine *e)
{
    struct mn_requests *r = &e->requests;
    r->listeners = calloc(MN_LISTENERS_MAX, sizeof *r->listeners);
    r->datagrams = calloc(MN_DATAGRAMS_MAX, sizeof *r->datagrams);
    r->pings = calloc(MN_PINGS_MAX, sizeof *r->pings);
    mn_random(NULL, (uint8_t *)&r->ping_id, sizeof r->ping_id);
    return r->listeners != NULL && r->datagrams != NULL && r->pings != NULL ? 0 : -ENOMEM;
}

void mn_requests_destroy(struct mn_engine *e)
{
    free(e->requests.listeners);
    free(e->requests.datagrams);
    free(e->requests.pings);
}

/* ---- tables of handles: small, searched in order ---- */

static struct mn_handle *find_req(struct mn_handle *table, uint32_t n, uint64_t req)
{
    for (uint32_t i = 0; i < n; i++)
        if (table[i].req == req)
            return &table[i];
    return NULL;
}

static struct mn_handle *find_id(struct mn_handle *table, uint32_t n, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (table[i].req != 0 && table[i].id == id)
            return &table[i];
    return NULL;
}

static struct mn_handle *free_handle(struct mn_handle *table, uint32_t *n, uint32_t max)
{
    struct mn_handle *hole = find_req(table, *n, 0);
    if (hole == NULL && *n < max)
        hole = &table[(*n)++];
    return hole;
}

bool mn_requests_may_accept(const struct mn_engine *e, uint32_t listener)
{
    const struct mn_handle *h = find_id(e->requests.listeners, e->requests.n_listeners, listener);
    return h != NULL && (h->backlog == 0 || h->untaken < h->backlog);
}

uint64_t mn_requests_listener(const struct mn_engine *e, uint32_t listener)
{
    const struct mn_handle *h = find_id(e->requests.listeners, e->requests.n_listeners, listener);
    return h != NULL ? h->req : 0;
}

void mn_requests_announced(struct mn_engine *e, uint32_t listener)
{
    struct mn_handle *h = find_id(e->requests.listeners, e->requests.n_listeners, listener);
    if (h != NULL)
        h->untaken++;
}

static void tell_listening(struct mn_engine *e, uint64_t req, int err, uint16_t port)
{
    struct mn_event ev = {.kind = MN_EV_LISTENING, .req = req, .err = err, .local.port = port};
    (void)mn_events_post(&e->events, &ev);
}

static const struct mn_ip *ip_or_any(const struct mn_command *cmd)
{
    return mn_ip_is_zero(&cmd->ep.ip) ? NULL : &cmd->ep.ip;
}

static void run_listen(struct mn_engine *e, const struct mn_command *cmd)
{
    struct mn_requests *r = &e->requests;
    struct mn_handle *h = free_handle(r->listeners, &r->n_listeners, MN_LISTENERS_MAX);
    /* The backlog bounds connections that nobody took; half-open ones are cheap and get the stack's own bound. */
    unsigned half_open = cmd->number > HALF_OPEN ? cmd->number : HALF_OPEN;
    int err = h == NULL ? -EMFILE : mn_tcp_listen(e->stack, ip_or_any(cmd), cmd->ep.port, half_open, &h->id);
    if (err == 0) {
        h->req = cmd->req;
        h->backlog = cmd->number;
        h->untaken = 0;
    }
    tell_listening(e, cmd->req, -err, cmd->ep.port);
}

static void run_taken(struct mn_engine *e, const struct mn_command *cmd)
{
    struct mn_handle *h = find_req(e->requests.listeners, e->requests.n_listeners, cmd->req);
    if (h != NULL && cmd->req != 0)
        h->untaken -= cmd->number < h->untaken ? cmd->number : h->untaken;
}

static void run_unlisten(struct mn_engine *e, const struct mn_command *cmd)
{
    struct mn_handle *h = find_req(e->requests.listeners, e->requests.n_listeners, cmd->req);
    if (h == NULL || cmd->req == 0)
        return;
    mn_tcp_unlisten(e->stack, h->id);
    h->req = 0;
}

/* ---- UDP and ping ---- */

static void run_udp_open(struct mn_engine *e, const struct mn_command *cmd)
{
    struct mn_requests *r = &e->requests;
    struct mn_handle *h = free_handle(r->datagrams, &r->n_datagrams, MN_DATAGRAMS_MAX);
    int err = h == NULL ? -EMFILE : mn_udp_open(e->stack, ip_or_any(cmd), cmd->ep.port, &h->id);
    if (err == 0)
        h->req = cmd->req;
    tell_listening(e, cmd->req, -err, err == 0 ? mn_udp_port(e->stack, h->id) : 0);
}

static void tell_udp_error(struct mn_engine *e, uint64_t req, const struct mn_ep *to, int err)
{
    struct mn_event ev = {.kind = MN_EV_UDP_ERROR, .req = req, .err = err, .remote = *to};
    (void)mn_events_post_hint(&e->events, &ev);
}

static void run_udp_send(struct mn_engine *e, const struct mn_command *cmd)
{
    struct mn_handle *h = find_req(e->requests.datagrams, e->requests.n_datagrams, cmd->req);
    const struct mn_ip *from = mn_ip_is_zero(&cmd->from) ? NULL : &cmd->from;
    int err = h == NULL || cmd->req == 0 ? -EBADF
                                         : mn_udp_send(e->stack, h->id, from, &cmd->ep, cmd->blob, cmd->len, e->now_ns);
    if (err == 0)
        return;
    e->stats.command_errors++;
    if (err != -EBADF)
        tell_udp_error(e, cmd->req, &cmd->ep, -err);
}

static void run_udp_close(struct mn_engine *e, const struct mn_command *cmd)
{
    struct mn_handle *h = find_req(e->requests.datagrams, e->requests.n_datagrams, cmd->req);
    if (h == NULL || cmd->req == 0)
        return;
    mn_udp_close(e->stack, h->id);
    h->req = 0;
}

static void run_ping(struct mn_engine *e, const struct mn_command *cmd)
{
    static const uint8_t zeros[MN_MTU_MAX];
    struct mn_requests *r = &e->requests;
    uint16_t seq = r->ping_seq++;
    struct mn_ping *p = &r->pings[seq % MN_PINGS_MAX];
    *p = (struct mn_ping){.req = cmd->req, .sent_ns = mn_clock_ns(), .seq = seq};
    size_t len = cmd->number < sizeof zeros ? cmd->number : sizeof zeros;
    int err = mn_ping_send(e->stack, &cmd->ep.ip, r->ping_id, seq, zeros, len, e->now_ns);
    if (err == 0)
        return;
    struct mn_event ev = {.kind = MN_EV_PING, .req = cmd->req, .err = -err};
    p->req = 0;
    e->stats.command_errors++;
    (void)mn_events_post(&e->events, &ev);
}

static void on_ping_reply(void *ctx, uint16_t id, uint16_t seq, const struct mn_ip *from, const uint8_t *payload,
                          size_t len)
{
    struct mn_engine *e = ctx;
    struct mn_ping *p = &e->requests.pings[seq % MN_PINGS_MAX];
    (void)from, (void)payload, (void)len;
    if (id != e->requests.ping_id || p->req == 0 || p->seq != seq)
        return;
    struct mn_event ev = {.kind = MN_EV_PING, .req = p->req, .value = mn_clock_ns() - p->sent_ns};
    p->req = 0;
    (void)mn_events_post(&e->events, &ev);
}

static void on_udp_deliver(void *ctx, uint32_t udp, const struct mn_ep *from, const struct mn_ep *to,
                           const uint8_t *data, size_t len)
{
    struct mn_engine *e = ctx;
    const struct mn_handle *h = find_id(e->requests.datagrams, e->requests.n_datagrams, udp);
    struct mn_event ev = {.kind = MN_EV_UDP, .remote = *from, .local = *to};
    if (h == NULL)
        return;
    ev.req = h->req;
    memcpy(ev.key, mn_tunnel_key(e, mn_wg_route(e->wg, &from->ip)), sizeof ev.key);
    mn_events_post_data(&e->events, MN_LANE_DATAGRAM, &ev, data, len);
}

static void on_udp_error(void *ctx, uint32_t udp, const struct mn_ep *to, int err)
{
    struct mn_engine *e = ctx;
    const struct mn_handle *h = find_id(e->requests.datagrams, e->requests.n_datagrams, udp);
    if (h != NULL)
        tell_udp_error(e, h->req, to, err);
}

void mn_requests_set_stack_ops(struct mn_stack_ops *ops)
{
    ops->udp_error = on_udp_error;
    ops->udp_deliver = on_udp_deliver;
    ops->ping_reply = on_ping_reply;
}

/* ---- peers ---- */

static int run_set_addresses(struct mn_engine *e, const struct mn_command *cmd)
{
    return mn_stack_set_addresses(e->stack, (const struct mn_ip *)(const void *)cmd->blob,
                                  cmd->len / sizeof(struct mn_ip));
}

static int run_upsert_peer(struct mn_engine *e, const struct mn_command *cmd)
{
    uint32_t peer = MN_PEER_NONE;
    int err = mn_tunnel_add_peer(e, cmd->key, &peer);
    if (err < 0)
        return err;
    if (mn_wg_peer_set_psk(e->wg, peer, cmd->blob) < 0 || mn_wg_peer_set_roaming(e->wg, peer, cmd->mode != 0) < 0)
        err = -EINVAL;
    (void)mn_wg_disallow_all(e->wg, peer);
    for (size_t at = PSK_LEN; at + sizeof(struct mn_prefix) <= cmd->len; at += sizeof(struct mn_prefix)) {
        struct mn_prefix prefix;
        memcpy(&prefix, cmd->blob + at, sizeof prefix);
        if (mn_wg_allow(e->wg, &prefix.ip, prefix.bits, peer) < 0)
            err = -EINVAL;
    }
    if (mn_wg_peer_set_keepalive(e->wg, peer, (uint16_t)cmd->number, e->now_ns) < 0)
        err = -EINVAL;
    return err;
}

static int run_for_peer(struct mn_engine *e, const struct mn_command *cmd)
{
    uint32_t peer = MN_PEER_NONE;
    if (mn_wg_peer_find(e->wg, cmd->key, &peer) < 0)
        return -ENOENT;
    if (cmd->kind == MN_CMD_REMOVE_PEER)
        mn_tunnel_drop_peer(e, peer);
    else if (cmd->kind == MN_CMD_SET_PATH)
        mn_tunnel_set_path(e, peer, cmd);
    else if (cmd->kind == MN_CMD_NUDGE)
        mn_stack_nudge(e->stack, peer, e->now_ns);
    else
        (void)mn_wg_kick(e->wg, peer, e->now_ns);
    return 0;
}

static int run_set_private_key(struct mn_engine *e, const struct mn_command *cmd)
{
    int err = mn_wg_set_private_key(e->wg, cmd->key, e->now_ns);
    mn_wg_public_key(e->wg, e->tunnel.own_key);
    mn_tunnel_drop_unknown(e);
    return err < 0 ? -EINVAL : 0;
}

/* ---- the dispatch ---- */

static int run_one(struct mn_engine *e, struct mn_command *cmd)
{
    static const struct mn_ip any;
    switch ((enum mn_command_kind)cmd->kind) {
    case MN_CMD_SET_PRIVATE_KEY:
        return run_set_private_key(e, cmd);
    case MN_CMD_SET_ADDRESSES:
        return run_set_addresses(e, cmd);
    case MN_CMD_UPSERT_PEER:
        return run_upsert_peer(e, cmd);
    case MN_CMD_REMOVE_PEER:
    case MN_CMD_SET_PATH:
    case MN_CMD_KICK:
    case MN_CMD_NUDGE:
        return run_for_peer(e, cmd);
    case MN_CMD_SET_FILTER:
        return mn_stack_set_filter(e->stack, cmd->blob, cmd->len);
    case MN_CMD_INJECT:
        mn_tunnel_inject(e, cmd->region, cmd->key, cmd->blob, cmd->len);
        return 0;
    case MN_CMD_SEND_RAW:
        mn_sock_put(&e->socks, &cmd->ep, &any, cmd->blob, cmd->len);
        return 0;
    case MN_CMD_DISCO_KEY:
        return mn_disco_key_send(e->stack, &cmd->ep.ip, cmd->key, e->now_ns);
    case MN_CMD_CONNECT:
        mn_bridge_connect(e, cmd->req, &cmd->ep);
        return 0;
    case MN_CMD_ABORT:
        mn_bridge_abort_connect(e, cmd->req);
        return 0;
    case MN_CMD_LISTEN:
        run_listen(e, cmd);
        return 0;
    case MN_CMD_TAKEN:
        run_taken(e, cmd);
        return 0;
    case MN_CMD_UNLISTEN:
        run_unlisten(e, cmd);
        return 0;
    case MN_CMD_PING:
        run_ping(e, cmd);
        return 0;
    case MN_CMD_UDP_OPEN:
        run_udp_open(e, cmd);
        return 0;
    case MN_CMD_UDP_SEND:
        run_udp_send(e, cmd);
        return 0;
    case MN_CMD_UDP_CLOSE:
        run_udp_close(e, cmd);
        return 0;
    case MN_CMD_TUN_ATTACH:
        return mn_tun_attach(e, (int)cmd->number, cmd->mode);
    case MN_CMD_TUN_MERGE:
        mn_tun_set_merge(e, cmd->mode);
        return 0;
    case MN_CMD_REBIND:
        return mn_engine_rebind(e);
    case MN_CMD_EXTRA:
        return mn_engine_set_extra(e, cmd->ep.sock, cmd->number, cmd->mode != 0);
    case MN_CMD_SET_OFFLOADS:
        mn_sock_flush(&e->socks);
        mn_sock_set_offloads(&e->socks, (enum mn_gso)cmd->mode, cmd->number != 0);
        return 0;
    case MN_CMD_LINK_ADOPT:
    case MN_CMD_LINK_WRITE:
    case MN_CMD_LINK_WEBSOCKET:
    case MN_CMD_LINK_OPEN:
    case MN_CMD_LINK_CLOSE:
        mn_links_run(e, cmd);
        return 0;
    case MN_CMD_STATS:
    case MN_CMD_PEER_STATS:
    case MN_CMDS:
        return 0;
    }
    return -EINVAL;
}

static bool wants_answer(const struct mn_command *cmd)
{
    return cmd->kind == MN_CMD_SET_FILTER || cmd->kind == MN_CMD_SET_PRIVATE_KEY || cmd->kind == MN_CMD_STATS ||
           cmd->kind == MN_CMD_PEER_STATS || cmd->kind == MN_CMD_TUN_ATTACH;
}

bool mn_requests_run(struct mn_engine *e)
{
    struct mn_command batch[BATCH];
    unsigned total = 0, n;
    do {
        n = mn_commands_pop(&e->commands, batch, BATCH);
        for (unsigned i = 0; i < n; i++) {
            int err = run_one(e, &batch[i]);
            if (err < 0)
                e->stats.command_errors++;
            if (wants_answer(&batch[i]))
                mn_stats_answer(e, &batch[i], err);
        }
        if (n > 0) { /* injected packets are in use until here */
            mn_tun_flush(e);
            mn_stack_flush(e->stack, e->now_ns);
        }
        for (unsigned i = 0; i < n; i++)
            mn_command_done(&batch[i]);
        total += n;
    } while (n == BATCH && total < PER_TURN);
    e->stats.commands += total;
    return total > 0;
}
