/* What arrives at a connection: handshake, raw bytes for Python, frames for the hub. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "internal.h"

enum { BUSY_READS = 32, BUSY_MS = 250 };

/* ---- frames ---- */

static bool on_packet(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_frame *f)
{
    if (f->len < MN_RELAY_KEY || f->len > MN_RELAY_KEY + MN_RELAY_PACKET_MAX)
        return false;
    mn_hub_send(&r->hub, &c->client, f->payload, f->payload + MN_RELAY_KEY, f->len - MN_RELAY_KEY, (uint32_t)r->now_ms);
    return true;
}

static bool on_forward(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_frame *f)
{
    if (!c->client.may_mesh || f->len < 2 * MN_RELAY_KEY) {
        r->stats.mesh_refused += !c->client.may_mesh;
        return false;
    }
    mn_hub_forward(&r->hub, &c->client, f->payload, f->payload + MN_RELAY_KEY, f->payload + 2L * MN_RELAY_KEY,
                   f->len - 2 * MN_RELAY_KEY, (uint32_t)r->now_ms);
    return true;
}

static bool on_ping(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_frame *f)
{
    if (f->len < MN_RELAY_PING || f->len > MN_RELAY_PING_MAX)
        return false;
    r->stats.pings_received++;
    r->stats.pongs_sent++;
    mn_hub_tell(&r->hub, &c->client, MN_FRAME_PONG, f->payload, MN_RELAY_PING, (uint32_t)r->now_ms);
    return true;
}

static bool on_preferred(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_frame *f)
{
    if (f->len != 1)
        return false;
    mn_hub_set_home(&r->hub, &c->client, f->payload[0] != 0, (uint32_t)r->now_ms);
    return true;
}

static bool on_mesh_request(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_frame *f)
{
    bool watches = f->kind == MN_FRAME_WATCH_CONNS;
    if (!c->client.may_mesh || f->len != (watches ? 0 : MN_RELAY_KEY)) {
        r->stats.mesh_refused += !c->client.may_mesh;
        return false;
    }
    if (watches) {
        mn_hub_watch(&r->hub, &c->client, (uint32_t)r->now_ms);
        return true;
    }
    uint8_t key[MN_RELAY_KEY];
    memcpy(key, f->payload, sizeof key);
    for (struct mn_hub_client *k; (k = mn_hub_find(&r->hub, key)) != NULL;)
        mn_relay_conn_stop(r, (struct mn_relay_conn *)k, MN_WHY_CLOSE_PEER);
    return true;
}

/* What the other relay of a region says to us, its client. */
static bool on_neighbour_frame(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_frame *f)
{
    struct mn_relay_event *ev;
    switch (f->kind) {
    case MN_FRAME_PEER_PRESENT:
        if (f->len >= MN_RELAY_KEY && memcmp(f->payload, c->client.key, MN_RELAY_KEY) != 0)
            mn_hub_route_add(&r->hub, &c->client, f->payload);
        break;
    case MN_FRAME_PEER_GONE:
        if (f->len >= MN_RELAY_KEY)
            mn_hub_route_remove(&r->hub, &c->client, f->payload, (uint32_t)r->now_ms);
        break;
    case MN_FRAME_PING:
        return on_ping(r, c, f);
    case MN_FRAME_HEALTH:
    case MN_FRAME_RESTARTING:
    case MN_FRAME_SERVER_INFO:
        ev = f->len <= MN_RELAY_RAW_MAX ? mn_talk_event(MN_RELAY_EV_NOTICE, f->payload, f->len) : NULL;
        if (ev == NULL)
            break;
        ev->conn = c->id;
        ev->frame = f->kind;
        mn_talk_post(&r->talk, ev);
        break;
    default:
        break;
    }
    return true;
}

/* False: it breaks the rules. */
static bool on_frame(struct mn_relay *r, struct mn_relay_conn *c, const struct mn_frame *f)
{
    if (c->client.is_neighbour)
        return on_neighbour_frame(r, c, f);
    switch (f->kind) {
    case MN_FRAME_SEND_PACKET:
        return on_packet(r, c, f);
    case MN_FRAME_FORWARD_PACKET:
        return on_forward(r, c, f);
    case MN_FRAME_PING:
        return on_ping(r, c, f);
    case MN_FRAME_NOTE_PREFERRED:
        return on_preferred(r, c, f);
    case MN_FRAME_WATCH_CONNS:
    case MN_FRAME_CLOSE_PEER:
        return on_mesh_request(r, c, f);
    case MN_FRAME_CLIENT_INFO:
        return false; /* it has logged in */
    case MN_FRAME_PONG:
        return true; /* any sign of life counts, see take_frames */
    default:
        r->stats.unknown_frames++;
        return true;
    }
}

