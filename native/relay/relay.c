/* One turn of a relay's thread: commands, sockets, timers, and then everybody who has something gets it. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

enum { STACK_BYTES = 512 << 10, WAIT_MAX_MS = 60000, FIRST_TABLE = 1024, SLOW_TURN_US = 20000 };

uint64_t mn_relay_clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static void read_clock(struct mn_relay *r)
{
    r->now_ns = mn_relay_clock_ns();
    r->now_ms = r->now_ns / 1000000;
}

/* ---- making ---- */

static void set_defaults(struct mn_relay_config *c)
{
    if (c->memory_max == 0)
        c->memory_max = 256 << 20;
    if (c->conns_max == 0)
        c->conns_max = 65536;
    if (c->pending_max == 0)
        c->pending_max = 4096;
    if (c->per_ip_burst == 0)
        c->per_ip_burst = c->per_ip_rate * 4;
    if (c->login_ms == 0)
        c->login_ms = 10000;
    if (c->keep_alive_ms == 0)
        c->keep_alive_ms = 60000;
    if (c->write_stall_ms == 0)
        c->write_stall_ms = 5000;
    if (c->client_burst == 0)
        c->client_burst = c->client_rate;
}

static int watch(const struct mn_relay *r, int fd, uint64_t tag)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = tag};
    return epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == 0 ? 0 : -errno;
}

static int make(struct mn_relay *r)
{
    uint64_t seed[6];
    int err = mn_talk_init(&r->talk);
    if (err != 0)
        return err;
    if (getrandom(seed, sizeof seed, 0) != (ssize_t)sizeof seed)
        return -EIO;
    r->random = seed[5] | 1;
    r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    r->lobby_fd = epoll_create1(EPOLL_CLOEXEC);
    r->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (r->epoll_fd < 0 || r->lobby_fd < 0 || r->spare_fd < 0)
        return -errno;
    r->plain = malloc(MN_RELAY_PLAIN);
    r->batch = malloc(MN_TLS_PLAIN_MAX + MN_WS_HEADER_MAX);
    r->by_id = calloc(FIRST_TABLE, sizeof(struct mn_relay_conn *));
    r->by_id_size = FIRST_TABLE;
    if (r->plain == NULL || r->batch == NULL || r->by_id == NULL || !mn_wires_init(&r->wires) ||
        !mn_hub_init(&r->hub, r->cfg.memory_max, seed))
        return -ENOMEM;
    mn_guard_init(&r->guard, r->cfg.per_ip_max, r->cfg.per_ip_rate, r->cfg.per_ip_burst, seed[4], (uint32_t)r->now_ms);
    mn_wheel_init(&r->wheel, r->now_ns);
    err = watch(r, r->lobby_fd, MN_RELAY_TAG_LOBBY);
    return err != 0 ? err : watch(r, r->talk.command_fd, MN_RELAY_TAG_COMMANDS);
}

struct mn_relay *mn_relay_create(const struct mn_relay_config *config, int *err)
{
    struct mn_relay *r = calloc(1, sizeof *r);
    if (r == NULL) {
        *err = -ENOMEM;
        return NULL;
    }
    r->cfg = *config;
    set_defaults(&r->cfg);
    r->epoll_fd = r->lobby_fd = r->spare_fd = r->talk.event_fd = r->talk.command_fd = -1;
    atomic_store(&r->ids, 1);
    for (int i = 0; i < MN_RELAY_LISTENERS; i++)
        r->listeners[i].fd = -1;
    read_clock(r);
    *err = make(r);
    if (*err == 0)
        return r;
    mn_relay_destroy(r);
    return NULL;
}

static void stop_all(struct mn_relay *r)
{
    for (uint32_t i = 0; r->by_id != NULL && i < r->by_id_size; i++)
        while (r->by_id[i] != NULL)
            mn_relay_conn_stop(r, r->by_id[i], MN_WHY_ASKED);
    mn_relay_conn_free_dead(r);
}

