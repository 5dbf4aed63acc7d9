/* The relay with its thread under everything other threads may do at once: logins, frames both ways, clients that
 * vanish, keys cut off, questions, tells, another certificate, stop in the middle of it. What it proves it proves under
 * ThreadSanitizer. Clients are bare sockets: 32 bytes of key are their whole login. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../relay/frame.h"
#include "../relay/relay.h"
#include "check.h"

enum { ROUNDS = 3, PAIRS = 4, FRAMES = 2000 / MN_TEST_SLOW, NOISE_STEPS = 200, LEN = 200 };

static struct mn_relay *relay;
static uint16_t port;
static atomic_bool is_over;
static atomic_uint events_taken;

static pthread_t spawn(void *(*body)(void *), void *arg)
{
    pthread_t t;
    CHECK_INT(pthread_create(&t, NULL, body, arg), 0);
    return t;
}

static int listening(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK_INT(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_INT(listen(fd, 64), 0);
    CHECK_INT(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    port = ntohs(at.sin_port);
    return fd;
}

static int dial(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0)
        return fd;
    close(fd);
    return -1;
}

static void key_of(unsigned number, uint8_t key[MN_RELAY_KEY])
{
    memset(key, 0, MN_RELAY_KEY);
    key[0] = (uint8_t)number;
    key[1] = 1;
}

/* ---- Python's part: whoever sends a key is let in ---- */

static void *admit(void *arg)
{
    (void)arg;
    while (!atomic_load(&is_over)) {
        struct pollfd wait = {.fd = mn_relay_fd(relay), .events = POLLIN};
        (void)poll(&wait, 1, 20);
        for (struct mn_relay_event *ev = mn_relay_take(relay), *next; ev != NULL; ev = next) {
            next = ev->next;
            atomic_fetch_add(&events_taken, 1);
            if (ev->kind == MN_RELAY_EV_DATA && ev->len >= MN_RELAY_KEY)
                (void)mn_relay_open(relay, ev->conn, ev->data, 0, NULL, 0, ev->data + MN_RELAY_KEY,
                                    ev->len - MN_RELAY_KEY);
            else if (ev->kind == MN_RELAY_EV_DATA)
                (void)mn_relay_close(relay, ev->conn, true);
            free(ev);
        }
    }
    return NULL;
}

/* ---- clients ---- */

static bool send_all(int fd, const uint8_t *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t k = send(fd, p + at, n - at, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        at += (size_t)k;
    }
    return true;
}

static bool read_all(int fd, uint8_t *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t k = recv(fd, p + at, n - at, 0);
        if (k <= 0)
            return false;
        at += (size_t)k;
    }
    return true;
}

static int join_as(unsigned number)
{
    uint8_t key[MN_RELAY_KEY];
    int fd = dial();
    CHECK(fd >= 0);
    key_of(number, key);
    CHECK(send_all(fd, key, sizeof key));
    return fd;
}

static void put_frame(uint8_t out[MN_FRAME_HEADER + MN_RELAY_KEY + LEN], unsigned to, unsigned number)
{
    mn_frame_write_header(out, MN_FRAME_SEND_PACKET, MN_RELAY_KEY + LEN);
    key_of(to, out + MN_FRAME_HEADER);
    memset(out + MN_FRAME_HEADER + MN_RELAY_KEY, (int)(number & 0xff), LEN);
}

/* The next packet's number; -1: the connection is over. */
static int next_packet(int fd)
{
    uint8_t head[MN_FRAME_HEADER], body[4096];
    for (;;) {
        if (!read_all(fd, head, sizeof head))
            return -1;
        uint32_t len = (uint32_t)head[1] << 24 | (uint32_t)head[2] << 16 | (uint32_t)head[3] << 8 | head[4];
        CHECK(len <= sizeof body);
        if (!read_all(fd, body, len))
            return -1;
        if (head[0] == MN_FRAME_RECV_PACKET) {
            CHECK_INT(len, MN_RELAY_KEY + LEN);
            CHECK_INT(body[MN_RELAY_KEY], body[len - 1]);
            return body[MN_RELAY_KEY];
        }
    }
}

