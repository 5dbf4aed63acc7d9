/* Two whole members in virtual time, each a device under a stack, through ten changes of keys under load: no flow
 * breaks, each change costs one timeout at most. Then the same link with an adversary who copies, delays, alters, cuts
 * and misdirects what passes: every datagram is accepted once at most and only as its sender made it. */
#include "../tcp/stack.h"
#include "../wg/wg.h"
#include "check.h"
#include "crypto/x25519.h"

enum { MTU = 1280, DATAGRAM = MTU + 64, PORT = 80, SLOTS = 1 << 19, KEPT = 512, BATCH = 32 };
enum { REKEYS = 10, REKEY_S = 120, BOTTLENECK_BYTES = 60000, TICK_MS = 50 };

#define MS 1000000ULL
#define SEC 1000000000ULL
#define BYTES_PER_S (MN_TEST_SLOW > 1 ? 25000ULL : 60000ULL)

struct flying {
    struct flying *next;
    uint64_t at;
    int to;
    size_t len;
    uint8_t data[DATAGRAM];
};

struct member {
    struct world *w;
    int index;
    struct mn_wg *wg;
    struct mn_stack *stack;
    struct mn_ip ip;
    uint8_t priv[32], pub[32], out[DATAGRAM];
    uint32_t peer, conn, listener;
    uint64_t written, read, link_free_at, write_at;
    bool is_open;
    struct flying *queue, **tail; /* towards the other */
};

struct world {
    uint64_t now, rng, sent, accepted, refused, forged;
    struct member m[2];
    bool has_adversary;
    uint64_t loss_per_mille;
    uint64_t *known; /* digests of what was sent; the lowest bit: accepted already */
    struct flying kept[KEPT];
    size_t n_kept;
};

static uint64_t random_of(struct world *w)
{
    return test_random(&w->rng);
}

/* ---- what was sent, and what of it was accepted ---- */

/* Where the datagram is noted, or would be: an empty place. */
static uint64_t *place_of(struct world *w, int to, const uint8_t *data, size_t len, uint64_t *digest)
{
    uint64_t d = 0xcbf29ce484222325U + (unsigned)to;
    for (size_t i = 0; i < len; i++)
        d = (d ^ data[i]) * 0x100000001b3U;
    d = (d ^ d >> 29) & ~(uint64_t)1;
    uint64_t at = d >> 20;
    while (w->known[at % SLOTS] != 0 && (w->known[at % SLOTS] & ~(uint64_t)1) != d)
        at++;
    *digest = d;
    return &w->known[at % SLOTS];
}

static void note_sent(struct world *w, int to, const uint8_t *data, size_t len)
{
    uint64_t digest, *place = place_of(w, to, data, len, &digest);
    CHECK_INT(*place, 0); /* nothing leaves twice: no nonce is used again */
    *place = digest;
    CHECK(++w->sent < SLOTS / 2);
}

static void note_accepted(struct world *w, int to, const uint8_t *data, size_t len)
{
    uint64_t digest, *place = place_of(w, to, data, len, &digest);
    CHECK(*place != 0);       /* somebody sent it to us */
    CHECK_INT(*place & 1, 0); /* and we have not had it yet */
    *place |= 1;
    w->accepted++;
}

/* ---- the link: one bottleneck each way ---- */

static void fly(struct world *w, int to, const uint8_t *data, size_t len, uint64_t at)
{
    struct flying *f = malloc(sizeof *f);
    struct member *from = &w->m[1 - to];
    CHECK(f != NULL && len <= DATAGRAM);
    *f = (struct flying){.at = at, .to = to, .len = len};
    memcpy(f->data, data, len);
    struct flying **link = &from->queue;
    while (*link != NULL && (*link)->at <= at)
        link = &(*link)->next;
    f->next = *link;
    *link = f;
}

static void disturb(struct world *w);

static void transmit(struct member *from, const uint8_t *data, size_t len)
{
    struct world *w = from->w;
    int to = 1 - from->index;
    note_sent(w, to, data, len);
    uint64_t start = from->link_free_at > w->now ? from->link_free_at : w->now;
    if ((start - w->now) * BYTES_PER_S / SEC > BOTTLENECK_BYTES)
        return; /* the queue is full */
    from->link_free_at = start + len * SEC / BYTES_PER_S;
    if (random_of(w) % 1000 < w->loss_per_mille)
        return;
    fly(w, to, data, len, from->link_free_at + 20 * MS);
    if (!w->has_adversary)
        return;
    struct flying *kept = &w->kept[w->n_kept++ % KEPT];
    *kept = (struct flying){.to = to, .len = len};
    memcpy(kept->data, data, len);
    if (random_of(w) % 4 == 0)
        disturb(w);
}

