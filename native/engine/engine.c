/* The life of an engine and one turn of its loop. See engine.h. */
#include "engine.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "tell.h"

enum { READY_MAX = 64, STACK_BYTES = 512 << 10 };
#define WAIT_MAX_NS (60 * MN_NS_PER_S)

uint64_t mn_clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (uint64_t)ts.tv_sec * MN_NS_PER_S + (uint64_t)ts.tv_nsec;
}

void mn_random(void *ctx, uint8_t *p, size_t n)
{
    (void)ctx;
    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno != EINTR)
            abort(); /* no randomness: nothing here may go on */
        if (got > 0) {
            p += got;
            n -= (size_t)got;
        }
    }
}

/* ---- making ---- */

static int watch(struct mn_engine *e, int fd, uint64_t tag)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = tag};
    if (fd < 0)
        return 0;
    return epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == 0 ? 0 : -errno;
}

static uint64_t default_memory(void)
{
    const uint64_t usual = 256U << 20;
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || size <= 0)
        return usual;
    uint64_t eighth = (uint64_t)pages * (uint64_t)size / 8;
    return eighth < usual ? eighth : usual;
}

static int make_cores(struct mn_engine *e, const struct mn_engine_config *config)
{
    struct mn_wg_ops wg_ops = {.ctx = e};
    struct mn_wg_config wg_config = {.mtu = e->mtu};
    struct mn_stack_ops stack_ops = {.ctx = e};
    struct mn_stack_config stack_config = {.mtu = e->mtu, .max_conns = MN_FLOWS_MAX, .cc = config->cc};
    stack_config.memory_max = config->tcp_memory != 0 ? config->tcp_memory : default_memory();
    stack_config.ecn = config->tcp_ecn;
    mn_tunnel_set_wg_ops(&wg_ops);
    mn_tunnel_set_stack_ops(&stack_ops);
    mn_bridges_set_ops(&stack_ops);
    mn_requests_set_stack_ops(&stack_ops);
    mn_tun_set_stack_ops(&stack_ops);
    e->wg = mn_wg_create(&wg_ops, &wg_config, config->private_key, e->now_ns);
    e->stack = mn_stack_create(&stack_ops, &stack_config, e->now_ns);
    if (e->wg == NULL || e->stack == NULL)
        return -ENOMEM;
    mn_wg_public_key(e->wg, e->tunnel.own_key);
    if (config->has_floor)
        mn_wg_set_timestamp_floor(e->wg, config->timestamp_floor);
    return 0;
}

static int watch_sockets(struct mn_engine *e)
{
    for (int family = 0; family < 2; family++)
        atomic_store(&e->ports[family], e->socks.port[family]);
    int err = watch(e, e->socks.fd[MN_SOCK_V4], MN_TAG_UDP4);
    return err == 0 ? watch(e, e->socks.fd[MN_SOCK_V6], MN_TAG_UDP6) : err;
}

static int make_watches(struct mn_engine *e)
{
    e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (e->epoll_fd < 0)
        return -errno;
    int err = watch_sockets(e);
    return err == 0 ? watch(e, e->commands.fd, MN_TAG_COMMANDS) : err;
}

int mn_engine_rebind(struct mn_engine *e)
{
    mn_sock_flush(&e->socks);
    mn_tunnel_unpin_all(e);
    int err = mn_sock_rebind(&e->socks); /* epoll forgets the old ones as they are closed */
    if (err == 0)
        err = watch_sockets(e);
    mn_tell_rebound(e, -err);
    return err;
}

int mn_engine_set_extra(struct mn_engine *e, unsigned first, unsigned count, bool wanted)
{
    int failed = 0;
    if (first == 0 || first > MN_SOCK_EXTRA_MAX || count > MN_SOCK_EXTRA_MAX - first + 1)
        return -EINVAL;
    for (unsigned n = first; n < first + count; n++) {
        if (!wanted) {
            mn_sock_close_extra(&e->socks, n);
            continue;
        }
        int err = mn_sock_open_extra(&e->socks, n);
        if (err == 0)
            err = watch(e, e->socks.fd[MN_SOCK_V6 + n], MN_TAG_EXTRA + n);
        if (err != 0) {
            mn_sock_close_extra(&e->socks, n);
            failed = err;
        }
    }
    return failed;
}

