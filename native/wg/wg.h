/* One WireGuard device: static key, peers, sessions, timers, allowed IPs, cookies. Bytes in, bytes out.
 *
 * Owns no socket, thread or clock: `now_ns` is boot time, wall time comes by ops->wall_ns, packets leave by ops->send.
 *
 * Rules of the joint
 * - One thread. Upcalls may call mn_wg_seal, mn_wg_kick, mn_wg_route and the reading functions; nothing else.
 * - The path of a peer is its owner's business: send with to == NULL means the peer's current path, and a packet that
 *   arrives never moves it, unless the peer roams: then its owner is told of every path an authentic packet took and
 *   shall use the latest. Answers to a datagram (RESPONSE, COOKIE) name the path they must take.
 * - A bad datagram is dropped, counted and never answered. The one exception is a handshake message with a valid mac1
 *   while under load, which earns a cookie reply.
 * - Nothing is allocated on the data path; handshakes allocate a session.
 * - A process that forked off cannot seal or open anything: sessions are bound to memory the kernel wipes on fork.
 * - A peer id stays the same until the peer is removed and is used again as late as possible.
 * Source: the WireGuard paper; docs/protocol/dataplane.md 1. */
#ifndef MN_WG_WG_H
#define MN_WG_WG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/addr.h"

enum {
    MN_WG_KEY = 32,
    MN_WG_TIMESTAMP = 12,
    MN_WG_HEADER = 16,
    MN_WG_TAG = 16,
    MN_WG_OVERHEAD = MN_WG_HEADER + MN_WG_TAG,
    MN_WG_PADDING = 16,
    MN_WG_PEERS_MAX = 65536,
};

enum mn_wg_kind {
    MN_WG_INITIATION = 1,
    MN_WG_RESPONSE = 2,
    MN_WG_COOKIE = 3,
    MN_WG_DATA = 4, /* packets that had been staged; data after that is sent by whoever called mn_wg_seal */
    MN_WG_KEEPALIVE = 5,
};

enum mn_wg_event {
    MN_WG_SESSION_UP = 1,       /* a new session to send with; staged packets have gone */
    MN_WG_HANDSHAKE_FAILED = 2, /* gave up after 20 initiations; staged packets are purged */
    MN_WG_SESSION_GONE = 3,     /* no new session for 540 s: every key of the peer is wiped */
    MN_WG_SILENT = 5,           /* nothing came for 15 s after data went: what is known of the way may be wrong */
    MN_WG_CLOCK_BEHIND = 4,     /* wall time is behind what was sent before: our timestamps run on without it */
};

struct mn_wg_ops {
    void *ctx;
    void (*random)(void *ctx, uint8_t *p, size_t n);
    uint64_t (*wall_ns)(void *ctx); /* nanoseconds since 1970 */
    /* One outgoing datagram; pkt is valid during the call. peer is MN_PEER_NONE for a cookie reply.
     * to NULL: the peer's path. attempt: of an INITIATION, 0 for the first, so that the owner may alternate paths. */
    void (*send)(void *ctx, uint32_t peer, const struct mn_path *to, enum mn_wg_kind kind, unsigned attempt,
                 const uint8_t *pkt, size_t len);
    void (*event)(void *ctx, uint32_t peer, enum mn_wg_event ev);
    /* An authentic handshake message of this peer came by this path. May be NULL. It is called from mn_wg_input or,
     * after a flood, from mn_wg_on_deadline. */
    void (*heard)(void *ctx, uint32_t peer, const struct mn_path *from);
    /* Of peers that roam: an authentic initiation, response, keepalive or data packet took this path, whatever its
     * content; called before anything leaves because of it. May be NULL. */
    void (*roamed)(void *ctx, uint32_t peer, const struct mn_path *from);
    /* A data packet that came before came again. Packets sent by two paths do; that of the slower path proves that it
     * carries. wants_copy: whether it is news that this path does, for only then is the copy opened; copied: it is
     * authentic. Both or neither may be NULL. */
    bool (*wants_copy)(void *ctx, uint32_t peer, const struct mn_path *from);
    void (*copied)(void *ctx, uint32_t peer, const struct mn_path *from);
};

/* 0 in a field: the default. */
struct mn_wg_config {
    size_t mtu;              /* 1280: largest inner packet; padding never exceeds it */
    uint32_t max_peers;      /* MN_WG_PEERS_MAX */
    uint32_t staged_buffers; /* 1024: staged packets of all peers together */
    uint32_t staged_packets; /* 128 per peer */
    uint32_t staged_bytes;   /* 131072 per peer */
};