/* One act of the adversary, with something that passed at some time. */
static void disturb(struct world *w)
{
    size_t most = w->n_kept < KEPT ? w->n_kept : KEPT;
    const struct flying *old = &w->kept[random_of(w) % most];
    uint8_t data[DATAGRAM];
    size_t len = old->len;
    int to = old->to;
    memcpy(data, old->data, len);
    switch (random_of(w) % 5) {
    case 0: /* once more, as it is */
        break;
    case 1:
        data[random_of(w) % len] ^= (uint8_t)(1u << random_of(w) % 8);
        break;
    case 2:
        len = random_of(w) % len;
        break;
    case 3: /* back to who sent it */
        to = 1 - to;
        break;
    default: /* another counter over the same text */
        if (len >= 16)
            data[8 + random_of(w) % 8] = (uint8_t)random_of(w);
        break;
    }
    w->forged++;
    if (len > 0)
        fly(w, to, data, len, w->now + random_of(w) % (2 * SEC));
}

/* ---- what device and stack ask for ---- */

static void on_random(void *ctx, uint8_t *p, size_t n)
{
    struct member *m = ctx;
    test_random_bytes(&m->w->rng, p, n);
}

static uint64_t on_wall(void *ctx)
{
    return 1700000000 * SEC + ((struct member *)ctx)->w->now;
}

static void on_send(void *ctx, uint32_t peer, const struct mn_path *to, enum mn_wg_kind kind, unsigned attempt,
                    const uint8_t *pkt, size_t len)
{
    (void)peer, (void)to, (void)kind, (void)attempt;
    transmit(ctx, pkt, len);
}

static void on_event(void *ctx, uint32_t peer, enum mn_wg_event event)
{
    (void)ctx, (void)peer;
    CHECK(event == MN_WG_SESSION_UP || event == MN_WG_SILENT);
}

static uint32_t on_route(void *ctx, const struct mn_ip *dst)
{
    return mn_wg_route(((struct member *)ctx)->wg, dst);
}

static uint8_t *on_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct member *m = ctx;
    (void)dst, (void)err;
    CHECK(max <= MTU);
    return m->out + MN_WG_HEADER;
}

static void on_commit(void *ctx, size_t len)
{
    struct member *m = ctx;
    int n = len > 0 ? mn_wg_seal(m->wg, m->peer, m->out, len, m->w->now) : 0;
    if (n > 0)
        transmit(m, m->out, (size_t)n);
}

static uint8_t byte_at(uint64_t at, int side)
{
    return (uint8_t)((at * 0x9e3779b97f4a7c15U >> 56) + (unsigned)side);
}

/* Two thirds of what the link carries, so that only a change of keys can make a flow wait. */
static void write_more(struct member *m)
{
    size_t left = (size_t)(BYTES_PER_S * (TICK_MS * 2) / 3000), room;
    uint8_t *p;
    m->write_at = m->w->now + TICK_MS * MS;
    while (left > 0 && (p = mn_tcp_send_reserve(m->stack, m->conn, &room)) != NULL) {
        size_t n = left < room ? left : room;
        for (size_t i = 0; i < n; i++)
            p[i] = byte_at(m->written + i, m->index);
        m->written += n;
        left -= n;
        mn_tcp_send_commit(m->stack, m->conn, n, m->w->now);
    }
}

static void on_open(struct member *m, uint32_t conn)
{
    m->conn = conn;
    m->is_open = true;
    write_more(m);
}

static void on_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    (void)listener;
    on_open(ctx, conn);
}

static void on_connected(void *ctx, uint32_t conn)
{
    on_open(ctx, conn);
}

static void on_failed(void *ctx, uint32_t conn, int err)
{
    (void)ctx, (void)conn;
    CHECK_INT(err, 0);
}

static size_t on_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    struct member *m = ctx;
    size_t total = 0;
    (void)conn;
    for (int i = 0; i < n; i++) {
        const uint8_t *p = iov[i].iov_base;
        for (size_t k = 0; k < iov[i].iov_len; k++)
            CHECK_INT(p[k], byte_at(m->read + total + k, 1 - m->index));
        total += iov[i].iov_len;
    }
    m->read += total;
    return total;
}

static void on_fin(void *ctx, uint32_t conn)
{
    (void)ctx, (void)conn;
    CHECK(false); /* nobody closes */
}

