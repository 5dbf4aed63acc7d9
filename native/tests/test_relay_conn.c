/* Connections of a relay under an explicit clock: keep-alives, silent clients, neighbours, and what ends which. */
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../relay/internal.h"
#include "check.h"

enum { STEP_MS = 500, KEPT = 1 << 20 };

static struct mn_relay *g_relay;
static uint8_t g_kept[KEPT];

/* A connection, the far end of its socket, and what it said since the last look. */
struct end {
    int fd;
    uint64_t id;
    uint32_t kinds[256];
    bool is_over;
};

static void start(void)
{
    struct mn_relay_config config = {.memory_max = 1 << 20};
    int err = 0;
    g_relay = mn_relay_create(&config, &err);
    CHECK(g_relay != NULL);
    g_relay->now_ms = 1000;
    g_relay->now_ns = 1000000000;
    mn_wheel_init(&g_relay->wheel, g_relay->now_ns);
}

static struct mn_relay_conn *conn_of(const struct end *e)
{
    return mn_relay_conn_of(g_relay, e->id);
}

static struct end join(uint8_t name, uint32_t flags)
{
    struct end e = {.id = atomic_fetch_add(&g_relay->ids, 1)};
    struct mn_relay_command login = {.number = flags, .fd = -1};
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    struct mn_relay_conn *c = mn_relay_conn_adopt(g_relay, pair[0], NULL, NULL, e.id);
    CHECK(c != NULL);
    memset(login.key, name, sizeof login.key);
    mn_relay_conn_start_frames(g_relay, c, &login);
    e.fd = pair[1];
    return e;
}

static void fire(void *ctx, struct mn_timer *t, uint64_t now_ns)
{
    (void)now_ns;
    mn_relay_conn_on_timer(ctx, (struct mn_relay_conn *)((char *)t - offsetof(struct mn_relay_conn, timer)));
}

/* What the relay said; each kind is counted. */
static void look(struct end *e)
{
    memset(e->kinds, 0, sizeof e->kinds);
    ssize_t n = read(e->fd, g_kept, KEPT);
    e->is_over = e->is_over || n == 0;
    struct mn_frame f;
    for (ssize_t at = 0; at < n; at += MN_FRAME_HEADER + f.len) {
        CHECK_INT(mn_frame_next(g_kept + at, (size_t)(n - at), &f), MN_FRAME_WHOLE);
        e->kinds[f.kind]++;
    }
}

static void pass(struct end *ends, int count, uint64_t ms)
{
    g_relay->now_ms += ms;
    g_relay->now_ns = g_relay->now_ms * 1000000;
    mn_wheel_advance(&g_relay->wheel, g_relay->now_ns, fire, g_relay);
    for (int i = 0; i < count; i++)
        mn_relay_conn_serve(g_relay, ends[i].id, EPOLLIN);
    mn_relay_conn_flush_dirty(g_relay);
    mn_relay_conn_free_dead(g_relay);
    for (struct mn_relay_event *ev = mn_relay_take(g_relay), *next; ev != NULL; ev = next) {
        next = ev->next;
        free(ev);
    }
}

static void say(const struct end *e, uint8_t kind, uint8_t to, size_t len)
{
    uint8_t frame[MN_FRAME_HEADER + MN_RELAY_KEY + 100];
    mn_frame_write_header(frame, kind, (uint32_t)len);
    memset(frame + MN_FRAME_HEADER, to, len);
    CHECK(send(e->fd, frame, MN_FRAME_HEADER + len, MSG_NOSIGNAL) == (ssize_t)(MN_FRAME_HEADER + len));
}

static void stop(struct end *ends, int count)
{
    for (int i = 0; i < count; i++) {
        if (conn_of(&ends[i]) != NULL)
            mn_relay_conn_stop(g_relay, conn_of(&ends[i]), MN_WHY_ASKED);
        close(ends[i].fd);
    }
    mn_relay_conn_free_dead(g_relay);
    CHECK_INT(g_relay->stats.conns, 0);
    mn_relay_destroy(g_relay);
}

/* Ten minutes: one at least each 65 seconds and no two within 60, whatever else is sent. */
static void test_keep_alives_whatever_else_is_sent(void)
{
    start();
    struct end e[] = {join('a', MN_OPEN_ACKS_PINGS), join('b', 0)};
    uint64_t since = g_relay->now_ms, count = 0, packets = 0;
    while (g_relay->now_ms < 600000) {
        say(&e[0], MN_FRAME_SEND_PACKET, 'b', MN_RELAY_KEY + 20);
        pass(e, 2, STEP_MS);
        look(&e[0]);
        look(&e[1]);
        packets += e[1].kinds[MN_FRAME_RECV_PACKET];
        if (e[1].kinds[MN_FRAME_KEEP_ALIVE] > 0) {
            CHECK_INT(e[1].kinds[MN_FRAME_KEEP_ALIVE], 1);
            CHECK(g_relay->now_ms - since >= 60000 - STEP_MS && g_relay->now_ms - since <= 65000 + STEP_MS);
            since = g_relay->now_ms;
            count++;
        }
        CHECK(g_relay->now_ms - since <= 65000 + STEP_MS);
        CHECK_INT(e[0].kinds[MN_FRAME_PING], 0); /* who speaks is not asked whether it lives */
    }
    CHECK(count >= 9 && packets >= 1100);
    stop(e, 2);
}

