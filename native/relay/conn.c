/* Life of a connection: from accept by TLS and login to the end, and its one timer. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#ifndef TCP_NOTSENT_LOWAT
#define TCP_NOTSENT_LOWAT 25
#endif

enum { USER_TIMEOUT_MS = 15000, KEEP_IDLE_S = 60, KEEP_EVERY_S = 15, KEEP_PROBES = 3, NOTSENT = 128 << 10 };

/* ---- the table ---- */

struct mn_relay_conn *mn_relay_conn_of(const struct mn_relay *r, uint64_t id)
{
    struct mn_relay_conn *c = r->by_id[id & (r->by_id_size - 1)];
    while (c != NULL && c->id != id)
        c = c->next_id;
    return c;
}

static void table_put(struct mn_relay *r, struct mn_relay_conn *c)
{
    struct mn_relay_conn **at = &r->by_id[c->id & (r->by_id_size - 1)];
    c->next_id = *at;
    *at = c;
}

static void table_grow(struct mn_relay *r)
{
    uint32_t old_size = r->by_id_size;
    struct mn_relay_conn **old = r->by_id, **bigger = calloc((size_t)old_size * 2, sizeof(struct mn_relay_conn *));
    if (bigger == NULL)
        return; /* slower, not broken */
    r->by_id = bigger;
    r->by_id_size = old_size * 2;
    for (uint32_t i = 0; i < old_size; i++) {
        for (struct mn_relay_conn *c = old[i], *next; c != NULL; c = next) {
            next = c->next_id;
            table_put(r, c);
        }
    }
    free(old);
}

static void table_remove(struct mn_relay *r, struct mn_relay_conn *c)
{
    struct mn_relay_conn **at = &r->by_id[c->id & (r->by_id_size - 1)];
    while (*at != c)
        at = &(*at)->next_id;
    *at = c->next_id;
}

/* ---- beginning ---- */

/* Nagle off; unsent bytes stay in our lanes, where the oldest can give way; a dead network is noticed. */
static void prepare_socket(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS},
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE_S},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEP_EVERY_S},
        {IPPROTO_TCP, TCP_KEEPCNT, KEEP_PROBES},
    };
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value);
}

static struct mn_relay_conn *make(struct mn_relay *r, int fd, SSL_CTX *ctx, bool is_client, const char *host,
                                  uint64_t id)
{
    struct mn_relay_conn *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    if (!mn_tls_start(&c->stream, fd, ctx, &r->wires, is_client, host, NULL)) {
        free(c);
        return NULL;
    }
    c->id = id;
    c->events = EPOLLIN;
    struct epoll_event watch = {.events = c->events, .data.u64 = c->id};
    if (epoll_ctl(r->lobby_fd, EPOLL_CTL_ADD, fd, &watch) != 0) {
        c->stream.fd = -1; /* the caller closes it */
        mn_tls_stop(&c->stream);
        free(c);
        return NULL;
    }
    prepare_socket(fd);
    if (r->stats.conns >= r->by_id_size)
        table_grow(r);
    table_put(r, c);
    c->phase = ctx != NULL ? MN_PHASE_SHAKING : MN_PHASE_RAW;
    c->accepted_ms = c->heard_ms = r->now_ms;
    mn_timer_init(&c->timer, 0, 0);
    r->stats.conns++;
    return c;
}

struct mn_relay_conn *mn_relay_conn_accept(struct mn_relay *r, int fd, const struct mn_relay_listener *l,
                                           const struct mn_ep *source)
{
    if (l->has_tls && r->ctx == NULL)
        return NULL;
    struct mn_relay_conn *c = make(r, fd, l->has_tls ? r->ctx : NULL, false, NULL, atomic_fetch_add(&r->ids, 1));
    if (c == NULL)
        return NULL;
    c->client.source = *source;
    c->role = l->role;
    c->is_guarded = true;
    mn_lobby_enter(r, c);
    return c;
}

struct mn_relay_conn *mn_relay_conn_adopt(struct mn_relay *r, int fd, SSL_CTX *ctx, const char *host, uint64_t id)
{
    struct mn_relay_conn *c = make(r, fd, ctx, true, host, id);
    if (c == NULL)
        return NULL;
    c->is_adopted = c->is_announced = true;
    c->ends_by_ms = r->now_ms + r->cfg.login_ms;
    mn_relay_conn_arm(r, c);
    return c;
}

/* ---- what epoll watches ---- */