/* Bytes of the frame stream, what was kept of it in front. */
void mn_relay_conn_take_frames(struct mn_relay *r, struct mn_relay_conn *c, const uint8_t *p, size_t n)
{
    size_t at = 0;
    struct mn_frame f;
    enum mn_frame_found found;
    c->heard_ms = r->now_ms;
    c->was_pinged = false;
    mn_hub_note_activity(&r->hub, &c->client, (uint32_t)r->now_ms);
    while ((found = mn_frame_reader_next(&c->reader, p, n, &at, &f)) == MN_FRAME_WHOLE) {
        bool is_good = on_frame(r, c, &f);
        if (c->stream.fd < 0)
            return;
        if (!is_good) {
            found = MN_FRAME_TOO_BIG;
            break;
        }
    }
    if (found == MN_FRAME_TOO_BIG) {
        r->stats.protocol_errors++;
        mn_relay_conn_stop(r, c, MN_WHY_PROTOCOL);
    } else if (!mn_frame_reader_keep(&c->reader, p + at, n - at)) {
        mn_relay_conn_stop(r, c, MN_WHY_NO_MEMORY);
    }
}

/* ---- rates ---- */

static void charge(struct mn_relay *r, struct mn_relay_conn *c, size_t n)
{
    if (c->rate == 0)
        return;
    /* refill_at_ms is when the tokens were last counted while nothing is throttled. */
    uint64_t earned = (r->now_ms - c->refill_at_ms) * c->rate / 1000;
    if (earned > 0) {
        c->tokens += (int64_t)earned;
        c->refill_at_ms = r->now_ms;
    }
    if (c->tokens > (int64_t)c->burst)
        c->tokens = (int64_t)c->burst;
    c->tokens -= (int64_t)n;
    if (c->tokens >= 0)
        return;
    uint64_t wait_ms = (uint64_t)-c->tokens * 1000 / c->rate + 1;
    c->tokens += (int64_t)(wait_ms * c->rate / 1000); /* earned by then */
    c->refill_at_ms = r->now_ms + wait_ms;
    c->is_throttled = true;
    r->stats.throttled++;
    mn_relay_conn_watch(r, c);
    mn_relay_conn_arm(r, c);
}

/* ---- bytes ---- */

/* WebSocket payload in place, else the bytes as they are. Negative: it breaks the rules or said goodbye. */
static ptrdiff_t unwrap(struct mn_relay_conn *c, uint8_t *p, size_t n)
{
    if (c->websocket == NULL)
        return (ptrdiff_t)n;
    ptrdiff_t k = mn_ws_decode(c->websocket, p, n);
    return k == 0 && c->websocket->is_closed ? -1 : k;
}

static void to_python(struct mn_relay *r, struct mn_relay_conn *c, const uint8_t *p, size_t n)
{
    struct mn_relay_event *ev = mn_talk_event(MN_RELAY_EV_DATA, p, n);
    if (ev == NULL) {
        mn_relay_conn_stop(r, c, MN_WHY_NO_MEMORY);
        return;
    }
    ev->conn = c->id;
    ev->source = c->client.source;
    ev->role = c->role;
    ev->has_tls = c->stream.ssl != NULL;
    ev->tls_version = c->stream.ssl != NULL ? (uint16_t)SSL_version(c->stream.ssl) : 0;
    c->is_announced = c->is_waiting = true;
    mn_talk_post(&r->talk, ev);
    mn_relay_conn_watch(r, c);
}

