/* Those at a relay's door and those inside: newcomers wait for clients, a crowd pushes out its own, limits hold, and
 * without descriptors the relay pauses. Clients are bare sockets, 'K' and 31 bytes their whole login, '!' their
 * greeting; who says 'W' waits for an answer that never comes. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/ec.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../relay/frame.h"
#include "../relay/relay.h"
#include "check.h"

enum { WAIT_S = 20, BODY = 64, SHAKE_MS = 5, FRAME = MN_FRAME_HEADER + MN_RELAY_KEY + BODY };

static struct mn_relay *relay;
static uint16_t plain_port, tls_port;
static pthread_t python;
static atomic_bool is_over;
static atomic_uint shakes, shake_ms;

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static struct mn_relay_stats stats(void)
{
    struct mn_relay_stats s;
    CHECK_INT(mn_relay_stats(relay, &s), 0);
    return s;
}

/* Until a number of the relay is what is wanted. */
#define AWAIT(claim)                                                                                                   \
    do {                                                                                                               \
        uint64_t until_ = now_ms() + WAIT_S * 1000ULL;                                                                 \
        while (!(claim)) {                                                                                             \
            CHECK(now_ms() < until_);                                                                                  \
            (void)poll(NULL, 0, 2);                                                                                    \
        }                                                                                                              \
    } while (0)

/* ---- the relay ---- */

static void *be_python(void *arg)
{
    (void)arg;
    while (!atomic_load(&is_over)) {
        struct pollfd wait = {.fd = mn_relay_fd(relay), .events = POLLIN};
        (void)poll(&wait, 1, 20);
        for (struct mn_relay_event *ev = mn_relay_take(relay), *next; ev != NULL; ev = next) {
            next = ev->next;
            if (ev->kind == MN_RELAY_EV_DATA && ev->len >= MN_RELAY_KEY && ev->data[0] == 'K')
                (void)mn_relay_open(relay, ev->conn, ev->data, 0, (const uint8_t *)"!", 1, ev->data + MN_RELAY_KEY,
                                    ev->len - MN_RELAY_KEY);
            else if (ev->kind == MN_RELAY_EV_DATA && ev->data[0] == 'D') /* drips: more is wanted */
                (void)mn_relay_resume(relay, ev->conn);
            free(ev);
        }
    }
    return NULL;
}

