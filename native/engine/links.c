/* Relay links of the engine. See links.h. */
#include "links.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

enum { PLAIN_BYTES = 256 << 10, WRITES = 4, RAW_BYTES = 16 << 10, BATCH_MAX = MN_TLS_PLAIN_MAX - MN_WS_HEADER_MAX };
enum { WS_DATA = 2, WS_PONG = 10 };

static uint32_t ms_of(const struct mn_engine *e)
{
    return (uint32_t)(e->now_ns / MN_NS_PER_MS);
}

static struct mn_link *find(struct mn_engine *e, uint64_t req)
{
    struct mn_links *s = &e->links;
    for (uint32_t i = 0; i < MN_LINKS_MAX && s->links != NULL; i++)
        if (req != 0 && s->links[i].req == req)
            return &s->links[i];
    return NULL;
}

static uint64_t tag_of(const struct mn_engine *e, const struct mn_link *l)
{
    return MN_TAG_LINKS + (uint64_t)(l - e->links.links);
}

/* ---- telling Python ---- */

static void tell(struct mn_engine *e, const struct mn_link *l, uint8_t kind, uint8_t what, const uint8_t *data,
                 size_t len)
{
    struct mn_event ev = {.kind = kind, .what = what, .req = l->req};
    mn_events_post_data(&e->events, MN_LANE_RELAY, &ev, data, len);
}

static void tell_end(struct mn_engine *e, const struct mn_link *l, const char *why)
{
    tell(e, l, MN_EV_LINK_ENDED, l->is_open, (const uint8_t *)why, strlen(why));
}

/* The other side's certificate as DER: Python compares it with a pin. And the relay's key, if the handshake told it. */
static void tell_ready(struct mn_engine *e, const struct mn_link *l)
{
    X509 *cert = l->tls.ssl != NULL ? SSL_get1_peer_certificate(l->tls.ssl) : NULL;
    unsigned char *der = NULL;
    int len = cert != NULL ? i2d_X509(cert, &der) : 0;
    struct mn_event ev = {.kind = MN_EV_LINK_READY, .req = l->req};
    ev.what = mn_tls_relay_key(&l->tls, ev.key);
    mn_events_post_data(&e->events, MN_LANE_RELAY, &ev, der, len > 0 ? (size_t)len : 0);
    OPENSSL_free(der);
    X509_free(cert);
}

static void tell_pulse(struct mn_engine *e, struct mn_link *l, bool heard)
{
    uint64_t now = e->now_ns / MN_NS_PER_MS, *told = heard ? &l->heard_told_ms : &l->sent_told_ms;
    if (now - *told < MN_LINK_PULSE_MS)
        return;
    *told = now;
    uint64_t counts[2] = {l->tls.rx_bytes, l->tls.tx_bytes};
    tell(e, l, MN_EV_LINK_PULSE, heard, (const uint8_t *)counts, sizeof counts);
}

/* ---- life ---- */

static bool make_room(struct mn_links *s)
{
    if (s->links != NULL)
        return true;
    s->plain = malloc(PLAIN_BYTES);
    s->batch = malloc(MN_TLS_PLAIN_MAX);
    s->links = calloc(MN_LINKS_MAX, sizeof *s->links);
    mn_chunks_init(&s->chunks, MN_LINK_LANE_CHUNKS);
    if (s->plain != NULL && s->batch != NULL && s->links != NULL && mn_wires_init(&s->wires))
        return true;
    free(s->plain);
    free(s->batch);
    free(s->links);
    *s = (struct mn_links){0};
    return false;
}

static void drop(struct mn_engine *e, struct mn_link *l)
{
    struct mn_links *s = &e->links;
    s->ready &= ~(1ULL << (l - s->links));
    mn_tls_stop(&l->tls); /* closing takes it out of epoll */
    mn_frame_reader_free(&l->reader);
    mn_lane_clear(&l->urgent, &s->chunks);
    mn_lane_clear(&l->data, &s->chunks);
    free(l->websocket);
    *l = (struct mn_link){.tls.fd = -1};
    s->count--;
}