static void make_calls(struct mn_calls *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&c->turn, NULL);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->answered, &attr);
    pthread_condattr_destroy(&attr);
}

/* Each step leaves what mn_engine_destroy can take apart. */
static int make(struct mn_engine *e, const struct mn_engine_config *config)
{
    int err = mn_events_init(&e->events);
    if (err != 0) {
        e->events.fd = -1;
        return err;
    }
    err = mn_commands_init(&e->commands);
    if (err != 0) {
        e->commands.fd = -1;
        return err;
    }
    err = mn_sock_open(&e->socks, &config->sockets);
    if (err != 0)
        return err;
    e->socks.ctx = e;
    e->socks.on_error = mn_tell_send_error;
    e->socks.on_hint = mn_tell_path_hint;
    e->socks.on_unpinned = mn_tunnel_unpin;
    e->socks.now_ns = e->now_ns;
    if ((err = mn_bridges_init(&e->flows)) != 0 || (err = mn_tunnel_init(e)) != 0 || (err = mn_requests_init(e)) != 0 ||
        (err = make_cores(e, config)) != 0)
        return err;
    return make_watches(e);
}

struct mn_engine *mn_engine_create(const struct mn_engine_config *config, int *err)
{
    struct mn_engine *e = calloc(1, sizeof *e);
    if (e == NULL) {
        *err = -ENOMEM;
        return NULL;
    }
    e->events.fd = e->commands.fd = e->epoll_fd = -1;
    mn_sock_clear(&e->socks);
    e->now_ns = mn_clock_ns();
    mn_spin_init(&e->spin, e->now_ns);
    mn_sleep_init(&e->sleep);
    e->mtu = config->mtu != 0 ? config->mtu : 1280;
    make_calls(&e->calls);
    pthread_mutex_init(&e->in_turn, NULL);
    mn_tun_init(e);
    *err = make(e, config);
    if (*err != 0) {
        mn_engine_destroy(e);
        return NULL;
    }
    mn_fork_register(e);
    return e;
}

static void drop_cores(struct mn_engine *e)
{
    if (e->stack != NULL)
        mn_stack_destroy(e->stack);
    if (e->wg != NULL)
        mn_wg_destroy(e->wg);
    e->stack = NULL;
    e->wg = NULL;
}

void mn_engine_destroy(struct mn_engine *e)
{
    mn_fork_forget(e);
    if (e->stack != NULL && e->flows.table != NULL)
        mn_bridges_stop(e);
    drop_cores(e);
    mn_requests_destroy(e);
    mn_links_destroy(e);
    mn_tun_close(e);
    mn_tunnel_destroy(e);
    mn_bridges_destroy(&e->flows);
    mn_sock_close(&e->socks);
    if (e->epoll_fd >= 0)
        close(e->epoll_fd);
    if (e->commands.fd >= 0)
        mn_commands_destroy(&e->commands);
    if (e->events.fd >= 0)
        mn_events_destroy(&e->events);
    pthread_mutex_destroy(&e->calls.turn);
    pthread_mutex_destroy(&e->calls.lock);
    pthread_cond_destroy(&e->calls.answered);
    pthread_mutex_destroy(&e->in_turn);
    free(e);
}

/* ---- one turn ---- */

static bool read_udp(struct mn_engine *e, int sock)
{
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    int n = mn_sock_read(&e->socks, sock, rx);
    for (int i = 0; i < n; i++)
        mn_tunnel_read(e, &rx[i]);
    mn_tun_flush(e);
    if (n > 0)
        mn_stack_flush(e->stack, e->now_ns);
    return n != 0;
}

static uint64_t next_deadline(const struct mn_engine *e)
{
    uint64_t wg = mn_wg_next_deadline(e->wg), stack = mn_stack_next_deadline(e->stack);
    return wg < stack ? wg : stack;
}