void mn_relay_destroy(struct mn_relay *r)
{
    if (r->hub.buckets != NULL) {
        stop_all(r);
        mn_hub_destroy(&r->hub);
    }
    mn_lobby_unlisten(r);
    SSL_CTX_free(r->ctx);
    mn_wires_destroy(&r->wires);
    free(r->plain);
    free(r->batch);
    free(r->by_id);
    if (r->epoll_fd >= 0)
        close(r->epoll_fd);
    if (r->lobby_fd >= 0)
        close(r->lobby_fd);
    if (r->spare_fd >= 0)
        close(r->spare_fd);
    mn_talk_destroy(&r->talk);
    free(r);
}

/* ---- a turn ---- */

static void fire(void *ctx, struct mn_timer *t, uint64_t now_ns)
{
    (void)now_ns;
    struct mn_relay_conn *c = (struct mn_relay_conn *)((char *)t - offsetof(struct mn_relay_conn, timer));
    mn_relay_conn_on_timer(ctx, c);
}

/* How long the turn that ends here took, its waits for a processor with it. */
static void note_turn(struct mn_relay *r, uint64_t took_ns)
{
    uint64_t us = took_ns / 1000;
    r->stats.slow_turns += us >= SLOW_TURN_US;
    if (us > r->stats.turn_max_us)
        r->stats.turn_max_us = us;
}

static int wait_for(struct mn_relay *r)
{
    uint64_t due = mn_wheel_next(&r->wheel), lobby_ms = mn_lobby_next_ms(r), now = mn_relay_clock_ns();
    note_turn(r, now - r->now_ns);
    if (lobby_ms < due / 1000000)
        due = lobby_ms * 1000000;
    if (r->hub.dirty_first != NULL || due <= now)
        return 0;
    uint64_t ms = (due - now + 999999) / 1000000;
    return ms < WAIT_MAX_MS ? (int)ms : WAIT_MAX_MS;
}

static void turn(struct mn_relay *r)
{
    struct epoll_event ready[MN_RELAY_READY];
    int n = epoll_wait(r->epoll_fd, ready, MN_RELAY_READY, wait_for(r));
    bool has_newcomers = false;
    read_clock(r);
    r->stats.turns++;
    for (int i = 0; i < n; i++) {
        if (ready[i].data.u64 == MN_RELAY_TAG_COMMANDS)
            mn_relay_run_commands(r);
        else if (ready[i].data.u64 == MN_RELAY_TAG_LOBBY)
            has_newcomers = true;
        else
            mn_relay_conn_serve(r, ready[i].data.u64, ready[i].events);
    }
    mn_wheel_advance(&r->wheel, r->now_ns, fire, r);
    mn_relay_conn_flush_dirty(r);
    mn_lobby_keep_time(r);
    if (has_newcomers)
        mn_lobby_serve(r);
    mn_relay_conn_free_dead(r);
    mn_talk_signal(&r->talk);
}

static void *run(void *arg)
{
    struct mn_relay *r = arg;
    read_clock(r);
    while (!atomic_load_explicit(&r->wants_stop, memory_order_acquire))
        turn(r);
    read_clock(r);
    mn_lobby_unlisten(r);
    stop_all(r);
    mn_talk_signal(&r->talk);
    pthread_mutex_lock(&r->talk.lock);
    r->talk.is_over = true;
    pthread_cond_broadcast(&r->talk.answered);
    pthread_mutex_unlock(&r->talk.lock);
    return NULL;
}

int mn_relay_start(struct mn_relay *r)
{
    sigset_t all, before;
    pthread_attr_t attr;
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&r->thread, &attr, run, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (err != 0)
        return -err;
    atomic_store(&r->is_started, true);
    (void)pthread_setname_np(r->thread, "meshnode-derp");
    return 0;
}

void mn_relay_stop(struct mn_relay *r)
{
    if (!atomic_load(&r->is_started))
        return;
    atomic_store_explicit(&r->wants_stop, true, memory_order_release);
    (void)eventfd_write(r->talk.command_fd, 1);
    pthread_join(r->thread, NULL);
    atomic_store(&r->is_started, false);
}