/* Why a datagram was dropped; mn_wg_input and mn_wg_seal return it negated. One counter each. */
#define MN_WG_DROPS(X)                                                                                                 \
    X(MALFORMED)    /* type, exact length or reserved bytes */                                                         \
    X(NO_KEY)       /* our private key is not set */                                                                   \
    X(MAC1)         /* not made for our key */                                                                         \
    X(COOKIE_SENT)  /* under load, no valid mac2: a cookie reply went out instead */                                   \
    X(RATE)         /* under load, this source is over its share */                                                    \
    X(OVERLOAD)     /* handshake budget and queue are full */                                                          \
    X(UNKNOWN_PEER) /* static key of nobody we know */                                                                 \
    X(AUTH)         /* a tag did not verify, or a zero shared secret */                                                \
    X(TIMESTAMP)    /* initiation not newer than one already accepted */                                               \
    X(FLOOD)        /* initiation within 20 ms of the last one */                                                      \
    X(INDEX)        /* receiver index of no live session or handshake */                                               \
    X(STATE)        /* response or cookie reply nobody waits for */                                                    \
    X(EXPIRED)      /* session older than 180 s, or out of counters */                                                 \
    X(REPLAY)       /* counter seen before, or older than the window */                                                \
    X(INNER)        /* not an IP packet, or its length lies */                                                         \
    X(SOURCE)       /* inner source is not among the peer's allowed IPs */                                             \
    X(NO_PEER)      /* outbound: no such peer */                                                                       \
    X(TOO_LONG)     /* outbound: larger than the mtu and no session to send it with */                                 \
    X(STAGE_FULL)   /* outbound: no staging buffer left */                                                             \
    X(FORKED)       /* this process is a fork: its sessions are void */

enum mn_wg_drop {
    MN_WG_DROP_NONE_ = 0,
#define X(name) MN_WG_DROP_##name,
    MN_WG_DROPS(X)
#undef X
        MN_WG_DROP_END_,
};
const char *mn_wg_drop_name(int drop); /* of either sign */

/* Errors of the configuring functions. */
enum {
    MN_WG_E_MEMORY = -1,
    MN_WG_E_FULL = -2,
    MN_WG_E_KEY = -3, /* our own public key, or a point of small order */
    MN_WG_E_PEER = -4,
    MN_WG_E_PREFIX = -5,
    MN_WG_E_LATER = -6, /* kick: an initiation left a moment ago */
    MN_WG_E_CRYPTO = -7,
};

struct mn_wg;

/* private_key NULL: everything is dropped until it is set. NULL: no memory, or libcrypto failed its self-test. */
struct mn_wg *mn_wg_create(const struct mn_wg_ops *ops, const struct mn_wg_config *config_or_null,
                           const uint8_t private_key_or_null[32], uint64_t now_ns);
void mn_wg_destroy(struct mn_wg *wg); /* silent; wipes every secret */
/* Every session and handshake ends; peers stay. Peers equal to our new public key are removed. */
int mn_wg_set_private_key(struct mn_wg *wg, const uint8_t private_key[32], uint64_t now_ns);
void mn_wg_public_key(const struct mn_wg *wg, uint8_t out[32]);

int mn_wg_peer_add(struct mn_wg *wg, const uint8_t pub[32], uint32_t *peer); /* upsert */
int mn_wg_peer_find(const struct mn_wg *wg, const uint8_t pub[32], uint32_t *peer);
int mn_wg_peer_key(const struct mn_wg *wg, uint32_t peer, uint8_t out[32]);
int mn_wg_peer_remove(struct mn_wg *wg, uint32_t peer);
int mn_wg_peer_set_psk(struct mn_wg *wg, uint32_t peer, const uint8_t psk[32]); /* all zero: none */
/* 0: off. From 0 to some interval: one keepalive at once. */
int mn_wg_peer_set_keepalive(struct mn_wg *wg, uint32_t peer, uint16_t interval_s, uint64_t now_ns);
/* Plain WireGuard: the peer is wherever its last authentic packet came from. Off at first. */
int mn_wg_peer_set_roaming(struct mn_wg *wg, uint32_t peer, bool roams);
/* Send nothing more under the present keys (they still receive) and forget the handshake under way. */
int mn_wg_peer_expire(struct mn_wg *wg, uint32_t peer);

