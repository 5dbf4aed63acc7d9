/* Relay frames: a type, a length, a payload (docs/protocol/paths.md 1.1, 1.2).
 *
 * Values only: who may send what, and what it means, is said in hub.c and conn.c. */
#ifndef MN_RELAY_FRAME_H
#define MN_RELAY_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mn_frame_kind {
    MN_FRAME_SERVER_KEY = 0x01,
    MN_FRAME_CLIENT_INFO = 0x02,
    MN_FRAME_SERVER_INFO = 0x03,
    MN_FRAME_SEND_PACKET = 0x04,
    MN_FRAME_RECV_PACKET = 0x05,
    MN_FRAME_KEEP_ALIVE = 0x06,
    MN_FRAME_NOTE_PREFERRED = 0x07,
    MN_FRAME_PEER_GONE = 0x08,
    MN_FRAME_PEER_PRESENT = 0x09,
    MN_FRAME_FORWARD_PACKET = 0x0a,
    MN_FRAME_WATCH_CONNS = 0x10,
    MN_FRAME_CLOSE_PEER = 0x11,
    MN_FRAME_PING = 0x12,
    MN_FRAME_PONG = 0x13,
    MN_FRAME_HEALTH = 0x14,
    MN_FRAME_RESTARTING = 0x15,
};

enum mn_gone_reason {
    MN_GONE_DISCONNECTED = 0x00,
    MN_GONE_NOT_HERE = 0x01,
};

enum {
    MN_FRAME_HEADER = 5,
    MN_RELAY_KEY = 32,
    MN_RELAY_PACKET_MAX = 65536,                                 /* without the key in front of it */
    MN_RELAY_FRAME_MAX = 2 * MN_RELAY_KEY + MN_RELAY_PACKET_MAX, /* payload of the largest known frame: a forward */
    MN_RELAY_SKIP_MAX = 1 << 20,                                 /* payload of an unknown one: read past, never kept */
    MN_RELAY_PING = 8,
    MN_RELAY_PING_MAX = 1000,
    MN_RELAY_DISCO_MIN = 62,
};

struct mn_frame {
    uint8_t kind;
    uint32_t len;
    const uint8_t *payload;
};

static inline uint32_t mn_frame_length(const uint8_t *header)
{
    return (uint32_t)header[1] << 24 | (uint32_t)header[2] << 16 | (uint32_t)header[3] << 8 | header[4];
}

static inline void mn_frame_write_header(uint8_t out[MN_FRAME_HEADER], uint8_t kind, uint32_t len)
{
    out[0] = kind;
    out[1] = (uint8_t)(len >> 24);
    out[2] = (uint8_t)(len >> 16);
    out[3] = (uint8_t)(len >> 8);
    out[4] = (uint8_t)len;
}

enum mn_frame_found {
    MN_FRAME_MORE = 0, /* not whole yet */
    MN_FRAME_WHOLE,
    MN_FRAME_SKIP,    /* of a type nobody knows: pass over header and payload, which may still be on their way */
    MN_FRAME_TOO_BIG, /* from its header alone */
};

/* The frame that begins at p, of which n bytes are here. */
enum mn_frame_found mn_frame_next(const uint8_t *p, size_t n, struct mn_frame *f);

/* A stream of frames as it comes in pieces: what the last read left, and what is still to be passed over. */
struct mn_frame_reader {
    uint8_t *kept;
    uint32_t kept_len, skip;
    uint64_t skipped; /* frames of unknown type */
};
/* Copy what was kept to the front of p (room for a whole frame at least); returns how much. */
size_t mn_frame_reader_front(const struct mn_frame_reader *r, uint8_t *p);
/* The next frame at or behind *at of the n bytes at p; *at moves past it. MORE: no whole one is left. */
enum mn_frame_found mn_frame_reader_next(struct mn_frame_reader *r, const uint8_t *p, size_t n, size_t *at,
                                         struct mn_frame *f);
/* Keep the n bytes from p, the beginning of a frame. False: no memory. */
bool mn_frame_reader_keep(struct mn_frame_reader *r, const uint8_t *p, size_t n);
void mn_frame_reader_free(struct mn_frame_reader *r);

/* Is a relayed packet DISCO (it keeps paths alive and goes first)? By its first bytes: who forges them gains nothing
 * but the small urgent lane. */
bool mn_frame_is_disco(const uint8_t *packet, size_t len);

#endif
