/* Everything a WireGuard device takes from outside, driven by bytes: each action byte picks what happens next between
 * a device under attack (a) and an honest peer (b) that share real keys. The attacker sends raw bytes, bytes with a
 * right mac1, valid messages bent here and there, messages that carry live indices, inner packets of its own making
 * sealed by b's session, in any order, at any time, under load or not.
 *
 * Held: what input returns lies in the buffer it was given and is a packet of its own length from an allowed source,
 * drop reasons exist, tables stay within their bounds, deadlines move on. */
#include <stdlib.h>
#include <string.h>

#include "wg/device.h"

#define SEC 1000000000ULL
#define HOLD(claim)                                                                                                    \
    do {                                                                                                               \
        if (!(claim))                                                                                                  \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { PACKET = 2048, ACTIONS_MAX = 200 };

struct mail {
    size_t len;
    uint8_t buf[PACKET];
};

struct side {
    struct mn_wg *wg;
    uint32_t peer;
    uint64_t seed;
    uint64_t *now;
    struct mail last; /* what it sent last */
};

struct world {
    uint64_t now;
    struct side a, b;
    const uint8_t *in;
    size_t left;
};

static void some_random(void *ctx, uint8_t *p, size_t n)
{
    struct side *s = ctx;
    for (size_t i = 0; i < n; i++) {
        s->seed = s->seed * 6364136223846793005U + 1442695040888963407U;
        p[i] = (uint8_t)(s->seed >> 56);
    }
}

static uint64_t wall(void *ctx)
{
    struct side *s = ctx;
    return 1700000000ULL * SEC + *s->now;
}

static void on_send(void *ctx, uint32_t peer, const struct mn_path *to, enum mn_wg_kind kind, unsigned attempt,
                    const uint8_t *pkt, size_t len)
{
    struct side *s = ctx;
    (void)peer;
    (void)to;
    (void)attempt;
    HOLD(len <= PACKET && kind >= MN_WG_INITIATION && kind <= MN_WG_KEEPALIVE);
    s->last.len = len;
    memcpy(s->last.buf, pkt, len);
}

static void on_event(void *ctx, uint32_t peer, enum mn_wg_event ev)
{
    (void)ctx;
    (void)peer;
    HOLD(ev >= MN_WG_SESSION_UP && ev <= MN_WG_SILENT);
}

static uint8_t next_byte(struct world *w)
{
    if (w->left == 0)
        return 0;
    w->left--;
    return *w->in++;
}

static size_t next_bytes(struct world *w, uint8_t *out, size_t max)
{
    size_t n = w->left < max ? w->left : max;
    memcpy(out, w->in, n);
    w->in += n;
    w->left -= n;
    return n;
}

static struct mn_ip inner_of(uint8_t host)
{
    const uint8_t v4[4] = {100, 64, 0, host};
    return mn_ip_from4(v4);
}

static void start(struct world *w, struct side *s, uint8_t which)
{
    struct mn_wg_config config = {.staged_buffers = 16, .staged_packets = 8};
    struct mn_wg_ops ops = {.ctx = s, .random = some_random, .wall_ns = wall, .send = on_send, .event = on_event};
    uint8_t key[32] = {0, which}; /* the low bits of the first byte do not count */
    s->seed = which;
    s->now = &w->now;
    s->wg = mn_wg_create(&ops, &config, key, w->now);
    HOLD(s->wg != NULL);
}

static void introduce(struct side *s, const struct side *other, uint8_t host)
{
    uint8_t pub[32];
    struct mn_ip ip = inner_of(host), net6 = {{0xfd}};
    mn_wg_public_key(other->wg, pub);
    HOLD(mn_wg_peer_add(s->wg, pub, &s->peer) == 0);
    HOLD(mn_wg_allow(s->wg, &ip, 128, s->peer) == 0);
    HOLD(mn_wg_allow(s->wg, &net6, 8, s->peer) == 0);
}

/* An exact-size copy on the heap, so that reading past it is seen. */
static void deliver(struct world *w, struct side *s, const uint8_t *msg, size_t len)
{
    uint8_t *buf = malloc(len > 0 ? len : 1), *inner;
    uint32_t peer;
    struct mn_path from = {.ep = {.ip = inner_of((uint8_t)len), .port = 9}, .region = (uint16_t)(len % 3)};
    HOLD(buf != NULL);
    memcpy(buf, msg, len);
    int n = mn_wg_input(s->wg, buf, len, &from, w->now, &inner, &peer);
    HOLD(n > -MN_WG_DROP_END_);
    if (n > 0) {
        HOLD(inner == buf + MN_WG_HEADER && (size_t)n <= len - MN_WG_OVERHEAD && peer == s->peer);
        bool is4 = inner[0] >> 4 == 4;
        HOLD(is4 ? n == (inner[2] << 8 | inner[3]) : inner[0] >> 4 == 6 && n == 40 + (inner[4] << 8 | inner[5]));
        struct mn_ip source = is4 ? mn_ip_from4(inner + 12) : mn_ip_from6(inner + 8);
        HOLD(mn_wg_route(s->wg, &source) == peer);
    } else {
        HOLD(inner == NULL);
    }
    free(buf);
}

static void fix_mac1(struct world *w, uint8_t *msg, size_t len)
{
    if (len != MN_INITIATION_LEN && len != MN_RESPONSE_LEN)
        return;
    (void)mn_mac(&w->a.wg->noise.hasher, msg + len - MN_MACS_LEN, w->a.wg->checker->mac1_key, 32, msg,
                 len - MN_MACS_LEN);
}

static size_t shape(uint8_t type, size_t given)
{
    switch (type) {
    case MN_WG_INITIATION:
        return MN_INITIATION_LEN;
    case MN_WG_RESPONSE:
        return MN_RESPONSE_LEN;
    case MN_WG_COOKIE:
        return MN_COOKIE_LEN;
    default:
        return given < MN_DATA_MIN ? MN_DATA_MIN : given;
    }
}

/* Right type, length, mac1, and where it helps an index that is alive; the rest is the attacker's. */
static void send_shaped(struct world *w)
{
    uint8_t msg[PACKET] = {0}, type = (uint8_t)(1 + next_byte(w) % 4), index = next_byte(w);
    size_t len = shape(type, MN_WG_HEADER + next_byte(w) * 4U);
    (void)next_bytes(w, msg + 4, len - 4);
    msg[0] = type;
    const struct mn_wg_peer *p = mn_peer_get(w->a.wg, w->a.peer);
    const struct mn_session *held[] = {p->sessions.current, p->sessions.next, p->sessions.previous};
    const struct mn_session *s = held[index % 3];
    uint32_t live = index % 4 == 3 || s == NULL ? p->out.index : s->local_index;
    if (index < 200)
        mn_le32_put(msg + (type == MN_WG_RESPONSE ? 8 : 4), live);
    fix_mac1(w, msg, len);
    deliver(w, &w->a, msg, len);
}

static void send_bent(struct world *w, bool fix)
{
    struct mail m = w->b.last;
    for (int n = next_byte(w) % 8; n > 0 && m.len > 0; n--) {
        size_t at = ((size_t)next_byte(w) << 8 | next_byte(w)) % m.len;
        m.buf[at] ^= next_byte(w);
    }
    if (next_byte(w) % 16 == 0)
        m.len = m.len * next_byte(w) / 256;
    if (fix)
        fix_mac1(w, m.buf, m.len);
    deliver(w, &w->a, m.buf, m.len);
}

/* Any plaintext at all under b's session. */
static void send_inner(struct world *w)
{
    uint8_t msg[PACKET];
    struct mn_session *s = mn_peer_get(w->b.wg, w->b.peer)->sessions.current;
    size_t len = next_bytes(w, msg + MN_WG_HEADER, next_byte(w) * 6U);
    if (len > 0 && next_byte(w) % 4 != 0) { /* else it seldom gets past the first check */
        struct mn_ip source = inner_of(2);
        msg[MN_WG_HEADER] = len % 2 ? 0x45 : 0x60;
        if (len % 2 && len >= 20)
            memcpy(msg + MN_WG_HEADER + 12, source.b + 12, 4);
        else if (len >= 40)
            msg[MN_WG_HEADER + 8] = 0xfd;
    }
    if (s == NULL || !s->can_send)
        return;
    if (next_byte(w) % 8 == 0)
        s->send_counter += (uint64_t)next_byte(w) << next_byte(w) % 57;
    if (s->send_counter >= MN_REJECT_AFTER_MESSAGES)
        s->send_counter = MN_REJECT_AFTER_MESSAGES - 1;
    int n = mn_session_seal(s, msg, len);
    if (n > 0)
        deliver(w, &w->a, msg, (size_t)n);
}

static void send_data(struct world *w, struct side *s)
{
    uint8_t msg[PACKET] = {0};
    size_t len = 1 + next_byte(w) * 6U;
    struct mn_ip source = inner_of(s == &w->a ? 1 : 2);
    msg[MN_WG_HEADER] = 0x45;
    msg[MN_WG_HEADER + 2] = (uint8_t)(len >> 8);
    msg[MN_WG_HEADER + 3] = (uint8_t)len;
    memcpy(msg + MN_WG_HEADER + 12, source.b + 12, 4);
    int n = mn_wg_seal(s->wg, s->peer, msg, len, w->now);
    HOLD(n > -MN_WG_DROP_END_ && n <= PACKET);
    if (n > 0)
        on_send(s, s->peer, NULL, MN_WG_DATA, 0, msg, (size_t)n);
}

static void wait(struct world *w)
{
    static const uint64_t steps[] = {1000000, 25000000, 600000000, 5400000000, 16000000000, 130000000000, 600000000000};
    struct side *sides[] = {&w->a, &w->b};
    w->now += steps[next_byte(w) % 7];
    for (int i = 0; i < 2; i++) {
        mn_wg_on_deadline(sides[i]->wg, w->now);
        HOLD(mn_wg_next_deadline(sides[i]->wg) > w->now);
    }
}

static void change(struct world *w)
{
    uint8_t psk[32] = {next_byte(w)};
    switch (next_byte(w) % 6) {
    case 0:
        (void)mn_wg_peer_expire(w->a.wg, w->a.peer);
        break;
    case 1:
        HOLD(mn_wg_peer_remove(w->a.wg, w->a.peer) == 0);
        introduce(&w->a, &w->b, 2);
        break;
    case 2:
        (void)mn_wg_peer_set_psk(w->a.wg, w->a.peer, psk);
        (void)mn_wg_peer_set_psk(w->b.wg, w->b.peer, psk);
        break;
    case 3:
        (void)mn_wg_peer_set_keepalive(w->a.wg, w->a.peer, psk[0], w->now);
        break;
    case 4:
        w->a.wg->load.under_load_until = w->now + psk[0] * 10000000ULL;
        break;
    default:
        (void)mn_wg_disallow_all(w->a.wg, w->a.peer);
        introduce(&w->a, &w->b, 2);
        break;
    }
}

static void act(struct world *w, uint8_t action)
{
    uint8_t raw[PACKET];
    switch (action % 12) {
    case 0:
        deliver(w, &w->a, raw, next_bytes(w, raw, next_byte(w)));
        break;
    case 1:
        send_shaped(w);
        break;
    case 2:
        deliver(w, &w->a, w->b.last.buf, w->b.last.len);
        break;
    case 3:
        send_bent(w, false);
        break;
    case 4:
        send_bent(w, true);
        break;
    case 5:
        send_inner(w);
        break;
    case 6:
        wait(w);
        break;
    case 7:
        send_data(w, action & 0x80 ? &w->a : &w->b);
        break;
    case 8:
        (void)mn_wg_kick(w->a.wg, w->a.peer, w->now);
        break;
    case 9:
        (void)mn_wg_kick(w->b.wg, w->b.peer, w->now);
        break;
    case 10:
        deliver(w, &w->b, w->a.last.buf, w->a.last.len);
        break;
    default:
        change(w);
        break;
    }
    HOLD(w->a.wg->indices.count <= 4 && w->a.wg->staging.in_use <= 8 && w->a.wg->load.count <= MN_LOAD_QUEUE);
}

/* b asks, a answers, b confirms: so that short inputs reach what needs a session. */
static void connect(struct world *w)
{
    (void)mn_wg_kick(w->b.wg, w->b.peer, w->now);
    deliver(w, &w->a, w->b.last.buf, w->b.last.len);
    deliver(w, &w->b, w->a.last.buf, w->a.last.len);
    deliver(w, &w->a, w->b.last.buf, w->b.last.len);
    HOLD(mn_wg_has_session(w->a.wg, w->a.peer, w->now));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct world w;
    memset(&w, 0, sizeof w);
    w.now = 1000 * SEC;
    w.in = data;
    w.left = len;
    start(&w, &w.a, 1);
    start(&w, &w.b, 2);
    introduce(&w.a, &w.b, 2);
    introduce(&w.b, &w.a, 1);
    if (next_byte(&w) & 1)
        connect(&w);
    for (int i = 0; i < ACTIONS_MAX && w.left > 0; i++)
        act(&w, next_byte(&w));
    mn_wg_destroy(w.a.wg);
    mn_wg_destroy(w.b.wg);
    return 0;
}
