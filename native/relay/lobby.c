/* Those who are not logged in yet: accepting, how much of a turn they may take, and who goes when there are too many.
 *
 * They have an epoll of their own, which the thread looks at after its clients were served and for a bounded time, so
 * a crowd at the door costs clients no more than that. Nothing here is ever dirty in the hub. */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../udp/sockaddr.h"
#include "internal.h"

enum { ACCEPTS = 8, EXPIRES = 8, PAUSE_MS = 100 };

static const uint64_t SERVE_NS = 500000, EXPIRE_NS = 500000;

/* ---- the crowd, oldest first ---- */

void mn_lobby_enter(struct mn_relay *r, struct mn_relay_conn *c)
{
    c->is_pending = true;
    c->prev_pending = r->pending_last;
    c->next_pending = NULL;
    if (r->pending_last != NULL)
        r->pending_last->next_pending = c;
    else
        r->pending_first = c;
    r->pending_last = c;
    r->stats.pending++;
    if (c->phase != MN_PHASE_SHAKING)
        return;
    c->is_half_open = true;
    c->prev_half_open = r->half_open_last;
    c->next_half_open = NULL;
    if (r->half_open_last != NULL)
        r->half_open_last->next_half_open = c;
    else
        r->half_open_first = c;
    r->half_open_last = c;
    r->stats.half_open++;
}

void mn_lobby_note_shaken(struct mn_relay *r, struct mn_relay_conn *c)
{
    if (!c->is_half_open)
        return;
    if (c->prev_half_open != NULL)
        c->prev_half_open->next_half_open = c->next_half_open;
    else
        r->half_open_first = c->next_half_open;
    if (c->next_half_open != NULL)
        c->next_half_open->prev_half_open = c->prev_half_open;
    else
        r->half_open_last = c->prev_half_open;
    c->is_half_open = false;
    r->stats.half_open--;
}

void mn_lobby_leave(struct mn_relay *r, struct mn_relay_conn *c)
{
    if (!c->is_pending)
        return;
    mn_lobby_note_shaken(r, c);
    if (c->prev_pending != NULL)
        c->prev_pending->next_pending = c->next_pending;
    else
        r->pending_first = c->next_pending;
    if (c->next_pending != NULL)
        c->next_pending->prev_pending = c->prev_pending;
    else
        r->pending_last = c->prev_pending;
    c->is_pending = false;
    r->stats.pending--;
}

/* One of the crowd goes; false: there is none. A handshake costs its client something, so while most of the crowd is
 * half-open it pushes out its own and nobody who has come further. */
static bool crowd_out(struct mn_relay *r)
{
    bool is_half_open = r->stats.half_open > r->cfg.pending_max / 2;
    struct mn_relay_conn *c = is_half_open ? r->half_open_first : r->pending_first;
    if (c == NULL)
        return false;
    r->stats.crowded_out++;
    mn_relay_conn_stop(r, c, MN_WHY_CROWDED_OUT);
    return true;
}

/* ---- accepting ---- */

static void watch_listeners(struct mn_relay *r, uint32_t events)
{
    for (uint64_t i = 0; i < MN_RELAY_LISTENERS; i++) {
        struct epoll_event watch = {.events = events, .data.u64 = MN_RELAY_TAG_LISTENER | i};
        if (r->listeners[i].fd >= 0)
            (void)epoll_ctl(r->lobby_fd, EPOLL_CTL_MOD, r->listeners[i].fd, &watch);
    }
}

static void pause_accepting(struct mn_relay *r)
{
    r->accept_again_ms = r->now_ms + PAUSE_MS;
    r->stats.accept_pauses++;
    watch_listeners(r, 0);
}

/* No descriptor left: take the connection with the spare one and close it, so that its client tries elsewhere. False:
 * not even that. */
static bool shed_one(struct mn_relay *r, int listener)
{
    if (r->spare_fd >= 0)
        close(r->spare_fd);
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    r->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && r->spare_fd >= 0;
}

static void on_accept_error(struct mn_relay *r, int listener, int error)
{
    bool is_short = error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
    if (!is_short)
        return; /* nobody waits, or the one who did is gone */
    r->stats.accept_errors++;
    /* It would wake us for ever. */
    if (!crowd_out(r) && (error != EMFILE || !shed_one(r, listener)))
        pause_accepting(r);
}

