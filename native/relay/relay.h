/* A relay: one thread that accepts, speaks TLS and moves frames between clients; Python decides who they are.
 *
 * A connection begins raw: what it says goes to Python as events, what Python answers goes out as bytes. Python reads
 * the HTTP request and the login, asks whether the client may come in, and then opens the connection: from there on its
 * frames are routed here, and Python sees none of them. Every raw connection has at most one event under way, so the
 * queue to Python is bounded by the number of connections.
 *
 * Calls from other threads are commands in a queue; they answer at once and never fail for want of a connection that
 * has ended meanwhile. */
#ifndef MN_RELAY_RELAY_H
#define MN_RELAY_RELAY_H

#include <openssl/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hub.h"

struct mn_relay;

/* 0 in a field: the default. Times in milliseconds. */
struct mn_relay_config {
    size_t memory_max;       /* in the lanes of all clients: 256 MiB */
    uint32_t conns_max;      /* 65536 */
    uint32_t pending_max;    /* not logged in yet: 4096; beyond, the oldest of them goes */
    uint32_t per_ip_max;     /* connections of one address: no limit */
    uint32_t per_ip_rate;    /* new ones a second: no limit */
    uint32_t per_ip_burst;   /* 4 times the rate */
    uint32_t login_ms;       /* from accept to open: 10 s */
    uint32_t keep_alive_ms;  /* 60 s, and up to a twelfth more */
    uint32_t write_stall_ms; /* a client that takes nothing for so long is closed: 5 s */
    uint64_t client_rate;    /* bytes a second read from one client: no limit */
    uint64_t client_burst;   /* one second's worth */
};

enum mn_relay_event_kind {
    MN_RELAY_EV_DATA = 1, /* a raw connection said something; nothing more is read until mn_relay_resume or _open */
    MN_RELAY_EV_ENDED,    /* a connection that had an event before is gone; why: enum mn_relay_why */
    MN_RELAY_EV_DIALLED,  /* an adopted connection is ready for Python's first words */
    MN_RELAY_EV_NOTICE,   /* a neighbour sent a frame that Python may want: its kind and payload */
};

enum mn_relay_why {
    MN_WHY_CLOSED_BY_PEER = 1,
    MN_WHY_BROKEN,
    MN_WHY_TLS,
    MN_WHY_LOGIN_LATE,
    MN_WHY_CROWDED_OUT,
    MN_WHY_STALLED,
    MN_WHY_SILENT,
    MN_WHY_PROTOCOL,
    MN_WHY_ASKED, /* by Python */
    MN_WHY_CLOSE_PEER,
    MN_WHY_NO_MEMORY,
};

struct mn_relay_event {
    struct mn_relay_event *next;
    uint64_t conn;
    uint8_t kind, why, frame, role;
    bool has_tls, was_open;
    uint16_t tls_version; /* as TLS writes it: 0x0304 is 1.3; 0: none */
    uint8_t key[MN_RELAY_KEY];
    struct mn_ep source;
    size_t len;
    uint8_t data[];
};

enum mn_relay_open_flags {
    MN_OPEN_PROBER = 1,
    MN_OPEN_MESH = 2, /* knows the mesh key: may watch, forward and close */
    MN_OPEN_NOT_IDEAL = 4,
    MN_OPEN_ACKS_PINGS = 8,
    MN_OPEN_WEBSOCKET = 16,
    MN_OPEN_NEIGHBOUR = 32, /* we dialled: it is another relay of the region */
};

struct mn_relay *mn_relay_create(const struct mn_relay_config *config, int *err);
int mn_relay_start(struct mn_relay *r);
/* Every connection ends, listeners close; joins the thread. */
void mn_relay_stop(struct mn_relay *r);
void mn_relay_destroy(struct mn_relay *r);

/* Readable when events wait. */
int mn_relay_fd(const struct mn_relay *r);
/* All that wait, oldest first; the caller frees each. */
struct mn_relay_event *mn_relay_take(struct mn_relay *r);

/* The context of connections accepted from now on; taken over. */
int mn_relay_set_tls(struct mn_relay *r, SSL_CTX *ctx);
/* A listening socket; taken over. role: any number, told with what its connections say. */
int mn_relay_listen(struct mn_relay *r, int fd, bool has_tls, uint8_t role);
int mn_relay_unlisten_all(struct mn_relay *r);
/* A connected socket to a neighbour; taken over, with ctx (NULL: plain). host: SNI and verified name. *conn: its id. */
int mn_relay_adopt(struct mn_relay *r, int fd, SSL_CTX *ctx, const char *host, uint64_t *conn);
int mn_relay_write(struct mn_relay *r, uint64_t conn, const uint8_t *data, size_t len);
int mn_relay_resume(struct mn_relay *r, uint64_t conn);
/* From now on its bytes travel in WebSocket messages; rest: those that came already. It is read again. */
int mn_relay_websocket(struct mn_relay *r, uint64_t conn, const uint8_t *rest, size_t len);
/* Log it in: flags of enum mn_relay_open_flags; rest: bytes that came behind the login already. greeting leaves first,
 * and whoever has it can be reached. */
int mn_relay_open(struct mn_relay *r, uint64_t conn, const uint8_t key[MN_RELAY_KEY], uint32_t flags,
                  const uint8_t *greeting, size_t greeting_len, const uint8_t *rest, size_t len);
/* After what was written has left, or at once. */
int mn_relay_close(struct mn_relay *r, uint64_t conn, bool at_once);
/* Every connection of a key. */
int mn_relay_close_key(struct mn_relay *r, const uint8_t key[MN_RELAY_KEY]);
/* One frame to one connection, or to all that are open (conn 0). */
int mn_relay_tell(struct mn_relay *r, uint64_t conn, uint8_t kind, const uint8_t *payload, size_t len);

struct mn_relay_stats {
    struct mn_hub_stats hub;
    uint64_t accepts, accept_refused, per_ip_refused, accept_errors, accept_pauses, lobby_waits, crowded_out,
        tls_failed, login_late, logins, stalled, silent, protocol_errors, pings_received, pongs_sent, rx_bytes,
        tx_bytes, unknown_frames, throttled, turns, slow_turns, turn_max_us, websockets,
        tls_versions[2]; /* 1.2, 1.3: handshakes completed */
    uint32_t conns, pending, half_open, lane_chunks, mesh_refused;
};
/* Waits for the thread; 0 or -ESHUTDOWN. */
int mn_relay_stats(struct mn_relay *r, struct mn_relay_stats *out);

struct mn_relay_client_info {
    uint64_t conn;
    uint8_t key[MN_RELAY_KEY];
    struct mn_ep source;
    uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes, dropped, waits;
    uint32_t age_s;
    uint8_t flags;
    bool is_home, is_live;
};
/* Open connections, at most max; waits for the thread. Returns how many, or a negative errno. */
int mn_relay_clients(struct mn_relay *r, struct mn_relay_client_info *out, uint32_t max);

#endif
