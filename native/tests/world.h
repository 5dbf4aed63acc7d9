/* Two stacks, a link between them and applications on top, in virtual time. Everything follows from one seed.
 *
 * The link delays, drops, doubles and reorders packets as told and watches what passes: sizes, checksums, and that no
 * side takes back window it has promised. Applications write bytes that tell their position, so that any loss, doubling
 * or reordering of data shows at once.
 */
#ifndef MN_TESTS_WORLD_H
#define MN_TESTS_WORLD_H

#include <errno.h>

#include "../tcp/internal.h"
#include "check.h"

enum {
    WORLD_MTU = 1280,
    WORLD_CONNS = 64, /* application ends on one side */
    WORLD_PORT = 80,
};

struct world_packet {
    uint64_t at, order;
    int to;
    uint16_t len;
    uint8_t data[WORLD_MTU];
};

/* One end of a connection as the application sees it. */
struct world_end {
    uint32_t conn;
    bool is_touched; /* somebody forged segments of it: nothing is promised but that it ends */
    bool is_used, is_open, is_connected, is_failed, is_closed, fin_seen, fin_sent, is_orphaned, was_reset, is_paused;
    int err;
    uint64_t key;      /* of the bytes it writes */
    uint64_t peer_key; /* of those it reads; 0 until known */
    uint64_t to_write, written, read;
    uint64_t resume_at, write_at;
    uint32_t greed; /* most bytes taken at once; 0: all */
    int twin;       /* index of the other end, -1 until known */
    struct mn_ep local, remote;
};

struct world_side {
    struct world *w;
    int index;
    struct mn_stack *s;
    struct mn_ip ip4, ip6;
    uint8_t out[WORLD_MTU];
    int out_to;
    size_t out_max;
    struct world_end ends[WORLD_CONNS];
    int end_count;
    uint32_t listener;
    uint64_t retry_refused;
};

/* The promise of one direction of a flow, as read from the wire. */
struct world_edge {
    uint16_t sport, dport;
    bool v6, is_used, has_edge;
    uint8_t shift;
    uint32_t edge;
};

struct world {
    uint64_t rng, now, order;
    struct world_side side[2];
    struct world_packet **heap;
    uint32_t count, room;
    struct world_edge edges[2][4 * WORLD_CONNS];
    /* link, per direction the same */
    double loss, duplicate, reorder, corrupt, no_buffer;
    uint64_t delay, jitter, cut_from, cut_until;
    uint64_t late; /* a reordered packet comes up to this much later; 0: half the delay and 1 ms */
    uint64_t rate, queue, busy_until[2]; /* bytes a second, 0: any; bytes that wait for their turn, more are lost */
    bool is_greedy;                      /* applications write all they can, without pauses */
    uint64_t packets, lost, queue_full;
    bool is_forged;  /* somebody adds segments of his own */
    uint64_t ghosts; /* accepted, though nobody had opened them: cookies that came back twice */
    uint64_t trace;  /* hash of everything that was sent */
};

static inline uint64_t world_random(struct world *w)
{
    return test_random(&w->rng);
}

static inline double world_chance(struct world *w)
{
    return (double)(world_random(w) >> 11) / 9007199254740992.0;
}

static inline uint8_t world_byte(uint64_t key, uint64_t at)
{
    return (uint8_t)((key + at * 0x9e3779b97f4a7c15ULL) >> 56 ^ at);
}

/* ---- the link ---- */

static inline bool world_before(const struct world_packet *a, const struct world_packet *b)
{
    return a->at < b->at || (a->at == b->at && a->order < b->order);
}