void mn_relay_conn_watch(struct mn_relay *r, struct mn_relay_conn *c)
{
    bool reads = !c->is_waiting && !c->is_throttled && c->phase != MN_PHASE_CLOSING;
    uint32_t events = (reads ? (uint32_t)EPOLLIN : 0) | (c->stream.left != NULL ? (uint32_t)EPOLLOUT : 0);
    if (events == c->events)
        return;
    struct epoll_event watch = {.events = events, .data.u64 = c->id};
    if (epoll_ctl(c->is_inside ? r->epoll_fd : r->lobby_fd, EPOLL_CTL_MOD, c->stream.fd, &watch) == 0)
        c->events = events;
}

/* From the lobby to the clients. False: no memory. */
static bool move_inside(struct mn_relay *r, struct mn_relay_conn *c)
{
    struct epoll_event watch = {.events = c->events, .data.u64 = c->id};
    if (epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, c->stream.fd, &watch) != 0)
        return false;
    (void)epoll_ctl(r->lobby_fd, EPOLL_CTL_DEL, c->stream.fd, NULL);
    c->is_inside = true;
    return true;
}

/* ---- opening ---- */

void mn_relay_conn_start_frames(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_relay_command *cmd)
{
    uint32_t flags = cmd->number;
    size_t greeting = cmd->greeting_len;
    if (c->phase != MN_PHASE_RAW)
        return;
    struct mn_hub_client *k = &c->client;
    memcpy(k->key, cmd->key, MN_RELAY_KEY);
    k->may_mesh = (flags & MN_OPEN_MESH) != 0;
    k->is_neighbour = (flags & MN_OPEN_NEIGHBOUR) != 0;
    k->flags = k->may_mesh ? MN_PRESENT_MESH : (flags & MN_OPEN_PROBER) != 0 ? MN_PRESENT_PROBER : MN_PRESENT_REGULAR;
    if ((flags & MN_OPEN_NOT_IDEAL) != 0)
        k->flags |= MN_PRESENT_NOT_IDEAL;
    c->acks_pings = (flags & MN_OPEN_ACKS_PINGS) != 0;
    if (!move_inside(r, c) || !mn_hub_join(&r->hub, k, (uint32_t)r->now_ms)) {
        mn_relay_conn_stop(r, c, MN_WHY_NO_MEMORY);
        return;
    }
    mn_lobby_leave(r, c);
    c->phase = MN_PHASE_OPEN;
    c->ends_by_ms = 0;
    c->is_waiting = false;
    c->rate = k->may_mesh || k->is_neighbour ? 0 : r->cfg.client_rate;
    c->burst = r->cfg.client_burst;
    c->tokens = (int64_t)c->burst;
    c->refill_at_ms = r->now_ms;
    uint64_t jitter = r->random % (r->cfg.keep_alive_ms / 12 + 1);
    r->random = r->random * 6364136223846793005ULL + 1442695040888963407ULL;
    c->keep_alive_at_ms = r->now_ms + r->cfg.keep_alive_ms + jitter;
    r->stats.logins++;
    mn_relay_conn_send_raw(r, c, cmd->data, greeting);
    if (c->stream.fd >= 0 && cmd->len > greeting)
        mn_relay_conn_take_frames(r, c, cmd->data + greeting, cmd->len - greeting);
    if (c->stream.fd < 0)
        return;
    mn_hub_mark_dirty(&r->hub, k);
    mn_relay_conn_watch(r, c);
    mn_relay_conn_arm(r, c);
}

/* ---- the end ---- */

static void announce_end(struct mn_relay *r, struct mn_relay_conn *c, enum mn_relay_why why)
{
    struct mn_relay_event *ev = c->is_announced ? mn_talk_event(MN_RELAY_EV_ENDED, NULL, 0) : NULL;
    if (ev == NULL)
        return;
    ev->conn = c->id;
    ev->why = (uint8_t)why;
    ev->was_open = c->phase == MN_PHASE_OPEN;
    ev->source = c->client.source;
    memcpy(ev->key, c->client.key, MN_RELAY_KEY);
    mn_talk_post(&r->talk, ev);
}

