/* Load on a relay: many clients in one thread, frames batched, for tests/bench/relay.py.
 *
 *   relay_load HOST PORT LOGINS MODE [name=number…]
 *
 * LOGINS holds a client each: its public key (32 bytes), a length (2 bytes, big endian) and the ClientInfo frame that
 * the relay will open. Modes:
 *
 *   closed  pairs, size, flight, seconds: each first client of a pair keeps `flight` packets of `size` bytes under way
 *   open    pairs, size, rate, seconds: `rate` packets a second of all pairs together, whatever comes of them; evenly
 *           spaced, pairs in turn. A packet's latency counts from when it was meant to leave. What is a second late
 *           is left out and counted as `skipped`.
 *   idle    count: log in and hold until standard input ends
 *   churn   at_once, seconds: connect, log in, close, with the logins in turn
 *
 * plain=1: no TLS. tls12=1: TLS 1.2. pid: the relay, whose CPU time is measured over the same seconds. warm:
 * milliseconds before these. One line of JSON leaves on standard output. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../relay/frame.h"

enum {
    BATCH = 16 << 10,
    READ = 256 << 10,
    FRAME_MAX = 70000,
    STALL_MS = 200,
    READY_MS = 90000,
    AT_ONCE = 64,
    WAIT_NS = 1000000
};
enum { SUB = 32, BUCKETS = 40 * SUB };

static const char HEAD[] =
    "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n";

struct login {
    uint8_t key[MN_RELAY_KEY];
    size_t len;
    uint8_t frame[512];
};

enum state { CONNECTING, SHAKING, LOGGING_IN, READY, GONE };

struct client {
    int fd;
    SSL *ssl;
    enum state state;
    uint32_t events, index, login;
    uint8_t *out; /* being written: BATCH + FRAME_MAX */
    size_t out_len, out_at;
    uint8_t *kept;
    size_t kept_len;
    /* a sender's */
    uint64_t sent, got, offered, heard_ns;
    uint32_t under_way;
};

struct load {
    const char *host, *mode;
    uint16_t port;
    long pairs, size, flight, rate, seconds, warm, count, at_once, plain, tls12, pid;
    struct login *logins;
    size_t login_count;
    SSL_CTX *ctx;
    int epoll;
    struct client *clients;
    uint32_t client_count, ready_count, gone_count;
    uint8_t *in;
    uint64_t now, begin_ns, end_ns;
    bool is_measuring, is_open;
    uint64_t sent, received, lost, skipped, logins_done;
    uint32_t histogram[BUCKETS];
};

static uint64_t clock_now(clockid_t id)
{
    struct timespec ts = {0};
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "relay_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- latencies ---- */

static void note_latency(struct load *l, uint64_t ns)
{
    unsigned shift = 0;
    while (ns >> shift >= SUB * 2)
        shift++;
    size_t b = shift == 0 ? ns : (size_t)(shift + 1) * SUB + (size_t)((ns >> shift) - SUB);
    l->histogram[b < BUCKETS ? b : BUCKETS - 1]++;
}

static double percentile_us(const struct load *l, double share)
{
    uint64_t all = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        all += l->histogram[i];
    for (size_t i = 0; i < BUCKETS; i++) {
        seen += l->histogram[i];
        if (all > 0 && (double)seen >= share * (double)all)
            return i < 2 * SUB ? (double)i / 1e3 : (double)((i % SUB + SUB) << (i / SUB - 1)) / 1e3;
    }
    return 0;
}

/* ---- a client ---- */

static void watch(struct load *l, struct client *c, uint32_t events)
{
    if (c->events == events)
        return;
    struct epoll_event ev = {.events = events, .data.u32 = c->index};
    if (epoll_ctl(l->epoll, c->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &ev) != 0)
        fail("epoll_ctl");
    c->events = events;
}

static void end(struct load *l, struct client *c)
{
    if (c->state == GONE)
        return;
    l->ready_count -= c->state == READY;
    l->gone_count++;
    SSL_free(c->ssl);
    close(c->fd);
    free(c->kept);
    c->kept = NULL;
    c->kept_len = c->out_len = c->out_at = 0;
    c->ssl = NULL;
    c->fd = -1;
    c->events = 0;
    c->state = GONE;
}

static void begin(struct load *l, struct client *c, uint32_t index, uint64_t login)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(l->port)};
    inet_pton(AF_INET, l->host, &to.sin_addr);
    uint8_t *out = c->out;
    *c = (struct client){.index = index, .login = (uint32_t)(login % l->login_count), .out = out};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        fail("socket");
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (const struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS)
        fail("connect");
    watch(l, c, EPOLLOUT);
}

