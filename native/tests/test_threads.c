/* Engines with their threads under everything other threads may do at once: commands from many, questions, events
 * taken, bytes both ways, sockets renewed, stop in the middle of it. What it proves it proves under ThreadSanitizer. */
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine_pair.h"

enum { ROUNDS = 3, CLIENTS = 6, BYTES = (1 << 20) / MN_TEST_SLOW, NOISES = 3, NOISE_STEPS = 400, RECORDS = 256 };

static struct engine_pair pair;
static uint8_t keys[2][32];
static uint16_t ports[2];

/* Where event threads leave what clients wait for. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int connected[CLIENTS + 2]; /* descriptor + 1; -1: failed */
    atomic_bool is_over;
} board = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static pthread_t spawn(void *(*body)(void *), void *arg)
{
    pthread_t t;
    CHECK_INT(pthread_create(&t, NULL, body, arg), 0);
    return t;
}

/* ---- what the applications do ---- */

static void *echo(void *arg)
{
    int fd = (int)(intptr_t)arg;
    uint8_t buf[8192];
    for (ssize_t n; (n = recv(fd, buf, sizeof buf, 0)) > 0;)
        for (ssize_t at = 0, w = 0; at < n; at += w)
            if ((w = send(fd, buf + at, (size_t)(n - at), MSG_NOSIGNAL)) <= 0)
                break;
    close(fd);
    return NULL;
}

