/* The stack beside a kernel's TCP: reads and writes a TUN device, serves what oracle_kernel.py asks of it.
 *     oracle_tun IFNAME LOSS_PERMILLE DELAY_MS
 * Port 80: eight bytes say how much to send, then FIN. 81: takes all until FIN, answers with the count. 82: echo.
 * 83: resets after the first byte. A line "connect PORT BYTES" on stdin opens to the kernel, sends and waits for the
 * end.
 */
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "../ip/packet.h"
#include "../tcp/stack.h"
#include "check.h"

enum {
    MTU = 1280,
    BATCH = 64,
    CONNS = 4096,
    DELAYED = 32768,
};

enum role {
    NONE,
    SOURCE,
    SINK,
    ECHO,
    RESET,
    CLIENT,
};

struct flow {
    uint32_t conn;
    enum role role;
    uint64_t want, done, got;
    uint8_t head[8];
    bool fin, has_shut;
    uint8_t *held; /* echo: what did not fit into the send ring */
    size_t held_len;
};

struct late {
    uint64_t at;
    uint16_t len;
    uint8_t data[MTU];
};

struct app {
    struct mn_stack *s;
    int fd;
    uint64_t now, rng, delay;
    unsigned loss;
    uint8_t out[MTU];
    struct flow flows[CONNS];
    uint32_t listeners[4];
    struct late *late[2]; /* rings: to the kernel, from it */
    uint32_t head[2], count[2];
};

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static bool is_lost(struct app *a)
{
    return a->loss > 0 && test_random(&a->rng) % 1000 < a->loss;
}

/* Hold a packet back for the delay; a full line drops it. */
static void hold(struct app *a, int way, const uint8_t *data, size_t len)
{
    if (a->count[way] == DELAYED)
        return;
    struct late *l = &a->late[way][(a->head[way] + a->count[way]++) % DELAYED];
    l->at = a->now + a->delay;
    l->len = (uint16_t)len;
    memcpy(l->data, data, len);
}

static uint8_t *out_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct app *a = ctx;
    (void)dst, (void)max, (void)err;
    return a->out;
}

static void out_commit(void *ctx, size_t len)
{
    struct app *a = ctx;
    if (is_lost(a))
        return;
    if (a->delay > 0)
        hold(a, 0, a->out, len);
    else if (write(a->fd, a->out, len) < 0)
        perror("tun write");
}

static void random_bytes(void *ctx, uint8_t *p, size_t n)
{
    test_random_bytes(&((struct app *)ctx)->rng, p, n);
}

static uint32_t route(void *ctx, const struct mn_ip *dst)
{
    (void)ctx, (void)dst;
    return 1;
}

static struct flow *flow_of(struct app *a, uint32_t conn)
{
    for (int i = 0; i < CONNS; i++)
        if (a->flows[i].conn == conn)
            return &a->flows[i];
    return NULL;
}

static struct flow *flow_new(struct app *a, uint32_t conn, enum role role)
{
    struct flow *f = flow_of(a, 0);
    CHECK(f != NULL);
    *f = (struct flow){.conn = conn, .role = role};
    return f;
}

static void put(struct app *a, struct flow *f)
{
    size_t room;
    uint8_t *p;
    while (f->done < f->want && (p = mn_tcp_send_reserve(a->s, f->conn, &room)) != NULL) {
        size_t n = f->want - f->done < room ? (size_t)(f->want - f->done) : room;
        for (size_t i = 0; i < n; i++) { /* big-endian counters: every byte knows its place */
            uint64_t at = f->done + i;
            p[i] = (uint8_t)((at / 4) >> (24 - 8 * (at % 4)));
        }
        f->done += n;
        mn_tcp_send_commit(a->s, f->conn, n, a->now);
    }
    if (f->done == f->want && !f->has_shut && f->want > 0) {
        f->has_shut = true;
        mn_tcp_shutdown(a->s, f->conn, a->now);
    }
}

static void echo_held(struct app *a, struct flow *f)
{
    size_t room;
    uint8_t *p;
    while (f->held_len > 0 && (p = mn_tcp_send_reserve(a->s, f->conn, &room)) != NULL) {
        size_t n = f->held_len < room ? f->held_len : room;
        memcpy(p, f->held, n);
        memmove(f->held, f->held + n, f->held_len - n);
        f->held_len -= n;
        mn_tcp_send_commit(a->s, f->conn, n, a->now);
    }
    if (f->held_len == 0 && f->fin && !f->has_shut) {
        f->has_shut = true;
        mn_tcp_shutdown(a->s, f->conn, a->now);
    }
}