/* Ping-pong between two keys: nothing is lost and nothing is mixed up, whatever else goes on. */
static void *pair(void *arg)
{
    unsigned a = 2 * (unsigned)(uintptr_t)arg + 10, b = a + 1;
    int fds[2] = {join_as(a), join_as(b)};
    uint8_t frame[MN_FRAME_HEADER + MN_RELAY_KEY + LEN];
    bool is_in = false;
    struct timeval tv = {.tv_usec = 100000};
    setsockopt(fds[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    for (int tries = 0; !is_in; tries++) { /* until both are logged in */
        CHECK(tries < 200);
        put_frame(frame, b, 255);
        CHECK(send_all(fds[0], frame, sizeof frame));
        is_in = next_packet(fds[1]) == 255;
    }
    tv.tv_usec = 0;
    tv.tv_sec = 20;
    setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    setsockopt(fds[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    for (unsigned i = 0; i < FRAMES; i++) {
        unsigned from = i & 1;
        put_frame(frame, from == 0 ? b : a, i % 200);
        CHECK(send_all(fds[from], frame, sizeof frame));
        int got;
        while ((got = next_packet(fds[1 - from])) == 255)
            ; /* one of the first that came late */
        CHECK_INT(got, i % 200);
    }
    close(fds[0]);
    close(fds[1]);
    return NULL;
}

/* ---- noise ---- */

static void *come_and_go(void *arg)
{
    unsigned number = 100 + (unsigned)(uintptr_t)arg;
    uint8_t frame[MN_FRAME_HEADER + MN_RELAY_KEY + LEN], key[MN_RELAY_KEY];
    for (unsigned i = 0; i < NOISE_STEPS / 4 && !atomic_load(&is_over); i++) {
        struct timeval tv = {.tv_usec = 50000};
        int fd = dial();
        if (fd < 0)
            continue;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
        key_of(number, key);
        put_frame(frame, number + (i & 1), i);
        if (send_all(fd, key, i % 7 == 0 ? 5 : sizeof key))
            (void)send_all(fd, frame, i % 3 == 0 ? 20 : sizeof frame);
        if (i % 5 == 0)
            (void)next_packet(fd);
        close(fd);
    }
    return NULL;
}

static void *ask(void *arg)
{
    uint8_t key[MN_RELAY_KEY];
    struct mn_relay_stats stats;
    struct mn_relay_client_info clients[64];
    for (unsigned i = 0; i < NOISE_STEPS && !atomic_load(&is_over); i++) {
        if (mn_relay_stats(relay, &stats) != 0)
            break;
        (void)mn_relay_clients(relay, clients, 64);
        key_of(100 + i % 4, key);
        (void)mn_relay_close_key(relay, key);
        (void)mn_relay_tell(relay, 0, MN_FRAME_KEEP_ALIVE, NULL, 0);
        (void)mn_relay_write(relay, 1000000 + i, (const uint8_t *)"x", 1);
        (void)mn_relay_close(relay, 1000000 + i, true);
    }
    return arg;
}

static void round_of(bool stops_in_the_middle)
{
    int err = 0;
    struct mn_relay_config config = {.login_ms = 3000};
    relay = mn_relay_create(&config, &err);
    CHECK(relay != NULL);
    atomic_store(&is_over, false);
    CHECK_INT(mn_relay_listen(relay, listening(), false, 0), 0);
    CHECK_INT(mn_relay_start(relay), 0);
    pthread_t admitting = spawn(admit, NULL), asking = spawn(ask, NULL), noise[2], pairs[PAIRS];
    for (uintptr_t i = 0; i < 2; i++)
        noise[i] = spawn(come_and_go, (void *)(2 * i));
    if (!stops_in_the_middle) {
        for (uintptr_t i = 0; i < PAIRS; i++)
            pairs[i] = spawn(pair, (void *)i);
        for (int i = 0; i < PAIRS; i++)
            pthread_join(pairs[i], NULL);
    } else {
        while (atomic_load(&events_taken) < 20) {
            struct mn_relay_stats stats;
            CHECK_INT(mn_relay_stats(relay, &stats), 0);
        }
    }
    if (stops_in_the_middle)
        mn_relay_stop(relay);
    pthread_join(asking, NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(noise[i], NULL);
    atomic_store(&is_over, true);
    pthread_join(admitting, NULL);
    mn_relay_stop(relay);
    mn_relay_destroy(relay);
}

static void test_everything_at_once(void)
{
    for (int i = 0; i < ROUNDS; i++)
        round_of(false);
}

static void test_stop_in_the_middle(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        atomic_store(&events_taken, 0);
        round_of(true);
    }
}

int main(void)
{
    RUN(test_everything_at_once);
    RUN(test_stop_in_the_middle);
    return 0;
}
