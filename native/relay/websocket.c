/* WebSocket frames. */
#include "websocket.h"

#include <string.h>

enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

void mn_ws_start(struct mn_websocket *w, bool is_server)
{
    *w = (struct mn_websocket){.is_server = is_server};
}

static uint8_t header_size(const struct mn_websocket *w)
{
    if (w->have < 2)
        return 2;
    uint8_t len = w->header[1] & 0x7f;
    uint8_t size = (uint8_t)(2 + (len == 126 ? 2 : len == 127 ? 8 : 0));
    return (uint8_t)(size + ((w->header[1] & 0x80) != 0 ? 4 : 0));
}

/* The header is whole: false if it breaks the rules. */
static bool begin(struct mn_websocket *w)
{
    const uint8_t *h = w->header;
    uint8_t short_len = h[1] & 0x7f;
    w->opcode = h[0] & 0x0f;
    w->is_masked = (h[1] & 0x80) != 0;
    w->left = short_len;
    size_t at = 2, more = short_len == 126 ? 2 : short_len == 127 ? 8 : 0;
    if (more > 0)
        for (w->left = 0; at < 2 + more; at++)
            w->left = w->left << 8 | h[at];
    if (w->is_masked)
        memcpy(w->mask, h + at, sizeof w->mask);
    w->at = 0;
    w->have = 0;
    w->has_header = true;
    bool is_control = w->opcode >= CLOSE;
    if ((h[0] & 0x70) != 0 || w->is_masked != w->is_server)
        return false; /* extensions were not agreed on; a client masks, a server does not */
    if (is_control)
        return w->opcode <= PONG && w->left <= MN_WS_CONTROL_MAX && (h[0] & 0x80) != 0;
    return w->opcode == BINARY || w->opcode == CONTINUATION;
}

static void end_control(struct mn_websocket *w)
{
    if (w->opcode == CLOSE)
        w->is_closed = true;
    if (w->opcode != PING)
        return;
    w->owes_pong = true; /* the last of several is enough (RFC 6455 5.5.3) */
    w->pong_len = (uint8_t)w->at;
    memcpy(w->pong, w->control, w->at);
}

ptrdiff_t mn_ws_decode(struct mn_websocket *w, uint8_t *p, size_t n)
{
    size_t in = 0, out = 0;
    while (!w->is_closed) {
        if (!w->has_header) {
            while (in < n && w->have < header_size(w))
                w->header[w->have++] = p[in++];
            if (w->have < header_size(w))
                break;
            if (!begin(w))
                return -1;
        }
        size_t here = n - in, k = w->left < here ? (size_t)w->left : here;
        for (size_t i = 0; i < k && w->is_masked; i++)
            p[in + i] ^= w->mask[(w->at + i) & 3];
        if (w->opcode >= CLOSE) {
            memcpy(w->control + w->at, p + in, k);
        } else {
            memmove(p + out, p + in, k);
            out += k;
        }
        in += k;
        w->at += k;
        w->left -= k;
        if (w->left > 0)
            break;
        if (w->opcode >= CLOSE)
            end_control(w);
        w->has_header = false;
    }
    return (ptrdiff_t)out;
}

size_t mn_ws_header(uint8_t out[MN_WS_HEADER_MAX], uint8_t opcode, size_t n, const uint8_t *mask)
{
    size_t at = 2;
    uint8_t masked = mask != NULL ? 0x80 : 0;
    out[0] = (uint8_t)(0x80 | opcode);
    if (n < 126) {
        out[1] = (uint8_t)(masked | n);
    } else if (n <= 0xffff) {
        out[1] = masked | 126;
        out[2] = (uint8_t)(n >> 8);
        out[3] = (uint8_t)n;
        at = 4;
    } else {
        out[1] = masked | 127;
        for (int i = 0; i < 8; i++)
            out[2 + i] = (uint8_t)((uint64_t)n >> (56 - 8 * i));
        at = 10;
    }
    if (mask != NULL) {
        memcpy(out + at, mask, 4);
        at += 4;
    }
    return at;
}

void mn_ws_mask(uint8_t *p, size_t n, const uint8_t mask[4])
{
    for (size_t i = 0; i < n; i++)
        p[i] ^= mask[i & 3];
}