static void tcp_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    struct app *a = ctx;
    static const enum role roles[] = {SOURCE, SINK, ECHO, RESET};
    for (int i = 0; i < 4; i++)
        if (a->listeners[i] == listener)
            flow_new(a, conn, roles[i]);
}

static void tcp_connected(void *ctx, uint32_t conn)
{
    struct app *a = ctx;
    put(a, flow_of(a, conn));
}

static void tcp_failed(void *ctx, uint32_t conn, int err)
{
    struct app *a = ctx;
    printf("failed %d\n", err);
    fflush(stdout);
    flow_of(a, conn)->conn = 0;
}

static size_t deliver_echo(struct app *a, struct flow *f, const struct iovec *iov, int n)
{
    enum { MOST = 1 << 18 };
    size_t taken = 0;
    if (f->held == NULL)
        f->held = malloc(MOST);
    CHECK(f->held != NULL);
    for (int i = 0; i < n; i++) {
        for (size_t at = 0, k; at < iov[i].iov_len; at += k) {
            k = iov[i].iov_len - at < MOST - f->held_len ? iov[i].iov_len - at : MOST - f->held_len;
            if (k == 0)
                return taken; /* the ring is full as well: tcp_writable resumes */
            memcpy(f->held + f->held_len, (const uint8_t *)iov[i].iov_base + at, k);
            f->held_len += k;
            taken += k;
            echo_held(a, f);
        }
    }
    return taken;
}

static size_t tcp_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    struct app *a = ctx;
    struct flow *f = flow_of(a, conn);
    size_t total = 0;
    if (f->role == ECHO)
        return deliver_echo(a, f, iov, n);
    if (f->role == RESET) {
        f->conn = 0;
        mn_tcp_abort(a->s, conn, a->now);
        return 0;
    }
    for (int i = 0; i < n; i++) {
        const uint8_t *p = iov[i].iov_base;
        for (size_t k = 0; k < iov[i].iov_len; k++, f->got++) {
            if (f->role == SOURCE && f->got < 8)
                f->head[f->got] = p[k];
            else if (f->role == SINK)
                CHECK_INT(p[k], (uint8_t)((f->got / 4) >> (24 - 8 * (f->got % 4))));
        }
        total += iov[i].iov_len;
    }
    if (f->role == SOURCE && f->want == 0 && f->got >= 8) {
        for (int i = 0; i < 8; i++)
            f->want = f->want << 8 | f->head[i];
        put(a, f);
    }
    return total;
}

static void tcp_peer_fin(void *ctx, uint32_t conn)
{
    struct app *a = ctx;
    struct flow *f = flow_of(a, conn);
    size_t room;
    f->fin = true;
    if (f->role == SINK) {
        uint8_t *p = mn_tcp_send_reserve(a->s, conn, &room);
        CHECK(p != NULL && room >= 8);
        for (int i = 0; i < 8; i++)
            p[i] = (uint8_t)(f->got >> (56 - 8 * i));
        mn_tcp_send_commit(a->s, conn, 8, a->now);
        mn_tcp_shutdown(a->s, conn, a->now);
    } else if (f->role == ECHO) {
        echo_held(a, f);
    }
}

static void tcp_writable(void *ctx, uint32_t conn)
{
    struct app *a = ctx;
    struct flow *f = flow_of(a, conn);
    if (f->role == ECHO) {
        echo_held(a, f);
        mn_tcp_recv_resume(a->s, conn, a->now);
    } else {
        put(a, f);
    }
}

static void tcp_closed(void *ctx, uint32_t conn, int err)
{
    struct app *a = ctx;
    struct flow *f = flow_of(a, conn);
    printf("closed %d %llu %llu\n", err, (unsigned long long)f->got, (unsigned long long)f->done);
    fflush(stdout);
    free(f->held);
    *f = (struct flow){0};
}

static void release(struct app *a, int way)
{
    while (a->count[way] > 0 && a->late[way][a->head[way]].at <= a->now) {
        struct late *l = &a->late[way][a->head[way]];
        if (way == 0 && write(a->fd, l->data, l->len) < 0)
            perror("tun write");
        if (way == 1) {
            mn_stack_input(a->s, 1, l->data, l->len, a->now);
            mn_stack_flush(a->s, a->now);
        }
        a->head[way] = (a->head[way] + 1) % DELAYED;
        a->count[way]--;
    }
}

