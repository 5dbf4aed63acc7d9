/* Between the sockets, the WireGuard device and the netstack: which path a message takes, and who hears of it.
 *
 * A peer's path is set from outside (set_path) and never moved by what arrives. Data goes as way.h says; initiations
 * are never copied: of a peer that has both ways they alternate, even attempts by relay; responses and cookie replies
 * go exactly where the message came from, by relay to the node that sent it. An initiation made while a peer has no
 * path is kept and leaves as soon as it gets one. Hints about traffic (PEER_SEND, PEER_RECV) are throttled per peer,
 * and per path and kind. */
#ifndef MN_ENGINE_TUNNEL_H
#define MN_ENGINE_TUNNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/addr.h"
#include "waiting.h"

struct mn_engine;
struct mn_wg_ops;
struct mn_stack_ops;
struct mn_command;
struct mn_sock_rx;

enum {
    MN_TOLD_PATHS = 4,
    MN_UNSENT_MAX = 160, /* an initiation is 148 bytes */
    MN_DEFERRED_MAX = 4,
    MN_ERRORS_TOLD = 16,
    MN_OTHERS_MAX = 2,
    MN_OTHER_LEN = 18, /* address, port */
};

struct mn_told {
    struct mn_path path;
    uint64_t at[3]; /* per kind of packet; 0: never */
};

struct mn_peer {
    bool is_used, was_wanted;
    uint8_t mode, last_told, next_told;
    uint16_t region;
    uint16_t unsent_len;
    uint16_t limit; /* longest IP packet that the direct path carries; 0: any */
    uint8_t n_others, beyond;
    uint16_t mtu; /* of inner packets, as `limit` wants it; 0: the engine's */
    struct mn_ep direct;
    struct mn_ep others[MN_OTHERS_MAX]; /* endpoints for copies, while no relay takes them */
    struct mn_ip source;                /* our address the peer last wrote to on `direct`; all zero: any */
    uint8_t key[32];
    uint64_t send_told_at, unsent_at, copies_full_at, direct_at;
    uint64_t rx_direct, rx_relay, tx_direct, tx_relay;
    struct mn_told told[MN_TOLD_PATHS];
    uint8_t unsent[MN_UNSENT_MAX];
};

/* A handshake message made while a data packet was being sealed into the socket's buffer. */
struct mn_deferred {
    uint32_t peer;
    unsigned attempt;
    int kind;
    uint16_t len;
    uint8_t pkt[MN_UNSENT_MAX];
};

struct mn_error_told {
    struct mn_ep to;
    int err;
    unsigned count; /* since `since` */
    uint64_t at, since, told_at;
};

struct mn_tunnel {
    struct mn_peer *peers; /* by the device's slot */
    uint32_t cap;
    struct mn_waiting waiting;
    uint8_t own_key[32];
    /* of the message being read */
    const uint8_t *sender; /* relay sender, NULL otherwise */
    struct mn_ip local;    /* our address it came to; all zero: not known */
    uint8_t ecn;           /* of its outer header */
    uint8_t *scratch;      /* where packets for the relay alone are sealed */
    /* between out_begin and out_commit */
    uint32_t out_peer;
    uint8_t *out_at;
    bool is_sealing, out_in_scratch;
    unsigned n_deferred;
    struct mn_deferred deferred[MN_DEFERRED_MAX];
    struct mn_error_told errors[MN_ERRORS_TOLD];
};

int mn_tunnel_init(struct mn_engine *e);
void mn_tunnel_destroy(struct mn_engine *e);
void mn_tunnel_set_wg_ops(struct mn_wg_ops *ops);
void mn_tunnel_set_stack_ops(struct mn_stack_ops *ops);

/* One super-buffer from a socket; its packets stay in use until the stack's next flush. */
void mn_tunnel_read(struct mn_engine *e, const struct mn_sock_rx *rx);
/* One WireGuard message that came by relay; same lifetime. */
void mn_tunnel_inject(struct mn_engine *e, uint16_t region, const uint8_t sender[32], uint8_t *data, size_t len);

/* Room for an inner packet of at most max bytes towards dst, and its end: the stack's out_begin and out_commit, ctx the
 * engine. *err: EHOSTUNREACH, EMSGSIZE. */
uint8_t *mn_tunnel_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err);
void mn_tunnel_commit(void *ctx, size_t len);
/* Between begin and commit: what the peer of this packet is known to take. */
size_t mn_tunnel_out_mtu(const struct mn_engine *e);
/* The largest inner packet that the direct path to dst carries, as far as is known; longer ones go by relay. */
size_t mn_tunnel_mtu(void *ctx, const struct mn_ip *dst);

int mn_tunnel_add_peer(struct mn_engine *e, const uint8_t key[32], uint32_t *peer);
void mn_tunnel_drop_peer(struct mn_engine *e, uint32_t peer);
/* Drop the peers that the device no longer has: one whose key became our own. */
void mn_tunnel_drop_unknown(struct mn_engine *e);
void mn_tunnel_set_path(struct mn_engine *e, uint32_t peer, const struct mn_command *cmd);
/* Our address that a direct path used may be gone: of the path to `to`, or of all. */
void mn_tunnel_unpin(void *engine, const struct mn_ep *to);
void mn_tunnel_unpin_all(struct mn_engine *e);
/* The key of a peer slot; our own for packets that never left this node. */
const uint8_t *mn_tunnel_key(const struct mn_engine *e, uint32_t peer);

#endif