/* Its memory stays until the turn ends: whoever is in the middle of its bytes looks at stream.fd. */
void mn_relay_conn_stop(struct mn_relay *r, struct mn_relay_conn *c, enum mn_relay_why why)
{
    if (c->stream.fd < 0)
        return;
    announce_end(r, c, why);
    mn_lobby_leave(r, c);
    mn_hub_leave(&r->hub, &c->client, (uint32_t)r->now_ms);
    mn_wheel_remove(&r->wheel, &c->timer);
    table_remove(r, c);
    if (c->is_guarded)
        mn_guard_leave(&r->guard, &c->client.source.ip);
    r->stats.rx_bytes += c->stream.rx_bytes;
    r->stats.tx_bytes += c->stream.tx_bytes;
    r->stats.conns--;
    if (why == MN_WHY_STALLED) {
        /* It takes nothing, so an orderly end would wait in the kernel behind what it does not take: reset it. */
        static const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
        (void)setsockopt(c->stream.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }
    mn_tls_stop(&c->stream); /* closing takes it out of epoll */
    r->stats.unknown_frames += c->reader.skipped;
    mn_frame_reader_free(&c->reader);
    free(c->websocket);
    c->websocket = NULL;
    c->next_dead = r->dead;
    r->dead = c;
}

void mn_relay_conn_free_dead(struct mn_relay *r)
{
    while (r->dead != NULL) {
        struct mn_relay_conn *next = r->dead->next_dead;
        free(r->dead);
        r->dead = next;
    }
}

/* ---- time ---- */

static uint64_t sooner(uint64_t a, uint64_t b)
{
    return b != 0 && b < a ? b : a;
}

/* One timer for all that a connection waits for; what is due is found when it fires. */
void mn_relay_conn_arm(struct mn_relay *r, struct mn_relay_conn *c)
{
    uint64_t at = UINT64_MAX;
    if (c->phase != MN_PHASE_OPEN)
        at = sooner(at, c->ends_by_ms);
    if (c->phase == MN_PHASE_OPEN) {
        at = sooner(at, c->keep_alive_at_ms);
        if (c->acks_pings)
            at = sooner(at, c->heard_ms + MN_RELAY_PING_AFTER_MS + (c->was_pinged ? MN_RELAY_PING_WAIT_MS : 0));
    }
    if (c->stalled_ms != 0)
        at = sooner(at, c->stalled_ms + r->cfg.write_stall_ms);
    if (c->is_throttled)
        at = sooner(at, c->refill_at_ms);
    uint64_t due = at == UINT64_MAX ? MN_NEVER : at * 1000000;
    if (due != c->timer.due_ns)
        mn_wheel_arm(&r->wheel, &c->timer, due);
}

static void keep_alive(struct mn_relay *r, struct mn_relay_conn *c)
{
    mn_hub_tell(&r->hub, &c->client, MN_FRAME_KEEP_ALIVE, NULL, 0, (uint32_t)r->now_ms);
    c->keep_alive_at_ms = r->now_ms + r->cfg.keep_alive_ms;
}

/* False: it is silent for good. */
static bool ask_for_life(struct mn_relay *r, struct mn_relay_conn *c)
{
    uint64_t silent = r->now_ms - c->heard_ms;
    if (silent < MN_RELAY_PING_AFTER_MS)
        return true;
    if (c->was_pinged)
        return silent < MN_RELAY_PING_AFTER_MS + MN_RELAY_PING_WAIT_MS;
    uint8_t token[MN_RELAY_PING];
    memcpy(token, &r->now_ns, sizeof token);
    mn_hub_tell(&r->hub, &c->client, MN_FRAME_PING, token, sizeof token, (uint32_t)r->now_ms);
    c->was_pinged = true;
    return true;
}

void mn_relay_conn_on_timer(struct mn_relay *r, struct mn_relay_conn *c)
{
    if (c->phase != MN_PHASE_OPEN && c->ends_by_ms != 0 && c->ends_by_ms <= r->now_ms) {
        r->stats.login_late += c->phase != MN_PHASE_CLOSING;
        mn_relay_conn_stop(r, c, c->phase == MN_PHASE_CLOSING ? MN_WHY_ASKED : MN_WHY_LOGIN_LATE);
        return;
    }
    bool is_stalled = c->stalled_ms != 0 && r->now_ms - c->stalled_ms >= r->cfg.write_stall_ms;
    if (is_stalled) {
        /* It may be our own thread that had no time: what it takes now, it would have taken then. */
        uint64_t before = c->stream.tx_bytes;
        mn_relay_conn_on_writable(r, c);
        if (c->stream.fd < 0)
            return;
        is_stalled = c->stream.tx_bytes == before;
    }
    if (is_stalled) {
        r->stats.stalled++;
        mn_relay_conn_stop(r, c, MN_WHY_STALLED);
        return;
    }
    if (c->phase == MN_PHASE_OPEN && c->acks_pings && !ask_for_life(r, c)) {
        r->stats.silent++;
        mn_relay_conn_stop(r, c, MN_WHY_SILENT);
        return;
    }
    if (c->phase == MN_PHASE_OPEN && c->keep_alive_at_ms <= r->now_ms)
        keep_alive(r, c);
    if (c->is_throttled && c->refill_at_ms <= r->now_ms) {
        c->is_throttled = false;
        mn_relay_conn_watch(r, c);
    }
    mn_relay_conn_arm(r, c);
}