static void on_writable(void *ctx, uint32_t conn)
{
    (void)ctx, (void)conn; /* the next tick will see */
}

static void on_closed(void *ctx, uint32_t conn, int err)
{
    (void)ctx, (void)conn;
    CHECK_INT(err, 0);
    CHECK(false); /* nor does anything break */
}

/* ---- life ---- */

static void allow_all(struct mn_stack *s)
{
    uint8_t blob[128] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 4, 1, 0, 1, 0, 6, 17, 1, 58}, *p = blob + 17;
    for (int i = 0; i < 2; i++, p += 17) {
        p[10] = p[11] = 0xff;
        p[16] = 96;
    }
    memcpy(p, "\0\0\xff\xff\0\0\0\0", 8);
    CHECK_INT(mn_stack_set_filter(s, blob, (size_t)(p + 8 - blob)), 0);
}

static void start_member(struct world *w, int index)
{
    struct member *m = &w->m[index];
    struct mn_wg_ops wg_ops = {.ctx = m, .random = on_random, .wall_ns = on_wall, .send = on_send, .event = on_event};
    struct mn_stack_ops ops = {.ctx = m,
                               .random = on_random,
                               .out_begin = on_begin,
                               .out_commit = on_commit,
                               .route = on_route,
                               .tcp_accepted = on_accepted,
                               .tcp_connected = on_connected,
                               .tcp_failed = on_failed,
                               .tcp_deliver = on_deliver,
                               .tcp_peer_fin = on_fin,
                               .tcp_writable = on_writable,
                               .tcp_closed = on_closed};
    struct mn_stack_config config = {.mtu = MTU};
    m->w = w;
    m->index = index;
    m->ip = mn_ip_from4((const uint8_t[4]){100, 64, 0, (uint8_t)(index + 1)});
    test_random_bytes(&w->rng, m->priv, 32);
    m->wg = mn_wg_create(&wg_ops, NULL, m->priv, w->now);
    m->stack = mn_stack_create(&ops, &config, w->now);
    CHECK(m->wg != NULL && m->stack != NULL);
    mn_wg_public_key(m->wg, m->pub);
    CHECK_INT(mn_stack_set_addresses(m->stack, &m->ip, 1), 0);
    allow_all(m->stack);
    CHECK_INT(mn_tcp_listen(m->stack, NULL, PORT, 0, &m->listener), 0);
}

static struct world *start(uint64_t seed)
{
    struct world *w = calloc(1, sizeof *w);
    CHECK(w != NULL);
    w->known = calloc(SLOTS, sizeof *w->known);
    CHECK(w->known != NULL);
    w->rng = seed;
    w->now = 1000 * SEC;
    for (int i = 0; i < 2; i++)
        start_member(w, i);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(mn_wg_peer_add(w->m[i].wg, w->m[1 - i].pub, &w->m[i].peer), 0);
        CHECK_INT(mn_wg_allow(w->m[i].wg, &w->m[1 - i].ip, 128, w->m[i].peer), 0);
    }
    struct mn_ep to = {.ip = w->m[1].ip, .port = PORT};
    CHECK_INT(mn_tcp_connect(w->m[0].stack, &to, NULL, &w->m[0].conn, w->now), 0);
    return w;
}

static void stop(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        for (struct flying *f; (f = w->m[i].queue) != NULL;) {
            w->m[i].queue = f->next;
            free(f);
        }
        mn_stack_destroy(w->m[i].stack);
        mn_wg_destroy(w->m[i].wg);
    }
    free(w->known);
    free(w);
}

/* A datagram arrives at m. The device works in the very buffer, which the stack reads until its flush. */
static void arrive(struct member *m, struct flying *f)
{
    struct world *w = m->w;
    uint8_t original[DATAGRAM], *inner;
    uint32_t peer;
    const uint8_t from[4] = {192, 0, 2, (uint8_t)random_of(w)};
    struct mn_path path = {.ep = {.ip = mn_ip_from4(from), .port = (uint16_t)(1 + random_of(w) % 1000)}};
    memcpy(original, f->data, f->len);
    int n = mn_wg_input(m->wg, f->data, f->len, &path, w->now, &inner, &peer);
    if (n < 0) {
        w->refused++;
        return;
    }
    note_accepted(w, m->index, original, f->len);
    if (n > 0)
        mn_stack_input(m->stack, peer, inner, (size_t)n, w->now);
}