static inline void world_push(struct world *w, struct world_packet *p)
{
    if (w->count == w->room) {
        w->room = w->room == 0 ? 256 : w->room * 2;
        w->heap = realloc(w->heap, w->room * sizeof *w->heap);
        CHECK(w->heap != NULL);
    }
    uint32_t i = w->count++;
    while (i > 0 && world_before(p, w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = p;
}

static inline struct world_packet *world_pop(struct world *w)
{
    struct world_packet *top = w->heap[0], *last = w->heap[--w->count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= w->count)
            break;
        if (child + 1 < w->count && world_before(w->heap[child + 1], w->heap[child]))
            child++;
        if (!world_before(w->heap[child], last))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    if (w->count > 0)
        w->heap[i] = last;
    return top;
}

static inline void world_watch_edge(struct world *w, int from, bool v6, const struct mn_segment *g)
{
    struct world_edge *e = NULL;
    for (int i = 0; i < 4 * WORLD_CONNS; i++) {
        e = &w->edges[from][i];
        if (!e->is_used || (e->v6 == v6 && e->sport == g->sport && e->dport == g->dport))
            break;
    }
    if (!e->is_used || (g->flags & MN_TCP_SYN) != 0)
        *e = (struct world_edge){.is_used = true, .v6 = v6, .sport = g->sport, .dport = g->dport};
    if ((g->flags & MN_TCP_SYN) != 0)
        e->shift = g->wscale < 0 ? 0 : (uint8_t)g->wscale;
    if ((g->flags & MN_TCP_ACK) == 0 || (g->flags & MN_TCP_RST) != 0)
        return;
    uint32_t edge = g->ack + ((g->flags & MN_TCP_SYN) != 0 ? g->wnd : (uint32_t)g->wnd << e->shift);
    if (e->has_edge && !w->is_forged)
        CHECK((int32_t)(edge - e->edge) > -(1 << e->shift)); /* RFC 7323 2.4: rounding, never more */
    if (!e->has_edge || (int32_t)(edge - e->edge) > 0)
        e->edge = edge;
    e->has_edge = true;
}

static inline void world_watch(struct world *w, int from, const uint8_t *data, size_t len)
{
    struct mn_packet p;
    struct mn_segment g;
    CHECK(len <= WORLD_MTU);
    CHECK_INT(mn_packet_parse(&p, data, len), 0);
    CHECK_INT(p.ip_len, len);
    for (size_t i = 0; i < len; i++)
        w->trace = (w->trace ^ data[i]) * 0x100000001b3ULL;
    if (p.proto != MN_PROTO_TCP)
        return;
    CHECK_INT(mn_segment_parse(&g, &p), 0);
    world_watch_edge(w, from, p.version == 6, &g);
    if (getenv("TRACE") != NULL) {
        fprintf(stderr, "%12.6f %d %5u>%5u %c%c%c%c%c seq %u ack %u wnd %u len %u", (double)w->now / 1e9, from, g.sport,
                g.dport, (g.flags & 2) != 0 ? 'S' : '.', (g.flags & 1) != 0 ? 'F' : '.', (g.flags & 4) != 0 ? 'R' : '.',
                (g.flags & 8) != 0 ? 'P' : '.', (g.flags & 16) != 0 ? 'A' : '.', g.seq, g.ack, g.wnd, g.len);
        if (g.has_ts)
            fprintf(stderr, " ts %u ecr %u", g.tsval, g.tsecr);
        for (int i = 0; i < g.sack_count; i++)
            fprintf(stderr, " sack %u:%u", g.sack[i].first, g.sack[i].end);
        fprintf(stderr, "\n");
    }
}

static inline uint8_t *world_out_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct world_side *d = ctx;
    struct world *w = d->w;
    struct world_side *other = &w->side[1 - d->index];
    if (!mn_ip_equal(dst, &other->ip4) && !mn_ip_equal(dst, &other->ip6)) {
        *err = EHOSTUNREACH;
        return NULL;
    }
    CHECK(max <= WORLD_MTU);
    if (w->no_buffer > 0 && world_chance(w) < w->no_buffer) {
        *err = ENOBUFS;
        return NULL;
    }
    d->out_max = max;
    return d->out;
}

static inline void world_send(struct world *w, int to, uint64_t start, const uint8_t *data, size_t len)
{
    struct world_packet *p = malloc(sizeof *p);
    CHECK(p != NULL);
    p->at = start + w->delay + (w->jitter > 0 ? world_random(w) % w->jitter : 0);
    if (w->reorder > 0 && world_chance(w) < w->reorder)
        p->at += world_random(w) % (w->late > 0 ? w->late : w->delay / 2 + MN_MS);
    p->order = w->order++;
    p->to = to;
    p->len = (uint16_t)len;
    memcpy(p->data, data, len);
    if (w->corrupt > 0 && world_chance(w) < w->corrupt) {
        uint64_t bit = world_random(w) % (len * 8);
        p->data[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    world_push(w, p);
}

/* When a packet that is sent now has passed the bottleneck; 0: its queue is full. */
static inline uint64_t world_pass(struct world *w, int from, size_t len)
{
    if (w->rate == 0)
        return w->now;
    uint64_t *busy = &w->busy_until[from], start = *busy > w->now ? *busy : w->now;
    if ((double)(start - w->now) * (double)w->rate / 1e9 > (double)w->queue)
        return 0;
    *busy = start + (uint64_t)((double)len * 1e9 / (double)w->rate);
    return *busy;
}

static inline void world_out_commit(void *ctx, size_t len)
{
    struct world_side *d = ctx;
    struct world *w = d->w;
    CHECK(len <= d->out_max);
    if (len == 0)
        return;
    world_watch(w, d->index, d->out, len);
    w->packets++;
    uint64_t start = world_pass(w, d->index, len);
    if (start == 0) {
        w->queue_full++;
        return;
    }
    bool is_cut = w->now >= w->cut_from && w->now < w->cut_until;
    if (is_cut || (w->loss > 0 && world_chance(w) < w->loss)) {
        w->lost++;
        return;
    }
    world_send(w, 1 - d->index, start, d->out, len);
    if (w->duplicate > 0 && world_chance(w) < w->duplicate)
        world_send(w, 1 - d->index, start, d->out, len);
}

/* ---- applications ---- */

static inline struct world_end *world_end_of(struct world_side *d, uint32_t conn)
{
    for (int i = d->end_count - 1; i >= 0; i--)
        if (d->ends[i].conn == conn && !d->ends[i].is_closed && !d->ends[i].is_orphaned)
            return &d->ends[i];
    return NULL;
}

static inline struct world_end *world_end_new(struct world_side *d, uint32_t conn)
{
    CHECK(d->end_count < WORLD_CONNS);
    struct world_end *e = &d->ends[d->end_count++];
    *e = (struct world_end){.conn = conn, .is_used = true, .twin = -1, .write_at = 0};
    e->key = world_random(d->w) | 1;
    return e;
}

static inline void world_write(struct world_side *d, struct world_end *e)
{
    while (e->written < e->to_write && !e->fin_sent) {
        size_t room;
        uint8_t *p = mn_tcp_send_reserve(d->s, e->conn, &room);
        if (p == NULL)
            return;
        uint64_t n = e->to_write - e->written;
        if (n > room)
            n = room;
        if (!d->w->is_greedy && world_random(d->w) % 4 == 0)
            n = n % 2000 + 1 < n ? n % 2000 + 1 : n;
        for (uint64_t i = 0; i < n; i++)
            p[i] = world_byte(e->key, e->written + i);
        e->written += n;
        mn_tcp_send_commit(d->s, e->conn, (size_t)n, d->w->now);
        if (e->is_closed || (!d->w->is_greedy && world_random(d->w) % 8 == 0)) {
            e->write_at = d->w->now + world_random(d->w) % (20 * MN_MS);
            return;
        }
    }
    e->write_at = MN_DEADLINE_NONE;
}

static inline void world_random_bytes(void *ctx, uint8_t *p, size_t n)
{
    struct world_side *d = ctx;
    test_random_bytes(&d->w->rng, p, n);
}

static inline uint32_t world_route(void *ctx, const struct mn_ip *dst)
{
    struct world_side *d = ctx;
    struct world_side *other = &d->w->side[1 - d->index];
    return mn_ip_equal(dst, &other->ip4) || mn_ip_equal(dst, &other->ip6) ? (uint32_t)other->index : MN_PEER_NONE;
}

/* Find the end that opened what d has just accepted; it may be dead already. */
static inline void world_pair(struct world_side *d, struct world_end *e)
{
    CHECK_INT(mn_tcp_addrs(d->s, e->conn, &e->local, &e->remote, NULL), 0);
    bool is_own = mn_ip_equal(&e->remote.ip, &d->ip4) || mn_ip_equal(&e->remote.ip, &d->ip6);
    struct world_side *o = &d->w->side[is_own ? d->index : 1 - d->index];
    for (int i = o->end_count - 1; i >= 0; i--) {
        struct world_end *t = &o->ends[i];
        if (t == e || t->twin >= 0 || !mn_ep_equal(&t->local, &e->remote) || !mn_ep_equal(&t->remote, &e->local))
            continue;
        e->twin = i;
        t->twin = (int)(e - d->ends);
        e->peer_key = t->key;
        t->peer_key = e->key;
        e->is_touched |= t->is_touched;
        return;
    }
}

static inline void world_opened(struct world_side *d, struct world_end *e)
{
    e->is_open = e->is_connected = true;
    e->write_at = d->w->now;
}

/* What a test wants to know of an accepted connection: how much it will write. */
static void world_on_accept(struct world_side *d, struct world_end *e);

static inline void world_tcp_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    struct world_side *d = ctx;
    CHECK_INT(listener, d->listener);
    struct world_end *e = world_end_new(d, conn);
    world_pair(d, e);
    if (e->twin < 0) {
        CHECK(mn_stack_stats(d->s)->tcp_cookies_taken > 0);
        e->is_touched = e->is_orphaned = true;
        d->w->ghosts++;
        mn_tcp_abort(d->s, conn, d->w->now);
        return;
    }
    world_opened(d, e);
    world_on_accept(d, e);
}

static inline void world_tcp_connected(void *ctx, uint32_t conn)
{
    struct world_side *d = ctx;
    struct world_end *e = world_end_of(d, conn);
    CHECK(e != NULL && !e->is_connected);
    world_opened(d, e);
}

static inline void world_tcp_failed(void *ctx, uint32_t conn, int err)
{
    struct world_side *d = ctx;
    struct world_end *e = world_end_of(d, conn);
    CHECK(e != NULL && !e->is_connected);
    e->is_failed = e->is_closed = true;
    e->err = err;
}

static inline size_t world_tcp_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    struct world_side *d = ctx;
    struct world_end *e = world_end_of(d, conn);
    CHECK(e != NULL && e->is_open && !e->fin_seen);
    CHECK(e->peer_key != 0);
    size_t total = 0, taken = 0;
    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    CHECK(total > 0);
    size_t want = total;
    if (e->greed != 0 && want > e->greed)
        want = (size_t)(world_random(d->w) % (e->greed + 1));
    for (int i = 0; i < n && taken < want; i++) {
        const uint8_t *p = iov[i].iov_base;
        for (size_t k = 0; k < iov[i].iov_len && taken < want; k++, taken++)
            CHECK(e->is_touched || p[k] == world_byte(e->peer_key, e->read + taken));
    }
    e->read += taken;
    if (taken < total) {
        e->is_paused = true;
        e->resume_at = d->w->now + world_random(d->w) % (50 * MN_MS) + 1;
    }
    return taken;
}

static inline void world_tcp_peer_fin(void *ctx, uint32_t conn)
{
    struct world_side *d = ctx;
    struct world_end *e = world_end_of(d, conn);
    CHECK(e != NULL && !e->fin_seen);
    e->fin_seen = true;
    if (e->is_touched)
        return;
    const struct world_end *t = NULL;
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < d->w->side[side].end_count; i++)
            if (d->w->side[side].ends[i].key == e->peer_key)
                t = &d->w->side[side].ends[i];
    CHECK(t != NULL && t->fin_sent);
    CHECK_INT(e->read, t->written); /* FIN only behind the last byte */
}