static void end(struct mn_engine *e, struct mn_link *l, const char *why)
{
    tell_end(e, l, why);
    drop(e, l);
}

void mn_links_destroy(struct mn_engine *e)
{
    struct mn_links *s = &e->links;
    for (uint32_t i = 0; s->links != NULL && i < MN_LINKS_MAX; i++)
        if (s->links[i].req != 0)
            drop(e, &s->links[i]);
    mn_chunks_destroy(&s->chunks);
    mn_wires_destroy(&s->wires);
    free(s->plain);
    free(s->batch);
    free(s->links);
    *s = (struct mn_links){0};
}

static void watch(struct mn_engine *e, struct mn_link *l)
{
    uint32_t events = (l->is_waiting ? 0 : (uint32_t)EPOLLIN) | (l->tls.left != NULL ? (uint32_t)EPOLLOUT : 0);
    if (events == l->events)
        return;
    struct epoll_event ev = {.events = events, .data.u64 = tag_of(e, l)};
    if (epoll_ctl(e->epoll_fd, l->is_watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, l->tls.fd, &ev) == 0) {
        l->events = events;
        l->is_watched = true;
    }
}

static void shake(struct mn_engine *e, struct mn_link *l)
{
    enum mn_tls_result result = mn_tls_shake(&l->tls);
    if (result == MN_TLS_AGAIN) {
        watch(e, l);
        return;
    }
    if (result == MN_TLS_OK) {
        tell_ready(e, l);
        watch(e, l);
        return;
    }
    long why = SSL_get_verify_result(l->tls.ssl);
    char text[128];
    (void)snprintf(text, sizeof text, "%s%s", why != X509_V_OK ? "its certificate is not trusted: " : "",
                   why != X509_V_OK ? X509_verify_cert_error_string(why) : "TLS failed; does it speak plain HTTP?");
    end(e, l, text);
}

/* blob: host and verified name, each ended by a zero byte, empty: none. The context is the command's. */
static void adopt(struct mn_engine *e, struct mn_command *cmd)
{
    struct mn_links *s = &e->links;
    struct mn_link none = {.req = cmd->req}, *l = NULL;
    for (uint32_t i = 0; make_room(s) && l == NULL && i < MN_LINKS_MAX; i++)
        if (s->links[i].req == 0)
            l = &s->links[i];
    const char *host = (const char *)cmd->blob, *verified = host != NULL ? host + strlen(host) + 1 : NULL;
    bool made = l != NULL && mn_tls_start(&l->tls, cmd->fd, cmd->ctx, &s->wires, true, host,
                                          verified != NULL && *verified != '\0' ? verified : NULL);
    if (!made) {
        if (l != NULL)
            l->tls.fd = -1; /* the command's still */
        tell_end(e, &none, "no memory for another relay connection");
        return;
    }
    cmd->fd = -1;
    l->req = cmd->req;
    s->count++;
    s->wires.owner = NULL;
    if (cmd->ctx != NULL) {
        shake(e, l);
        return;
    }
    tell_ready(e, l);
    watch(e, l);
}

/* ---- writing ---- */

static void put(struct mn_engine *e, struct mn_link *l, bool is_urgent, const struct iovec *parts, int n)
{
    struct mn_links *s = &e->links;
    uint64_t before = l->dropped;
    mn_lane_put(is_urgent ? &l->urgent : &l->data, &s->chunks, parts, n, ms_of(e),
                is_urgent ? MN_LINK_URGENT_BYTES : MN_LINK_DATA_BYTES, &l->dropped);
    s->lost += l->dropped - before;
    s->dirty = true;
}

static struct iovec piece(const uint8_t *p, size_t n)
{
    struct iovec v = {.iov_len = n};
    memcpy(&v.iov_base, &p, sizeof p);
    return v;
}

