/* Thousands of connections between two stacks: memory within its budget, nobody starved, an idle one small, and ending
 * them all at once (T-29; rows 32 and 34). */
#include <errno.h>
#include <malloc.h>

#include "../tcp/internal.h"
#include "check.h"

enum {
    MTU = 1280,
    MOST = 10000 / (MN_TEST_SLOW == 1 ? 1 : 10),
    PORT = 80,
    BATCH = 64,
};

struct packet {
    struct packet *next;
    uint64_t at;
    uint16_t len;
    uint8_t data[MTU];
};

struct end {
    uint32_t conn;
    uint64_t to_write, written, read;
    bool is_open, fin_seen, is_closed, is_stalled;
};

struct side {
    struct crowd *w;
    struct mn_stack *s;
    struct mn_ip ip;
    struct end *ends;
    uint32_t *by_slot; /* connection slot → index + 1 */
    uint32_t count, listener;
    struct packet *first, **last; /* towards this side */
    struct packet *out;
    uint64_t worst;
};

struct crowd {
    uint64_t now, delay, rng;
    struct side side[2];
    uint64_t reader_bytes; /* what a receiving end takes per upcall; 0: nothing */
    struct packet *spare;
    bool is_blind; /* too many bytes to look at */
};

static uint8_t *out_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct side *d = ctx;
    (void)dst;
    (void)err;
    CHECK(max <= MTU);
    if (d->w->spare == NULL) {
        d->out = malloc(sizeof *d->out);
        CHECK(d->out != NULL);
    } else {
        d->out = d->w->spare;
        d->w->spare = d->out->next;
    }
    return d->out->data;
}

static void out_commit(void *ctx, size_t len)
{
    struct side *d = ctx, *o = &d->w->side[d == &d->w->side[0]];
    d->out->len = (uint16_t)len;
    d->out->at = d->w->now + d->w->delay;
    d->out->next = NULL;
    *o->last = d->out;
    o->last = &d->out->next;
}

static void fill(void *ctx, uint8_t *p, size_t n)
{
    test_random_bytes(&((struct side *)ctx)->w->rng, p, n);
}

static uint32_t route(void *ctx, const struct mn_ip *dst)
{
    (void)ctx, (void)dst;
    return 1;
}

static struct end *end_of(struct side *d, uint32_t conn)
{
    uint32_t i = d->by_slot[conn & (MN_MAX_CONNS - 1)];
    CHECK(i > 0 && d->ends[i - 1].conn == conn);
    return &d->ends[i - 1];
}

static struct end *new_end(struct side *d, uint32_t conn)
{
    CHECK(d->count < MOST);
    d->ends[d->count] = (struct end){.conn = conn, .is_open = true};
    d->by_slot[conn & (MN_MAX_CONNS - 1)] = d->count + 1;
    return &d->ends[d->count++];
}

static uint8_t byte_at(uint64_t at)
{
    return (uint8_t)(at * 2654435761U >> 13);
}

static void write_some(struct side *d, struct end *e)
{
    size_t room;
    uint8_t *p;
    while (e->written < e->to_write && (p = mn_tcp_send_reserve(d->s, e->conn, &room)) != NULL) {
        size_t n = room < e->to_write - e->written ? room : (size_t)(e->to_write - e->written);
        for (size_t i = 0; i < n && !d->w->is_blind; i++)
            p[i] = byte_at(e->written + i);
        e->written += n;
        mn_tcp_send_commit(d->s, e->conn, n, d->w->now);
    }
    if (e->written == e->to_write && e->to_write > 0)
        mn_tcp_shutdown(d->s, e->conn, d->w->now);
}

static void on_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    (void)listener;
    new_end(ctx, conn);
}

static void on_connected(void *ctx, uint32_t conn)
{
    write_some(ctx, end_of(ctx, conn));
}

static void on_ended(void *ctx, uint32_t conn, int err)
{
    CHECK_INT(err, 0);
    end_of(ctx, conn)->is_closed = true;
}