static inline void world_tcp_writable(void *ctx, uint32_t conn)
{
    struct world_side *d = ctx;
    struct world_end *e = world_end_of(d, conn);
    CHECK(e != NULL && e->is_open);
    world_write(d, e);
}

static inline void world_tcp_closed(void *ctx, uint32_t conn, int err)
{
    struct world_side *d = ctx;
    struct world_end *e = world_end_of(d, conn);
    CHECK(e != NULL && e->is_connected);
    e->is_closed = true;
    e->is_open = false;
    e->err = err;
    if (err == 0 && !e->is_touched)
        CHECK(e->fin_seen && e->fin_sent);
}

static inline void world_udp_deliver(void *ctx, uint32_t udp, const struct mn_ep *from, const struct mn_ep *to,
                                     const uint8_t *data, size_t len)
{
    (void)ctx, (void)udp, (void)from, (void)to, (void)data, (void)len;
}

static inline void world_ping_reply(void *ctx, uint16_t id, uint16_t seq, const struct mn_ip *from,
                                    const uint8_t *payload, size_t len)
{
    (void)ctx, (void)id, (void)seq, (void)from, (void)payload, (void)len;
}

/* ---- the world ---- */

static inline void world_allow_all(struct mn_stack *s)
{
    uint8_t blob[256];
    size_t n = 0;
    const uint8_t head[] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 4, 2, 0, 2, 0, 6, 17, 1, 58};
    memcpy(blob, head, sizeof head);
    n = sizeof head;
    for (int pass = 0; pass < 2; pass++) {
        for (int family = 0; family < 2; family++) {
            memset(blob + n, 0, 21);
            if (family == 0) {
                memcpy(blob + n, mn_ip4_prefix, 12);
                blob[n + 16] = 96;
            }
            if (pass == 1)
                blob[n + 19] = blob[n + 20] = 0xff;
            n += pass == 0 ? 17 : 21;
        }
    }
    memset(blob + n, 0, 4);
    CHECK_INT(mn_stack_set_filter(s, blob, n + 4), 0);
}