bool mn_links_send(struct mn_engine *e, uint16_t region, const uint8_t key[32], const uint8_t *packet, size_t len)
{
    struct mn_links *s = &e->links;
    uint8_t head[MN_FRAME_HEADER];
    for (uint32_t i = 0; s->count > 0 && i < MN_LINKS_MAX; i++) {
        struct mn_link *l = &s->links[i];
        if (!l->is_open || l->region != region)
            continue;
        mn_frame_write_header(head, MN_FRAME_SEND_PACKET, (uint32_t)(MN_RELAY_KEY + len));
        struct iovec parts[] = {piece(head, sizeof head), piece(key, MN_RELAY_KEY), piece(packet, len)};
        put(e, l, false, parts, 3);
        s->tx_frames++;
        return true;
    }
    return false;
}

/* False: the link is gone. */
static bool send_bytes(struct mn_engine *e, struct mn_link *l, const uint8_t *p, size_t n)
{
    if (mn_tls_write(&l->tls, p, n) != MN_TLS_BROKEN)
        return true;
    end(e, l, "the connection broke");
    return false;
}

/* The n bytes of the batch; false: the link is gone. */
static bool send_batch(struct mn_engine *e, struct mn_link *l, size_t n, uint8_t opcode)
{
    uint8_t *p = e->links.batch + MN_WS_HEADER_MAX;
    if (l->websocket == NULL)
        return send_bytes(e, l, p, n);
    size_t at = 0;
    do {
        size_t k = n - at < MN_WS_MESSAGE_MAX ? n - at : MN_WS_MESSAGE_MAX;
        uint8_t mask[4], head[MN_WS_HEADER_MAX];
        mn_random(NULL, mask, sizeof mask);
        mn_ws_mask(p + at, k, mask);
        size_t len = mn_ws_header(head, opcode, k, mask);
        memcpy(p + at - len, head, len); /* over bytes that have left */
        if (!send_bytes(e, l, p + at - len, len + k))
            return false;
        at += k;
    } while (at < n);
    return true;
}

static bool answer_ping(struct mn_engine *e, struct mn_link *l)
{
    struct mn_websocket *w = l->websocket;
    if (w == NULL || !w->owes_pong || !mn_tls_can_write(&l->tls))
        return true;
    w->owes_pong = false;
    memcpy(e->links.batch + MN_WS_HEADER_MAX, w->pong, w->pong_len);
    return send_batch(e, l, w->pong_len, WS_PONG);
}

/* Bytes from the lanes while the kernel takes them. */
static void flush(struct mn_engine *e, struct mn_link *l)
{
    struct mn_links *s = &e->links;
    uint8_t *out = s->batch + MN_WS_HEADER_MAX;
    uint32_t now = ms_of(e);
    if (!answer_ping(e, l))
        return;
    for (int i = 0; i < WRITES && mn_tls_can_write(&l->tls); i++) {
        size_t n = mn_lane_take(&l->urgent, &s->chunks, out, BATCH_MAX, now, MN_LANE_NO_AGE, &s->lost);
        if (l->urgent.count == 0)
            n += mn_lane_take(&l->data, &s->chunks, out + n, BATCH_MAX - n, now, MN_LINK_DATA_AGE_MS, &s->lost);
        if (n == 0)
            break;
        if (!send_batch(e, l, n, WS_DATA))
            return;
        tell_pulse(e, l, false);
    }
    bool waits = l->urgent.count > 0 || l->data.count > 0;
    s->dirty |= waits && mn_tls_can_write(&l->tls);
    watch(e, l);
}

static bool has_words(const struct mn_link *l)
{
    bool owes = l->websocket != NULL && l->websocket->owes_pong;
    return l->req != 0 && (owes || l->urgent.count > 0 || l->data.count > 0);
}

void mn_links_flush(struct mn_engine *e)
{
    struct mn_links *s = &e->links;
    if (!s->dirty)
        return;
    s->dirty = false;
    for (uint32_t i = 0; i < MN_LINKS_MAX; i++)
        if (has_words(&s->links[i]))
            flush(e, &s->links[i]);
}