static size_t on_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    struct side *d = ctx;
    struct end *e = end_of(d, conn);
    size_t taken = 0;
    for (int i = 0; i < n; i++) {
        const uint8_t *p = iov[i].iov_base;
        if (d->w->is_blind) {
            taken += iov[i].iov_len;
            continue;
        }
        for (size_t k = 0; k < iov[i].iov_len && taken < d->w->reader_bytes; k++, taken++)
            CHECK(p[k] == byte_at(e->read + taken));
        e->is_stalled = taken == d->w->reader_bytes;
    }
    e->read += taken;
    return taken;
}

static void on_fin(void *ctx, uint32_t conn)
{
    struct side *d = ctx;
    end_of(d, conn)->fin_seen = true;
    mn_tcp_shutdown(d->s, conn, d->w->now);
}

static void on_writable(void *ctx, uint32_t conn)
{
    write_some(ctx, end_of(ctx, conn));
}

static void on_udp(void *ctx, uint32_t udp, const struct mn_ep *from, const struct mn_ep *to, const uint8_t *p,
                   size_t n)
{
    (void)ctx, (void)udp, (void)from, (void)to, (void)p, (void)n;
}

static void on_pong(void *ctx, uint16_t id, uint16_t seq, const struct mn_ip *from, const uint8_t *p, size_t n)
{
    (void)ctx, (void)id, (void)seq, (void)from, (void)p, (void)n;
}

static void start(struct crowd *w, const struct mn_stack_config *cfg)
{
    memset(w, 0, sizeof *w);
    w->now = 1000 * MN_SECOND;
    w->delay = 10 * MN_MS;
    w->rng = 11;
    w->reader_bytes = UINT64_MAX;
    for (int i = 0; i < 2; i++) {
        struct side *d = &w->side[i];
        d->w = w;
        d->last = &d->first;
        d->ip = mn_ip_from4((const uint8_t[4]){100, 64, 0, (uint8_t)(1 + i)});
        d->ends = calloc(MOST, sizeof *d->ends);
        d->by_slot = calloc(MN_MAX_CONNS, sizeof *d->by_slot);
        CHECK(d->ends != NULL && d->by_slot != NULL);
        struct mn_stack_ops ops = {.ctx = d,
                                   .random = fill,
                                   .out_begin = out_begin,
                                   .out_commit = out_commit,
                                   .route = route,
                                   .tcp_accepted = on_accepted,
                                   .tcp_connected = on_connected,
                                   .tcp_failed = on_ended,
                                   .tcp_deliver = on_deliver,
                                   .tcp_peer_fin = on_fin,
                                   .tcp_writable = on_writable,
                                   .tcp_closed = on_ended,
                                   .udp_deliver = on_udp,
                                   .ping_reply = on_pong};
        d->s = mn_stack_create(&ops, cfg, w->now);
        CHECK(d->s != NULL);
        CHECK_INT(mn_stack_set_addresses(d->s, &d->ip, 1), 0);
        /* TCP from anybody, to every port. */
        uint8_t blob[64] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 1, 1, 0, 1, 0, 6};
        memcpy(blob + 14, mn_ip4_prefix, 12);
        blob[14 + 16] = 96;
        memcpy(blob + 31, mn_ip4_prefix, 12);
        blob[31 + 16] = 96;
        blob[31 + 19] = blob[31 + 20] = 0xff;
        CHECK_INT(mn_stack_set_filter(d->s, blob, 31 + 21 + 4), 0);
    }
    CHECK_INT(mn_tcp_listen(w->side[1].s, NULL, PORT, 0, &w->side[1].listener), 0);
}

static void stop(struct crowd *w)
{
    for (int i = 0; i < 2; i++) {
        struct side *d = &w->side[i];
        mn_stack_destroy(d->s);
        for (struct packet *p = d->first, *next; p != NULL; p = next) {
            next = p->next;
            free(p);
        }
        free(d->ends);
        free(d->by_slot);
    }
    for (struct packet *p = w->spare, *next; p != NULL; p = next) {
        next = p->next;
        free(p);
    }
}

