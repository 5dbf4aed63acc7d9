/* Devices under a test's own clock, whose packets wait in an outbox until the test delivers, alters or drops them. */
#ifndef MN_TESTS_WG_PAIR_H
#define MN_TESTS_WG_PAIR_H

#include "check.h"
#include "crypto/x25519.h"
#include "wg/device.h"

enum { OUTBOX = 512, PACKET = 2048, EVENTS = 256 };

#define MS 1000000ULL
#define SEC 1000000000ULL
#define WALL 1700000000ULL

struct packet {
    uint32_t peer;
    bool has_to;
    struct mn_path to;
    enum mn_wg_kind kind;
    unsigned attempt;
    size_t len;
    uint8_t buf[PACKET];
};

struct node {
    struct mn_wg *wg;
    uint8_t priv[32], pub[32];
    uint64_t seed, wall_ns; /* wall clock at boot time 0 */
    uint64_t *now;
    struct packet out[OUTBOX];
    unsigned out_head, out_tail;
    enum mn_wg_event events[EVENTS];
    unsigned event_count, heard_count;
    struct mn_path heard_from;
    unsigned roamed_count;
    struct mn_path roamed_to;
    unsigned copied_count;
    bool wants_no_copy;
};

static inline void node_random(void *ctx, uint8_t *p, size_t n)
{
    struct node *node = ctx;
    test_random_bytes(&node->seed, p, n);
}

static inline uint64_t node_wall(void *ctx)
{
    struct node *node = ctx;
    return node->wall_ns + *node->now;
}

static inline void node_send(void *ctx, uint32_t peer, const struct mn_path *to, enum mn_wg_kind kind, unsigned attempt,
                             const uint8_t *pkt, size_t len)
{
    struct node *node = ctx;
    CHECK(node->out_tail - node->out_head < OUTBOX && len <= PACKET);
    struct packet *p = &node->out[node->out_tail++ % OUTBOX];
    *p = (struct packet){.peer = peer, .has_to = to != NULL, .kind = kind, .attempt = attempt, .len = len};
    if (to != NULL)
        p->to = *to;
    memcpy(p->buf, pkt, len);
}

static inline void node_event(void *ctx, uint32_t peer, enum mn_wg_event ev)
{
    struct node *node = ctx;
    (void)peer;
    CHECK(node->event_count < EVENTS);
    node->events[node->event_count++] = ev;
}

static inline void node_heard(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct node *node = ctx;
    (void)peer;
    node->heard_count++;
    node->heard_from = *from;
}

static inline void node_roamed(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct node *node = ctx;
    (void)peer;
    node->roamed_count++;
    node->roamed_to = *from;
}

static inline bool node_wants_copy(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct node *node = ctx;
    (void)peer, (void)from;
    return !node->wants_no_copy;
}

static inline void node_copied(void *ctx, uint32_t peer, const struct mn_path *from)
{
    struct node *node = ctx;
    (void)peer, (void)from;
    node->copied_count++;
}

static inline void node_start(struct node *n, uint64_t seed, uint64_t *now, const struct mn_wg_config *config)
{
    memset(n, 0, sizeof *n);
    n->seed = seed;
    n->now = now;
    n->wall_ns = WALL * SEC;
    test_random_bytes(&n->seed, n->priv, 32);
    EVP_PKEY *key = mn_x25519_load(n->priv);
    CHECK(mn_x25519_public(key, n->pub) == 0);
    EVP_PKEY_free(key);
    struct mn_wg_ops ops = {n,          node_random, node_wall,       node_send,  node_event,
                            node_heard, node_roamed, node_wants_copy, node_copied};
    n->wg = mn_wg_create(&ops, config, n->priv, *now);
    CHECK(n->wg != NULL);
}

static inline void node_stop(struct node *n)
{
    mn_wg_destroy(n->wg);
    n->wg = NULL;
}

static inline struct mn_path path_of(uint8_t host, uint16_t port)
{
    const uint8_t v4[4] = {192, 0, 2, host};
    return (struct mn_path){.ep = {.ip = mn_ip_from4(v4), .port = port}};
}

/* A tailnet address: 100.64.0.host. */
static inline struct mn_ip inner_of(uint8_t host)
{
    const uint8_t v4[4] = {100, 64, 0, host};
    return mn_ip_from4(v4);
}

static inline uint32_t node_peer(struct node *n, const struct node *other, uint8_t host)
{
    uint32_t id;
    struct mn_ip ip = inner_of(host);
    CHECK_INT(mn_wg_peer_add(n->wg, other->pub, &id), 0);
    CHECK_INT(mn_wg_allow(n->wg, &ip, 128, id), 0);
    return id;
}

