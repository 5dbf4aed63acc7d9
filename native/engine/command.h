/* Commands, Python → engine: a bounded ring behind a mutex, with an eventfd written only while the engine sleeps.
 *
 * A command is a small struct; what does not fit travels in a heap blob that the engine frees. Packets
 * that came by relay (INJECT, SEND_RAW, UDP_SEND) are bounded by bytes besides: a packet may be lost, a decision not.
 */
#ifndef MN_ENGINE_COMMAND_H
#define MN_ENGINE_COMMAND_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/addr.h"

enum mn_command_kind {
    MN_CMD_SET_PRIVATE_KEY = 1,
    MN_CMD_SET_ADDRESSES, /* blob: struct mn_ip[] */
    MN_CMD_UPSERT_PEER,   /* blob: 32 bytes preshared key, then struct mn_prefix[]; mode: whether it roams */
    MN_CMD_REMOVE_PEER,
    MN_CMD_SET_PATH,   /* number: longest IP packet that goes direct, 0: any; blob: 18 bytes per further endpoint */
    MN_CMD_SET_FILTER, /* blob */
    MN_CMD_INJECT,     /* blob: the packet */
    MN_CMD_SEND_RAW,   /* blob */
    MN_CMD_KICK,
    MN_CMD_DISCO_KEY, /* key: ours; ep: whom to tell */
    MN_CMD_NUDGE,
    MN_CMD_CONNECT,
    MN_CMD_ABORT,
    MN_CMD_LISTEN, /* number: backlog */
    MN_CMD_TAKEN,  /* number: connections that left the backlog */
    MN_CMD_UNLISTEN,
    MN_CMD_PING,
    MN_CMD_UDP_OPEN,
    MN_CMD_UDP_SEND, /* blob */
    MN_CMD_UDP_CLOSE,
    MN_CMD_TUN_ATTACH, /* number: descriptor, mode: what it merges; answered */
    MN_CMD_TUN_MERGE,  /* mode: what shall be merged */
    MN_CMD_REBIND,
    MN_CMD_EXTRA,          /* ep.sock: first, number: how many, mode: 1 open, 0 close */
    MN_CMD_SET_OFFLOADS,   /* mode: enum mn_gso; number: whether GRO is off */
    MN_CMD_LINK_ADOPT,     /* fd, ctx; blob: host and verified name, each with its zero */
    MN_CMD_LINK_WRITE,     /* blob */
    MN_CMD_LINK_WEBSOCKET, /* blob: bytes that came with the upgrade */
    MN_CMD_LINK_OPEN,      /* region; blob: frames that came already */
    MN_CMD_LINK_CLOSE,
    MN_CMD_STATS, /* answered in place: see mn_engine_call */
    MN_CMD_PEER_STATS,
    MN_CMDS,
};

enum { MN_COMMANDS_MAX = 4096, MN_COMMAND_PACKET_BYTES = 4 << 20, MN_COMMAND_DROPPED = 1 };

struct mn_prefix {
    struct mn_ip ip;
    uint8_t bits; /* of the 128-bit form: IPv4 /n is 96 + n */
};

struct mn_command {
    uint64_t req;
    uint32_t number; /* backlog, payload size, keep-alive seconds */
    int fd;          /* LINK_ADOPT's, closed with the command unless it was taken */
    uint8_t kind;
    uint8_t mode;
    uint16_t region;
    struct mn_ep ep;
    union {
        uint8_t key[32];
        struct mn_ip from; /* UDP_SEND: which of our addresses; zero: any */
    };
    uint8_t *blob;
    size_t len;
    struct ssl_ctx_st *ctx; /* LINK_ADOPT's, given back with the command */
};

struct mn_commands {
    pthread_mutex_t lock;
    int fd;
    bool is_sleeping; /* the engine waits: a push must wake it */
    uint32_t head, count;
    size_t packet_bytes;
    uint64_t refused, packets_dropped;
    struct mn_command *ring;
};

/* 0 or a negative errno. */
int mn_commands_init(struct mn_commands *q);
void mn_commands_destroy(struct mn_commands *q);

/* Take `cmd` and its blob over. -EAGAIN: full (the blob is freed). A packet beyond the byte bound is
 * dropped, counted, and MN_COMMAND_DROPPED returned: packets may be lost. */
int mn_commands_push(struct mn_commands *q, const struct mn_command *cmd);
/* Wake the engine whatever it does. */
void mn_commands_wake(struct mn_commands *q);

/* Engine side. */
unsigned mn_commands_pop(struct mn_commands *q, struct mn_command *out, unsigned max);
/* About to wait: true if it may (nothing waits; pushes will wake it). */
bool mn_commands_sleep(struct mn_commands *q);
void mn_commands_awake(struct mn_commands *q);
/* Free a command's blob, wiping what may be a key. */
void mn_command_done(struct mn_command *cmd);

#endif