static bool step(struct crowd *w)
{
    uint64_t at = MN_DEADLINE_NONE;
    for (int i = 0; i < 2; i++) {
        struct side *d = &w->side[i];
        uint64_t due = mn_stack_next_deadline(d->s);
        if (d->first != NULL && d->first->at < at)
            at = d->first->at;
        if (due < at)
            at = due;
    }
    if (at == MN_DEADLINE_NONE)
        return false;
    if (at > w->now)
        w->now = at;
    for (int i = 0; i < 2; i++) {
        struct side *d = &w->side[i];
        struct packet *batch[BATCH];
        int n = 0;
        while (n < BATCH && d->first != NULL && d->first->at <= w->now) {
            batch[n] = d->first;
            d->first = batch[n]->next;
            if (d->first == NULL)
                d->last = &d->first;
            mn_stack_input(d->s, 1, batch[n]->data, batch[n]->len, w->now);
            n++;
        }
        mn_stack_flush(d->s, w->now);
        if (mn_stack_next_deadline(d->s) <= w->now)
            mn_stack_on_deadline(d->s, w->now);
        while (n > 0) {
            batch[--n]->next = w->spare;
            w->spare = batch[n];
        }
        uint64_t held = mn_stack_stats(d->s)->ring_bytes;
        CHECK(held <= d->s->cfg.memory_max);
        d->worst = held > d->worst ? held : d->worst;
    }
    return true;
}

static void run_for(struct crowd *w, uint64_t ns)
{
    uint64_t until = w->now + ns;
    while (w->now < until && step(w))
        ;
    w->now = until;
}

static void open_many(struct crowd *w, int n, uint64_t to_write)
{
    struct side *d = &w->side[0];
    struct mn_ep to = {.ip = w->side[1].ip, .port = PORT};
    for (int i = 0; i < n; i++) {
        uint32_t conn;
        CHECK_INT(mn_tcp_connect(d->s, &to, NULL, &conn, w->now), 0);
        new_end(d, conn)->to_write = to_write;
        if (i % 64 == 63)
            run_for(w, 1 * MN_MS); /* a connect storm meets the bound on half-open ones otherwise */
    }
    run_for(w, 100 * MN_MS);
}

/* ---- tests ---- */

/* Everybody at once, in a hundredth of the memory they would take: all of it arrives, the bound holds at every step. */
static void test_everyone_gets_through_a_small_budget(void)
{
    struct crowd w;
    struct mn_stack_config cfg = {.memory_max = 4U << 20};
    uint64_t bytes = 30000;
    start(&w, &cfg);
    open_many(&w, MOST, bytes);
    CHECK_INT(w.side[1].count, MOST);
    run_for(&w, 300 * MN_SECOND);
    for (uint32_t i = 0; i < MOST; i++) {
        CHECK_INT(w.side[1].ends[i].read, bytes);
        CHECK(w.side[1].ends[i].fin_seen && w.side[1].ends[i].is_closed);
        CHECK(w.side[0].ends[i].is_closed);
    }
    CHECK(w.side[0].worst > cfg.memory_max / 2);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(mn_stack_stats(w.side[i].s)->ring_bytes, 0);
        CHECK_INT(mn_stack_stats(w.side[i].s)->tcp_conns, 0);
        CHECK(w.side[i].s->hungry_first == NULL);
        for (int k = 0; k <= MN_BUCKETS; k++)
            CHECK_INT(w.side[i].s->memory_by_peer[k], 0);
    }
    stop(&w);
}

