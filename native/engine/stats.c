/* Names and values in the same order, by the same lists. See stats.h. */
#include "stats.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "internal.h"

enum { CALL_SECONDS = 5 }; /* a turn takes milliseconds; a machine that swaps may take seconds */

const char *const mn_engine_stat_names[] = {
#define X(name) #name,
    MN_ENGINE_COUNTERS(X)
#undef X
#define X(name) "udp_" #name,
        MN_SOCK_COUNTERS(X)
#undef X
#define X(name) "wg_" #name,
            MN_WG_COUNTERS(X)
#undef X
#define X(name) "wg_drop_" #name,
                MN_WG_DROPS(X)
#undef X
#define X(name) "ip_" #name,
                    MN_STACK_COUNTERS(X)
#undef X
#define X(name) "tun_" #name,
                        MN_TUN_COUNTERS(X)
#undef X
                            "tcp_conns",
    "tcp_half_open",
    "tcp_time_wait",
    "udp_flows",
    "ring_bytes",
    "flows",
    "flows_ending",
    "udp_rcvbuf",
    "udp_sndbuf",
    "udp_gso",
    "udp_gro",
    "udp_gso_mode",
    "events_lost",
    "commands_refused",
    "packets_dropped",
};

const char *const mn_peer_stat_names[] = {
    "rx_bytes",       "tx_bytes",         "last_handshake_ns",    "session",    "rx_direct_bytes",
    "rx_relay_bytes", "tx_direct_bytes",  "tx_relay_bytes",       "rx_packets", "tx_packets",
    "handshakes",     "initiations_sent", "initiations_received", "staged",     "staged_dropped",
    "drop_source",    "drop_inner",       "drop_replay",
};

static void put(struct mn_answer *a, uint64_t value)
{
    if (a->count < MN_STATS_MAX)
        a->values[a->count++] = value;
}

/* Connections whose application has closed and whose last bytes are still on their way. */
static uint64_t count_ending(const struct mn_engine *e)
{
    uint64_t ending = mn_tcp_count_delivering(e->stack);
    for (uint32_t i = 0; i < e->flows.high; i++)
        ending += e->flows.table[i].id != 0 && e->flows.table[i].is_hung_up;
    return ending;
}

static void put_engine(struct mn_engine *e, struct mn_answer *a)
{
    const struct mn_wg_stats *wg = mn_wg_stats(e->wg);
    const struct mn_stack_stats *ip = mn_stack_stats(e->stack);
    e->stats.tx_waiting_lost = e->tunnel.waiting.lost;
#define X(name) put(a, e->stats.name);
    MN_ENGINE_COUNTERS(X)
#undef X
#define X(name) put(a, e->socks.stats.name);
    MN_SOCK_COUNTERS(X)
#undef X
#define X(name) put(a, wg->name);
    MN_WG_COUNTERS(X)
#undef X
#define X(name) put(a, wg->drops[MN_WG_DROP_##name]);
    MN_WG_DROPS(X)
#undef X
#define X(name) put(a, ip->name);
    MN_STACK_COUNTERS(X)
#undef X
#define X(name) put(a, e->tun.stats.name);
    MN_TUN_COUNTERS(X)
#undef X
    put(a, ip->tcp_conns);
    put(a, ip->tcp_half_open);
    put(a, ip->tcp_time_wait);
    put(a, ip->udp_flows);
    put(a, ip->ring_bytes);
    put(a, e->flows.count);
    put(a, count_ending(e));
    put(a, e->socks.rcvbuf);
    put(a, e->socks.sndbuf);
    put(a, e->socks.has_gso[MN_SOCK_V4] || e->socks.has_gso[MN_SOCK_V6]);
    put(a, e->socks.has_gro[MN_SOCK_V4] || e->socks.has_gro[MN_SOCK_V6]);
    put(a, e->socks.config.gso);
    pthread_mutex_lock(&e->events.lock);
    put(a, e->events.lost_total);
    pthread_mutex_unlock(&e->events.lock);
    pthread_mutex_lock(&e->commands.lock);
    put(a, e->commands.refused);
    put(a, e->commands.packets_dropped);
    pthread_mutex_unlock(&e->commands.lock);
    mn_wg_get_last_timestamp(e->wg, a->timestamp);
}
_Static_assert(sizeof mn_engine_stat_names / sizeof *mn_engine_stat_names <= MN_STATS_MAX, "room for every counter");

static int put_peer(struct mn_engine *e, const uint8_t key[32], struct mn_answer *a)
{
    uint32_t peer = MN_PEER_NONE;
    struct mn_wg_peer_stats s;
    if (mn_wg_peer_find(e->wg, key, &peer) < 0 || mn_wg_peer_stats(e->wg, peer, &s) < 0 || peer >= e->tunnel.cap)
        return -ENOENT;
    const struct mn_peer *p = &e->tunnel.peers[peer];
    const uint64_t values[] = {
        s.rx_bytes,
        s.tx_bytes,
        s.last_handshake_ns,
        mn_wg_has_session(e->wg, peer, e->now_ns),
        p->rx_direct,
        p->rx_relay,
        p->tx_direct,
        p->tx_relay,
        s.rx_packets,
        s.tx_packets,
        s.handshakes,
        s.initiations_sent,
        s.initiations_received,
        s.staged_now,
        s.staged_dropped,
        s.drop_source,
        s.drop_inner,
        s.drop_replay,
    };
    _Static_assert(sizeof values / sizeof *values == sizeof mn_peer_stat_names / sizeof *mn_peer_stat_names,
                   "a name for each");
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        put(a, values[i]);
    return 0;
}

void mn_stats_answer(struct mn_engine *e, const struct mn_command *cmd, int err)
{
    struct mn_calls *c = &e->calls;
    pthread_mutex_lock(&c->lock);
    struct mn_answer *a = &c->answer;
    memset(a, 0, sizeof *a);
    a->err = err;
    if (cmd->kind == MN_CMD_STATS)
        put_engine(e, a);
    else if (cmd->kind == MN_CMD_PEER_STATS)
        a->err = put_peer(e, cmd->key, a);
    c->done = cmd->req;
    pthread_cond_broadcast(&c->answered);
    pthread_mutex_unlock(&c->lock);
}

/* Callers take turns; one that stops waiting leaves an answer with a number nobody asks for any more. */
int mn_engine_call(struct mn_engine *e, struct mn_command *cmd, struct mn_answer *out)
{
    struct mn_calls *c = &e->calls;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CALL_SECONDS;
    pthread_mutex_lock(&c->turn);
    cmd->req = ++c->asked;
    int err = mn_engine_push(e, cmd);
    pthread_mutex_lock(&c->lock);
    while (err == 0 && c->done != cmd->req) {
        if (atomic_load(&e->has_stopped))
            err = -ENETDOWN;
        else
            err = -pthread_cond_timedwait(&c->answered, &c->lock, &until);
    }
    if (err == 0)
        *out = c->answer;
    pthread_mutex_unlock(&c->lock);
    pthread_mutex_unlock(&c->turn);
    return err;
}