/* bits counts the 128-bit form: IPv4 /n is 96 + n. A prefix that another peer had moves to this one. */
int mn_wg_allow(struct mn_wg *wg, const struct mn_ip *prefix, unsigned bits, uint32_t peer);
int mn_wg_disallow_all(struct mn_wg *wg, uint32_t peer);
uint32_t mn_wg_route(const struct mn_wg *wg, const struct mn_ip *dst); /* MN_PEER_NONE: nobody */
uint64_t mn_wg_route_generation(const struct mn_wg *wg);               /* changes with every prefix: to cache routes */

/* One datagram from the underlay, changed in place.
 * > 0: length of the inner IP packet at *inner (inside buf), *peer sent it, and its source address is theirs.
 * 0: consumed: keepalive, handshake or cookie reply; *peer set if it was authentic, else MN_PEER_NONE. buf[0] still
 *    tells which (4: keepalive).
 * < 0: a negated mn_wg_drop; *peer is set where the packet was authentic all the same (INNER, SOURCE).
 * from: for a relay, from->ep.ip may hold 16 bytes of the sender's key, so that under load senders are told apart. */
int mn_wg_input(struct mn_wg *wg, uint8_t *buf, size_t len, const struct mn_path *from, uint64_t now_ns,
                uint8_t **inner, uint32_t *peer);

/* Seal an inner packet of len bytes at msg + 16, in place; msg has room for 16 + len padded to 16 + 16.
 * > 0: length of the datagram at msg, to be sent by the caller. 0: staged (copied), a handshake is under way.
 * < 0: a negated mn_wg_drop. */
int mn_wg_seal(struct mn_wg *wg, uint32_t peer, uint8_t *msg, size_t len, uint64_t now_ns);
/* An empty packet to the peer, if there is a session to send it with. */
void mn_wg_send_keepalive(struct mn_wg *wg, uint32_t peer, uint64_t now_ns);
bool mn_wg_has_session(const struct mn_wg *wg, uint32_t peer, uint64_t now_ns);

/* Ask for a handshake now, as a new path deserves. An initiation that waits for its response is sent again: as it is
 * after 100 ms, made anew after 500 ms; otherwise a new one leaves unless the session is younger than 1 s.
 * MN_WG_E_LATER: none left. */
int mn_wg_kick(struct mn_wg *wg, uint32_t peer, uint64_t now_ns);

uint64_t mn_wg_next_deadline(const struct mn_wg *wg); /* UINT64_MAX: none */
void mn_wg_on_deadline(struct mn_wg *wg, uint64_t now_ns);

/* The latest timestamp sent under this key, to be kept with it; a floor that came from there makes the next one later
 * than it whatever the wall clock says. All zero: none. */
void mn_wg_set_timestamp_floor(struct mn_wg *wg, const uint8_t timestamp[12]);
void mn_wg_get_last_timestamp(const struct mn_wg *wg, uint8_t timestamp[12]);

struct mn_wg_peer_stats {
    uint64_t last_handshake_ns;  /* boot time the present session was complete; 0: never */
    uint64_t rx_bytes, tx_bytes; /* datagrams, authentic and sealed */
    uint64_t rx_packets, tx_packets;
    uint64_t handshakes, initiations_sent, initiations_received;
    uint64_t staged_now, staged_dropped, drop_source, drop_inner, drop_replay;
};
int mn_wg_peer_stats(const struct mn_wg *wg, uint32_t peer, struct mn_wg_peer_stats *out);

#define MN_WG_COUNTERS(X)                                                                                              \
    X(rx_data)                                                                                                         \
    X(rx_keepalive)                                                                                                    \
    X(rx_initiation)                                                                                                   \
    X(rx_response)                                                                                                     \
    X(rx_cookie)                                                                                                       \
    X(tx_data)                                                                                                         \
    X(tx_keepalive)                                                                                                    \
    X(tx_initiation)                                                                                                   \
    X(tx_response)                                                                                                     \
    X(tx_cookie)                                                                                                       \
    X(sessions) X(converged) X(handshakes_failed) X(handshakes_queued) X(under_load) X(staged) X(staged_dropped)

struct mn_wg_stats {
#define X(name) uint64_t name;
    MN_WG_COUNTERS(X)
#undef X
    uint64_t drops[MN_WG_DROP_END_]; /* by mn_wg_drop */
    uint32_t peers;
};
const struct mn_wg_stats *mn_wg_stats(const struct mn_wg *wg);

#endif
