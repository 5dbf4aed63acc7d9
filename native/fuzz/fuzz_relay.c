/* A relay's frames, routing and WebSocket decoder: bytes to several connections at once, in any order and any pieces.
 *
 * The connections are socket pairs without TLS, the clock is the input's, and no thread runs: what comes out is read
 * at the other end and must be whole frames that a relay may say. In the end nothing is left over. */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../relay/internal.h"
#include "../tests/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { CONNS = 7, MESH = 3, NEIGHBOUR = 4, WEBSOCKET = 5, RAW = 6, MEMORY = 1 << 20 };
enum { FAR_KEPT = 128 << 10, BIG = 66000 };

struct far {
    int fd;
    uint64_t id;
    uint8_t kept[FAR_KEPT]; /* what the relay said, not a whole frame yet */
    size_t kept_len;
};

struct world {
    struct mn_relay *relay;
    struct far far[CONNS];
};

static struct mn_relay_conn *conn_of(const struct world *w, int i)
{
    return mn_relay_conn_of(w->relay, w->far[i].id);
}

/* Keys 0 and 1 belong to two connections each. */
static void write_key(uint8_t key[MN_RELAY_KEY], int i)
{
    memset(key, 0x40 + i % 5, MN_RELAY_KEY);
}

static void join(struct world *w, int i)
{
    static const uint32_t flags[CONNS] = {
        [0] = MN_OPEN_ACKS_PINGS,
        [1] = MN_OPEN_PROBER,
        [2] = MN_OPEN_NOT_IDEAL,
        [MESH] = MN_OPEN_MESH,
        [NEIGHBOUR] = MN_OPEN_MESH | MN_OPEN_NEIGHBOUR,
        [WEBSOCKET] = MN_OPEN_WEBSOCKET,
    };
    struct mn_relay_command login = {.number = flags[i], .fd = -1};
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    w->far[i].fd = pair[1];
    w->far[i].id = atomic_fetch_add(&w->relay->ids, 1);
    w->far[i].kept_len = 0;
    struct mn_relay_conn *c = mn_relay_conn_adopt(w->relay, pair[0], NULL, NULL, w->far[i].id);
    CHECK(c != NULL);
    if (i == RAW)
        return;
    if (i == WEBSOCKET) {
        c->websocket = malloc(sizeof *c->websocket);
        CHECK(c->websocket != NULL);
        mn_ws_start(c->websocket, true);
    }
    write_key(login.key, i);
    mn_relay_conn_start_frames(w->relay, c, &login);
}

static bool may_be_said(const struct mn_frame *f)
{
    switch (f->kind) {
    case MN_FRAME_RECV_PACKET:
        return f->len >= MN_RELAY_KEY && f->len <= MN_RELAY_KEY + MN_RELAY_PACKET_MAX;
    case MN_FRAME_FORWARD_PACKET:
        return f->len >= 2 * MN_RELAY_KEY;
    case MN_FRAME_KEEP_ALIVE:
        return f->len == 0;
    case MN_FRAME_PEER_GONE:
        return f->len == MN_RELAY_KEY + 1;
    case MN_FRAME_PEER_PRESENT:
        return f->len == MN_RELAY_KEY + 19;
    case MN_FRAME_PING:
    case MN_FRAME_PONG:
        return f->len == MN_RELAY_PING;
    default:
        return f->kind == MN_FRAME_HEALTH;
    }
}

/* Read what the relay said to one of them. */
static void listen_to(struct world *w, int i)
{
    struct far *far = &w->far[i];
    ssize_t n;
    while (far->fd >= 0 && (n = read(far->fd, far->kept + far->kept_len, FAR_KEPT - far->kept_len)) > 0) {
        size_t end = far->kept_len + (size_t)n, at = 0;
        struct mn_frame f;
        while (i != WEBSOCKET && mn_frame_next(far->kept + at, end - at, &f) == MN_FRAME_WHOLE) {
            CHECK(may_be_said(&f));
            at += MN_FRAME_HEADER + f.len;
        }
        far->kept_len = i == WEBSOCKET ? 0 : end - at;
        CHECK(far->kept_len < MN_FRAME_HEADER + MN_RELAY_FRAME_MAX);
        memmove(far->kept, far->kept + at, far->kept_len);
    }
}

static void leave(struct world *w, int i)
{
    if (w->far[i].fd >= 0)
        close(w->far[i].fd);
    w->far[i].fd = -1;
}

static void end_turn(struct world *w)
{
    struct mn_relay *r = w->relay;
    for (int i = 0; i < CONNS; i++)
        mn_relay_conn_serve(r, w->far[i].id, EPOLLIN);
    mn_lobby_keep_time(r);
    mn_relay_conn_flush_dirty(r);
    mn_relay_conn_free_dead(r);
    for (struct mn_relay_event *ev = mn_relay_take(r), *next; ev != NULL; ev = next) {
        next = ev->next;
        free(ev);
    }
    CHECK(r->hub.chunks.used <= r->hub.chunks.max);
}