static inline void world_start(struct world *w, uint64_t seed, const struct mn_stack_config *cfg)
{
    memset(w, 0, sizeof *w);
    w->rng = seed;
    w->now = 1000 * MN_SECOND + world_random(w) % (1ULL << 40);
    w->delay = MN_MS;
    w->trace = 0xcbf29ce484222325ULL;
    for (int i = 0; i < 2; i++) {
        struct world_side *d = &w->side[i];
        d->w = w;
        d->index = i;
        d->ip4 = mn_ip_from4((const uint8_t[4]){100, 64, 0, (uint8_t)(i + 1)});
        d->ip6 = mn_ip_from6((const uint8_t[16]){0xfd, 0x7a, 0x11, 0x5c, [15] = (uint8_t)(i + 1)});
        struct mn_stack_ops ops = {
            .ctx = d,
            .random = world_random_bytes,
            .out_begin = world_out_begin,
            .out_commit = world_out_commit,
            .route = world_route,
            .tcp_accepted = world_tcp_accepted,
            .tcp_connected = world_tcp_connected,
            .tcp_failed = world_tcp_failed,
            .tcp_deliver = world_tcp_deliver,
            .tcp_peer_fin = world_tcp_peer_fin,
            .tcp_writable = world_tcp_writable,
            .tcp_closed = world_tcp_closed,
            .udp_deliver = world_udp_deliver,
            .ping_reply = world_ping_reply,
        };
        d->s = mn_stack_create(&ops, cfg, w->now);
        CHECK(d->s != NULL);
        struct mn_ip own[2] = {d->ip4, d->ip6};
        CHECK_INT(mn_stack_set_addresses(d->s, own, 2), 0);
        world_allow_all(d->s);
        CHECK_INT(mn_tcp_listen(d->s, NULL, WORLD_PORT, 0, &d->listener), 0);
    }
}