/* Readers that take nothing hold what they were promised and no more; when they wake, all of it is there. */
static void test_sleeping_readers(void)
{
    struct crowd w;
    struct mn_stack_config cfg = {.memory_max = 8U << 20};
    int n = MOST / 10;
    start(&w, &cfg);
    w.reader_bytes = 0;
    open_many(&w, n, 100000);
    run_for(&w, 20 * MN_SECOND);
    CHECK(w.side[1].worst <= cfg.memory_max);
    w.reader_bytes = UINT64_MAX;
    for (int i = 0; i < n; i++)
        mn_tcp_recv_resume(w.side[1].s, w.side[1].ends[i].conn, w.now);
    run_for(&w, 600 * MN_SECOND);
    for (int i = 0; i < n; i++)
        CHECK_INT(w.side[1].ends[i].read, 100000);
    CHECK_INT(mn_stack_stats(w.side[1].s)->ring_bytes, 0);
    stop(&w);
}

/* An idle connection: the block and its places in the tables, no ring, no list. */
static void test_idle_ones_are_small(void)
{
    struct crowd w;
    start(&w, NULL);
    open_many(&w, MOST, 0);
    for (int i = 0; i < MOST; i++) {
        struct end *e = &w.side[0].ends[i];
        e->to_write = 1;
        size_t room;
        uint8_t *p = mn_tcp_send_reserve(w.side[0].s, e->conn, &room);
        CHECK(p != NULL);
        *p = byte_at(0);
        e->written = 1;
        mn_tcp_send_commit(w.side[0].s, e->conn, 1, w.now);
        if (i % 64 == 63)
            run_for(&w, MN_MS);
    }
    run_for(&w, 5 * MN_SECOND);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(mn_stack_stats(w.side[i].s)->tcp_conns, MOST);
        CHECK_INT(mn_stack_stats(w.side[i].s)->ring_bytes, 0);
    }
    printf("struct mn_conn %zu bytes, half-open record %zu, TIME-WAIT record %zu\n", sizeof(struct mn_conn),
           sizeof(struct mn_half), sizeof(struct mn_wait));
    CHECK(sizeof(struct mn_conn) <= 1024);
    CHECK(sizeof(struct mn_wait) <= 128);
    stop(&w); /* with everything open: freeing is all there is to do */
}

/* T-28: from a small first window to what the path holds, 1 Gb/s over 80 ms, within two seconds. */
static void test_window_reaches_the_path(void)
{
    struct crowd w;
    struct mn_stack_config cfg = {.rcvbuf_max = 16U << 20, .sndbuf_max = 32U << 20};
    start(&w, &cfg);
    w.delay = 40 * MN_MS;
    w.is_blind = true;
    open_many(&w, 1, 1ULL << 40);
    run_for(&w, 2 * MN_SECOND);
    const struct mn_conn *c = mn_conn_get(w.side[1].s, w.side[1].ends[0].conn);
    CHECK(c->rcv.size >= 10U << 20);
    CHECK(c->rcv.size <= 16U << 20);
    CHECK(c->rcv.rtt_ns >= 79 * MN_MS && c->rcv.rtt_ns <= 82 * MN_MS);
    stop(&w);
}

/* The path grows longer: the window is measured by the new round trip, and does not stay behind. */
static void test_window_follows_the_path(void)
{
    struct crowd w;
    struct mn_stack_config cfg = {.rcvbuf_max = 16 << 10};
    start(&w, &cfg);
    w.delay = 10 * MN_MS;
    open_many(&w, 1, 1ULL << 40);
    run_for(&w, MN_SECOND);
    const struct mn_conn *c = mn_conn_get(w.side[1].s, w.side[1].ends[0].conn);
    CHECK(c->rcv.rtt_ns >= 19 * MN_MS && c->rcv.rtt_ns <= 22 * MN_MS);
    w.delay = 100 * MN_MS;
    run_for(&w, 2 * MN_RTT_SPAN + MN_SECOND);
    CHECK(c->rcv.rtt_ns >= 199 * MN_MS);
    stop(&w);
}

int main(void)
{
    RUN(test_everyone_gets_through_a_small_budget);
    RUN(test_sleeping_readers);
    RUN(test_idle_ones_are_small);
    RUN(test_window_reaches_the_path);
    RUN(test_window_follows_the_path);
    return 0;
}
