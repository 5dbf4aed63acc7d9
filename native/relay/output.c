/* What leaves a connection: Python's bytes while it is raw, then what waits in its lanes, a batch a write. */
#include <string.h>

#include "internal.h"

static void note_stall(struct mn_relay *r, struct mn_relay_conn *c, bool made_progress)
{
    bool waits = c->stream.left != NULL;
    if (waits && (c->stalled_ms == 0 || made_progress))
        c->stalled_ms = r->now_ms;
    else if (!waits)
        c->stalled_ms = 0;
    mn_relay_conn_watch(r, c);
    mn_relay_conn_arm(r, c);
}

/* False: the connection is gone. */
static bool send_bytes(struct mn_relay *r, struct mn_relay_conn *c, const uint8_t *p, size_t n)
{
    enum mn_tls_result result = mn_tls_write(&c->stream, p, n);
    if (result == MN_TLS_BROKEN) {
        mn_relay_conn_stop(r, c, MN_WHY_BROKEN);
        return false;
    }
    if (result == MN_TLS_AGAIN)
        note_stall(r, c, false);
    return true;
}

/* n bytes lie at MN_WS_HEADER_MAX of the batch buffer; false: the connection is gone. */
static bool send_batch(struct mn_relay *r, struct mn_relay_conn *c, size_t n, uint8_t opcode)
{
    uint8_t *p = r->batch + MN_WS_HEADER_MAX;
    if (c->websocket == NULL)
        return send_bytes(r, c, p, n);
    size_t at = 0;
    do {
        size_t k = n - at < MN_WS_MESSAGE_MAX ? n - at : MN_WS_MESSAGE_MAX;
        uint8_t head[MN_WS_HEADER_MAX];
        size_t len = mn_ws_header(head, opcode, k, NULL);
        memcpy(p + at - len, head, len); /* over bytes that have left */
        if (!send_bytes(r, c, p + at - len, len + k))
            return false;
        at += k;
    } while (at < n);
    return true;
}

static bool answer_ping(struct mn_relay *r, struct mn_relay_conn *c)
{
    struct mn_websocket *w = c->websocket;
    if (w == NULL || !w->owes_pong)
        return true;
    w->owes_pong = false;
    memcpy(r->batch + MN_WS_HEADER_MAX, w->pong, w->pong_len);
    return send_batch(r, c, w->pong_len, 10);
}

static void flush(struct mn_relay *r, struct mn_relay_conn *c)
{
    if (c->phase != MN_PHASE_OPEN || !mn_tls_can_write(&c->stream) || !answer_ping(r, c))
        return;
    for (int i = 0; i < MN_RELAY_WRITES && mn_tls_can_write(&c->stream); i++) {
        size_t n = mn_hub_take(&r->hub, &c->client, r->batch + MN_WS_HEADER_MAX, MN_TLS_PLAIN_MAX - MN_WS_HEADER_MAX,
                               (uint32_t)r->now_ms);
        if (n == 0)
            return;
        if (!send_batch(r, c, n, 2))
            return;
    }
    if (mn_hub_waits(&c->client) && mn_tls_can_write(&c->stream))
        mn_hub_mark_dirty(&r->hub, &c->client);
}

/* Each of those on the list now; who still has something comes again next turn. */
void mn_relay_conn_flush_dirty(struct mn_relay *r)
{
    const struct mn_hub_client *last = r->hub.dirty_last;
    for (struct mn_hub_client *k; (k = mn_hub_next_dirty(&r->hub)) != NULL;) {
        bool is_last = k == last;
        flush(r, (struct mn_relay_conn *)k);
        if (is_last)
            break;
    }
}

void mn_relay_conn_on_writable(struct mn_relay *r, struct mn_relay_conn *c)
{
    uint64_t before = c->stream.tx_bytes;
    if (mn_tls_flush(&c->stream) == MN_TLS_BROKEN) {
        mn_relay_conn_stop(r, c, MN_WHY_BROKEN);
        return;
    }
    if (c->phase == MN_PHASE_CLOSING && c->stream.left == NULL) {
        mn_relay_conn_stop(r, c, MN_WHY_ASKED);
        return;
    }
    note_stall(r, c, c->stream.tx_bytes != before);
    if (c->stream.left == NULL && c->phase == MN_PHASE_OPEN)
        mn_hub_mark_dirty(&r->hub, &c->client);
}

void mn_relay_conn_send_raw(struct mn_relay *r, struct mn_relay_conn *c, const uint8_t *p, size_t n)
{
    size_t most = MN_TLS_PLAIN_MAX - MN_WS_HEADER_MAX;
    for (size_t at = 0; at < n && c->stream.fd >= 0 && c->stream.is_shaken; at += most) {
        size_t k = n - at < most ? n - at : most;
        memcpy(r->batch + MN_WS_HEADER_MAX, p + at, k);
        if (!send_batch(r, c, k, 2))
            return;
    }
}