static uint64_t next_of(const struct member *m)
{
    uint64_t at = m->queue != NULL ? m->queue->at : UINT64_MAX;
    uint64_t wg = mn_wg_next_deadline(m->wg), stack = mn_stack_next_deadline(m->stack);
    at = wg < at ? wg : at;
    at = stack < at ? stack : at;
    return m->is_open && m->write_at < at ? m->write_at : at;
}

static void step(struct world *w, int to)
{
    struct member *m = &w->m[to], *from = &w->m[1 - to];
    struct flying *batch[BATCH];
    int n = 0;
    while (n < BATCH && from->queue != NULL && from->queue->at <= w->now) {
        batch[n] = from->queue;
        from->queue = batch[n]->next;
        arrive(m, batch[n++]);
    }
    mn_stack_flush(m->stack, w->now);
    while (n > 0)
        free(batch[--n]);
    if (mn_wg_next_deadline(m->wg) <= w->now)
        mn_wg_on_deadline(m->wg, w->now);
    if (mn_stack_next_deadline(m->stack) <= w->now)
        mn_stack_on_deadline(m->stack, w->now);
    if (m->is_open && m->write_at <= w->now)
        write_more(m);
    mn_stack_flush(m->stack, w->now);
}

static void run(struct world *w, uint64_t until)
{
    while (w->now < until) {
        uint64_t a = next_of(&w->m[0]), b = next_of(&w->m[1]), at = a < b ? a : b;
        CHECK(at != UINT64_MAX);
        w->now = at > w->now ? at : w->now;
        step(w, 0);
        step(w, 1);
    }
}

static uint64_t handshakes(const struct world *w)
{
    struct mn_wg_peer_stats s;
    CHECK_INT(mn_wg_peer_stats(w->m[0].wg, w->m[0].peer, &s), 0);
    return s.handshakes;
}

static uint64_t timeouts(const struct world *w)
{
    return mn_stack_stats(w->m[0].stack)->tcp_timeouts + mn_stack_stats(w->m[1].stack)->tcp_timeouts;
}

/* Both sides send all the time; every two minutes the keys change. */
static void ten_rekeys(uint64_t seed, uint64_t loss_per_mille, bool has_adversary)
{
    struct world *w = start(seed);
    w->has_adversary = has_adversary;
    w->loss_per_mille = loss_per_mille;
    run(w, w->now + 30 * SEC);
    CHECK(w->m[0].is_open && w->m[1].is_open);
    uint64_t first = handshakes(w), read[2], began = w->now, at_most = 0;
    for (int i = 0; i < REKEYS; i++) {
        uint64_t keys = handshakes(w), waited = timeouts(w);
        for (int side = 0; side < 2; side++)
            read[side] = w->m[side].read;
        run(w, w->now + (REKEY_S + 1) * SEC);
        CHECK(handshakes(w) > keys);
        uint64_t cost = timeouts(w) - waited;
        at_most = cost > at_most ? cost : at_most;
        if (loss_per_mille == 0)
            CHECK(cost <= 1);
        for (int side = 0; side < 2; side++) /* and it goes on, both ways */
            CHECK(w->m[side].read - read[side] > REKEY_S * (loss_per_mille == 0 ? 60u : 15u) * BYTES_PER_S / 100);
    }
    uint64_t rate = (w->m[0].read + w->m[1].read) / ((w->now - began) / SEC);
    printf("  %" PRIu64 " rekeys, %" PRIu64 " timeouts at most in one, %" PRIu64 " bytes/s of %" PRIu64 "; %" PRIu64
           " datagrams sent, %" PRIu64 " accepted, %" PRIu64 " forged, %" PRIu64 " refused\n",
           handshakes(w) - first, at_most, rate, 2 * (uint64_t)BYTES_PER_S, w->sent, w->accepted, w->forged,
           w->refused);
    CHECK(handshakes(w) - first >= REKEYS);
    CHECK(w->accepted <= w->sent);
    if (has_adversary)
        CHECK(w->refused > 1000);
    stop(w);
}

static void test_ten_rekeys_under_load(void)
{
    ten_rekeys(1, 0, false);
}

static void test_ten_rekeys_with_loss(void)
{
    ten_rekeys(2, 10, false);
}

static void test_ten_rekeys_and_an_adversary(void)
{
    ten_rekeys(3, 0, true);
}

static void test_loss_and_an_adversary(void)
{
    ten_rekeys(4, 20, true);
}

int main(void)
{
    RUN(test_ten_rekeys_under_load);
    RUN(test_ten_rekeys_with_loss);
    RUN(test_ten_rekeys_and_an_adversary);
    RUN(test_loss_and_an_adversary);
    return 0;
}
