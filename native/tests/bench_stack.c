/* How fast the stack alone moves bytes: two of them in memory on one core, no cryptography, no system calls.
 *     gcc -std=c11 -D_GNU_SOURCE -O3 -Inative native/tests/bench_stack.c native/{ip,tcp,filter}/?*.c -lcrypto -o
 * /tmp/bench_stack /tmp/bench_stack [GiB]
 */
#include <time.h>

#include "../tcp/stack.h"
#include "check.h"

enum {
    SLOTS = 512,
    MTU = 1280,
};

struct pipe_end {
    struct mn_stack *s;
    struct pipe_end *other;
    struct mn_ip ip;
    uint8_t *slots;
    uint16_t lens[SLOTS];
    uint32_t head, count; /* towards the other end */
    uint64_t got, sent, packets;
    uint32_t conn;
    uint64_t rng, now;
};

static uint8_t *out_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct pipe_end *e = ctx;
    (void)dst, (void)max;
    *err = 105; /* ENOBUFS */
    return e->count == SLOTS ? NULL : e->slots + (size_t)((e->head + e->count) % SLOTS) * MTU;
}

static void out_commit(void *ctx, size_t len)
{
    struct pipe_end *e = ctx;
    e->lens[(e->head + e->count) % SLOTS] = (uint16_t)len;
    e->count++;
    e->packets++;
}

static void random_bytes(void *ctx, uint8_t *p, size_t n)
{
    test_random_bytes(&((struct pipe_end *)ctx)->rng, p, n);
}

static uint32_t route(void *ctx, const struct mn_ip *dst)
{
    (void)ctx, (void)dst;
    return 1;
}

static void tcp_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    (void)listener;
    ((struct pipe_end *)ctx)->conn = conn;
}

static void fill(struct pipe_end *e)
{
    size_t room;
    while (mn_tcp_send_reserve(e->s, e->conn, &room) != NULL) {
        mn_tcp_send_commit(e->s, e->conn, room, e->now);
        e->sent += room;
    }
}

static void tcp_connected(void *ctx, uint32_t conn)
{
    ((struct pipe_end *)ctx)->conn = conn;
    fill(ctx);
}

static void tcp_failed(void *ctx, uint32_t conn, int err)
{
    (void)ctx, (void)conn, (void)err;
    CHECK(false);
}

static size_t tcp_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    size_t total = 0;
    (void)conn;
    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    ((struct pipe_end *)ctx)->got += total;
    return total;
}

static void tcp_peer_fin(void *ctx, uint32_t conn)
{
    (void)ctx, (void)conn;
}

static void tcp_writable(void *ctx, uint32_t conn)
{
    (void)conn;
    fill(ctx);
}

static void tcp_closed(void *ctx, uint32_t conn, int err)
{
    tcp_failed(ctx, conn, err);
}

static void start(struct pipe_end *e, struct pipe_end *other, uint8_t number, bool v6)
{
    const uint8_t blob[] = {'M', 'N', 'F', '1', 1,   0, 0, 0, 1, 2,  0,   2,   0,   6,   0, 0, 0, 0, 0,
                            0,   0,   0,   0,   0,   0, 0, 0, 0, 0,  0,   0,   0,   0,   0, 0, 0, 0, 0,
                            0,   0,   0,   255, 255, 0, 0, 0, 0, 96, 0,   0,   0,   0,   0, 0, 0, 0, 0,
                            0,   0,   0,   0,   0,   0, 0, 0, 0, 0,  255, 255, 0,   0,   0, 0, 0, 0, 0,
                            0,   0,   0,   255, 255, 0, 0, 0, 0, 96, 0,   0,   255, 255, 0, 0, 0, 0};
    struct mn_stack_ops ops = {.ctx = e,
                               .random = random_bytes,
                               .out_begin = out_begin,
                               .out_commit = out_commit,
                               .route = route,
                               .tcp_accepted = tcp_accepted,
                               .tcp_connected = tcp_connected,
                               .tcp_failed = tcp_failed,
                               .tcp_deliver = tcp_deliver,
                               .tcp_peer_fin = tcp_peer_fin,
                               .tcp_writable = tcp_writable,
                               .tcp_closed = tcp_closed};
    e->other = other;
    e->rng = number;
    e->now = 1000000000;
    e->ip = v6 ? mn_ip_from6((const uint8_t[16]){0xfd, 0x7a, [15] = number})
               : mn_ip_from4((const uint8_t[4]){100, 64, 0, number});
    e->slots = malloc((size_t)SLOTS * MTU);
    e->s = mn_stack_create(&ops, NULL, e->now);
    CHECK(e->s != NULL && e->slots != NULL);
    CHECK_INT(mn_stack_set_addresses(e->s, &e->ip, 1), 0);
    CHECK_INT(mn_stack_set_filter(e->s, blob, sizeof blob), 0);
}

static void carry(struct pipe_end *e, uint64_t now)
{
    uint32_t n = e->count < 64 ? e->count : 64;
    e->now = e->other->now = now;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (e->head + i) % SLOTS;
        mn_stack_input(e->other->s, 1, e->slots + (size_t)at * MTU, e->lens[at], now);
    }
    mn_stack_flush(e->other->s, now);
    e->head = (e->head + n) % SLOTS;
    e->count -= n;
}

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void run(uint64_t bytes, bool v6)
{
    static struct pipe_end a, b;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    start(&a, &b, 1, v6);
    start(&b, &a, 2, v6);
    uint32_t listener;
    struct mn_ep to = {.ip = b.ip, .port = 80};
    CHECK_INT(mn_tcp_listen(b.s, NULL, 80, 0, &listener), 0);
    CHECK_INT(mn_tcp_connect(a.s, &to, NULL, &a.conn, a.now), 0);
    uint64_t began = clock_ns(), now = began;
    while (b.got < bytes) {
        now = 1000000000 + clock_ns() - began;
        carry(&a, now);
        carry(&b, now);
        if (mn_stack_next_deadline(a.s) <= now)
            mn_stack_on_deadline(a.s, now);
        if (mn_stack_next_deadline(b.s) <= now)
            mn_stack_on_deadline(b.s, now);
    }
    double s = (double)(clock_ns() - began) / 1e9;
    const struct mn_stack_stats *t = mn_stack_stats(a.s), *u = mn_stack_stats(b.s);
    printf("IPv%d: %.1f Gb/s, %.0f ns per data packet (both sides), acks %.3f per packet, runs of %.1f, "
           "retransmits %llu, rings %llu KiB\n",
           v6 ? 6 : 4, (double)b.got * 8 / s / 1e9, s * 1e9 / (double)a.packets, (double)b.packets / (double)a.packets,
           (double)a.packets / (double)u->tcp_runs, (unsigned long long)t->tcp_retransmits,
           (unsigned long long)((t->ring_bytes + u->ring_bytes) >> 10));
    mn_stack_destroy(a.s);
    mn_stack_destroy(b.s);
    free(a.slots);
    free(b.slots);
}

int main(int argc, char **argv)
{
    uint64_t gib = argc > 1 ? strtoull(argv[1], NULL, 10) : 4;
    run(gib << 30, false);
    run(gib << 30, true);
    return 0;
}