static void pass_time(struct world *w, uint64_t ms)
{
    struct mn_relay *r = w->relay;
    r->now_ms += ms;
    r->now_ns = r->now_ms * 1000000;
    for (int i = 0; i < CONNS; i++) {
        struct mn_relay_conn *c = conn_of(w, i);
        if (c != NULL)
            mn_relay_conn_on_timer(r, c);
    }
}

static void say(const struct world *w, int i, const uint8_t *p, size_t n)
{
    if (w->far[i].fd >= 0)
        (void)send(w->far[i].fd, p, n, MSG_NOSIGNAL); /* a full pipe cuts a frame short: all the better */
}

/* One frame with a key of ours in front, and as long as it likes. */
static void say_frame(const struct world *w, int i, uint8_t kind, uint8_t size, uint8_t keys)
{
    static uint8_t frame[MN_FRAME_HEADER + BIG], mask[4] = {1, 2, 3, 4};
    static uint8_t message[MN_WS_HEADER_MAX + sizeof frame];
    size_t n = size < 200 ? size : (size - 199U) * 1175U;
    mn_frame_write_header(frame, kind, (uint32_t)n);
    memset(frame + MN_FRAME_HEADER, size, n);
    uint8_t key[2 * MN_RELAY_KEY];
    write_key(key, keys & 7);
    write_key(key + MN_RELAY_KEY, keys >> 3 & 7);
    memcpy(frame + MN_FRAME_HEADER, key, n < sizeof key ? n : sizeof key);
    if (n > 70 && (keys & 0x80) != 0)
        memcpy(frame + MN_FRAME_HEADER + MN_RELAY_KEY, "TS\xf0\x9f\x92\xac", 6);
    n += MN_FRAME_HEADER;
    if (i != WEBSOCKET) {
        say(w, i, frame, n);
        return;
    }
    size_t head = mn_ws_header(message, 2, n, mask);
    memcpy(message + head, frame, n);
    mn_ws_mask(message + head, n, mask);
    say(w, i, message, head + n);
}

static void run(struct world *w, const uint8_t *p, size_t n)
{
    while (n >= 2) {
        int i = (p[0] & 7) % CONNS;
        uint8_t what = p[0] >> 3;
        size_t used = 2, k;
        if (what < 8) {
            k = p[1] < n - 2 ? p[1] : n - 2;
            say(w, i, p + 2, k);
            used += k;
        } else if (what < 20 && n >= 4) {
            say_frame(w, i, p[1], p[2], p[3]);
            used = 4;
        } else if (what < 24) {
            pass_time(w, p[1] < 128 ? p[1] : (p[1] - 127U) * 1000U);
        } else if (what < 28) {
            listen_to(w, i);
        } else if (conn_of(w, i) == NULL || what == 28) {
            leave(w, i);
            end_turn(w);
            if (conn_of(w, i) == NULL)
                join(w, i);
        } else if (what == 29 && conn_of(w, i) != NULL) {
            mn_relay_conn_stop(w->relay, conn_of(w, i), MN_WHY_ASKED);
        } else if (what == 30 && conn_of(w, i) != NULL) {
            mn_relay_conn_on_writable(w->relay, conn_of(w, i));
        }
        if ((p[0] & 0x18) != 0x18)
            end_turn(w);
        p += used;
        n -= used;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct world w;
    int err = 0;
    struct mn_relay_config config = {.memory_max = MEMORY, .client_rate = len % 5 == 1 ? 100000 : 0};
    w.relay = mn_relay_create(&config, &err);
    CHECK(w.relay != NULL);
    w.relay->now_ms = 1000;
    w.relay->now_ns = 1000000000;
    mn_wheel_init(&w.relay->wheel, w.relay->now_ns);
    for (int i = 0; i < CONNS; i++)
        join(&w, i);
    run(&w, data, len);
    end_turn(&w);
    for (int i = 0; i < CONNS; i++) {
        listen_to(&w, i);
        leave(&w, i);
    }
    for (int i = 0; i < CONNS; i++)
        if (conn_of(&w, i) != NULL)
            mn_relay_conn_stop(w.relay, conn_of(&w, i), MN_WHY_ASKED);
    mn_relay_conn_free_dead(w.relay);
    const struct mn_hub *h = &w.relay->hub;
    CHECK_INT(w.relay->stats.conns, 0);
    CHECK_INT(w.relay->stats.pending, 0);
    CHECK_INT(h->stats.clients, 0);
    CHECK_INT(h->stats.met, 0);
    CHECK_INT(h->stats.watchers, 0);
    CHECK_INT(h->stats.homes, 0);
    CHECK_INT(h->chunks.used, 0);
    CHECK_INT(h->count, 0);
    mn_relay_destroy(w.relay);
    return 0;
}