/* ---- reading ---- */

static void take_frame(struct mn_engine *e, struct mn_link *l, const struct mn_frame *f)
{
    uint8_t *payload = e->links.plain + (f->payload - e->links.plain);
    if (f->kind != MN_FRAME_RECV_PACKET) {
        tell(e, l, MN_EV_LINK_FRAME, f->kind, f->payload, f->len < RAW_BYTES ? f->len : RAW_BYTES);
        return;
    }
    if (f->len < MN_RELAY_KEY)
        return;
    e->links.rx_frames++;
    if (mn_frame_is_disco(payload + MN_RELAY_KEY, f->len - MN_RELAY_KEY))
        tell(e, l, MN_EV_LINK_FRAME, f->kind, f->payload, f->len);
    else
        mn_tunnel_inject(e, l->region, payload, payload + MN_RELAY_KEY, f->len - MN_RELAY_KEY);
}

/* Frames of the bytes in the plain buffer; false: they are none. */
static bool take_frames(struct mn_engine *e, struct mn_link *l, size_t n)
{
    struct mn_links *s = &e->links;
    struct mn_frame f;
    size_t at = 0;
    enum mn_frame_found found;
    uint64_t req = l->req;
    while ((found = mn_frame_reader_next(&l->reader, s->plain, n, &at, &f)) == MN_FRAME_WHOLE)
        take_frame(e, l, &f);
    bool kept = found == MN_FRAME_MORE && mn_frame_reader_keep(&l->reader, s->plain + at, n - at);
    mn_tun_flush(e); /* their packets lie in our buffer */
    mn_stack_flush(e->stack, e->now_ns);
    return l->req == req && kept;
}

/* WebSocket payload in place, else the bytes as they are. Negative: it breaks the rules. */
static ptrdiff_t unwrap(struct mn_engine *e, struct mn_link *l, uint8_t *p, size_t n)
{
    if (l->websocket == NULL)
        return (ptrdiff_t)n;
    ptrdiff_t k = mn_ws_decode(l->websocket, p, n);
    e->links.dirty |= l->websocket->owes_pong;
    return k;
}

/* The plain bytes that were read; false: the link is gone. */
static bool take_bytes(struct mn_engine *e, struct mn_link *l, size_t kept, size_t n)
{
    struct mn_links *s = &e->links;
    if (!l->is_open) {
        tell(e, l, MN_EV_LINK_DATA, 0, s->plain, n);
        l->is_waiting = true;
        watch(e, l);
        return true;
    }
    tell_pulse(e, l, true);
    if (take_frames(e, l, kept + n))
        return true;
    end(e, l, "it broke the protocol");
    return false;
}

static void read_link(struct mn_engine *e, struct mn_link *l)
{
    struct mn_links *s = &e->links;
    enum mn_tls_result result = mn_tls_fetch(&l->tls, l->is_open ? (size_t)MN_WIRE_IN : (size_t)RAW_BYTES);
    if (result == MN_TLS_AGAIN)
        return;
    if (result != MN_TLS_OK) {
        end(e, l, result == MN_TLS_END ? "" : "the connection broke");
        return;
    }
    if (!l->tls.is_shaken) {
        uint64_t req = l->req;
        shake(e, l);
        if (l->req != req || !l->tls.is_shaken)
            return;
    }
    size_t kept = mn_frame_reader_front(&l->reader, s->plain);
    ptrdiff_t n = mn_tls_read(&l->tls, s->plain + kept, PLAIN_BYTES - kept);
    if (n < 0) {
        end(e, l, n == MN_TLS_END ? "" : "the connection broke");
        return;
    }
    n = unwrap(e, l, s->plain + kept, (size_t)n);
    if (n < 0) {
        end(e, l, "it broke the protocol");
        return;
    }
    bool is_closed = l->websocket != NULL && l->websocket->is_closed;
    if ((n == 0 || take_bytes(e, l, kept, (size_t)n)) && is_closed)
        end(e, l, "");
}

