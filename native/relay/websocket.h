/* WebSocket framing (RFC 6455) under a relay's stream: binary messages whose boundaries carry no meaning.
 *
 * Sans-IO: bytes in, bytes out. The handshake in HTTP is done by then. */
#ifndef MN_RELAY_WEBSOCKET_H
#define MN_RELAY_WEBSOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MN_WS_HEADER_MAX = 14,
    MN_WS_CONTROL_MAX = 125,
    MN_WS_MESSAGE_MAX = 32 << 10, /* payload of one of ours: stock ends close when a message is longer */
};

struct mn_websocket {
    bool is_server;                   /* what arrives is masked, what leaves is not */
    uint8_t header[MN_WS_HEADER_MAX]; /* of the frame that begins */
    uint8_t have, need;               /* bytes of it; 0: between frames */
    uint8_t opcode, mask[4];
    bool is_masked, has_header;
    uint64_t left, at;                  /* payload bytes to come, and seen */
    uint8_t control[MN_WS_CONTROL_MAX]; /* payload of a ping or a close */
    bool owes_pong, is_closed;
    uint8_t pong[MN_WS_CONTROL_MAX], pong_len;
};

void mn_ws_start(struct mn_websocket *w, bool is_server);
/* Payload of data messages, in place at the front of p; returns how many bytes, negative if the other side breaks the
 * rules. A ping sets owes_pong, a close is_closed. */
ptrdiff_t mn_ws_decode(struct mn_websocket *w, uint8_t *p, size_t n);
/* Header of a message with n payload bytes; returns its length. opcode: 2 data, 8 close, 10 pong. mask: a client's
 * four random bytes, NULL for a server. */
size_t mn_ws_header(uint8_t out[MN_WS_HEADER_MAX], uint8_t opcode, size_t n, const uint8_t *mask);
void mn_ws_mask(uint8_t *p, size_t n, const uint8_t mask[4]);

#endif
