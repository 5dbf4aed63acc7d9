/* The yardstick: what a tunnel of this shape could carry if it had no TCP, no peers and no timers.
 *
 *     make -C native/tests bench && native/tests/build/plain/bench_ceiling [SECONDS [one]]
 *
 * An application thread writes 64 KiB pieces into a socketpair; a sealing thread cuts them into packets of 1280 bytes,
 * seals them and sends up to 49 with one segmented send over loopback; an opening thread receives coalesced, opens
 * them and writes the bytes into a second socketpair; another application thread reads that. At most 1 MiB is on its
 * way, counted in shared memory, so nothing is lost and no window protocol is paid for.
 * Sending side on CPU 0 and receiving side on CPU 1; with `one`, all on one core, sealing and opening by one thread.
 * Prints one JSON object: Gbit of inner packets per second (median of ten windows), core-seconds per Gbit, lost. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../crypto/aead.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum {
    INNER = 1280,
    HEAD = 16,
    WIRE = HEAD + INNER + MN_AEAD_TAG,
    BATCH = 65507 / WIRE,
    PIECE = 64 << 10,
    WINDOW = 1 << 20,
    SOCKET_BYTES = 4 << 20,
    WINDOWS = 10,
};

struct ceiling {
    const struct mn_provider *provider;
    struct mn_aead seal, open;
    int udp_out, udp_in, app_in[2], app_out[2];
    struct sockaddr_in to;
    uint64_t counter;
    bool on_one_core;
    _Atomic uint64_t sent, got, lost;
    atomic_bool stop;
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void pin(size_t cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        fail("sched_setaffinity");
}

static size_t receiving_cpu(const struct ceiling *c)
{
    return c->on_one_core ? 0 : 1;
}

static double seconds_of(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* ---- the applications ---- */

static void *feed(void *arg)
{
    static uint8_t piece[PIECE];
    struct ceiling *c = arg;
    pin(0);
    while (!c->stop && write(c->app_in[0], piece, sizeof piece) > 0)
        continue;
    return NULL;
}

static void *drain(void *arg)
{
    static uint8_t piece[4 * PIECE];
    struct ceiling *c = arg;
    pin(receiving_cpu(c));
    while (!c->stop && read(c->app_out[1], piece, sizeof piece) > 0)
        continue;
    return NULL;
}

/* ---- the tunnel ---- */

static void send_segmented(struct ceiling *c, uint8_t *wire, size_t len)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))] = {0};
    struct iovec v = {wire, len};
    struct msghdr h = {.msg_name = &c->to,
                       .msg_namelen = sizeof c->to,
                       .msg_iov = &v,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    struct cmsghdr *m = CMSG_FIRSTHDR(&h);
    uint16_t segment = WIRE;
    m->cmsg_level = SOL_UDP;
    m->cmsg_type = UDP_SEGMENT;
    m->cmsg_len = CMSG_LEN(sizeof segment);
    memcpy(CMSG_DATA(m), &segment, sizeof segment);
    while (sendmsg(c->udp_out, &h, 0) < 0 && !c->stop)
        sched_yield();
}

static bool seal_batch(struct ceiling *c, uint8_t *wire)
{
    static uint8_t plain[BATCH * INNER];
    if (recv(c->app_in[1], plain, sizeof plain, MSG_WAITALL) != sizeof plain)
        return false;
    for (int i = 0; i < BATCH; i++) {
        uint8_t *w = wire + (size_t)i * WIRE;
        memcpy(w + 8, &c->counter, sizeof c->counter);
        memcpy(w + HEAD, plain + (size_t)i * INNER, INNER);
        if (mn_aead_seal(&c->seal, c->counter++, w + HEAD, INNER) != 0)
            fail("seal");
    }
    atomic_fetch_add(&c->sent, sizeof plain);
    send_segmented(c, wire, (size_t)BATCH * WIRE);
    return true;
}

/* One coalesced receive; false if there was none. */
static bool open_batch(struct ceiling *c, uint8_t *wire)
{
    static uint8_t plain[PIECE];
    _Alignas(struct cmsghdr) char control[64];
    struct iovec v = {wire, 65536};
    struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(c->udp_in, &h, 0);
    size_t used = 0;
    if (n <= 0)
        return false;
    for (ssize_t at = 0; at + WIRE <= n; at += WIRE) {
        uint64_t counter;
        memcpy(&counter, wire + at + 8, sizeof counter);
        if (mn_aead_open(&c->open, counter, wire + at + HEAD, INNER + MN_AEAD_TAG) != INNER) {
            c->lost++;
            continue;
        }
        memcpy(plain + used, wire + at + HEAD, INNER);
        used += INNER;
    }
    atomic_fetch_add(&c->got, used);
    if (write(c->app_out[0], plain, used) < 0)
        fail("write");
    return true;
}