static bool run_deadlines(struct mn_engine *e)
{
    bool did = false;
    if (mn_wg_next_deadline(e->wg) <= e->now_ns) {
        mn_wg_on_deadline(e->wg, e->now_ns);
        did = true;
    }
    if (mn_stack_next_deadline(e->stack) <= e->now_ns) {
        mn_stack_on_deadline(e->stack, e->now_ns);
        did = true;
    }
    return did;
}

/* How long to wait: 0 when there is something to do, never past the next deadline. */
static uint64_t wait_for(struct mn_engine *e, int wait_ms)
{
    uint64_t deadline = next_deadline(e), now = mn_clock_ns();
    if (wait_ms == 0 || e->flows.queue_count > 0 || deadline <= now)
        return 0;
    if (mn_spin_wanted(&e->spin, now)) {
        (void)sched_yield();
        mn_spin_yielded(&e->spin, now, mn_clock_ns());
        e->stats.spins++;
        return 0;
    }
    uint64_t until = deadline - now < WAIT_MAX_NS ? deadline - now : WAIT_MAX_NS;
    if (wait_ms < 0)
        return until;
    uint64_t most = (uint64_t)(unsigned)wait_ms * MN_NS_PER_MS;
    return most < until ? most : until;
}

static int wait_ready(struct mn_engine *e, struct epoll_event ready[READY_MAX], int wait_ms)
{
    uint64_t limit = wait_for(e, wait_ms);
    if (limit > 0) {
        if (mn_commands_sleep(&e->commands))
            e->stats.sleeps++;
        else
            limit = 0;
    }
    int n = mn_sleep(&e->sleep, e->epoll_fd, ready, READY_MAX, limit);
    if (limit > 0)
        mn_commands_awake(&e->commands);
    return n;
}

/* UDP sockets that have something. */
struct readable {
    unsigned n;
    uint16_t sock[READY_MAX];
};

static void note_readable(struct mn_engine *e, struct readable *r, int sock, uint32_t events)
{
    r->sock[r->n++] = (uint16_t)sock;
    if ((events & EPOLLERR) != 0)
        (void)mn_sock_drain_errors(&e->socks, sock);
}

/* Flows are marked here and read later. */
static void sort_ready(struct mn_engine *e, const struct epoll_event *ready, int n, struct readable *sockets)
{
    sockets->n = 0;
    for (int i = 0; i < n; i++) {
        uint64_t tag = ready[i].data.u64;
        eventfd_t ignored;
        if (tag == MN_TAG_UDP4 || tag == MN_TAG_UDP6) {
            note_readable(e, sockets, tag == MN_TAG_UDP4 ? MN_SOCK_V4 : MN_SOCK_V6, ready[i].events);
        } else if (tag > MN_TAG_EXTRA && tag <= MN_TAG_EXTRA + MN_SOCK_EXTRA_MAX) {
            note_readable(e, sockets, MN_SOCK_V6 + (int)(tag - MN_TAG_EXTRA), ready[i].events);
        } else if (tag == MN_TAG_TUN) {
            e->tun.is_ready = true;
        } else if (tag >= MN_TAG_LINKS && tag < MN_TAG_LINKS + MN_LINKS_MAX) {
            mn_links_ready(e, (uint32_t)(tag - MN_TAG_LINKS), ready[i].events);
        } else if (tag == MN_TAG_COMMANDS) {
            (void)eventfd_read(e->commands.fd, &ignored);
        } else {
            mn_bridge_ready(e, tag, ready[i].events);
        }
    }
}