/* May it come in? True counts it. */
static bool admits(struct mn_relay *r, const struct mn_ep *source)
{
    if (!mn_guard_enter(&r->guard, &source->ip, (uint32_t)r->now_ms)) {
        r->stats.per_ip_refused++;
        return false;
    }
    while (r->stats.pending >= r->cfg.pending_max && crowd_out(r))
        ;
    if (r->stats.conns < r->cfg.conns_max || crowd_out(r))
        return true;
    mn_guard_leave(&r->guard, &source->ip);
    return false;
}

static void accept_some(struct mn_relay *r, const struct mn_relay_listener *l)
{
    for (int i = 0; i < ACCEPTS; i++) {
        struct sockaddr_storage from;
        socklen_t len = sizeof from;
        struct mn_ep source = {0};
        int fd = accept4(l->fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            on_accept_error(r, l->fd, errno);
            return;
        }
        r->stats.accepts++;
        (void)mn_sockaddr_get((const uint8_t *)&from, &source); /* a unix socket has none */
        if (!admits(r, &source)) {
            r->stats.accept_refused++;
            close(fd);
        } else if (mn_relay_conn_accept(r, fd, l, &source) == NULL) {
            r->stats.accept_errors++;
            mn_guard_leave(&r->guard, &source.ip);
            close(fd);
        }
    }
}

bool mn_lobby_listen(struct mn_relay *r, int fd, bool has_tls, uint8_t role)
{
    for (uint64_t i = 0; i < MN_RELAY_LISTENERS; i++) {
        struct epoll_event watch = {.events = EPOLLIN, .data.u64 = MN_RELAY_TAG_LISTENER | i};
        if (r->listeners[i].fd >= 0)
            continue;
        (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        if (epoll_ctl(r->lobby_fd, EPOLL_CTL_ADD, fd, &watch) != 0)
            return false;
        r->listeners[i] = (struct mn_relay_listener){fd, has_tls, role};
        return true;
    }
    return false;
}

void mn_lobby_unlisten(struct mn_relay *r)
{
    for (int i = 0; i < MN_RELAY_LISTENERS; i++) {
        if (r->listeners[i].fd >= 0)
            close(r->listeners[i].fd);
        r->listeners[i].fd = -1;
    }
}

/* ---- a turn ---- */

void mn_lobby_serve(struct mn_relay *r)
{
    uint64_t until = mn_relay_clock_ns() + SERVE_NS;
    do {
        struct epoll_event ev; /* one at a time: whoever is not served keeps its place */
        if (epoll_wait(r->lobby_fd, &ev, 1, 0) != 1)
            return;
        if ((ev.data.u64 & MN_RELAY_TAG_LISTENER) == 0) {
            mn_relay_conn_serve(r, ev.data.u64, ev.events);
            continue;
        }
        const struct mn_relay_listener *l = &r->listeners[ev.data.u64 & ~MN_RELAY_TAG_LISTENER];
        if (l->fd >= 0)
            accept_some(r, l);
    } while (mn_relay_clock_ns() < until);
    r->stats.lobby_waits++;
}

static uint64_t expires_ms(const struct mn_relay *r)
{
    return r->pending_first != NULL ? r->pending_first->accepted_ms + r->cfg.login_ms : UINT64_MAX;
}

void mn_lobby_keep_time(struct mn_relay *r)
{
    if (r->accept_again_ms != 0 && r->accept_again_ms <= r->now_ms) {
        r->accept_again_ms = 0;
        watch_listeners(r, EPOLLIN);
    }
    if (expires_ms(r) > r->now_ms)
        return;
    uint64_t until = mn_relay_clock_ns() + EXPIRE_NS;
    do {
        for (int i = 0; i < EXPIRES && expires_ms(r) <= r->now_ms; i++) {
            struct mn_relay_conn *c = r->pending_first;
            bool is_closing = c->phase == MN_PHASE_CLOSING;
            r->stats.login_late += !is_closing;
            mn_relay_conn_stop(r, c, is_closing ? MN_WHY_ASKED : MN_WHY_LOGIN_LATE);
        }
    } while (expires_ms(r) <= r->now_ms && mn_relay_clock_ns() < until);
}

uint64_t mn_lobby_next_ms(const struct mn_relay *r)
{
    uint64_t at = expires_ms(r);
    return r->accept_again_ms != 0 && r->accept_again_ms < at ? r->accept_again_ms : at;
}