static uint8_t *wire_buffer(void)
{
    uint8_t *p = aligned_alloc(64, 65536 + 64);
    if (p == NULL)
        fail("aligned_alloc");
    memset(p, 0, 65536 + 64);
    return p;
}

static void *receive(void *arg)
{
    struct ceiling *c = arg;
    uint8_t *wire = wire_buffer();
    pin(receiving_cpu(c));
    while (!c->stop)
        (void)open_batch(c, wire);
    return NULL;
}

static void wait_for_window(struct ceiling *c)
{
    double since = 0;
    while (c->sent - c->got > WINDOW && !c->stop) {
        double now = seconds_of(CLOCK_MONOTONIC);
        since = since == 0 ? now : since;
        if (now - since > 0.02) { /* something was lost: open it again */
            c->lost++;
            c->sent = c->got;
        }
    }
}

static void *transmit(void *arg)
{
    struct ceiling *c = arg;
    uint8_t *out = wire_buffer(), *in = wire_buffer();
    pin(0);
    while (!c->stop) {
        if (!c->on_one_core)
            wait_for_window(c);
        if (!seal_batch(c, out))
            break;
        while (c->on_one_core && c->got < c->sent && open_batch(c, in))
            continue;
    }
    return NULL;
}

/* ---- the measurement ---- */

static int udp_socket(struct sockaddr_in *at)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_usec = 2000};
    socklen_t len = sizeof *at;
    int size = SOCKET_BYTES, fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || getsockname(fd, (struct sockaddr *)at, &len) != 0)
        fail("udp socket");
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

static void set_up(struct ceiling *c)
{
    static const uint8_t key[MN_AEAD_KEY] = {1, 2, 3};
    struct sockaddr_in ignored;
    int on = 1, size = SOCKET_BYTES;
    c->provider = mn_provider_get();
    if (c->provider == NULL || mn_aead_init(&c->seal, c->provider, key, true) != 0 ||
        mn_aead_init(&c->open, c->provider, key, false) != 0)
        fail("libcrypto");
    c->udp_out = udp_socket(&ignored);
    c->udp_in = udp_socket(&c->to);
    if (setsockopt(c->udp_in, IPPROTO_UDP, UDP_GRO, &on, sizeof on) != 0)
        fail("UDP_GRO");
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, c->app_in) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, c->app_out) != 0)
        fail("socketpair");
    (void)setsockopt(c->app_in[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    (void)setsockopt(c->app_out[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static struct ceiling c;
    double wanted = argc > 1 ? atof(argv[1]) : 2.0, rates[WINDOWS];
    pthread_t threads[4];
    c.on_one_core = argc > 2 && strcmp(argv[2], "one") == 0;
    set_up(&c);
    pthread_create(&threads[0], NULL, feed, &c);
    pthread_create(&threads[1], NULL, drain, &c);
    if (!c.on_one_core)
        pthread_create(&threads[2], NULL, receive, &c);
    pthread_create(&threads[3], NULL, transmit, &c);
    usleep(100000);
    uint64_t all = c.got;
    double cpu = cpu_seconds();
    for (int i = 0; i < WINDOWS; i++) {
        uint64_t before = c.got;
        double began = seconds_of(CLOCK_MONOTONIC);
        usleep((useconds_t)(wanted / WINDOWS * 1e6));
        rates[i] = (double)(c.got - before) * 8 / (seconds_of(CLOCK_MONOTONIC) - began) / 1e9;
    }
    cpu = (cpu_seconds() - cpu) / ((double)(c.got - all) * 8 / 1e9);
    qsort(rates, WINDOWS, sizeof *rates, by_value);
    printf("{\"gbit_per_s\": %.3f, \"best\": %.3f, \"core_s_per_gbit\": %.3f, \"lost\": %llu}\n", rates[WINDOWS / 2],
           rates[WINDOWS - 1], cpu, (unsigned long long)c.lost);
    fflush(stdout);
    _exit(0); /* the threads may sleep in a read */
}