/* Who answers pings is asked after 45 silent seconds and gone after 60; who does not, stays. */
static void test_the_silent_are_asked_and_let_go(void)
{
    start();
    struct end e[] = {join('a', MN_OPEN_ACKS_PINGS), join('b', MN_OPEN_ACKS_PINGS), join('c', 0)};
    uint32_t asked[3] = {0}, gone_ms = 0;
    while (g_relay->now_ms < 1000 + 300000) {
        pass(e, 3, STEP_MS);
        for (int i = 0; i < 3; i++) {
            look(&e[i]);
            asked[i] += e[i].kinds[MN_FRAME_PING];
        }
        if (e[0].kinds[MN_FRAME_PING] > 0)
            say(&e[0], MN_FRAME_PONG, 1, MN_RELAY_PING);
        if (e[1].is_over && gone_ms == 0)
            gone_ms = (uint32_t)g_relay->now_ms;
    }
    CHECK(asked[0] >= 5 && asked[0] <= 7 && !e[0].is_over);
    CHECK_INT(asked[1], 1);
    CHECK(gone_ms >= 61000 && gone_ms <= 61000 + 2 * STEP_MS);
    CHECK_INT(g_relay->stats.silent, 1);
    CHECK(asked[2] == 0 && !e[2].is_over);
    stop(e, 3);
}

/* A neighbour is another relay: it answers pings, and one that is silent for a minute has no clients any more. */
static void test_a_silent_neighbour_is_lost_with_all_it_had(void)
{
    uint8_t far[MN_RELAY_KEY];
    start();
    struct end e[] = {join('n', MN_OPEN_NEIGHBOUR | MN_OPEN_ACKS_PINGS)};
    memset(far, 'f', sizeof far);
    say(&e[0], MN_FRAME_PEER_PRESENT, 'f', MN_RELAY_KEY);
    pass(e, 1, STEP_MS);
    CHECK_INT(g_relay->hub.stats.keys_remote, 1);
    for (int i = 0; i < 100; i++)
        pass(e, 1, STEP_MS);
    look(&e[0]);
    CHECK_INT(e[0].kinds[MN_FRAME_PING], 1);
    for (int i = 0; i < 30; i++)
        pass(e, 1, STEP_MS);
    look(&e[0]);
    CHECK(e[0].is_over);
    CHECK_INT(g_relay->hub.stats.keys_remote, 0);
    stop(e, 1);
}

/* A batch of many frames, and one frame longer than any message: stock ends read 32 KiB of one and no more. */
static void test_websocket_messages_are_short(void)
{
    enum { COUNT = 60, LEN = 1300, LONG = 65000 };
    static uint8_t packet[LONG];
    start();
    struct end e[] = {join('a', 0), join('b', 0)};
    struct mn_relay_conn *b = conn_of(&e[1]);
    b->websocket = malloc(sizeof *b->websocket);
    CHECK(b->websocket != NULL);
    mn_ws_start(b->websocket, true);
    struct mn_websocket client;
    mn_ws_start(&client, false);
    for (int i = 0; i <= COUNT; i++)
        mn_hub_send(&g_relay->hub, &conn_of(&e[0])->client, b->client.key, packet, i == COUNT ? LONG : LEN,
                    (uint32_t)g_relay->now_ms);
    size_t longest = 0, kept = 0, frames = 0, bytes = 0;
    for (int turn = 0; turn < 100; turn++) {
        pass(e, 2, 1);
        ssize_t n = read(e[1].fd, g_kept + kept, 4096);
        for (ssize_t at = 0; at < n; at++) { /* byte by byte, so that every header is seen */
            uint8_t one = g_kept[kept + (size_t)at];
            longest = client.left > longest ? (size_t)client.left : longest;
            ptrdiff_t k = mn_ws_decode(&client, &one, 1);
            CHECK(k >= 0 && !client.is_closed);
            if (k == 1)
                g_kept[kept + bytes++] = one;
        }
        size_t end = kept + bytes, from = 0;
        struct mn_frame f;
        for (; mn_frame_next(g_kept + from, end - from, &f) == MN_FRAME_WHOLE; from += MN_FRAME_HEADER + f.len)
            frames += f.kind == MN_FRAME_RECV_PACKET;
        memmove(g_kept, g_kept + from, end - from);
        kept = end - from;
        bytes = 0;
        if (conn_of(&e[1])->stream.left != NULL)
            mn_relay_conn_on_writable(g_relay, conn_of(&e[1]));
    }
    CHECK_INT(frames, COUNT + 1);
    CHECK(longest <= MN_WS_MESSAGE_MAX && longest > MN_WS_MESSAGE_MAX / 2);
    stop(e, 2);
}

int main(void)
{
    RUN(test_keep_alives_whatever_else_is_sent);
    RUN(test_the_silent_are_asked_and_let_go);
    RUN(test_a_silent_neighbour_is_lost_with_all_it_had);
    RUN(test_websocket_messages_are_short);
    return 0;
}