static void read_tun(struct app *a)
{
    static uint8_t slots[BATCH][2048];
    for (int n = 0; n < BATCH; n++) {
        ssize_t len = read(a->fd, slots[n], sizeof slots[n]);
        if (len <= 0)
            break;
        if (is_lost(a) || len > MTU)
            continue;
        if (a->delay > 0)
            hold(a, 1, slots[n], (size_t)len);
        else
            mn_stack_input(a->s, 1, slots[n], (size_t)len, a->now);
    }
    mn_stack_flush(a->s, a->now);
}

static bool read_command(struct app *a)
{
    char line[128];
    unsigned port;
    unsigned long long bytes;
    uint32_t conn;
    struct mn_ep to = {.ip = mn_ip_from4((const uint8_t[4]){100, 64, 0, 2}), .port = 0};
    if (fgets(line, sizeof line, stdin) == NULL)
        return false;
    if (sscanf(line, "connect %u %llu", &port, &bytes) != 2)
        return true;
    to.port = (uint16_t)port;
    CHECK_INT(mn_tcp_connect(a->s, &to, NULL, &conn, a->now), 0);
    flow_new(a, conn, CLIENT)->want = bytes;
    return true;
}

static int wait_ms(const struct app *a)
{
    uint64_t at = mn_stack_next_deadline(a->s), now = clock_ns();
    for (int way = 0; way < 2; way++)
        if (a->count[way] > 0 && a->late[way][a->head[way]].at < at)
            at = a->late[way][a->head[way]].at;
    if (at <= now)
        return 0;
    return at - now > 1000000000 ? 1000 : (int)((at - now + 999999) / 1000000);
}

static int open_tun(const char *name)
{
    struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    strncpy(r.ifr_name, name, sizeof r.ifr_name - 1);
    CHECK(fd >= 0 && ioctl(fd, TUNSETIFF, &r) == 0);
    return fd;
}

int main(int argc, char **argv)
{
    static struct app a;
    CHECK(argc == 4);
    struct mn_stack_ops ops = {.ctx = &a,
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
    a.fd = open_tun(argv[1]);
    a.loss = (unsigned)strtoul(argv[2], NULL, 10);
    a.delay = strtoull(argv[3], NULL, 10) * 1000000;
    a.now = a.rng = clock_ns();
    for (int way = 0; way < 2; way++)
        CHECK((a.late[way] = malloc(DELAYED * sizeof *a.late[way])) != NULL);
    CHECK((a.s = mn_stack_create(&ops, NULL, a.now)) != NULL);
    const struct mn_ip own[] = {mn_ip_from4((const uint8_t[4]){100, 64, 0, 1}),
                                mn_ip_from6((const uint8_t[16]){0xfd, 0x7a, [15] = 1})};
    CHECK_INT(mn_stack_set_addresses(a.s, own, 2), 0);
    uint8_t blob[128] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 4, 2, 0, 2, 0, 6, 17, 1, 58};
    memcpy(blob + 17, mn_ip4_prefix, 12);
    blob[33] = 96;
    memcpy(blob + 51, mn_ip4_prefix, 12);
    blob[67] = 96;
    blob[70] = blob[71] = blob[91] = blob[92] = 255;
    CHECK_INT(mn_stack_set_filter(a.s, blob, 97), 0);
    for (uint16_t i = 0; i < 4; i++)
        CHECK_INT(mn_tcp_listen(a.s, NULL, (uint16_t)(80 + i), 0, &a.listeners[i]), 0);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct pollfd p[2] = {{.fd = a.fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        poll(p, 2, wait_ms(&a));
        a.now = clock_ns();
        if (p[0].revents != 0)
            read_tun(&a);
        if (p[1].revents != 0 && !read_command(&a))
            break;
        release(&a, 0);
        release(&a, 1);
        if (mn_stack_next_deadline(a.s) <= a.now)
            mn_stack_on_deadline(a.s, a.now);
        mn_stack_flush(a.s, a.now);
    }
    const struct mn_stack_stats *t = mn_stack_stats(a.s);
#define X(name)                                                                                                        \
    if (t->name > 0)                                                                                                   \
        fprintf(stderr, #name " %llu\n", (unsigned long long)t->name);
    MN_STACK_COUNTERS(X)
    fprintf(stderr, "tcp_conns %u tcp_time_wait %u ring_bytes %llu\n", t->tcp_conns, t->tcp_time_wait,
            (unsigned long long)t->ring_bytes);
    mn_stack_destroy(a.s);
    return 0;
}