/* An IPv4 packet of len bytes between two tailnet hosts, at msg + 16; its content follows from `mark`. */
static inline void put_inner(uint8_t *msg, uint8_t from, uint8_t to, size_t len, uint32_t mark)
{
    uint8_t *p = msg + MN_WG_HEADER;
    struct mn_ip src = inner_of(from), dst = inner_of(to);
    memset(p, 0, len);
    p[0] = 0x45;
    p[2] = (uint8_t)(len >> 8);
    p[3] = (uint8_t)len;
    memcpy(p + 12, src.b + 12, 4);
    memcpy(p + 16, dst.b + 12, 4);
    for (size_t i = 20; i + 4 <= len; i += 4)
        mn_le32_put(p + i, mark + (uint32_t)i);
}

/* The next packet out, or NULL. Valid until the outbox wraps. */
static inline struct packet *take(struct node *n)
{
    return n->out_head == n->out_tail ? NULL : &n->out[n->out_head++ % OUTBOX];
}

static inline struct packet *take_kind(struct node *n, enum mn_wg_kind kind)
{
    struct packet *p = take(n);
    CHECK(p != NULL);
    CHECK_INT(p->kind, kind);
    return p;
}

static inline void check_silent(struct node *n)
{
    CHECK_INT(n->out_tail - n->out_head, 0);
}

/* Deliver a copy, as from the first node's address; returns what mn_wg_input does. */
static inline int deliver_from(struct node *n, const struct packet *p, const struct mn_path *from)
{
    static uint8_t buf[PACKET];
    uint8_t *inner;
    uint32_t peer;
    memcpy(buf, p->buf, p->len);
    return mn_wg_input(n->wg, buf, p->len, from, *n->now, &inner, &peer);
}

static inline int deliver(struct node *n, const struct packet *p)
{
    struct mn_path from = path_of(1, 41641);
    return deliver_from(n, p, &from);
}

static inline void run_to(struct node *n, uint64_t until)
{
    for (uint64_t at; (at = mn_wg_next_deadline(n->wg)) <= until;) {
        if (at > *n->now)
            *n->now = at;
        mn_wg_on_deadline(n->wg, *n->now);
    }
    *n->now = until;
    mn_wg_on_deadline(n->wg, until);
}

static inline uint64_t drops(const struct node *n, enum mn_wg_drop why)
{
    return mn_wg_stats(n->wg)->drops[why];
}

static inline unsigned count_events(const struct node *n, enum mn_wg_event ev)
{
    unsigned count = 0;
    for (unsigned i = 0; i < n->event_count; i++)
        count += n->events[i] == ev;
    return count;
}

/* Two nodes that know each other: a is 100.64.0.1, b is 100.64.0.2. */
struct pair {
    uint64_t now;
    struct node a, b;
    uint32_t pa, pb; /* b in a's table, a in b's */
};

static inline struct pair *pair_start(uint64_t seed)
{
    struct pair *t = calloc(1, sizeof *t);
    CHECK(t != NULL);
    t->now = 1000 * SEC;
    node_start(&t->a, seed, &t->now, NULL);
    node_start(&t->b, seed + 1000003, &t->now, NULL);
    t->pa = node_peer(&t->a, &t->b, 2);
    t->pb = node_peer(&t->b, &t->a, 1);
    return t;
}

static inline void pair_stop(struct pair *t)
{
    node_stop(&t->a);
    node_stop(&t->b);
    free(t);
}

static inline int send_data(struct node *n, uint32_t peer, uint8_t from, uint8_t to, size_t len, struct packet *p)
{
    put_inner(p->buf, from, to, len, 7);
    p->kind = MN_WG_DATA;
    int r = mn_wg_seal(n->wg, peer, p->buf, len, *n->now);
    p->len = r > 0 ? (size_t)r : 0;
    return r;
}

/* a asks, b answers, a's keepalive confirms: sessions both ways, both outboxes empty. */
static inline void pair_connect(struct pair *t)
{
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), 0);
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_KEEPALIVE)), 0);
    check_silent(&t->a);
    check_silent(&t->b);
    CHECK(mn_wg_has_session(t->a.wg, t->pa, t->now) && mn_wg_has_session(t->b.wg, t->pb, t->now));
}

static inline struct mn_wg_peer *peer_a(struct pair *t)
{
    return mn_peer_get(t->a.wg, t->pa);
}

static inline struct mn_wg_peer *peer_b(struct pair *t)
{
    return mn_peer_get(t->b.wg, t->pb);
}

#endif