/* All that was fetched; false: the connection is gone. */
static bool read_plain(struct mn_relay *r, struct mn_relay_conn *c)
{
    size_t kept = mn_frame_reader_front(&c->reader, r->plain);
    ptrdiff_t n = mn_tls_read(&c->stream, r->plain + kept, MN_RELAY_PLAIN - kept);
    if (n > 0)
        n = unwrap(c, r->plain + kept, (size_t)n);
    if (n < 0) {
        mn_relay_conn_stop(r, c, n == MN_TLS_END || c->websocket != NULL ? MN_WHY_CLOSED_BY_PEER : MN_WHY_BROKEN);
        return false;
    }
    if (c->websocket != NULL && c->websocket->owes_pong && c->phase == MN_PHASE_OPEN)
        mn_hub_mark_dirty(&r->hub, &c->client);
    if (n == 0)
        return true;
    if (c->phase == MN_PHASE_OPEN) {
        mn_relay_conn_take_frames(r, c, r->plain, kept + (size_t)n);
        if (c->stream.fd < 0)
            return false;
        charge(r, c, (size_t)n);
    } else if (c->phase == MN_PHASE_RAW) {
        to_python(r, c, r->plain, (size_t)n);
    }
    return c->stream.fd >= 0;
}

/* Of a busy connection the kernel need not acknowledge each read at once, which costs about as much as the read: the
 * next frame is there before the delayed acknowledgement, which covers both. The kernel forgets this at every pause. */
static void delay_acks(const struct mn_relay *r, struct mn_relay_conn *c)
{
    static const int is_quick = 0;
    if (++c->reads < BUSY_READS)
        return;
    if (r->now_ms - c->reads_since_ms <= BUSY_MS)
        (void)setsockopt(c->stream.fd, IPPROTO_TCP, TCP_QUICKACK, &is_quick, sizeof is_quick);
    c->reads = 0;
    c->reads_since_ms = r->now_ms;
}

static bool shake(struct mn_relay *r, struct mn_relay_conn *c)
{
    enum mn_tls_result result = mn_tls_shake(&c->stream);
    if (result == MN_TLS_AGAIN) {
        mn_relay_conn_watch(r, c);
        return false;
    }
    if (result != MN_TLS_OK) {
        r->stats.tls_failed++;
        mn_relay_conn_stop(r, c, MN_WHY_TLS);
        return false;
    }
    r->stats.tls_versions[SSL_version(c->stream.ssl) >= TLS1_3_VERSION]++;
    c->phase = MN_PHASE_RAW;
    mn_lobby_note_shaken(r, c);
    if (!c->is_adopted)
        return true;
    struct mn_relay_event *ev = mn_talk_event(MN_RELAY_EV_DIALLED, NULL, 0);
    if (ev != NULL) {
        ev->conn = c->id;
        ev->has_tls = true;
        mn_talk_post(&r->talk, ev);
    }
    mn_relay_conn_watch(r, c);
    return true;
}

static void on_readable(struct mn_relay *r, struct mn_relay_conn *c)
{
    bool is_shaking = c->phase == MN_PHASE_SHAKING;
    if (c->phase == MN_PHASE_CLOSING || c->is_waiting || c->is_throttled)
        return;
    size_t cap = c->phase == MN_PHASE_OPEN ? (size_t)MN_WIRE_IN : (size_t)MN_RELAY_RAW_MAX;
    enum mn_tls_result result = mn_tls_fetch(&c->stream, cap);
    if (result == MN_TLS_AGAIN)
        return;
    if (result != MN_TLS_OK) {
        mn_relay_conn_stop(r, c, result == MN_TLS_END ? MN_WHY_CLOSED_BY_PEER : MN_WHY_BROKEN);
        return;
    }
    if (is_shaking && !shake(r, c))
        return;
    if (c->phase == MN_PHASE_OPEN)
        delay_acks(r, c);
    if (read_plain(r, c) && c->stream.left != NULL)
        mn_relay_conn_watch(r, c);
}

void mn_relay_conn_serve(struct mn_relay *r, uint64_t id, uint32_t events)
{
    struct mn_relay_conn *c = mn_relay_conn_of(r, id);
    if (c != NULL && (events & EPOLLOUT) != 0)
        mn_relay_conn_on_writable(r, c);
    if (c == NULL || c->stream.fd < 0)
        return;
    /* A connection that is not read because Python thinks about it is told of its end all the same. */
    if ((events & (EPOLLERR | EPOLLHUP)) != 0 && (events & EPOLLIN) == 0)
        mn_relay_conn_stop(r, c, MN_WHY_BROKEN);
    else if ((events & EPOLLIN) != 0)
        on_readable(r, c);
}