static int listening(uint16_t *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK_INT(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_INT(listen(fd, 1024), 0);
    CHECK_INT(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    *port = ntohs(at.sin_port);
    return fd;
}

/* A handshake as costly as a slow machine's. */
static int on_hello(SSL *ssl, int *alert, void *arg)
{
    (void)ssl;
    (void)alert;
    (void)arg;
    for (uint64_t until = now_ms() + atomic_load(&shake_ms); now_ms() < until;)
        ;
    atomic_fetch_add(&shakes, 1);
    return SSL_CLIENT_HELLO_SUCCESS;
}

static SSL_CTX *server_ctx(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    CHECK(ctx != NULL && key != NULL && cert != NULL);
    X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    CHECK_INT(X509_set_pubkey(cert, key), 1);
    CHECK(X509_sign(cert, key, EVP_sha256()) > 0);
    CHECK_INT(SSL_CTX_use_certificate(ctx, cert), 1);
    CHECK_INT(SSL_CTX_use_PrivateKey(ctx, key), 1);
    SSL_CTX_set_client_hello_cb(ctx, on_hello, NULL);
    X509_free(cert);
    EVP_PKEY_free(key);
    return ctx;
}

static void start(struct mn_relay_config config)
{
    int err = 0;
    atomic_store(&shakes, 0);
    relay = mn_relay_create(&config, &err);
    CHECK(relay != NULL);
    atomic_store(&is_over, false);
    atomic_store(&shake_ms, SHAKE_MS);
    CHECK_INT(mn_relay_set_tls(relay, server_ctx()), 0);
    CHECK_INT(mn_relay_listen(relay, listening(&plain_port), false, 0), 0);
    CHECK_INT(mn_relay_listen(relay, listening(&tls_port), true, 0), 0);
    CHECK_INT(mn_relay_start(relay), 0);
    CHECK_INT(pthread_create(&python, NULL, be_python, NULL), 0);
}

static void stop(void)
{
    atomic_store(&is_over, true);
    pthread_join(python, NULL);
    mn_relay_stop(relay);
    mn_relay_destroy(relay);
}

/* ---- clients ---- */

static int dial(uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval tv = {.tv_sec = WAIT_S};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    CHECK_INT(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

static int say(uint16_t port, const char *text)
{
    int fd = dial(port);
    CHECK_INT(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
    return fd;
}

static void key_of(unsigned number, uint8_t key[MN_RELAY_KEY])
{
    memset(key, 0, MN_RELAY_KEY);
    key[0] = 'K';
    key[1] = (uint8_t)number;
}

static int join_as(unsigned number)
{
    uint8_t key[MN_RELAY_KEY];
    int fd = dial(plain_port);
    key_of(number, key);
    CHECK_INT(send(fd, key, sizeof key, MSG_NOSIGNAL), (ssize_t)sizeof key);
    CHECK_INT(recv(fd, key, 1, 0), 1);
    CHECK_INT(key[0], '!');
    return fd;
}

/* One packet from one to the other. */
static void pass(int from, int to, unsigned to_number)
{
    uint8_t frame[FRAME] = {0};
    mn_frame_write_header(frame, MN_FRAME_SEND_PACKET, MN_RELAY_KEY + BODY);
    key_of(to_number, frame + MN_FRAME_HEADER);
    CHECK_INT(send(from, frame, sizeof frame, MSG_NOSIGNAL), (ssize_t)sizeof frame);
    CHECK_INT(recv(to, frame, sizeof frame, MSG_WAITALL), (ssize_t)sizeof frame);
    CHECK_INT(frame[0], MN_FRAME_RECV_PACKET);
}

static bool is_cut(int fd)
{
    uint8_t byte;
    ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    return n == 0 || (n < 0 && errno != EAGAIN);
}

static unsigned count_cut(const int *fds, unsigned n)
{
    unsigned cut = 0;
    for (unsigned i = 0; i < n; i++)
        cut += is_cut(fds[i]);
    return cut;
}

static void close_all(const int *fds, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        close(fds[i]);
}

/* The first flight of a TLS client. */
static void send_hello(int fd, SSL_CTX *ctx)
{
    uint8_t hello[2048];
    SSL *ssl = SSL_new(ctx);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl, in, out);
    SSL_set_connect_state(ssl);
    CHECK(SSL_do_handshake(ssl) != 1);
    int n = BIO_read(out, hello, sizeof hello);
    CHECK(n > 0);
    CHECK_INT(send(fd, hello, (size_t)n, MSG_NOSIGNAL), n);
    SSL_free(ssl);
}

/* ---- tests ---- */

/* While handshakes are due for seconds, a packet waits for a few of them and never for the queue. */
static void test_clients_go_before_handshakes(void)
{
    enum { CROWD = 300, ROUNDS = 7 };
    int crowd[CROWD];
    unsigned waited[ROUNDS], few = 0;
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    start((struct mn_relay_config){0});
    int a = join_as(1), b = join_as(2);
    for (int i = 0; i < CROWD; i++)
        crowd[i] = dial(tls_port);
    AWAIT(stats().half_open == CROWD);
    for (int i = 0; i < CROWD; i++)
        send_hello(crowd[i], ctx);
    for (int i = 0; i < ROUNDS; i++) {
        unsigned before = atomic_load(&shakes);
        pass(a, b, 2);
        waited[i] = atomic_load(&shakes) - before;
        few += waited[i] <= 5;
    }
    CHECK(few > ROUNDS / 2); /* not all: this thread may have had to wait for a processor */
    AWAIT(atomic_load(&shakes) >= CROWD);
    CHECK(stats().lobby_waits > 0);
    close_all(crowd, CROWD);
    SSL_CTX_free(ctx);
    stop();
}

static void test_who_is_greeted_can_be_reached(void)
{
    start((struct mn_relay_config){0});
    int a = join_as(1);
    for (int i = 0; i < 100; i++) {
        int b = join_as(2);
        pass(a, b, 2);
        close(b);
    }
    close(a);
    stop();
}

static void test_half_open_connections_end(void)
{
    enum { CROWD = 300 };
    int crowd[CROWD];
    start((struct mn_relay_config){.login_ms = 300});
    int a = join_as(1), b = join_as(2);
    for (int i = 0; i < CROWD; i++)
        crowd[i] = say(tls_port, "\x16\x03\x01");
    AWAIT(count_cut(crowd, CROWD) == CROWD);
    pass(a, b, 2);
    struct mn_relay_stats s = stats();
    CHECK_INT(s.login_late, CROWD);
    CHECK_INT(s.pending + s.half_open, 0);
    CHECK_INT(s.conns, 2);
    close_all(crowd, CROWD);
    stop();
}

/* One byte now and then makes nobody younger. */
static void test_drips_do_not_help(void)
{
    start((struct mn_relay_config){.login_ms = 300});
    int fd = say(plain_port, "D");
    AWAIT(is_cut(fd) || send(fd, "D", 1, MSG_NOSIGNAL) != 1);
    AWAIT(stats().login_late == 1);
    close(fd);
    stop();
}

static void test_a_half_open_crowd_pushes_out_its_own(void)
{
    enum { MAX = 16, CROWD = 60 };
    int crowd[CROWD];
    start((struct mn_relay_config){.pending_max = MAX});
    int early = say(plain_port, "W");
    AWAIT(stats().pending == 1);
    for (int i = 0; i < CROWD; i++)
        crowd[i] = dial(tls_port);
    AWAIT(stats().accepts == CROWD + 1);
    CHECK_INT(stats().pending, MAX);
    CHECK_INT(stats().crowded_out, CROWD + 1 - MAX);
    CHECK(!is_cut(early));
    CHECK(is_cut(crowd[0]) && !is_cut(crowd[CROWD - 1]));
    close(join_as(1)); /* and who has something to say comes in */
    close(early);
    close_all(crowd, CROWD);
    stop();
}

/* Those who finish their handshake and then dawdle do not keep newcomers out. */
static void test_dawdlers_give_way(void)
{
    enum { MAX = 8 };
    int crowd[MAX];
    start((struct mn_relay_config){.pending_max = MAX});
    for (int i = 0; i < MAX; i++)
        crowd[i] = say(plain_port, "W");
    AWAIT(stats().pending == MAX);
    close(join_as(1));
    AWAIT(is_cut(crowd[0]));
    CHECK_INT(count_cut(crowd, MAX), 1);
    close_all(crowd, MAX);
    stop();
}

static void test_a_full_relay_gives_up_strangers_and_no_clients(void)
{
    enum { MAX = 6 };
    int crowd[MAX], inside[MAX];
    start((struct mn_relay_config){.conns_max = MAX});
    inside[0] = join_as(0);
    for (int i = 0; i < MAX - 1; i++)
        crowd[i] = dial(tls_port);
    AWAIT(stats().conns == MAX);
    for (unsigned i = 1; i < MAX; i++)
        inside[i] = join_as(i);
    AWAIT(count_cut(crowd, MAX - 1) == MAX - 1);
    CHECK_INT(stats().accept_refused, 0);
    int late = dial(plain_port);
    AWAIT(is_cut(late));
    CHECK_INT(stats().accept_refused, 1);
    pass(inside[0], inside[1], 1);
    close(late);
    close_all(crowd, MAX - 1);
    close_all(inside, MAX);
    stop();
}

static void test_limits_of_one_address(void)
{
    int fds[20];
    start((struct mn_relay_config){.per_ip_max = 3});
    int a = join_as(1), b = join_as(2);
    fds[0] = dial(tls_port);
    AWAIT(stats().conns == 3);
    fds[1] = dial(tls_port);
    AWAIT(is_cut(fds[1]));
    CHECK_INT(stats().per_ip_refused, 1);
    CHECK_INT(stats().crowded_out, 0);
    pass(a, b, 2);
    close(fds[0]);
    AWAIT(stats().conns == 2);
    close(join_as(3)); /* room again */
    close_all((int[]){a, b, fds[1]}, 3);
    stop();
    start((struct mn_relay_config){.per_ip_rate = 1, .per_ip_burst = 4});
    for (int i = 0; i < 20; i++)
        fds[i] = dial(tls_port);
    AWAIT(stats().accepts == 20);
    CHECK(stats().per_ip_refused > 0);
    CHECK_INT(stats().conns + stats().per_ip_refused, 20);
    AWAIT(count_cut(fds, 20) == stats().per_ip_refused);
    close_all(fds, 20);
    stop();
}

/* What a client sends beyond its rate waits with it; nothing is lost, and others are not slowed. */
static void test_the_rate_of_one_client(void)
{
    enum { FRAMES = 4000, RATE = 512 << 10, BURST = 64 << 10 };
    uint8_t frame[FRAME] = {0};
    start((struct mn_relay_config){.client_rate = RATE, .client_burst = BURST});
    int a = join_as(1), b = join_as(2);
    uint64_t began = now_ms();
    mn_frame_write_header(frame, MN_FRAME_SEND_PACKET, MN_RELAY_KEY + BODY);
    key_of(2, frame + MN_FRAME_HEADER);
    for (int i = 0; i < FRAMES; i++)
        CHECK_INT(send(a, frame, sizeof frame, MSG_NOSIGNAL), (ssize_t)sizeof frame);
    for (int i = 0; i < FRAMES; i++)
        CHECK_INT(recv(b, frame, sizeof frame, MSG_WAITALL), (ssize_t)sizeof frame);
    uint64_t least = 1000ULL * (sizeof frame * FRAMES - BURST - (128 << 10)) / RATE; /* a read is charged afterwards */
    CHECK(now_ms() - began >= least);
    CHECK(stats().throttled > 0);
    close_all((int[]){a, b}, 2);
    stop();
}

/* Who reads slowly stays, who reads nothing is cut off. */
static void test_slow_readers_and_deaf_ones(void)
{
    static uint8_t bytes[64 << 10];
    struct mn_relay_config config = {.write_stall_ms = 1000};
    uint8_t frame[FRAME] = {0};
    int small = 4096;
    start(config);
    int a = join_as(1), slow = join_as(2), deaf = join_as(3);
    setsockopt(slow, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    mn_frame_write_header(frame, MN_FRAME_SEND_PACKET, MN_RELAY_KEY + BODY);
    for (uint64_t until = now_ms() + WAIT_S * 1000ULL, i = 0; stats().stalled == 0; i++) {
        CHECK(now_ms() < until);
        for (unsigned k = 0; k < 400; k++) {
            key_of(2 + k % 2, frame + MN_FRAME_HEADER);
            CHECK_INT(send(a, frame, sizeof frame, MSG_NOSIGNAL), (ssize_t)sizeof frame);
        }
        (void)recv(slow, bytes, 4096, 0);
    }
    CHECK(is_cut(deaf) || recv(deaf, bytes, sizeof bytes, 0) >= 0);
    CHECK_INT(stats().conns, 2);
    CHECK_INT(stats().stalled, 1);
    close_all((int[]){a, slow, deaf}, 3);
    stop();
}

/* The relay's thread is away for longer than a client may take nothing: it is the relay that was late, not the client.
 */
static void test_a_late_relay_blames_nobody(void)
{
    static uint8_t bytes[64 << 10];
    uint8_t frame[FRAME] = {0};
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    start((struct mn_relay_config){.write_stall_ms = 3000});
    atomic_store(&shake_ms, 4000);
    int a = join_as(1), b = join_as(2), slow = dial(tls_port);
    mn_frame_write_header(frame, MN_FRAME_SEND_PACKET, MN_RELAY_KEY + BODY);
    key_of(2, frame + MN_FRAME_HEADER);
    while (stats().lane_chunks == 0)
        for (int i = 0; i < 1000; i++)
            CHECK_INT(send(a, frame, sizeof frame, MSG_NOSIGNAL), (ssize_t)sizeof frame);
    send_hello(slow, ctx);
    while (atomic_load(&shakes) == 0) {
        (void)recv(b, bytes, sizeof bytes, MSG_DONTWAIT);
        (void)poll(NULL, 0, 1);
    }
    AWAIT(recv(b, bytes, sizeof bytes, MSG_DONTWAIT) < 0 && stats().lane_chunks == 0);
    CHECK_INT(stats().stalled, 0);
    CHECK(!is_cut(b));
    close_all((int[]){a, b, slow}, 3);
    SSL_CTX_free(ctx);
    stop();
}

/* No descriptor can be had: those inside do not notice, nobody spins, and later it goes on. */
static void test_without_descriptors(void)
{
    enum { CROWD = 10 };
    int crowd[CROWD];
    struct rlimit before, none;
    start((struct mn_relay_config){0});
    int a = join_as(1), b = join_as(2);
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    for (int i = 0; i < CROWD; i++)
        crowd[i] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons(plain_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < CROWD; i++)
        CHECK_INT(connect(crowd[i], (struct sockaddr *)&at, sizeof at), 0);
    AWAIT(stats().accept_pauses >= 2);
    uint64_t turns = stats().turns, pauses = stats().accept_pauses, asked = 0;
    for (; stats().accept_pauses < pauses + 3; asked++) {
        pass(a, b, 2);
        (void)poll(NULL, 0, 10);
    }
    CHECK(stats().turns - turns < 100 + 20 * asked); /* a loop that spins makes thousands */
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    uint8_t key[MN_RELAY_KEY];
    key_of(9, key);
    CHECK_INT(send(crowd[0], key, sizeof key, MSG_NOSIGNAL), (ssize_t)sizeof key);
    AWAIT(stats().logins == 3);
    close_all(crowd, CROWD);
    close_all((int[]){a, b}, 2);
    stop();
}

int main(void)
{
    RUN(test_clients_go_before_handshakes);
    RUN(test_who_is_greeted_can_be_reached);
    RUN(test_half_open_connections_end);
    RUN(test_drips_do_not_help);
    RUN(test_a_half_open_crowd_pushes_out_its_own);
    RUN(test_dawdlers_give_way);
    RUN(test_a_full_relay_gives_up_strangers_and_no_clients);
    RUN(test_limits_of_one_address);
    RUN(test_the_rate_of_one_client);
    RUN(test_slow_readers_and_deaf_ones);
    RUN(test_a_late_relay_blames_nobody);
    RUN(test_without_descriptors);
    return 0;
}
