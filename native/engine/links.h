/* Connections to relays, from TLS to frames, served by the engine's thread: packets go straight between them and the
 * tunnel.
 *
 * Python dials a relay and hands the socket over; what the relay says first (HTTP, the login) goes to Python as events,
 * Python's answers go out as bytes. Then Python opens the link for its region: from there on WireGuard packets by that
 * region never meet Python, DISCO and everything else the relay says does. A link may speak WebSocket from its upgrade
 * on, where a proxy passes nothing else; all that is said of bytes is then said of its messages' payload. */
#ifndef MN_ENGINE_LINKS_H
#define MN_ENGINE_LINKS_H

#include "../mem/addr.h"
#include "../relay/frame.h"
#include "../relay/lane.h"
#include "../relay/tls.h"
#include "../relay/websocket.h"
#include "command.h"

struct mn_engine;

enum {
    MN_LINKS_MAX = 64,
    MN_LINK_DATA_BYTES = 1 << 20, /* what may wait for one relay; the oldest gives way */
    MN_LINK_URGENT_BYTES = 128 << 10,
    MN_LINK_DATA_AGE_MS = 3000,
    MN_LINK_PULSE_MS = 500, /* Python hears that a link lives, or was written to, at most so often */
    MN_LINK_LANE_CHUNKS = 1024,
};

struct mn_link {
    struct mn_tls tls;
    uint64_t req; /* Python's name for it; 0: unused */
    uint16_t region;
    bool is_open;
    bool is_watched;
    bool is_waiting; /* for Python, which has not dealt with the last bytes yet */
    uint32_t events;
    struct mn_websocket *websocket; /* NULL: frames lie in the stream as they are */
    struct mn_frame_reader reader;
    struct mn_relay_lane urgent, data;
    uint64_t heard_told_ms, sent_told_ms, dropped;
};

struct mn_links {
    struct mn_link *links; /* MN_LINKS_MAX of them, made with the first */
    uint32_t count, dirty; /* in use; links with something to write may be among them */
    struct mn_chunks chunks;
    struct mn_wires wires;
    uint8_t *plain, *batch; /* what leaves lies at MN_WS_HEADER_MAX of the batch */
    uint64_t ready;         /* bits of links whose descriptor is readable */
    uint64_t rx_frames, tx_frames, lost;
};

void mn_links_destroy(struct mn_engine *e);
/* Commands: MN_CMD_LINK_ADOPT, _WRITE, _WEBSOCKET, _OPEN, _CLOSE. */
void mn_links_run(struct mn_engine *e, struct mn_command *cmd);
/* What epoll says of link i. */
void mn_links_ready(struct mn_engine *e, uint32_t i, uint32_t events);
/* Read the links that are ready; true if there was one. */
bool mn_links_read(struct mn_engine *e);
/* A packet for a node by the relay of a region. False: no link is open there. */
bool mn_links_send(struct mn_engine *e, uint16_t region, const uint8_t key[32], const uint8_t *packet, size_t len);
/* Write what waits, at the end of a turn. */
void mn_links_flush(struct mn_engine *e);

#endif
