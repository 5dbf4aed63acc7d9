/* struct mn_engine and what its files know of each other. Not for anyone outside engine/. */
#ifndef MN_ENGINE_INTERNAL_H
#define MN_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "../tcp/stack.h"
#include "../wg/wg.h"
#include "bridges.h"
#include "engine.h"
#include "links.h"
#include "requests.h"
#include "sleep.h"
#include "spin.h"
#include "tun.h"
#include "tunnel.h"

#define MN_NS_PER_MS 1000000ull
#define MN_NS_PER_S 1000000000ull

/* Tags of what epoll watches; a flow's is its id. */
#define MN_TAG_UDP4 (UINT64_MAX - 0)
#define MN_TAG_UDP6 (UINT64_MAX - 1)
#define MN_TAG_COMMANDS (UINT64_MAX - 2)
#define MN_TAG_EXTRA (UINT64_MAX - 512) /* and the number of an extra socket */
#define MN_TAG_LINKS (UINT64_MAX - 128) /* and the MN_LINKS_MAX - 1 above */
#define MN_TAG_TUN (UINT64_MAX - 9)

#define MN_ENGINE_COUNTERS(X)                                                                                          \
    X(turns)                                                                                                           \
    X(spins)                                                                                                           \
    X(sleeps)                                                                                                          \
    X(commands)                                                                                                        \
    X(command_errors)                                                                                                  \
    X(rx_unknown)                                                                                                      \
    X(rx_disco)                                                                                                        \
    X(rx_stun)                                                                                                         \
    X(rx_relayed) /* WireGuard by a peer relay */                                                                      \
    X(rx_no_peer)                                                                                                      \
    X(rx_roamed)                                                                                                       \
    X(rx_ecn_drops)                                                                                                    \
    X(tx_no_path)                                                                                                      \
    X(tx_waiting_lost)                                                                                                 \
    X(tx_relay)                                                                                                        \
    X(tx_deferred_lost)                                                                                                \
    X(accept_refused) X(flows_opened) X(flows_refused) X(app_bytes_in) X(app_bytes_out) X(app_reads) X(app_writes)

struct mn_engine_stats {
#define X(name) uint64_t name;
    MN_ENGINE_COUNTERS(X)
#undef X
};

/* One synchronous question at a time; a caller that gave up is told apart by its number. */
struct mn_calls {
    pthread_mutex_t turn; /* held by the caller throughout */
    pthread_mutex_t lock;
    pthread_cond_t answered;
    uint64_t asked, done;
    struct mn_answer answer;
};

struct mn_engine {
    struct mn_engine *next_live; /* fork.c's list */
    struct mn_socks socks;
    struct mn_wg *wg;
    struct mn_stack *stack;
    struct mn_events events;
    struct mn_commands commands;
    struct mn_tunnel tunnel;
    struct mn_bridges flows;
    struct mn_requests requests;
    struct mn_tun tun;
    struct mn_links links;
    struct mn_calls calls;
    struct mn_sleep sleep;
    struct mn_engine_stats stats;
    uint64_t now_ns;
    struct mn_spin spin;
    size_t mtu;
    int epoll_fd;
    atomic_ushort ports[2]; /* as other threads read them */
    bool is_started, is_joined;
    pthread_t thread;
    atomic_bool wants_stop, has_stopped, is_forked, fork_waits;
    pthread_mutex_t in_turn;
};

/* New sockets, on the same port if it is to be had; sessions and connections live on. 0 or a negative errno. */
int mn_engine_rebind(struct mn_engine *e);

/* Open or close `count` extra sockets from number `first` on; what cannot be opened stays closed. 0 or a negative
 * errno. */
int mn_engine_set_extra(struct mn_engine *e, unsigned first, unsigned count, bool wanted);

uint64_t mn_clock_ns(void); /* boot time */
void mn_random(void *ctx, uint8_t *p, size_t n);

/* fork.c: engines alive in this process, so that a forked child can disown them. Whoever touches keys does so between
 * enter and leave. */
void mn_fork_enter(struct mn_engine *e);
void mn_fork_leave(struct mn_engine *e);
void mn_fork_register(struct mn_engine *e);
void mn_fork_forget(struct mn_engine *e);

#endif