/* Offer what waits to be written; false: the connection is gone. */
static bool push(struct load *l, struct client *c)
{
    while (c->out_at < c->out_len) {
        size_t left = c->out_len - c->out_at, n = left < BATCH ? left : BATCH;
        long done;
        if (c->ssl != NULL) {
            done = SSL_write(c->ssl, c->out + c->out_at, (int)n);
            if (done <= 0 && SSL_get_error(c->ssl, (int)done) == SSL_ERROR_WANT_WRITE)
                break;
        } else {
            done = send(c->fd, c->out + c->out_at, left, MSG_NOSIGNAL);
            if (done < 0 && errno == EAGAIN)
                break;
        }
        if (done <= 0) {
            end(l, c);
            return false;
        }
        c->out_at += (size_t)done;
    }
    if (c->out_at == c->out_len)
        c->out_at = c->out_len = 0;
    watch(l, c, c->out_len > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return true;
}

static void add(struct client *c, const void *p, size_t n)
{
    if (c->out == NULL && (c->out = malloc(BATCH + FRAME_MAX)) == NULL)
        fail("malloc");
    memcpy(c->out + c->out_len, p, n);
    c->out_len += n;
}

static void log_in(struct load *l, struct client *c)
{
    const struct login *who = &l->logins[c->login];
    c->state = LOGGING_IN;
    add(c, HEAD, sizeof HEAD - 1);
    add(c, who->frame, who->len);
    push(l, c);
}

/* When a pair's packet n is meant to leave in open loop. */
static uint64_t meant_ns(const struct load *l, const struct client *c, uint64_t n)
{
    uint64_t pair = c->index / 2;
    double place = (double)n * (double)l->pairs + (double)pair;
    return l->begin_ns + (uint64_t)(place * 1e9 / (double)l->rate);
}

/* Packets to the other of the pair: head, its key, a type as WireGuard's data has, the time. */
static void give(struct load *l, struct client *c, uint64_t count)
{
    const struct login *peer = &l->logins[(c->index ^ 1) % l->login_count];
    size_t whole = MN_FRAME_HEADER + MN_RELAY_KEY + (size_t)l->size;
    if (c->out == NULL && (c->out = malloc(BATCH + FRAME_MAX)) == NULL)
        fail("malloc");
    while (count > 0 && c->state == READY && c->out_len == 0) {
        for (; count > 0 && (c->out_len == 0 || c->out_len + whole <= BATCH); count--) {
            uint8_t *p = c->out + c->out_len, type[8] = {4};
            uint64_t at = l->is_open ? meant_ns(l, c, c->offered++) : l->now;
            mn_frame_write_header(p, MN_FRAME_SEND_PACKET, MN_RELAY_KEY + (uint32_t)l->size);
            memcpy(p + MN_FRAME_HEADER, peer->key, MN_RELAY_KEY);
            memset(p + MN_FRAME_HEADER + MN_RELAY_KEY, 0x5a, (size_t)l->size);
            memcpy(p + MN_FRAME_HEADER + MN_RELAY_KEY, type, sizeof type);
            memcpy(p + MN_FRAME_HEADER + MN_RELAY_KEY + 8, &at, sizeof at);
            c->out_len += whole;
            c->under_way++;
            c->sent++;
            l->sent += l->is_measuring;
        }
        l->now = clock_now(CLOCK_MONOTONIC);
        push(l, c);
    }
}

static void on_frame(struct load *l, struct client *c, const struct mn_frame *f)
{
    if (f->kind == MN_FRAME_SERVER_INFO && c->state == LOGGING_IN) {
        c->state = READY;
        c->heard_ns = l->now;
        l->ready_count++;
    }
    if (f->kind != MN_FRAME_RECV_PACKET || f->len < MN_RELAY_KEY + 16)
        return;
    struct client *sender = &l->clients[c->index ^ 1];
    uint64_t at;
    memcpy(&at, f->payload + MN_RELAY_KEY + 8, sizeof at);
    sender->under_way -= sender->under_way > 0;
    sender->got++;
    sender->heard_ns = l->now;
    if (!l->is_measuring)
        return;
    l->received++;
    note_latency(l, l->now > at ? l->now - at : 0);
}

static void take(struct load *l, struct client *c)
{
    for (;;) {
        memcpy(l->in, c->kept, c->kept_len);
        size_t here = c->kept_len;
        long n;
        bool is_dry = false;
        if (c->ssl != NULL) {
            n = SSL_read(c->ssl, l->in + here, (int)(READ - here));
            if (n <= 0 && SSL_get_error(c->ssl, (int)n) == SSL_ERROR_WANT_READ)
                is_dry = true;
        } else {
            n = recv(c->fd, l->in + here, READ - here, 0);
            is_dry = n < 0 && errno == EAGAIN;
        }
        if (is_dry)
            return;
        if (n <= 0) {
            end(l, c);
            return;
        }
        here += (size_t)n;
        l->now = clock_now(CLOCK_MONOTONIC);
        size_t at = 0;
        struct mn_frame f;
        while (mn_frame_next(l->in + at, here - at, &f) == MN_FRAME_WHOLE) {
            on_frame(l, c, &f);
            at += MN_FRAME_HEADER + f.len;
        }
        c->kept_len = here - at;
        if (c->kept_len > 0 && c->kept == NULL && (c->kept = malloc(FRAME_MAX)) == NULL)
            fail("malloc");
        if (c->kept_len > 0)
            memcpy(c->kept, l->in + at, c->kept_len);
        if (c->ssl == NULL)
            return;
    }
}

static void on_ready(struct load *l, struct client *c, uint32_t events)
{
    if (c->state == CONNECTING) {
        int err = 0;
        socklen_t len = sizeof err;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &len);
        if (err != 0) {
            end(l, c);
            return;
        }
        if (l->plain) {
            log_in(l, c);
            return;
        }
        c->ssl = SSL_new(l->ctx);
        if (c->ssl == NULL || SSL_set_fd(c->ssl, c->fd) != 1)
            fail("SSL_new");
        SSL_set_connect_state(c->ssl);
        c->state = SHAKING;
    }
    if (c->state == SHAKING) {
        int done = SSL_do_handshake(c->ssl), why = SSL_get_error(c->ssl, done);
        if (done == 1)
            log_in(l, c);
        else if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
            watch(l, c, why == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
        else
            end(l, c);
        return;
    }
    if ((events & EPOLLOUT) != 0 && !push(l, c))
        return;
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
        take(l, c);
}

static void turn(struct load *l, uint64_t wait_ns)
{
    struct epoll_event ready[128];
    struct timespec wait = {.tv_sec = (time_t)(wait_ns / 1000000000U), .tv_nsec = (long)(wait_ns % 1000000000U)};
    int n = epoll_pwait2(l->epoll, ready, 128, &wait, NULL);
    l->now = clock_now(CLOCK_MONOTONIC);
    for (int i = 0; i < n; i++) {
        struct client *c = &l->clients[ready[i].data.u32];
        if (c->state != GONE)
            on_ready(l, c, ready[i].events);
    }
}

/* ---- modes ---- */

static void make_clients(struct load *l, uint32_t count)
{
    l->clients = calloc(count, sizeof(struct client));
    if (l->clients == NULL)
        fail("calloc");
    uint64_t by = clock_now(CLOCK_MONOTONIC) + READY_MS * 1000000ULL;
    while (l->ready_count < count) {
        if (l->client_count < count && l->client_count - l->ready_count < AT_ONCE) {
            begin(l, &l->clients[l->client_count], l->client_count, l->client_count);
            l->client_count++;
            continue;
        }
        turn(l, 1000000);
        if (l->gone_count > 0 || (l->now > by && l->client_count == l->ready_count + AT_ONCE)) {
            fprintf(stderr, "relay_load: %u of %u clients logged in, %u were cut off\n", l->ready_count, count,
                    l->gone_count);
            exit(1);
        }
    }
}

static void keep_flight(struct load *l, struct client *c)
{
    if (c->under_way > 0 && l->now > c->heard_ns + STALL_MS * 1000000ULL) {
        l->lost += c->under_way; /* what waits so long was dropped */
        c->under_way = 0;
        c->heard_ns = l->now;
    }
    if (c->under_way < (uint32_t)l->flight)
        give(l, c, (uint32_t)l->flight - c->under_way);
}

/* At most so many frames of a pair before its answers are read again: a driver that falls behind would otherwise only
 * send. */
enum { BURST = 64 };

enum { LATE_S = 1 };

/* Offers what is due; returns when the next one is, or UINT64_MAX while the network takes nothing. */
static uint64_t keep_rate(struct load *l, struct client *c)
{
    uint64_t pair = c->index / 2;
    double turn = ((double)(l->now - l->begin_ns) * (double)l->rate / 1e9 - (double)pair) / (double)l->pairs;
    uint64_t due = turn < 0 ? 0 : (uint64_t)turn + 1, owed = due > c->offered ? due - c->offered : 0;
    uint64_t most = (uint64_t)(LATE_S * l->rate / l->pairs) + 1;
    if (owed > most) {
        l->skipped += l->is_measuring ? owed - most : 0;
        c->offered += owed - most;
        owed = most;
    }
    if (c->out_len == 0)
        give(l, c, owed < BURST ? owed : BURST);
    return c->out_len == 0 ? meant_ns(l, c, c->offered) : UINT64_MAX;
}

struct marks {
    uint64_t wall, relay, own;
};

static struct marks mark(const struct load *l)
{
    clockid_t relay;
    struct marks m = {clock_now(CLOCK_MONOTONIC), 0, clock_now(CLOCK_PROCESS_CPUTIME_ID)};
    if (l->pid != 0 && clock_getcpuclockid((pid_t)l->pid, &relay) == 0)
        m.relay = clock_now(relay);
    return m;
}

static void run_pairs(struct load *l)
{
    make_clients(l, (uint32_t)l->pairs * 2);
    l->now = l->begin_ns = clock_now(CLOCK_MONOTONIC);
    uint64_t warm = l->begin_ns + (uint64_t)l->warm * 1000000, done = warm + (uint64_t)l->seconds * 1000000000;
    struct marks from = {0};
    while (l->now < done) {
        uint64_t next = l->now + WAIT_NS;
        if (!l->is_measuring && l->now >= warm) {
            l->is_measuring = true;
            from = mark(l);
        }
        for (uint32_t i = 0; i < l->client_count; i += 2) {
            uint64_t at = UINT64_MAX;
            if (l->is_open)
                at = keep_rate(l, &l->clients[i]);
            else
                keep_flight(l, &l->clients[i]);
            next = at < next ? at : next;
        }
        turn(l, next > l->now ? next - l->now : 0);
    }
    struct marks to = mark(l);
    double wall = (double)(to.wall - from.wall) / 1e9, cpu = (double)(to.relay - from.relay) / 1e9;
    double frames = (double)l->received;
    printf(
        "{\"frames\": %" PRIu64 ", \"sent\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"skipped\": %" PRIu64
        ", \"seconds\": %.6f, \"per_s\": %.1f, "
        "\"gbit_s\": %.4f, \"cpu_s\": %.6f, \"own_cpu_s\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"gone\": %u}\n",
        l->received, l->sent, l->lost, l->skipped, wall, frames / wall, frames * (double)l->size * 8 / wall / 1e9, cpu,
        (double)(to.own - from.own) / 1e9, percentile_us(l, 0.5), percentile_us(l, 0.99), l->gone_count);
}

static void run_idle(struct load *l)
{
    uint64_t from = clock_now(CLOCK_MONOTONIC);
    make_clients(l, (uint32_t)l->count);
    printf("{\"ready\": %u, \"seconds\": %.3f}\n", l->ready_count, (double)(clock_now(CLOCK_MONOTONIC) - from) / 1e9);
    fflush(stdout);
    struct pollfd in = {.fd = 0, .events = POLLIN};
    while (poll(&in, 1, 0) == 0)
        turn(l, 100000000);
    printf("{\"held\": %u}\n", l->ready_count);
}

static void run_churn(struct load *l)
{
    uint32_t count = (uint32_t)l->at_once;
    l->clients = calloc(count, sizeof(struct client));
    if (l->clients == NULL)
        fail("calloc");
    struct marks from = mark(l), to;
    uint64_t failed = 0, next = count;
    for (uint32_t i = 0; i < count; i++)
        begin(l, &l->clients[i], i, i);
    l->client_count = count;
    do {
        turn(l, 1000000);
        for (uint32_t i = 0; i < count; i++) {
            struct client *c = &l->clients[i];
            if (c->state != READY && c->state != GONE)
                continue;
            l->logins_done += c->state == READY;
            failed += c->state == GONE;
            end(l, c);
            begin(l, c, i, next++);
        }
        to = mark(l);
    } while (to.wall - from.wall < (uint64_t)l->seconds * 1000000000);
    double wall = (double)(to.wall - from.wall) / 1e9;
    printf("{\"connects\": %" PRIu64 ", \"failed\": %" PRIu64 ", \"per_s\": %.1f, \"cpu_s\": %.6f}\n", l->logins_done,
           failed, (double)l->logins_done / wall, (double)(to.relay - from.relay) / 1e9);
}

/* ---- the command line ---- */

static void read_logins(struct load *l, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        fail(path);
    size_t room = 0;
    struct login one;
    uint8_t size[2];
    while (fread(one.key, 1, sizeof one.key, f) == sizeof one.key && fread(size, 1, 2, f) == 2) {
        one.len = (size_t)size[0] << 8 | size[1];
        if (one.len > sizeof one.frame || fread(one.frame, 1, one.len, f) != one.len)
            fail("a login is damaged");
        if (l->login_count == room) {
            room = room == 0 ? 256 : room * 2;
            l->logins = realloc(l->logins, room * sizeof(struct login));
            if (l->logins == NULL)
                fail("realloc");
        }
        l->logins[l->login_count++] = one;
    }
    fclose(f);
    if (l->login_count < 2)
        fail("two logins are the least");
}

static void read_numbers(struct load *l, int n, char **words)
{
    const struct {
        const char *name;
        long *at;
    } names[] = {{"pairs", &l->pairs},     {"size", &l->size},   {"flight", &l->flight}, {"rate", &l->rate},
                 {"seconds", &l->seconds}, {"warm", &l->warm},   {"count", &l->count},   {"at_once", &l->at_once},
                 {"plain", &l->plain},     {"tls12", &l->tls12}, {"pid", &l->pid}};
    for (int i = 0; i < n; i++) {
        size_t k = 0, len = strcspn(words[i], "=");
        while (k < sizeof names / sizeof names[0] &&
               (strncmp(names[k].name, words[i], len) != 0 || names[k].name[len] != 0))
            k++;
        if (k == sizeof names / sizeof names[0] || words[i][len] != '=')
            fail(words[i]);
        *names[k].at = strtol(words[i] + len + 1, NULL, 10);
    }
}

int main(int argc, char **argv)
{
    static struct load l = {
        .pairs = 1, .size = 1280, .flight = 1, .rate = 1000, .seconds = 2, .warm = 300, .count = 100, .at_once = 16};
    if (argc < 5) {
        fprintf(stderr, "relay_load HOST PORT LOGINS closed|open|idle|churn [name=number…]\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    l.host = argv[1];
    l.port = (uint16_t)strtol(argv[2], NULL, 10);
    l.mode = argv[4];
    l.is_open = strcmp(l.mode, "open") == 0;
    (void)prctl(PR_SET_TIMERSLACK, 1000); /* packets leave when they are meant to */
    read_logins(&l, argv[3]);
    read_numbers(&l, argc - 5, argv + 5);
    if (l.size < 64 || l.size > MN_RELAY_PACKET_MAX)
        fail("size is 64 to 65536");
    l.epoll = epoll_create1(0);
    l.in = malloc(READ);
    l.ctx = SSL_CTX_new(TLS_client_method());
    if (l.in == NULL || l.ctx == NULL || l.epoll < 0)
        fail("making");
    SSL_CTX_set_min_proto_version(l.ctx, l.tls12 ? TLS1_2_VERSION : TLS1_3_VERSION);
    SSL_CTX_set_max_proto_version(l.ctx, l.tls12 ? TLS1_2_VERSION : TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(l.ctx, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_mode(l.ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE);
    if (strcmp(l.mode, "idle") != 0 && strcmp(l.mode, "churn") != 0) {
        SSL_CTX_set_read_ahead(l.ctx, 1);
        SSL_CTX_set_default_read_buffer_len(l.ctx, 64 << 10);
    }
    if (strcmp(l.mode, "idle") == 0)
        run_idle(&l);
    else if (strcmp(l.mode, "churn") == 0)
        run_churn(&l);
    else
        run_pairs(&l);
    return 0;
}