void mn_engine_turn(struct mn_engine *e, int wait_ms)
{
    struct epoll_event ready[READY_MAX];
    int n = wait_ready(e, ready, wait_ms);
    mn_fork_enter(e);
    e->now_ns = e->socks.now_ns = mn_clock_ns();
    e->stats.turns++;
    struct readable sockets;
    sort_ready(e, ready, n, &sockets);
    bool did = n > 0;
    did |= mn_requests_run(e);
    for (unsigned i = 0; i < sockets.n; i++)
        did |= read_udp(e, sockets.sock[i]);
    did |= mn_links_read(e);
    did |= mn_tun_read(e);
    did |= e->flows.queue_count > 0;
    (void)mn_bridges_serve(e);
    did |= run_deadlines(e);
    mn_stack_flush(e->stack, e->now_ns);
    mn_sock_flush(&e->socks);
    mn_links_flush(e);
    mn_events_signal(&e->events);
    if (did)
        mn_spin_worked(&e->spin, e->now_ns, mn_clock_ns());
    mn_fork_leave(e);
}

/* ---- the thread ---- */

/* Resets leave, keys go, and whoever waits for an answer learns that none will come. */
static void wind_up(struct mn_engine *e)
{
    mn_fork_enter(e);
    e->now_ns = e->socks.now_ns = mn_clock_ns();
    mn_bridges_stop(e);
    mn_stack_flush(e->stack, e->now_ns);
    mn_sock_flush(&e->socks);
    mn_links_flush(e);
    mn_links_destroy(e);
    mn_tun_close(e);          /* and the interface, with its addresses and routes */
    mn_sock_close(&e->socks); /* the ports are free at once, however long the object is held */
    drop_cores(e);
    mn_fork_leave(e);
    mn_events_signal(&e->events);
    pthread_mutex_lock(&e->calls.lock);
    atomic_store(&e->has_stopped, true);
    pthread_cond_broadcast(&e->calls.answered);
    pthread_mutex_unlock(&e->calls.lock);
}

static void *run(void *arg)
{
    struct mn_engine *e = arg;
    mn_sleep_exactly();
    while (!atomic_load_explicit(&e->wants_stop, memory_order_acquire))
        mn_engine_turn(e, -1);
    wind_up(e);
    return NULL;
}

int mn_engine_start(struct mn_engine *e)
{
    sigset_t all, before;
    pthread_attr_t attr;
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&e->thread, &attr, run, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (err != 0)
        return -err;
    e->is_started = true;
    (void)pthread_setname_np(e->thread, "meshnode-io");
    return 0;
}

/* Wait for wind_up; pthread_join itself cannot be given a limit everywhere. */
static bool await_stop(struct mn_engine *e, double timeout_s)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    if (timeout_s < 0 || timeout_s > 3600)
        timeout_s = timeout_s < 0 ? 0 : 3600;
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)(timeout_s * 1e9);
    until.tv_sec += (time_t)(ns / MN_NS_PER_S);
    until.tv_nsec = (long)(ns % MN_NS_PER_S);
    pthread_mutex_lock(&e->calls.lock);
    int err = 0;
    while (err == 0 && !atomic_load(&e->has_stopped))
        err = pthread_cond_timedwait(&e->calls.answered, &e->calls.lock, &until);
    pthread_mutex_unlock(&e->calls.lock);
    return atomic_load(&e->has_stopped);
}

bool mn_engine_stop(struct mn_engine *e, double timeout_s)
{
    if (!e->is_started || e->is_joined)
        return true;
    atomic_store_explicit(&e->wants_stop, true, memory_order_release);
    mn_commands_wake(&e->commands);
    if (!await_stop(e, timeout_s))
        return false;
    pthread_join(e->thread, NULL);
    e->is_joined = true;
    return true;
}

/* ---- for other threads ---- */

enum mn_engine_state mn_engine_state(const struct mn_engine *e)
{
    if (atomic_load(&e->is_forked))
        return MN_ENGINE_FORKED;
    return atomic_load(&e->has_stopped) ? MN_ENGINE_STOPPED : MN_ENGINE_RUNNING;
}

struct mn_events *mn_engine_events(struct mn_engine *e)
{
    return &e->events;
}

uint16_t mn_engine_port(const struct mn_engine *e, int family)
{
    return atomic_load(&e->ports[family]);
}

int mn_engine_push(struct mn_engine *e, const struct mn_command *cmd)
{
    return mn_commands_push(&e->commands, cmd);
}
