/* Inside of the device: what its files share. Not for others; the face is wg.h.
 *
 * device.c   create, configure, route, statistics
 * peers.c    the peer table and staged packets
 * handshake.c initiations, responses and cookie replies: made, consumed, asked for
 * load.c     which handshake messages are worked on now, later, only with a cookie, or not at all
 * data.c     seal and open of transport data, keepalives
 * timers.c   a peer's five timers */
#ifndef MN_WG_DEVICE_H
#define MN_WG_DEVICE_H

#include "../mem/arena.h"
#include "../mem/pool.h"
#include "../mem/wheel.h"
#include "allowedips.h"
#include "cookie.h"
#include "index.h"
#include "noise.h"
#include "session.h"
#include "wg.h"

#define MN_MS_NS 1000000ULL
#define MN_REKEY_TIMEOUT_NS (5 * MN_SECOND_NS)
#define MN_KEEPALIVE_NS (10 * MN_SECOND_NS)
#define MN_ZERO_KEYS_NS (3 * MN_REJECT_AFTER_NS)
#define MN_LONG_AGO UINT64_MAX /* an instant that never was */

enum {
    MN_MAX_TIMER_HANDSHAKES = 18,
    MN_LOAD_QUEUE = 256,
    MN_PEERS_FREE_MIN = 64, /* ids that rest before one is used again */
};

enum mn_peer_timer {
    MN_TIMER_RETRANSMIT,
    MN_TIMER_SEND_KEEPALIVE,
    MN_TIMER_NEW_HANDSHAKE,
    MN_TIMER_ZERO_KEYS,
    MN_TIMER_PERSISTENT,
    MN_TIMER_COUNT_,
};

/* In the arena: wiped on removal and in a forked child. */
struct mn_peer_secret {
    struct mn_noise_remote remote;
    struct mn_noise_initiator initiator;
    struct mn_cookie_jar jar;
};

union mn_secret_chunk {
    struct mn_peer_secret peer;
    struct mn_cookie_checker checker;
};

struct mn_staged {
    struct mn_staged *next;
    size_t len;
    uint8_t msg[]; /* header, inner packet, room for padding and tag */
};

/* Our initiation that waits for its response. A peer's initiation needs no such place: it is answered at once, so
 * that handshakes that cross do not overwrite each other. */
struct mn_outstanding {
    bool is_live;
    uint32_t index;
    uint64_t sent_ns, resent_ns;
    uint8_t msg[MN_INITIATION_LEN];
};

/* The source address last found to be the peer's; generation 0: none. */
struct mn_source_cache {
    struct mn_ip ip;
    uint64_t generation;
};

struct mn_wg_peer {
    uint32_t id, hash_next;
    bool has_ss; /* false without our key, or with a public key of small order */
    bool roams;
    uint8_t pub[32];
    struct mn_peer_secret *secret;

    struct mn_sessions sessions;
    struct mn_outstanding out;
    struct mn_source_cache source4, source6;
    struct mn_staged *staged_head, **staged_tail;
    uint32_t staged_count, staged_bytes;

    struct mn_timer timers[MN_TIMER_COUNT_];
    uint16_t keepalive_s;
    bool needs_another_keepalive, sent_lastminute;
    unsigned attempts;    /* as the give-up rule counts */
    unsigned initiations; /* since the last complete handshake: what ops->send is told */
    uint64_t last_sent_handshake_ns, last_accepted_ns;
    uint8_t last_timestamp[MN_WG_TIMESTAMP]; /* greatest accepted */

    struct mn_wg_peer_stats stats;
};

struct mn_load_item {
    size_t len;
    struct mn_path from;
    uint8_t msg[MN_INITIATION_LEN];
};

struct mn_load {
    uint64_t window_at, under_load_until, budget_at; /* budget_at: when the work taken on is paid for */
    unsigned window_count;
    unsigned head, count;
    struct mn_load_item queue[MN_LOAD_QUEUE];
};

struct mn_clock {
    uint64_t seconds;
    uint32_t nanos;
    bool is_behind;
};

struct mn_wg {
    struct mn_wg_ops ops;
    struct mn_wg_config config;
    struct mn_noise noise;
    struct mn_arena arena;
    struct mn_cookie_checker *checker;
    struct mn_limiter limiter;
    struct mn_load load;
    struct mn_indices indices;
    struct mn_allowedips allowedips;
    struct mn_wheel wheel;
    struct mn_pool staging;
    struct mn_clock sent; /* latest timestamp sent */

