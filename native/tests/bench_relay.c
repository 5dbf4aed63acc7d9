/* The yardstick of tests/bench/relay.py: the least that a relay over TLS 1.3 has to do, in C with libssl.
 *
 *   bench_relay CERTIFICATE KEY
 *
 * It takes any login unread, and after each read writes what the read brought to whom it is for, in one SSL_write. As
 * the relay does, it has every second frame acknowledged, not each.
 * No admission, no queue, no bound, no clock: what a real relay does besides is its distance from this. It prints its
 * port and serves until standard input ends. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../relay/frame.h"

enum { BUSY_READS = 32, READ = 256 << 10, OUT = 1 << 20, SLOTS = 4096, TAG_LISTEN = SLOTS, TAG_STDIN };

struct client {
    int fd;
    SSL *ssl;
    uint8_t key[MN_RELAY_KEY];
    bool is_shaken, has_key, is_dirty;
    uint8_t *out, *kept;
    size_t out_len, out_at, kept_len;
    uint32_t reads;
};

static struct client *clients[SLOTS];
static uint8_t in[READ];
static int epoll_fd;

static struct client *find(const uint8_t *key)
{
    static struct client *table[SLOTS]; /* keys are random: their first bytes are a hash */
    uint32_t h;
    memcpy(&h, key, sizeof h);
    struct client **at = &table[h % SLOTS];
    if (*at != NULL && (*at)->fd >= 0 && memcmp((*at)->key, key, MN_RELAY_KEY) == 0)
        return *at;
    for (int i = 0; i < SLOTS; i++)
        if (clients[i] != NULL && clients[i]->has_key && memcmp(clients[i]->key, key, MN_RELAY_KEY) == 0)
            return *at = clients[i];
    return NULL;
}

static void end(struct client *c)
{
    SSL_free(c->ssl);
    close(c->fd);
    clients[c->fd] = NULL;
    c->fd = -1; /* what the table may still point to stays */
    c->has_key = false;
    free(c->out);
    free(c->kept);
    c->out = c->kept = NULL;
}

static void flush(struct client *c)
{
    while (c->out_at < c->out_len) {
        size_t left = c->out_len - c->out_at;
        int n = SSL_write(c->ssl, c->out + c->out_at, (int)(left < 16384 ? left : 16384));
        if (n <= 0)
            break;
        c->out_at += (size_t)n;
    }
    if (c->out_at == c->out_len)
        c->out_at = c->out_len = 0;
    struct epoll_event ev = {.events = EPOLLIN | (c->out_len > 0 ? (uint32_t)EPOLLOUT : 0),
                             .data.u32 = (uint32_t)c->fd};
    static bool waits[SLOTS];
    if (waits[c->fd] != (c->out_len > 0))
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &ev);
    waits[c->fd] = c->out_len > 0;
}

static void put(struct client *c, const uint8_t *a, size_t an, const uint8_t *b, size_t bn)
{
    if (c->out == NULL && (c->out = malloc(OUT)) == NULL)
        return;
    if (c->out_len + an + bn > OUT)
        return;
    memcpy(c->out + c->out_len, a, an);
    memcpy(c->out + c->out_len + an, b, bn);
    c->out_len += an + bn;
}

static void on_frame(struct client *c, const struct mn_frame *f, struct client **dirty, int *n)
{
    if (f->kind == MN_FRAME_CLIENT_INFO) {
        static const uint8_t info[MN_FRAME_HEADER] = {MN_FRAME_SERVER_INFO};
        memcpy(c->key, f->payload, MN_RELAY_KEY);
        c->has_key = true;
        put(c, info, sizeof info, NULL, 0);
        flush(c);
    }
    struct client *to = f->kind == MN_FRAME_SEND_PACKET ? find(f->payload) : NULL;
    if (to == NULL)
        return;
    uint8_t head[MN_FRAME_HEADER + MN_RELAY_KEY];
    mn_frame_write_header(head, MN_FRAME_RECV_PACKET, f->len);
    memcpy(head + MN_FRAME_HEADER, c->key, MN_RELAY_KEY);
    put(to, head, sizeof head, f->payload + MN_RELAY_KEY, f->len - MN_RELAY_KEY);
    if (!to->is_dirty && *n < 64) {
        to->is_dirty = true;
        dirty[(*n)++] = to;
    }
}

static void serve(struct client *c)
{
    static const int is_quick = 0;
    if (c->has_key && ++c->reads % BUSY_READS == 0)
        setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &is_quick, sizeof is_quick);
    struct client *dirty[64];
    int n = 0;
    if (!c->is_shaken) {
        if (SSL_do_handshake(c->ssl) != 1)
            return;
        c->is_shaken = true;
    }
    for (;;) {
        size_t here = c->kept_len, at = 0;
        memcpy(in, c->kept, here);
        int got = SSL_read(c->ssl, in + here, (int)(READ - here));
        if (got <= 0) {
            if (SSL_get_error(c->ssl, got) != SSL_ERROR_WANT_READ)
                end(c);
            break;
        }
        here += (size_t)got;
        if (!c->has_key && here > 4 && memcmp(in, "GET ", 4) == 0) {
            const uint8_t *done = memmem(in, here, "\r\n\r\n", 4);
            at = done == NULL ? 0 : (size_t)(done - in) + 4;
        }
        struct mn_frame f;
        while (mn_frame_next(in + at, here - at, &f) == MN_FRAME_WHOLE) {
            on_frame(c, &f, dirty, &n);
            at += MN_FRAME_HEADER + f.len;
        }
        c->kept_len = here - at;
        memcpy(c->kept, in + at, c->kept_len);
    }
    for (int i = 0; i < n; i++) {
        dirty[i]->is_dirty = false;
        if (dirty[i]->fd >= 0)
            flush(dirty[i]);
    }
}

static void take_in(int listener, SSL_CTX *ctx)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
    struct client *c = fd >= 0 && fd < SLOTS ? calloc(1, sizeof *c) : NULL;
    if (c == NULL || (c->kept = malloc(80000)) == NULL) {
        free(c);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->fd = fd;
    c->ssl = SSL_new(ctx);
    SSL_set_fd(c->ssl, fd);
    SSL_set_accept_state(c->ssl);
    clients[fd] = c;
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = (uint32_t)fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (argc != 3 || ctx == NULL || SSL_CTX_use_certificate_chain_file(ctx, argv[1]) != 1 ||
        SSL_CTX_use_PrivateKey_file(ctx, argv[2], SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "bench_relay CERTIFICATE KEY\n");
        return 2;
    }
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(ctx, 1);
    SSL_CTX_set_default_read_buffer_len(ctx, 128 << 10);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    if (bind(listener, (const struct sockaddr *)&at, len) != 0 || listen(listener, 4096) != 0 ||
        getsockname(listener, (struct sockaddr *)&at, &len) != 0) {
        perror("bench_relay");
        return 1;
    }
    epoll_fd = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = TAG_LISTEN};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &ev);
    ev.data.u32 = TAG_STDIN;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &ev);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event ready[128];
        int n = epoll_wait(epoll_fd, ready, 128, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.u32 == TAG_STDIN)
                return 0;
            if (ready[i].data.u32 == TAG_LISTEN) {
                take_in(listener, ctx);
                continue;
            }
            struct client *c = clients[ready[i].data.u32];
            if (c != NULL && (ready[i].events & EPOLLOUT) != 0)
                flush(c);
            if (c != NULL && (ready[i].events & EPOLLIN) != 0)
                serve(c);
        }
    }
}
