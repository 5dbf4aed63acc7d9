/* Relay routing: who is here, whose queue, what to drop first (docs/protocol/paths.md 1.5 to 1.8).
 *
 * Owns keys, routes and who met whom; the clients belong to their connections, which embed them. A packet ends in the
 * lanes of its receiver, who is then on the list of the dirty: the owner writes to each of those once a turn. One
 * thread, no clock, no socket. tests/sim/hub.py says the same in Python, and is held against it.
 *
 * A key may have several connections: the last that logged in or spoke is the live one, and none is cut off. When they
 * take it from each other all are told, so neither steals in silence (docs/protocol/paths.md 1.7). Whoever received
 * from a key is told once when its last connection goes. */
#ifndef MN_RELAY_HUB_H
#define MN_RELAY_HUB_H

#include "../mem/addr.h"
#include "frame.h"
#include "lane.h"

enum {
    MN_HUB_URGENT_BYTES = 64 << 10,
    MN_HUB_DATA_BYTES = 256 << 10,
    MN_HUB_MESH_BYTES = 4 << 20, /* lane of a neighbour: the traffic of many */
    MN_HUB_DATA_AGE_MS = 3000,   /* older data helps nobody: its sender has repeated it */
    MN_HUB_MET_MAX = 1 << 20,    /* pairs remembered in all; beyond, a notice less */
    MN_HUB_FIGHT_CHANGES = 3,    /* of the live connection, by speaking: a fight */
    MN_HUB_GONE_EVERY_MS = 1000, /* "not here" notices: one a second, three at once */
    MN_HUB_GONE_BURST = 3,
    MN_HUB_MOVE_AFTER_MS = 5000, /* what a client says of its home before is no move */
    MN_HUB_ROUTES_MAX = 8,       /* neighbours remembered for one key */
};

/* Flags of a PeerPresent frame. */
enum mn_present_flags {
    MN_PRESENT_REGULAR = 1,
    MN_PRESENT_MESH = 2,
    MN_PRESENT_PROBER = 4,
    MN_PRESENT_NOT_IDEAL = 8,
};

struct mn_hub_key;
struct mn_hub_met;

struct mn_hub_client {
    uint8_t key[MN_RELAY_KEY];
    uint8_t flags; /* enum mn_present_flags */
    bool is_home, is_watcher;
    bool may_mesh;     /* knows the mesh key: may watch, forward, close */
    bool is_neighbour; /* a connection that we dialled to another relay of the region: packets leave as forwards */
    bool is_joined, is_dirty;
    struct mn_ep source; /* where it connects from, as watchers are told */
    struct mn_relay_lane urgent, data;
    struct mn_hub_key *entry;
    struct mn_hub_client *prev, *next; /* of the same key, the live one first */
    struct mn_hub_client *prev_watcher, *next_watcher;
    struct mn_hub_client *next_dirty;
    struct mn_hub_met *met; /* keys that packets were delivered from */
    uint32_t gone_left, gone_at_ms, joined_ms;
    uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes, dropped;
};

#define MN_HUB_COUNTERS(X)                                                                                             \
    X(packets_received)                                                                                                \
    X(bytes_received)                                                                                                  \
    X(packets_sent)                                                                                                    \
    X(bytes_sent)                                                                                                      \
    X(disco_received)                                                                                                  \
    X(forwarded_in)                                                                                                    \
    X(forwarded_out)                                                                                                   \
    X(drop_unknown_dest)                                                                                               \
    X(drop_unknown_dest_on_fwd)                                                                                        \
    X(drop_queue_head)                                                                                                 \
    X(drop_disco_queue_head)                                                                                           \
    X(drop_gone_disconnected)                                                                                          \
    X(drop_age)                                                                                                        \
    X(gone_disconnected_frames)                                                                                        \
    X(gone_not_here_frames)                                                                                            \
    X(home_moves_in)                                                                                                   \
    X(home_moves_out)                                                                                                  \
    X(fights)                                                                                                          \
    X(dup_conns_total)                                                                                                 \
    X(met_full)                                                                                                        \
    X(no_memory)

struct mn_hub_stats {
#define X(name) uint64_t name;
    MN_HUB_COUNTERS(X)
#undef X
    uint32_t clients, keys_local, keys_remote, watchers, homes, not_ideal, dup_keys, dup_conns, met;
};

struct mn_hub {
    struct mn_chunks chunks;
    struct mn_hub_key **buckets;
    uint32_t size, count;
    struct mn_hub_met **pairs;
    uint32_t pairs_size;
    struct mn_hub_met *free_met;
    uint64_t seed[4];
    struct mn_hub_client *dirty_first, *dirty_last;
    struct mn_hub_client *watchers;
    struct mn_hub_stats stats;
};

/* memory_max: bytes in the lanes of all clients together. seed: random, so that nobody can aim at one bucket. False:
 * no memory. */
bool mn_hub_init(struct mn_hub *h, size_t memory_max, const uint64_t seed[4]);
void mn_hub_destroy(struct mn_hub *h);

/* A connection logged in; c->key, flags, may_mesh, is_neighbour and source are set, everything else is zero. False: no
 * memory. */
bool mn_hub_join(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms);
/* It ended: what waits for it is dropped, and those who are to know are told. */
void mn_hub_leave(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms);

/* A batch of frames of this connection begins: it is its key's live one. */
void mn_hub_note_activity(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms);
/* A packet from a client. */
void mn_hub_send(struct mn_hub *h, struct mn_hub_client *from, const uint8_t to[MN_RELAY_KEY], const uint8_t *packet,
                 size_t len, uint32_t now_ms);
/* A packet that a neighbour forwards: delivered here or nowhere, so nothing can go in circles. */
void mn_hub_forward(struct mn_hub *h, struct mn_hub_client *neighbour, const uint8_t from[MN_RELAY_KEY],
                    const uint8_t to[MN_RELAY_KEY], const uint8_t *packet, size_t len, uint32_t now_ms);
/* One frame that goes before all data. */
void mn_hub_tell(struct mn_hub *h, struct mn_hub_client *c, uint8_t kind, const uint8_t *payload, size_t len,
                 uint32_t now_ms);
void mn_hub_set_home(struct mn_hub *h, struct mn_hub_client *c, bool is_home, uint32_t now_ms);
/* From now on c hears who comes and goes; first, everybody who is here. */
void mn_hub_watch(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms);
/* A neighbour said that it has this key, or has it no more. */
void mn_hub_route_add(struct mn_hub *h, struct mn_hub_client *via, const uint8_t key[MN_RELAY_KEY]);
void mn_hub_route_remove(struct mn_hub *h, struct mn_hub_client *via, const uint8_t key[MN_RELAY_KEY], uint32_t now_ms);

/* The connections of a key, live one first, along ->next; NULL: none. */
struct mn_hub_client *mn_hub_find(const struct mn_hub *h, const uint8_t key[MN_RELAY_KEY]);
/* The next client to write to; NULL: none is left. It is off the list. */
struct mn_hub_client *mn_hub_next_dirty(struct mn_hub *h);
void mn_hub_mark_dirty(struct mn_hub *h, struct mn_hub_client *c);
static inline bool mn_hub_waits(const struct mn_hub_client *c)
{
    return c->urgent.count > 0 || c->data.count > 0;
}
/* Frames for one write, urgent ones first, as many as fit into cap (at least the longest frame). */
size_t mn_hub_take(struct mn_hub *h, struct mn_hub_client *c, uint8_t *out, size_t cap, uint32_t now_ms);

#endif