    struct mn_wg_peer **peers; /* by id; NULL: free */
    uint32_t peer_capacity, peer_fresh;
    uint32_t *free_ids, free_head, free_count; /* a ring of peer_capacity */
    uint32_t *buckets, bucket_count;           /* by public key */
    uint64_t hash_seed, jitter_state;
    struct mn_wg_stats stats;
};

static inline struct mn_wg_peer *mn_peer_get(const struct mn_wg *wg, uint32_t id)
{
    return id < wg->peer_fresh ? wg->peers[id] : NULL;
}

static inline int mn_drop(struct mn_wg *wg, enum mn_wg_drop why)
{
    wg->stats.drops[why]++;
    return -(int)why;
}

/* peers.c */
int mn_peers_init(struct mn_wg *wg);
void mn_peers_destroy(struct mn_wg *wg);
struct mn_wg_peer *mn_peer_by_key(const struct mn_wg *wg, const uint8_t pub[32]);
void mn_peer_forget(struct mn_wg *wg, struct mn_wg_peer *p); /* handshake, sessions, staged packets, timers */
void mn_peer_wipe_keys(struct mn_wg *wg, struct mn_wg_peer *p);
void mn_peer_free_dropped(struct mn_wg *wg, struct mn_session_dropped *dropped);
int mn_peer_stage(struct mn_wg *wg, struct mn_wg_peer *p, const uint8_t *inner, size_t len); /* 0, or a negated drop */
struct mn_staged *mn_peer_unstage(struct mn_wg *wg, struct mn_wg_peer *p);                   /* the oldest, or NULL */
void mn_peer_purge_staged(struct mn_wg *wg, struct mn_wg_peer *p);

/* An authentic packet of p that moves its endpoint came by this path. */
static inline void mn_peer_came_from(const struct mn_wg *wg, const struct mn_wg_peer *p, const struct mn_path *from)
{
    if (p->roams && wg->ops.roamed != NULL)
        wg->ops.roamed(wg->ops.ctx, p->id, from);
}

/* handshake.c */
void mn_handshake_request(struct mn_wg *wg, struct mn_wg_peer *p, bool is_retry, uint64_t now_ns);
void mn_handshake_clear(struct mn_wg *wg, struct mn_wg_peer *p);
int mn_handshake_consume_initiation(struct mn_wg *wg, const uint8_t *msg, const struct mn_path *from, uint64_t now_ns,
                                    uint32_t *peer);
int mn_handshake_consume_response(struct mn_wg *wg, const uint8_t *msg, const struct mn_path *from, uint64_t now_ns,
                                  uint32_t *peer);
int mn_handshake_consume_cookie(struct mn_wg *wg, const uint8_t *msg, const struct mn_path *from, uint64_t now_ns,
                                uint32_t *peer);

/* load.c: msg has its exact length. */
int mn_load_input(struct mn_wg *wg, const uint8_t *msg, size_t len, const struct mn_path *from, uint64_t now_ns,
                  uint32_t *peer);
uint64_t mn_load_next(const struct mn_wg *wg);
void mn_load_run(struct mn_wg *wg, uint64_t now_ns);

/* data.c */
int mn_data_input(struct mn_wg *wg, uint8_t *msg, size_t len, const struct mn_path *from, uint64_t now_ns,
                  uint8_t **inner, uint32_t *peer);
void mn_data_send_keepalive(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns);
void mn_data_send_staged(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns);

/* timers.c: what happened to the peer. */
void mn_timers_init(struct mn_wg_peer *p);
void mn_timers_stop(struct mn_wg *wg, struct mn_wg_peer *p);
void mn_timers_data_sent(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns);
void mn_timers_data_received(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns);
void mn_timers_authentic_sent(struct mn_wg_peer *p);
void mn_timers_authentic_received(struct mn_wg_peer *p);
void mn_timers_traversal(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns);
void mn_timers_initiation_sent(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns);
void mn_timers_session_derived(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns);
void mn_timers_handshake_complete(struct mn_wg_peer *p, uint64_t now_ns);
void mn_timers_fire(void *ctx, struct mn_timer *t, uint64_t now_ns); /* ctx: the device */

#endif