static void *send_all(void *arg)
{
    int fd = (int)(intptr_t)arg;
    uint8_t buf[4096];
    for (size_t at = 0; at < BYTES;) {
        for (size_t i = 0; i < sizeof buf; i++)
            buf[i] = (uint8_t)((at + i) * 13 + (at + i) / 251);
        ssize_t n = send(fd, buf, sizeof buf, MSG_NOSIGNAL);
        CHECK(n > 0);
        at += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    return NULL;
}

/* One connection: everything sent comes back as it was. */
static void *client(void *arg)
{
    uint64_t req = (uint64_t)(uintptr_t)arg;
    uint8_t buf[8192];
    pair_connect_to_b(&pair, req);
    pthread_mutex_lock(&board.lock);
    while (board.connected[req] == 0)
        pthread_cond_wait(&board.changed, &board.lock);
    int fd = board.connected[req] - 1;
    pthread_mutex_unlock(&board.lock);
    CHECK(fd >= 0);
    pthread_t sender = spawn(send_all, (void *)(intptr_t)fd);
    size_t got = 0;
    for (ssize_t n; (n = recv(fd, buf, sizeof buf, 0)) > 0;)
        for (ssize_t i = 0; i < n; i++, got++)
            CHECK_INT(buf[i], (uint8_t)(got * 13 + got / 251));
    CHECK_INT(got, BYTES);
    pthread_join(sender, NULL);
    close(fd);
    return NULL;
}

/* ---- what Python's side does ---- */

static void post(uint64_t req, int value)
{
    pthread_mutex_lock(&board.lock);
    board.connected[req] = value;
    pthread_cond_broadcast(&board.changed);
    pthread_mutex_unlock(&board.lock);
}

static void serve(const struct mn_event *ev)
{
    pthread_t t;
    if (ev->kind == MN_EV_ACCEPTED || ev->kind == MN_EV_CONNECTED)
        CHECK_INT(fcntl(ev->fd, F_SETFL, 0), 0); /* these applications may wait */
    if (ev->kind == MN_EV_ACCEPTED) {
        t = spawn(echo, (void *)(intptr_t)ev->fd);
        pthread_detach(t);
    } else if (ev->kind == MN_EV_CONNECTED) {
        post(ev->req, ev->fd + 1);
    } else if (ev->kind == MN_EV_CONNECT_FAILED) {
        post(ev->req, -1);
    }
}

static void *take_events(void *arg)
{
    struct mn_events *q = mn_engine_events(arg);
    uint8_t *buf = malloc(2 * MN_EVENT_RECORD_MAX);
    CHECK(buf != NULL);
    for (bool last = false; !last;) {
        struct pollfd p = {.fd = q->fd, .events = POLLIN};
        last = atomic_load(&board.is_over);
        (void)poll(&p, 1, 10);
        size_t n = 1;
        while (n > 0) {
            size_t used = mn_events_take(q, buf, 2 * MN_EVENT_RECORD_MAX, RECORDS, &n);
            for (size_t at = 0; at < used;) {
                struct mn_event ev;
                memcpy(&ev, buf + at, sizeof ev);
                serve(&ev);
                at += mn_event_size(&ev);
            }
        }
    }
    free(buf);
    return NULL;
}

static void disturb(int side, unsigned step)
{
    struct mn_answer answer;
    struct mn_command cmd = {0};
    switch (step % 9) {
    case 0:
        cmd.kind = MN_CMD_STATS;
        CHECK_INT(mn_engine_call(pair.e[side], &cmd, &answer), 0);
        return;
    case 1:
        cmd.kind = MN_CMD_PEER_STATS;
        memcpy(cmd.key, keys[1 - side], 32);
        CHECK_INT(mn_engine_call(pair.e[side], &cmd, &answer), 0);
        return;
    case 2:
        cmd = pair_filter();
        CHECK_INT(mn_engine_call(pair.e[side], &cmd, &answer), 0);
        return;
    case 3:
        cmd = pair_path(keys[1 - side], ports[1 - side]);
        break;
    case 4:
        cmd = pair_upsert(keys[1 - side], 1 - side);
        break;
    case 5:
        cmd.kind = MN_CMD_KICK;
        memcpy(cmd.key, keys[1 - side], 32);
        break;
    case 6:
        cmd.kind = MN_CMD_PING;
        cmd.req = step + 1;
        cmd.ep.ip = pair_address(1 - side);
        break;
    case 7:
        cmd.kind = MN_CMD_SET_OFFLOADS;
        cmd.mode = (uint8_t)(step % MN_GSO_MODES);
        break;
    default:
        cmd.kind = MN_CMD_REBIND;
        if (step % 81 != 8) /* each loses what waits in the old socket */
            return;
        break;
    }
    CHECK_INT(mn_engine_push(pair.e[side], &cmd), 0);
    CHECK_INT(mn_engine_port(pair.e[side], MN_SOCK_V4), ports[side]);
    CHECK_INT(mn_engine_state(pair.e[side]), MN_ENGINE_RUNNING);
}

static void *noise(void *arg)
{
    unsigned first = (unsigned)(uintptr_t)arg;
    for (unsigned step = 0; step < NOISE_STEPS / MN_TEST_SLOW; step++)
        disturb((int)(step + first) % 2, step + first * 3);
    return NULL;
}

/* A last connection that nobody finishes: the engines stop under it. */
static void *endless(void *arg)
{
    uint8_t buf[4096] = {0};
    int fd = (int)(intptr_t)arg;
    while (send(fd, buf, sizeof buf, MSG_NOSIGNAL) > 0 && recv(fd, buf, sizeof buf, 0) > 0)
        ;
    close(fd);
    return NULL;
}

static pthread_t start_endless(void)
{
    pair_connect_to_b(&pair, CLIENTS + 1);
    pthread_mutex_lock(&board.lock);
    while (board.connected[CLIENTS + 1] == 0)
        pthread_cond_wait(&board.changed, &board.lock);
    int fd = board.connected[CLIENTS + 1] - 1;
    pthread_mutex_unlock(&board.lock);
    CHECK(fd >= 0);
    return spawn(endless, (void *)(intptr_t)fd);
}

static void *stop_it(void *arg)
{
    CHECK(mn_engine_stop(arg, 10));
    return NULL;
}

static void test_everything_at_once(void)
{
    pthread_t clients[CLIENTS], noises[NOISES], takers[2], stoppers[2];
    memset(board.connected, 0, sizeof board.connected);
    atomic_store(&board.is_over, false);
    engine_pair_start(&pair);
    for (int side = 0; side < 2; side++) {
        pair_key(&pair, side, keys[side]);
        ports[side] = mn_engine_port(pair.e[side], MN_SOCK_V4);
    }
    for (int side = 0; side < 2; side++) {
        CHECK_INT(mn_engine_start(pair.e[side]), 0);
        takers[side] = spawn(take_events, pair.e[side]);
    }
    for (uintptr_t i = 0; i < NOISES; i++)
        noises[i] = spawn(noise, (void *)i);
    for (uintptr_t i = 0; i < CLIENTS; i++)
        clients[i] = spawn(client, (void *)(i + 1));
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(clients[i], NULL);
    for (int i = 0; i < NOISES; i++)
        pthread_join(noises[i], NULL);
    pthread_t last = start_endless();
    for (int side = 0; side < 2; side++)
        stoppers[side] = spawn(stop_it, pair.e[side]);
    for (int side = 0; side < 2; side++)
        pthread_join(stoppers[side], NULL);
    pthread_join(last, NULL);
    atomic_store(&board.is_over, true);
    for (int side = 0; side < 2; side++)
        pthread_join(takers[side], NULL);
    for (int side = 0; side < 2; side++)
        mn_engine_destroy(pair.e[side]);
}

/* Engines that live for a moment: thread and memory go together, and a push may come late. */
static void test_short_lives(void)
{
    for (int i = 0; i < 20; i++) {
        engine_pair_start(&pair);
        for (int side = 0; side < 2; side++)
            CHECK_INT(mn_engine_start(pair.e[side]), 0);
        pair_connect_to_b(&pair, 1);
        for (int side = 0; side < 2; side++)
            CHECK(mn_engine_stop(pair.e[side], 10));
        struct mn_command late = {.kind = MN_CMD_KICK};
        (void)mn_engine_push(pair.e[PAIR_A], &late);
        for (int side = 0; side < 2; side++)
            mn_engine_destroy(pair.e[side]);
    }
}

int main(void)
{
    for (int round = 0; round < ROUNDS; round++)
        RUN(test_everything_at_once);
    RUN(test_short_lives);
    return 0;
}