static inline void world_stop(struct world *w)
{
    while (w->count > 0)
        free(world_pop(w));
    free(w->heap);
    mn_stack_destroy(w->side[0].s);
    mn_stack_destroy(w->side[1].s);
}

static inline int world_connect(struct world *w, int from, int to, bool v6, uint64_t to_write)
{
    struct world_side *d = &w->side[from], *o = &w->side[to];
    struct mn_ep remote = {.ip = v6 ? o->ip6 : o->ip4, .port = WORLD_PORT};
    uint32_t conn;
    struct world_end *e = world_end_new(d, 0);
    e->to_write = to_write;
    e->write_at = MN_DEADLINE_NONE;
    CHECK_INT(mn_tcp_connect(d->s, &remote, NULL, &conn, w->now), 0);
    e->conn = conn;
    CHECK_INT(mn_tcp_addrs(d->s, conn, &e->local, &e->remote, NULL), 0);
    return (int)(e - d->ends);
}

static inline uint64_t world_app_deadline(const struct world_side *d)
{
    uint64_t at = MN_DEADLINE_NONE;
    for (int i = 0; i < d->end_count; i++) {
        const struct world_end *e = &d->ends[i];
        if (!e->is_open)
            continue;
        if (e->is_paused && e->resume_at < at)
            at = e->resume_at;
        if (e->write_at < at)
            at = e->write_at;
    }
    return at;
}

static inline void world_run_apps(struct world_side *d)
{
    for (int i = 0; i < d->end_count; i++) {
        struct world_end *e = &d->ends[i];
        if (e->is_open && e->is_paused && e->resume_at <= d->w->now) {
            e->is_paused = false;
            mn_tcp_recv_resume(d->s, e->conn, d->w->now);
        }
        if (e->is_open && e->write_at <= d->w->now) {
            e->write_at = MN_DEADLINE_NONE;
            world_write(d, e);
        }
    }
}

/* One instant: everything that is due at the earliest moment that anything is. False: nothing ever will be. */
static inline bool world_step(struct world *w)
{
    uint64_t at = w->count > 0 ? w->heap[0]->at : MN_DEADLINE_NONE;
    for (int i = 0; i < 2; i++) {
        uint64_t a = mn_stack_next_deadline(w->side[i].s), b = world_app_deadline(&w->side[i]);
        at = a < at ? a : at;
        at = b < at ? b : at;
    }
    if (at == MN_DEADLINE_NONE)
        return false;
    if (at > w->now)
        w->now = at;
    struct world_packet *batch[64];
    int n = 0;
    while (n < 64 && w->count > 0 && w->heap[0]->at <= w->now) {
        batch[n] = world_pop(w);
        mn_stack_input(w->side[batch[n]->to].s, (uint32_t)(1 - batch[n]->to), batch[n]->data, batch[n]->len, w->now);
        n++;
    }
    for (int i = 0; i < 2; i++) {
        mn_stack_flush(w->side[i].s, w->now);
        if (mn_stack_next_deadline(w->side[i].s) <= w->now)
            mn_stack_on_deadline(w->side[i].s, w->now);
        world_run_apps(&w->side[i]);
    }
    while (n > 0)
        free(batch[--n]);
    return true;
}

#endif
