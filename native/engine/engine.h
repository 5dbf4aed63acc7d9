/* The engine: one node's sockets, WireGuard device, netstack and bridges, driven by one thread.
 *
 * One turn: wait; take commands; read a batch, classify, open, stack; deliver; read what applications
 * wrote; timers; seal and send; tell Python. One clock read per turn.
 * Only mn_engine_push, mn_engine_call, the event queue and start/stop may be used from other threads.
 * A turn can also be run by the caller, without the thread: that is how tests and fuzzers drive it.
 * States: made → (started → stopped | abandoned) → freed. After a fork every engine of the child is dead. */
#ifndef MN_ENGINE_ENGINE_H
#define MN_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../udp/sockets.h"
#include "command.h"
#include "event.h"

struct mn_engine;

/* Bits. BOTH: direct, and a copy by the relay as far as the allowance for copies goes; DOUBTED: the other way round. */
enum mn_path_mode {
    MN_MODE_NONE = 0,
    MN_MODE_DIRECT = 1,
    MN_MODE_RELAY = 2,
    MN_MODE_BOTH = 3,
    MN_MODE_RELAY_FIRST = 4,
    MN_MODE_DOUBTED = 7,
    MN_MODES,
};
enum mn_what { MN_WHAT_KEEPALIVE, MN_WHAT_DATA, MN_WHAT_HANDSHAKE, MN_WHATS };

enum { MN_FLOWS_MAX = 16384, MN_LISTENERS_MAX = 1024, MN_DATAGRAMS_MAX = 1024, MN_PINGS_MAX = 256 };
/* Largest WireGuard datagram we make: an inner packet, header, tag and padding. */
enum { MN_MTU_MIN = 576, MN_MTU_MAX = 9000 };

struct mn_engine_config {
    uint8_t private_key[32];
    struct mn_sock_config sockets;
    size_t mtu;
    const char *cc;      /* congestion control, a name tcp/cc.c knows; NULL: the default */
    uint64_t tcp_memory; /* bytes that all TCP connections may hold; 0: 256 MiB, or an eighth of the machine's */
    uint8_t tcp_ecn;     /* enum mn_ecn_mode */
    bool has_floor;
    uint8_t timestamp_floor[12];
};

/* NULL with *err a negative errno: no socket could be bound, no memory. */
struct mn_engine *mn_engine_create(const struct mn_engine_config *config, int *err);
int mn_engine_start(struct mn_engine *e);
/* Stop the thread, reset the connections, wipe the keys; false if the thread did not end in time (the
 * engine is then abandoned and must not be destroyed). Idempotent. */
bool mn_engine_stop(struct mn_engine *e, double timeout_s);
void mn_engine_destroy(struct mn_engine *e); /* stopped, or never started */

/* One pass; waits at most wait_ms (-1: until something happens). */
void mn_engine_turn(struct mn_engine *e, int wait_ms);

enum mn_engine_state { MN_ENGINE_RUNNING, MN_ENGINE_STOPPED, MN_ENGINE_FORKED };
enum mn_engine_state mn_engine_state(const struct mn_engine *e);

struct mn_events *mn_engine_events(struct mn_engine *e);
uint16_t mn_engine_port(const struct mn_engine *e, int family);

/* Any thread: hand over a command (its blob too). -EAGAIN: the ring is full. */
int mn_engine_push(struct mn_engine *e, const struct mn_command *cmd);

/* Any thread: push and wait for the answer, at most five seconds. Result of SET_FILTER, SET_PRIVATE_KEY: 0 or a
 * negative errno. STATS and PEER_STATS fill values[] in the order of mn_engine_stat_names / mn_peer_stat_names. */
enum { MN_STATS_MAX = 192 };
struct mn_answer {
    int err;
    size_t count;
    uint64_t values[MN_STATS_MAX];
    uint8_t timestamp[12];
};
int mn_engine_call(struct mn_engine *e, struct mn_command *cmd, struct mn_answer *out);
extern const char *const mn_engine_stat_names[];
extern const char *const mn_peer_stat_names[];

#endif