void mn_links_ready(struct mn_engine *e, uint32_t i, uint32_t events)
{
    struct mn_links *s = &e->links;
    if (s->links == NULL || s->links[i].req == 0)
        return;
    struct mn_link *l = &s->links[i];
    if ((events & EPOLLOUT) != 0) {
        if (mn_tls_flush(&l->tls) == MN_TLS_BROKEN) {
            end(e, l, "the connection broke");
            return;
        }
        s->dirty = true;
        watch(e, l);
    }
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
        s->ready |= 1ULL << i;
}
_Static_assert(MN_LINKS_MAX <= 64, "one bit each");

bool mn_links_read(struct mn_engine *e)
{
    struct mn_links *s = &e->links;
    bool did = s->ready != 0;
    for (uint32_t i = 0; s->ready != 0; i++) {
        if ((s->ready & 1ULL << i) == 0)
            continue;
        s->ready &= ~(1ULL << i);
        read_link(e, &s->links[i]);
    }
    return did;
}

/* ---- commands ---- */

static void write_raw(struct mn_engine *e, struct mn_link *l, const struct mn_command *cmd)
{
    if (l->is_open) { /* whole frames of Python's: they go before data */
        struct iovec part = piece(cmd->blob, cmd->len);
        put(e, l, true, &part, 1);
    } else if (cmd->len == 0) { /* it has dealt with what we told */
        l->is_waiting = false;
        watch(e, l);
    } else if (l->tls.is_shaken && cmd->len <= BATCH_MAX) {
        memcpy(e->links.batch + MN_WS_HEADER_MAX, cmd->blob, cmd->len);
        if (send_batch(e, l, cmd->len, WS_DATA))
            watch(e, l);
    }
}

/* From now on it speaks WebSocket; Python waits for what the first messages hold. blob: bytes of them. */
static void start_websocket(struct mn_engine *e, struct mn_link *l, struct mn_command *cmd)
{
    if (l->websocket != NULL || l->is_open)
        return;
    l->websocket = malloc(sizeof *l->websocket);
    if (l->websocket == NULL) {
        end(e, l, "no memory for another relay connection");
        return;
    }
    mn_ws_start(l->websocket, false);
    ptrdiff_t n = unwrap(e, l, cmd->blob, cmd->len);
    if (n > 0)
        tell(e, l, MN_EV_LINK_DATA, 0, cmd->blob, (size_t)n);
    if (n < 0 || l->websocket->is_closed)
        end(e, l, n < 0 ? "it broke the protocol" : "");
}

/* One link a region carries its packets: the newest. blob: bytes of frames that Python had read already. */
static void open_link(struct mn_engine *e, struct mn_link *l, const struct mn_command *cmd)
{
    for (uint32_t i = 0; i < MN_LINKS_MAX; i++)
        if (e->links.links[i].is_open && e->links.links[i].region == cmd->region)
            e->links.links[i].region = 0;
    l->region = cmd->region;
    l->is_open = true;
    l->is_waiting = false;
    watch(e, l);
    if (cmd->len == 0 || cmd->len > PLAIN_BYTES)
        return;
    memcpy(e->links.plain, cmd->blob, cmd->len);
    if (!take_frames(e, l, cmd->len))
        end(e, l, "it broke the protocol");
}

void mn_links_run(struct mn_engine *e, struct mn_command *cmd)
{
    if (cmd->kind == MN_CMD_LINK_ADOPT) {
        adopt(e, cmd);
        return;
    }
    struct mn_link *l = find(e, cmd->req);
    if (l == NULL)
        return;
    if (cmd->kind == MN_CMD_LINK_WRITE)
        write_raw(e, l, cmd);
    else if (cmd->kind == MN_CMD_LINK_WEBSOCKET)
        start_websocket(e, l, cmd);
    else if (cmd->kind == MN_CMD_LINK_OPEN)
        open_link(e, l, cmd);
    else if (cmd->kind == MN_CMD_LINK_CLOSE)
        drop(e, l);
}
