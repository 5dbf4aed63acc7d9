/* Two whole engines over loopback, turned by hand in one thread: connections, half-close, resets, paths, relay, what
 * Python is told; then with their threads: stop, synchronous questions, fork. */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../engine/internal.h"
#include "check.h"

enum { A, B, TURNS_MAX = 20000, RELAY = 3, EVENTS_MAX = 4096 };

static struct mn_engine *e[2];
static struct mn_event seen[EVENTS_MAX]; /* without their data */
static int seen_by[EVENTS_MAX];
static size_t n_seen;
static bool carries_relay;
static uint8_t taken[2 * MN_EVENT_RECORD_MAX];

static struct mn_ip v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
    const uint8_t raw[4] = {a, b, c, d};
    return mn_ip_from4(raw);
}

static struct mn_ip address(int side)
{
    return v4(100, 64, 0, (uint8_t)(1 + side));
}

static struct mn_engine *make(uint8_t key)
{
    struct mn_engine_config config = {.mtu = 1280};
    int err = 0;
    config.private_key[0] = key;
    config.private_key[31] = 64;
    config.sockets.use4 = true;
    config.sockets.bind4 = v4(127, 0, 0, 1);
    struct mn_engine *made = mn_engine_create(&config, &err);
    CHECK_INT(err, 0);
    CHECK(made != NULL);
    return made;
}

static void push(int side, struct mn_command cmd)
{
    CHECK_INT(mn_engine_push(e[side], &cmd), 0);
}

static struct mn_command with_blob(uint8_t kind, const void *data, size_t len)
{
    struct mn_command cmd = {.kind = kind, .len = len, .blob = malloc(len)};
    CHECK(cmd.blob != NULL);
    memcpy(cmd.blob, data, len);
    return cmd;
}

static void key_of(int side, uint8_t out[32])
{
    memcpy(out, e[side]->tunnel.own_key, 32);
}

static void set_path(int side, uint8_t mode)
{
    struct mn_command cmd = {.kind = MN_CMD_SET_PATH, .mode = mode, .region = RELAY};
    key_of(1 - side, cmd.key);
    cmd.ep.ip = v4(127, 0, 0, 1);
    cmd.ep.port = e[1 - side]->socks.port[MN_SOCK_V4];
    push(side, cmd);
}

/* Everyone may do everything: one rule, IPv4 and the usual protocols. */
static struct mn_command open_filter(void)
{
    uint8_t blob[128] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 4, 1, 0, 1, 0, 6, 17, 1, 58}, *p = blob + 17;
    for (int i = 0; i < 2; i++) {
        memset(p, 0, 10);
        p[10] = p[11] = 0xff;
        memset(p + 12, 0, 4);
        p[16] = 96;
        p += 17;
    }
    memcpy(p, "\0\0\xff\xff", 4);
    memset(p + 4, 0, 4);
    return with_blob(MN_CMD_SET_FILTER, blob, (size_t)(p + 8 - blob));
}

/* What `side` knows of the other: everything of its address, and whether it roams. */
static void upsert(int side, bool roams)
{
    uint8_t peer[32 + sizeof(struct mn_prefix)] = {0};
    struct mn_prefix prefix = {.ip = address(1 - side), .bits = 128};
    memcpy(peer + 32, &prefix, sizeof prefix);
    struct mn_command cmd = with_blob(MN_CMD_UPSERT_PEER, peer, sizeof peer);
    cmd.mode = roams;
    key_of(1 - side, cmd.key);
    push(side, cmd);
}

static void start(uint8_t mode)
{
    n_seen = 0;
    carries_relay = true;
    e[A] = make(8);
    e[B] = make(16);
    for (int side = A; side <= B; side++) {
        struct mn_ip own = address(side);
        push(side, with_blob(MN_CMD_SET_ADDRESSES, &own, sizeof own));
        push(side, open_filter());
        upsert(side, false);
        set_path(side, mode);
    }
}

static void carry(int side, const struct mn_event *ev, const uint8_t *data)
{
    struct mn_command cmd = with_blob(MN_CMD_INJECT, data, ev->len);
    cmd.region = ev->region;
    key_of(side, cmd.key);
    push(1 - side, cmd);
}

static struct mn_event *find(int side, uint8_t kind)
{
    for (size_t i = 0; i < n_seen; i++)
        if (seen_by[i] == side && seen[i].kind == kind)
            return &seen[i];
    return NULL;
}

static void take_events(int side)
{
    size_t n = 1;
    while (n > 0) {
        size_t used = mn_events_take(&e[side]->events, taken, sizeof taken, 64, &n);
        for (size_t at = 0; at < used;) {
            struct mn_event ev;
            memcpy(&ev, taken + at, sizeof ev);
            if (ev.kind == MN_EV_RELAY_SEND && carries_relay)
                carry(side, &ev, taken + at + sizeof ev);
            at += mn_event_size(&ev);
            if (ev.kind == MN_EV_RELAY_SEND && find(side, MN_EV_RELAY_SEND) != NULL)
                continue; /* one is enough to remember */
            CHECK(n_seen < EVENTS_MAX);
            seen_by[n_seen] = side;
            seen[n_seen++] = ev;
        }
    }
}

static void turn(void)
{
    for (int side = A; side <= B; side++) {
        mn_engine_turn(e[side], 0);
        take_events(side);
    }
}

static struct mn_event *await_event(int side, uint8_t kind)
{
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    while (find(side, kind) == NULL) {
        CHECK(mn_clock_ns() < limit);
        turn();
    }
    return find(side, kind);
}

static void stop(void)
{
    for (size_t i = 0; i < n_seen; i++)
        if (seen[i].kind == MN_EV_ACCEPTED || seen[i].kind == MN_EV_CONNECTED)
            if (seen[i].fd >= 0)
                close(seen[i].fd);
    mn_engine_destroy(e[A]);
    mn_engine_destroy(e[B]);
}

static void listen_on(int side, uint16_t port)
{
    struct mn_command cmd = {.kind = MN_CMD_LISTEN, .req = 77, .ep.port = port};
    push(side, cmd);
}

static void connect_to(int side, uint16_t port)
{
    struct mn_command cmd = {.kind = MN_CMD_CONNECT, .req = 55, .ep = {.ip = address(1 - side), .port = port}};
    push(side, cmd);
}

/* A connection from A to B: the application's ends. */
static void join(int *client, int *server)
{
    listen_on(B, 80);
    connect_to(A, 80);
    struct mn_event *there = await_event(B, MN_EV_ACCEPTED), *here = await_event(A, MN_EV_CONNECTED);
    CHECK_INT(here->req, 55);
    CHECK_INT(there->req, 77);
    CHECK(mn_ep_equal(&here->local, &there->remote) && mn_ep_equal(&here->remote, &there->local));
    CHECK(memcmp(here->key, e[B]->tunnel.own_key, 32) == 0 && memcmp(there->key, e[A]->tunnel.own_key, 32) == 0);
    *client = here->fd;
    *server = there->fd;
}

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 31 + (i >> 8));
}

/* Write `total` bytes into one end and read them from the other, turning the engines. */
static void pump(int from, int to, size_t total)
{
    static uint8_t buf[65536];
    size_t sent = 0, got = 0;
    uint64_t limit = mn_clock_ns() + 60 * MN_NS_PER_S;
    while (got < total) {
        CHECK(mn_clock_ns() < limit);
        size_t n = total - sent < sizeof buf ? total - sent : sizeof buf;
        for (size_t i = 0; i < n; i++)
            buf[i] = pattern(sent + i);
        ssize_t w = n > 0 ? send(from, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
        sent += w > 0 ? (size_t)w : 0;
        turn();
        ssize_t r = recv(to, buf, sizeof buf, MSG_DONTWAIT);
        for (ssize_t i = 0; i < r; i++)
            CHECK_INT(buf[i], pattern(got + (size_t)i));
        got += r > 0 ? (size_t)r : 0;
    }
}

static void await_read(int fd, ssize_t want, int want_errno)
{
    uint8_t buf[4096];
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    for (;;) {
        CHECK(mn_clock_ns() < limit);
        turn();
        ssize_t n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            continue;
        CHECK_INT(n, want);
        if (n < 0)
            CHECK_INT(errno, want_errno);
        return;
    }
}

static void transfer(uint8_t mode)
{
    int client, server;
    start(mode);
    join(&client, &server);
    pump(client, server, (8u << 20) / MN_TEST_SLOW);
    pump(server, client, (8u << 20) / MN_TEST_SLOW);
    struct mn_peer *p = &e[A]->tunnel.peers[0];
    CHECK((p->tx_direct > 0) == (mode != MN_MODE_RELAY));
    CHECK((p->tx_relay > 0) == (mode != MN_MODE_DIRECT));
    CHECK((p->rx_relay > 0) == (mode != MN_MODE_DIRECT));
    stop();
}

static void test_transfer_direct(void)
{
    transfer(MN_MODE_DIRECT);
}

static void test_transfer_by_relay(void)
{
    transfer(MN_MODE_RELAY);
}

static void test_transfer_by_both(void)
{
    transfer(MN_MODE_BOTH);
}

static void test_half_close_both_ways(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    pump(client, server, 1000);
    CHECK_INT(shutdown(client, SHUT_WR), 0);
    await_read(server, 0, 0);
    pump(server, client, 300000);
    CHECK_INT(shutdown(server, SHUT_WR), 0);
    await_read(client, 0, 0);
    CHECK_INT(await_event(A, MN_EV_FLOW_ENDED)->err, 0);
    CHECK_INT(await_event(B, MN_EV_FLOW_ENDED)->err, 0);
    CHECK_INT(e[A]->flows.count + e[B]->flows.count, 0);
    stop();
}

static void test_close_after_writing_delivers_all(void)
{
    static uint8_t buf[100000];
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    CHECK_INT(send(client, buf, sizeof buf, 0), sizeof buf);
    close(client);
    find(A, MN_EV_CONNECTED)->fd = -1;
    size_t got = 0;
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    for (ssize_t n = 1; n != 0;) {
        CHECK(mn_clock_ns() < limit);
        turn();
        n = recv(server, buf, sizeof buf, MSG_DONTWAIT);
        got += n > 0 ? (size_t)n : 0;
    }
    CHECK_INT(got, sizeof buf);
    stop();
}

static void test_close_with_unread_bytes_resets(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    CHECK_INT(send(client, "unread", 6, 0), 6);
    while (e[B]->stats.app_bytes_out < 6)
        turn();
    close(server);
    find(B, MN_EV_ACCEPTED)->fd = -1;
    CHECK_INT(await_event(A, MN_EV_FLOW_ENDED)->err, ECONNRESET);
    stop();
}

static void test_refused(void)
{
    start(MN_MODE_DIRECT);
    connect_to(A, 81);
    CHECK_INT(await_event(A, MN_EV_CONNECT_FAILED)->err, ECONNREFUSED);
    CHECK_INT(e[A]->flows.count, 0);
    stop();
}

static void test_no_route(void)
{
    start(MN_MODE_DIRECT);
    struct mn_command cmd = {.kind = MN_CMD_CONNECT, .req = 1, .ep = {.ip = v4(100, 64, 9, 9), .port = 80}};
    push(A, cmd);
    int err = await_event(A, MN_EV_CONNECT_FAILED)->err;
    CHECK(err == EHOSTUNREACH || err == ENETUNREACH);
    stop();
}

static void test_abort_of_a_pending_connect(void)
{
    start(MN_MODE_NONE);
    connect_to(A, 80);
    turn();
    CHECK_INT(e[A]->flows.count, 1);
    struct mn_command cmd = {.kind = MN_CMD_ABORT, .req = 55};
    push(A, cmd);
    turn();
    CHECK_INT(e[A]->flows.count, 0);
    CHECK(find(A, MN_EV_CONNECT_FAILED) == NULL);
    stop();
}

static void test_waiting_initiation_leaves_with_the_path(void)
{
    int client, server;
    start(MN_MODE_NONE);
    listen_on(B, 80);
    connect_to(A, 80);
    CHECK_INT(await_event(A, MN_EV_PEER_SEND)->what, 1);
    uint64_t started = mn_clock_ns();
    set_path(A, MN_MODE_DIRECT);
    set_path(B, MN_MODE_DIRECT);
    client = await_event(A, MN_EV_CONNECTED)->fd;
    server = await_event(B, MN_EV_ACCEPTED)->fd;
    CHECK(mn_clock_ns() - started < 2 * MN_NS_PER_S);
    pump(client, server, 1000);
    stop();
}

/* What was sealed while nothing led there leaves with the path, in order; of more than sixteen the newest. */
static void test_sealed_packets_wait_for_a_path(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    pump(client, server, 1000);
    struct mn_waiting *w = &e[A]->tunnel.waiting;
    set_path(A, MN_MODE_NONE);
    turn();
    CHECK_INT(w->count, 0);
    uint64_t before = e[A]->stats.tx_no_path;
    CHECK_INT(write(client, "late", 4), 4);
    while (e[A]->stats.tx_no_path == before)
        turn();
    CHECK(w->count > 0 && w->count <= MN_WAITING_OF_PEER);
    uint64_t started = mn_clock_ns();
    set_path(A, MN_MODE_DIRECT);
    char got[8];
    size_t n = 0;
    while (n < 4) {
        turn();
        ssize_t k = recv(server, got + n, sizeof got - n, MSG_DONTWAIT);
        n += k > 0 ? (size_t)k : 0;
        CHECK(mn_clock_ns() - started < 2 * MN_NS_PER_S);
    }
    CHECK(memcmp(got, "late", 4) == 0);
    CHECK_INT(w->count, 0);
    close(client);
    close(server);
    stop();
}

static void test_what_waits_is_bounded(void)
{
    struct mn_waiting w;
    struct mn_waiting_packet *p;
    uint8_t pkt[9000];
    mn_waiting_init(&w);
    for (unsigned i = 0; i < 20; i++) {
        pkt[0] = (uint8_t)i;
        mn_waiting_put(&w, 7, pkt, 1000, 1);
        mn_waiting_put(&w, 8, pkt, 9000, 1);
    }
    CHECK_INT(w.count, 16 + 7); /* seven of 9000 bytes are 63 000 */
    CHECK_INT(w.lost, 4 + 13);
    p = mn_waiting_take(&w, 8, 2);
    CHECK_INT(p->pkt[0], 13);
    free(p);
    mn_waiting_forget(&w, 8);
    CHECK_INT(w.count, 16);
    for (unsigned i = 4; i < 20; i++) {
        p = mn_waiting_take(&w, 7, MN_WAITING_NS);
        CHECK_INT(p->pkt[0], i);
        free(p);
    }
    CHECK(mn_waiting_take(&w, 7, 2) == NULL);
    mn_waiting_put(&w, 7, pkt, 10, 5);
    CHECK(mn_waiting_take(&w, 7, 5 + MN_WAITING_NS) == NULL && w.count == 0);
    for (uint32_t peer = 0; peer < 2 * MN_WAITING_MAX; peer++)
        mn_waiting_put(&w, peer, pkt, 10, 6);
    CHECK_INT(w.count, MN_WAITING_MAX);
    mn_waiting_destroy(&w);
    CHECK_INT(w.count, 0);
}

static void test_answer_returns_by_the_relay_even_without_a_path(void)
{
    start(MN_MODE_RELAY);
    set_path(B, MN_MODE_NONE);
    connect_to(A, 80);
    struct mn_event *answer = await_event(B, MN_EV_RELAY_SEND);
    CHECK_INT(answer->region, RELAY);
    CHECK(memcmp(answer->key, e[A]->tunnel.own_key, 32) == 0);
    CHECK_INT(await_event(A, MN_EV_HANDSHAKE)->what, 1);
    stop();
}

static void test_initiations_alternate(void)
{
    start(MN_MODE_BOTH);
    carries_relay = false;
    struct mn_peer *p;
    turn();
    p = &e[A]->tunnel.peers[0];
    uint8_t pkt[148] = {1};
    struct mn_wg_ops ops;
    mn_tunnel_set_wg_ops(&ops);
    for (unsigned attempt = 0; attempt < 6; attempt++) {
        uint64_t direct = p->tx_direct, relay = p->tx_relay;
        ops.send(e[A], 0, NULL, MN_WG_INITIATION, attempt, pkt, sizeof pkt);
        CHECK_INT(p->tx_direct - direct, attempt % 2 == 1 ? 148 : 0);
        CHECK_INT(p->tx_relay - relay, attempt % 2 == 0 ? 148 : 0);
    }
    stop();
}

static void test_a_waiting_initiation_is_sent_once(void)
{
    start(MN_MODE_NONE);
    carries_relay = false;
    connect_to(A, 80);
    CHECK_INT(await_event(A, MN_EV_PEER_SEND)->what, 1);
    set_path(A, MN_MODE_DOUBTED);
    turn();
    struct mn_peer *p = &e[A]->tunnel.peers[0];
    CHECK_INT(p->tx_direct + p->tx_relay, 148);
    stop();
}

static size_t hole; /* datagrams longer than this vanish on their way, as do those of a wrong path */
static unsigned n_lost;

static int hole_sendmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    for (unsigned i = 0; i < n; i++) {
        size_t len = msgs[i].msg_hdr.msg_iov[0].iov_len;
        if (len + 28 > hole)
            n_lost++;
        else if (sendmmsg(fd, &msgs[i], 1, flags) != 1)
            return i > 0 ? (int)i : -1;
        msgs[i].msg_len = (unsigned)len;
    }
    return (int)n;
}

static void dig(size_t bytes)
{
    hole = bytes;
    n_lost = 0;
    for (int side = A; side <= B; side++) {
        mn_sock_set_offloads(&e[side]->socks, MN_GSO_OFF, true);
        e[side]->socks.calls.sendmmsg = hole_sendmmsg;
    }
}

static void set_limit(int side, uint16_t limit)
{
    struct mn_command cmd = {.kind = MN_CMD_SET_PATH, .mode = MN_MODE_DIRECT, .region = RELAY, .number = limit};
    key_of(1 - side, cmd.key);
    cmd.ep.ip = v4(127, 0, 0, 1);
    cmd.ep.port = e[1 - side]->socks.port[MN_SOCK_V4];
    push(side, cmd);
}

static uint32_t mss_of(int side)
{
    struct mn_tcp_info info;
    CHECK_INT(e[side]->flows.count, 1);
    CHECK_INT(mn_tcp_info(e[side]->stack, e[side]->flows.table[0].conn, &info), 0);
    return info.mss;
}

/* New connections are opened with segments that fit, in both directions although one side alone knows the limit. */
static void test_a_limit_makes_new_connections_fit(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    set_limit(A, 1280);
    dig(1280);
    join(&client, &server);
    pump(client, server, 300000);
    pump(server, client, 300000);
    CHECK_INT(mss_of(A), 1216 - 40 - 12);
    CHECK_INT(mss_of(B), 1216 - 40 - 12);
    CHECK_INT(n_lost, 0);
    CHECK_INT(e[A]->tunnel.peers[0].tx_relay + e[B]->tunnel.peers[0].tx_relay, 0);
    stop();
}

/* The hole opens under a connection; one side learns of it, and the other is told by an error inside the tunnel. */
static void test_a_limit_shrinks_what_runs(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    pump(server, client, 300000);
    uint32_t before = mss_of(B);
    dig(1280);
    set_limit(A, 1280);
    pump(server, client, 300000);
    pump(client, server, 300000);
    CHECK(before > 1216 - 40 - 12);
    CHECK_INT(mss_of(A), 1216 - 40 - 12);
    CHECK_INT(mss_of(B), 1216 - 40 - 12);
    CHECK_INT(mn_stack_stats(e[A]->stack)->icmp_error_out, 1);
    stop();
}

static void test_what_is_too_long_goes_by_relay(void)
{
    static uint8_t data[1200];
    start(MN_MODE_DIRECT);
    struct mn_command open = {.kind = MN_CMD_UDP_OPEN, .req = 5, .ep.port = 53};
    push(A, open);
    push(B, open);
    int client, server;
    join(&client, &server); /* a session is up */
    set_limit(A, 1200);
    dig(1200);
    for (int i = 0; i < 2; i++) {
        struct mn_command cmd = with_blob(MN_CMD_UDP_SEND, data, i == 0 ? sizeof data : 1100);
        cmd.req = 5;
        cmd.ep = (struct mn_ep){.ip = address(B), .port = 53};
        push(A, cmd);
    }
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    while (mn_stack_stats(e[B]->stack)->udp_in < 2) {
        CHECK(mn_clock_ns() < limit);
        turn();
    }
    CHECK_INT(n_lost, 0);
    CHECK(e[A]->tunnel.peers[0].tx_relay > sizeof data && e[A]->tunnel.peers[0].tx_relay < 2 * sizeof data);
    uint64_t keepalives = mn_wg_stats(e[A]->wg)->tx_keepalive;
    e[A]->tunnel.peers[0].direct_at -= 2 * MN_NS_PER_S; /* nothing went directly for a while: the peer shall hear us */
    for (int i = 0; i < 3; i++) {
        struct mn_command cmd = with_blob(MN_CMD_UDP_SEND, data, sizeof data);
        cmd.req = 5;
        cmd.ep = (struct mn_ep){.ip = address(B), .port = 53};
        push(A, cmd);
        turn();
    }
    CHECK_INT(mn_wg_stats(e[A]->wg)->tx_keepalive, keepalives + 1);
    CHECK_INT(n_lost, 0);
    stop();
}

/* Two endpoints, of which the first leads nowhere: data goes to both, a handshake message to one of them at a time. */
static void test_further_endpoints(void)
{
    int client, server;
    start(MN_MODE_NONE);
    uint8_t other[MN_OTHER_LEN];
    struct mn_ip loopback = v4(127, 0, 0, 1);
    uint16_t port = e[B]->socks.port[MN_SOCK_V4];
    memcpy(other, loopback.b, 16);
    other[16] = (uint8_t)(port >> 8);
    other[17] = (uint8_t)port;
    struct mn_command cmd = with_blob(MN_CMD_SET_PATH, other, sizeof other);
    cmd.mode = MN_MODE_DIRECT;
    key_of(B, cmd.key);
    cmd.ep = (struct mn_ep){.ip = v4(127, 0, 0, 1), .port = 9};
    push(A, cmd);
    set_path(B, MN_MODE_DIRECT);
    listen_on(B, 80);
    turn();
    struct mn_peer *p = &e[A]->tunnel.peers[0];
    uint8_t pkt[148] = {1};
    struct mn_wg_ops ops;
    mn_tunnel_set_wg_ops(&ops);
    for (unsigned attempt = 0; attempt < 4; attempt++) {
        uint64_t before = p->tx_direct;
        ops.send(e[A], 0, NULL, MN_WG_INITIATION, attempt, pkt, sizeof pkt);
        CHECK_INT(p->tx_direct - before, 148);
    }
    struct mn_command kick = {.kind = MN_CMD_KICK};
    key_of(A, kick.key);
    push(B, kick); /* the session comes from the side whose way is right */
    (void)await_event(A, MN_EV_HANDSHAKE);
    join(&client, &server);
    pump(client, server, 100000);
    stop();
}

/* Plain WireGuard: who listens without knowing where its peer is answers it where it came from, also after a change. */
static void test_roaming_peer_is_answered_where_it_is(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    upsert(B, true);
    struct mn_command nowhere = {.kind = MN_CMD_SET_PATH, .mode = MN_MODE_NONE};
    key_of(A, nowhere.key);
    push(B, nowhere);
    join(&client, &server);
    pump(server, client, 1000);
    struct mn_peer *p = &e[B]->tunnel.peers[0];
    CHECK_INT(p->direct.port, e[A]->socks.port[MN_SOCK_V4]);
    CHECK_INT(e[B]->stats.rx_roamed, 1);
    p->direct.port = 9; /* as if the address had changed under us */
    pump(client, server, 1000);
    pump(server, client, 1000);
    CHECK_INT(e[B]->stats.rx_roamed, 2);
    CHECK_INT(find(B, MN_EV_RELAY_SEND) == NULL, 1);
    stop();
}

/* A private key that makes a peer ourselves takes the peer away, and its connections. */
static void test_a_peer_equal_to_us_is_gone(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    struct mn_command cmd = {.kind = MN_CMD_SET_PRIVATE_KEY, .key = {16, [31] = 64}};
    push(A, cmd);
    await_event(A, MN_EV_FLOW_ENDED);
    CHECK(!e[A]->tunnel.peers[0].is_used);
    CHECK_INT(e[A]->flows.count, 0);
    stop();
}

/* New sockets under a connection: the same port, and nothing is lost. */
static void test_rebind(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    pump(client, server, 100000);
    uint16_t port = mn_engine_port(e[A], MN_SOCK_V4);
    struct mn_command cmd = {.kind = MN_CMD_REBIND};
    CHECK_INT(send(client, "on its way", 10, 0), 10);
    push(A, cmd);
    CHECK_INT(await_event(A, MN_EV_REBOUND)->err, 0);
    CHECK_INT(mn_engine_port(e[A], MN_SOCK_V4), port);
    await_read(server, 10, 0);
    pump(client, server, 100000);
    pump(server, client, 100000);
    CHECK_INT(e[A]->socks.stats.rebinds, 1);
    stop();
}

/* WireGuard by an extra socket, until it is closed. */
static void test_extra_socket_carries_a_path(void)
{
    enum { EXTRA = 7, AT = MN_SOCK_V6 + EXTRA };
    int client, server;
    start(MN_MODE_DIRECT);
    struct mn_command open = {.kind = MN_CMD_EXTRA, .mode = 1, .number = 3, .ep.sock = EXTRA - 1};
    push(A, open);
    turn();
    CHECK(e[A]->socks.port[AT] != 0);
    CHECK(e[A]->socks.fd[AT + 1] >= 0);
    CHECK_INT(e[A]->socks.fd[AT + 2], -1);
    struct mn_command there = {.kind = MN_CMD_SET_PATH, .mode = MN_MODE_DIRECT, .region = RELAY}, back = there;
    key_of(B, there.key);
    there.ep = (struct mn_ep){.ip = v4(127, 0, 0, 1), .port = e[B]->socks.port[MN_SOCK_V4], .sock = EXTRA};
    key_of(A, back.key);
    back.ep = (struct mn_ep){.ip = v4(127, 0, 0, 1), .port = e[A]->socks.port[AT]};
    push(A, there);
    push(B, back);
    join(&client, &server);
    pump(client, server, 100000);
    pump(server, client, 100000);
    CHECK(mn_ep_equal(&await_event(A, MN_EV_PEER_RECV)->remote, &there.ep));
    CHECK_INT(await_event(B, MN_EV_PEER_RECV)->remote.port, back.ep.port);
    struct mn_command shut = {.kind = MN_CMD_EXTRA, .mode = 0, .number = MN_SOCK_EXTRA_MAX, .ep.sock = 1};
    push(A, shut);
    turn();
    CHECK_INT(e[A]->socks.fd[AT], -1);
    CHECK_INT(send(client, "nowhere", 7, 0), 7);
    CHECK_INT(await_event(A, MN_EV_SEND_ERROR)->remote.sock, EXTRA);
    set_path(A, MN_MODE_DIRECT);
    set_path(B, MN_MODE_DIRECT);
    await_read(server, 7, 0);
    uint64_t errors = e[A]->stats.command_errors;
    shut.ep.sock = 2; /* one too many */
    push(A, shut);
    turn();
    CHECK_INT(e[A]->stats.command_errors, errors + 1);
    stop();
}

/* The port is lost: another one, and a peer that roams follows. */
static void test_rebind_to_another_port(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    upsert(B, true);
    join(&client, &server);
    pump(client, server, 1000);
    struct mn_engine *other = make(32);
    e[A]->socks.port[MN_SOCK_V4] = other->socks.port[MN_SOCK_V4];
    struct mn_command cmd = {.kind = MN_CMD_REBIND};
    push(A, cmd);
    CHECK_INT(await_event(A, MN_EV_REBOUND)->err, 0);
    CHECK(mn_engine_port(e[A], MN_SOCK_V4) != other->socks.port[MN_SOCK_V4]);
    pump(client, server, 1000);
    pump(server, client, 1000);
    CHECK_INT(e[B]->tunnel.peers[0].direct.port, mn_engine_port(e[A], MN_SOCK_V4));
    mn_engine_destroy(other);
    stop();
}

static void test_offloads_switched_under_way(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    for (uint8_t gso = 0; gso < MN_GSO_MODES; gso++) {
        struct mn_command cmd = {.kind = MN_CMD_SET_OFFLOADS, .mode = gso, .number = gso == MN_GSO_OFF};
        push(A, cmd);
        push(B, cmd);
        pump(client, server, (2u << 20) / MN_TEST_SLOW);
        CHECK_INT(e[A]->socks.has_gso[MN_SOCK_V4], gso != MN_GSO_OFF);
        CHECK_INT(e[B]->socks.has_gro[MN_SOCK_V4], gso != MN_GSO_OFF);
    }
    CHECK_INT(e[B]->stats.rx_unknown > 0, e[A]->socks.stats.tx_sentinels > 0);
    stop();
}

static struct {
    uint8_t data[2048];
    size_t len;
    int tos;
} caught;

/* Keeps the one datagram that leaves, instead of sending it. */
static int catch_one(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    (void)fd, (void)flags;
    CHECK_INT(n, 1);
    struct msghdr *h = &msgs[0].msg_hdr;
    caught.len = h->msg_iov->iov_len;
    caught.tos = 0;
    memcpy(caught.data, h->msg_iov->iov_base, caught.len);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL; c = CMSG_NXTHDR(h, c))
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS)
            memcpy(&caught.tos, CMSG_DATA(c), sizeof caught.tos);
    return 1;
}

/* An inner packet with these ECN bits from A to B, caught on its way. */
static void catch_inner(uint8_t ecn)
{
    struct mn_stack_ops ops;
    int err = 0;
    struct mn_ip to = address(B), from = address(A);
    mn_tunnel_set_stack_ops(&ops);
    uint8_t *p = ops.out_begin(e[A], &to, 100, &err);
    CHECK(p != NULL);
    memset(p, 0, 100);
    p[0] = 0x45;
    p[1] = ecn;
    p[3] = 100;
    p[9] = 254; /* a protocol nobody answers */
    memcpy(p + 12, from.b + 12, 4);
    memcpy(p + 16, to.b + 12, 4);
    ops.out_commit(e[A], 100);
    mn_sock_flush(&e[A]->socks);
}

/* WG-27: the inner bits are copied outside; congestion outside is kept inside, or the packet is lost. */
static void test_ecn_through_the_tunnel(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    pump(client, server, 1000);
    while (e[A]->socks.n_runs > 0)
        turn();
    e[A]->socks.calls.sendmmsg = catch_one;
    for (uint8_t inner = 0; inner < 4; inner++) {
        catch_inner(inner);
        CHECK_INT(caught.tos, inner);
        struct mn_sock_rx rx = {.buf = caught.data, .len = caught.len, .seg = caught.len, .ecn = 3};
        rx.from = (struct mn_ep){.ip = v4(127, 0, 0, 1), .port = mn_engine_port(e[A], MN_SOCK_V4)};
        uint64_t drops = e[B]->stats.rx_ecn_drops;
        mn_tunnel_read(e[B], &rx);
        CHECK_INT(caught.data[MN_WG_HEADER] >> 4, 4);
        CHECK_INT(caught.data[MN_WG_HEADER + 1] & 3, inner == 0 ? 0 : 3);
        CHECK_INT(e[B]->stats.rx_ecn_drops - drops, inner == 0);
        mn_stack_flush(e[B]->stack, e[B]->now_ns);
    }
    stop();
}

/* Our side of a path is the address its peer writes to; silence and a rebind forget it. */
static void test_source_of_a_path(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    struct mn_peer *p = &e[B]->tunnel.peers[0];
    CHECK(mn_ip_is_zero(&p->source)); /* bound to one address: nothing to choose */
    struct mn_wg_ops ops;
    mn_tunnel_set_wg_ops(&ops);
    p->source = v4(127, 0, 0, 1);
    ops.event(e[B], 0, MN_WG_SESSION_UP);
    CHECK(!mn_ip_is_zero(&p->source));
    ops.event(e[B], 0, MN_WG_SILENT);
    CHECK(mn_ip_is_zero(&p->source));
    p->source = v4(192, 0, 2, 1); /* none of ours: given up at the first packet, which leaves all the same */
    pump(server, client, 1000);
    CHECK(mn_ip_is_zero(&p->source));
    CHECK_INT(e[B]->socks.stats.tx_dropped, 0);
    p->source = v4(127, 0, 0, 1);
    struct mn_command cmd = {.kind = MN_CMD_REBIND};
    push(B, cmd);
    await_event(B, MN_EV_REBOUND);
    CHECK(mn_ip_is_zero(&p->source));
    stop();
}

/* What the log is to say of keys. */
static void test_notices_of_keys(void)
{
    struct mn_wg_ops ops;
    start(MN_MODE_DIRECT);
    turn();
    mn_tunnel_set_wg_ops(&ops);
    ops.event(e[A], 0, MN_WG_CLOCK_BEHIND);
    struct mn_event *ev = await_event(A, MN_EV_KEYS);
    CHECK_INT(ev->what, MN_KEYS_CLOCK_BEHIND);
    CHECK(memcmp(ev->key, e[B]->tunnel.own_key, 32) == 0);
    ev->kind = MN_EV_LOST; /* read */
    ops.event(e[A], 0, MN_WG_SESSION_GONE);
    CHECK_INT(await_event(A, MN_EV_KEYS)->what, MN_KEYS_GONE);
    stop();
}

/* A refused port is a hint to ask the path, not the end of anything. */
static void test_icmp_is_told_as_a_hint(void)
{
    start(MN_MODE_DIRECT);
    struct mn_engine *gone = make(32);
    uint16_t port = gone->socks.port[MN_SOCK_V4];
    mn_engine_destroy(gone);
    struct mn_command raw = with_blob(MN_CMD_SEND_RAW, "x", 1);
    raw.ep = (struct mn_ep){.ip = v4(127, 0, 0, 1), .port = port};
    push(A, raw);
    struct mn_event *ev = await_event(A, MN_EV_SEND_ERROR);
    CHECK_INT(ev->err, ECONNREFUSED);
    CHECK_INT(ev->remote.port, port);
    uint64_t turns = e[A]->stats.turns;
    mn_engine_turn(e[A], 0);
    CHECK_INT(e[A]->stats.turns, turns + 1);
    CHECK_INT(mn_sock_drain_errors(&e[A]->socks, MN_SOCK_V4), 0); /* nothing is left to wake us again */
    stop();
}

static int err_to_fail_with;

static int failing_sendmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    (void)fd, (void)msgs, (void)n, (void)flags;
    errno = err_to_fail_with;
    return -1;
}

static unsigned count_errors(int side, int err)
{
    unsigned found = 0;
    for (size_t i = 0; i < n_seen; i++)
        found += seen_by[i] == side && seen[i].kind == MN_EV_SEND_ERROR && seen[i].err == err;
    return found;
}

/* A full buffer or a filter's refusal is told when there are many; a missing route at once. */
static void test_passing_errors_are_told_when_there_are_many(void)
{
    static const int errors[] = {ENOBUFS, EPERM, ENETUNREACH};
    start(MN_MODE_DIRECT);
    turn();
    e[A]->socks.calls.sendmmsg = failing_sendmmsg;
    for (size_t i = 0; i < 3; i++) {
        struct mn_ep to = {.ip = v4(127, 0, 0, 1), .port = 9};
        struct mn_ip any = {{0}};
        err_to_fail_with = errors[i];
        for (unsigned n = 1; n <= 30; n++) {
            mn_sock_put(&e[A]->socks, &to, &any, (const uint8_t *)"x", 1);
            mn_sock_flush(&e[A]->socks);
            take_events(A);
            CHECK_INT(count_errors(A, errors[i]), errors[i] == ENETUNREACH || n >= 10);
        }
    }
    stop();
}

static void test_hints_are_throttled(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    uint64_t started = mn_clock_ns();
    pump(client, server, (4u << 20) / MN_TEST_SLOW);
    size_t windows = (size_t)((mn_clock_ns() - started) / (100 * MN_NS_PER_MS)) + 1;
    size_t sends = 0, recvs = 0;
    for (size_t i = 0; i < n_seen; i++) {
        sends += seen_by[i] == A && seen[i].kind == MN_EV_PEER_SEND;
        recvs += seen_by[i] == B && seen[i].kind == MN_EV_PEER_RECV && seen[i].what == MN_WHAT_DATA;
    }
    CHECK(sends >= 1 && sends <= windows + 2);
    CHECK(recvs >= 1 && recvs <= windows + 2);
    stop();
}

static void test_ping(void)
{
    start(MN_MODE_DIRECT);
    struct mn_command cmd = {.kind = MN_CMD_PING, .req = 9, .number = 56, .ep.ip = address(B)};
    push(A, cmd);
    struct mn_event *ev = await_event(A, MN_EV_PING);
    CHECK_INT(ev->req, 9);
    CHECK(ev->value > 0 && ev->value < 10 * MN_NS_PER_S);
    stop();
}

static uint64_t open_udp(int side, uint64_t req, uint16_t port, uint16_t *bound)
{
    struct mn_command cmd = {.kind = MN_CMD_UDP_OPEN, .req = req, .ep.port = port};
    push(side, cmd);
    struct mn_event *ev = await_event(side, MN_EV_LISTENING);
    CHECK_INT(ev->req, req);
    CHECK_INT(ev->err, 0);
    *bound = ev->local.port;
    return req;
}

static void send_udp(int side, uint64_t req, struct mn_ip to, uint16_t port, const struct mn_ip *from)
{
    struct mn_command cmd = {.kind = MN_CMD_UDP_SEND, .req = req, .ep = {to, port}, .blob = malloc(3), .len = 3};
    if (cmd.blob == NULL)
        abort();
    memcpy(cmd.blob, "abc", 3);
    if (from != NULL)
        cmd.from = *from;
    push(side, cmd);
}

static void test_datagrams_and_their_errors(void)
{
    uint16_t here, there;
    struct mn_ip a = address(A), b = address(B);
    start(MN_MODE_DIRECT);
    uint64_t client = open_udp(A, 11, 0, &here), server = open_udp(B, 12, 53, &there);
    CHECK(here != 0);
    CHECK_INT(there, 53);
    send_udp(A, client, b, 53, &a);
    struct mn_event *ev = await_event(B, MN_EV_UDP);
    uint8_t key[32];
    key_of(A, key);
    CHECK_INT(ev->req, server);
    CHECK_INT(ev->remote.port, here);
    CHECK(mn_ip_equal(&ev->remote.ip, &a) && mn_ip_equal(&ev->local.ip, &b) && memcmp(ev->key, key, 32) == 0);
    send_udp(A, client, b, 54, NULL); /* nothing listens: the peer says so */
    ev = await_event(A, MN_EV_UDP_ERROR);
    CHECK(ev->req == client && ev->err == ECONNREFUSED && ev->remote.port == 54);
    struct mn_ip nobody = b;
    nobody.b[15] ^= 0x40;
    send_udp(B, server, nobody, 53, NULL);
    ev = await_event(B, MN_EV_UDP_ERROR);
    CHECK(ev->req == server && ev->err == EHOSTUNREACH && mn_ip_equal(&ev->remote.ip, &nobody));
    struct mn_command ping = {.kind = MN_CMD_PING, .req = 13, .number = 56, .ep.ip = nobody};
    push(A, ping);
    ev = await_event(A, MN_EV_PING);
    CHECK(ev->req == 13 && ev->err == EHOSTUNREACH);
    stop();
}

static void test_removed_peer(void)
{
    int client, server;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    struct mn_command cmd = {.kind = MN_CMD_REMOVE_PEER};
    key_of(B, cmd.key);
    push(A, cmd);
    CHECK_INT(await_event(A, MN_EV_FLOW_ENDED)->err, ECONNABORTED);
    n_seen = 0;
    close(client);
    close(server);
    connect_to(A, 80);
    CHECK(await_event(A, MN_EV_CONNECT_FAILED)->err != 0);
    stop();
}

static void test_many_connections(void)
{
    enum { MANY = 1000 / MN_TEST_SLOW };
    start(MN_MODE_DIRECT);
    listen_on(B, 80);
    size_t fds[2] = {0, 0};
    uint64_t limit = mn_clock_ns() + 60 * MN_NS_PER_S;
    for (int i = 0; i < MANY; i++)
        connect_to(A, 80);
    while (fds[A] < MANY || fds[B] < MANY) {
        CHECK(mn_clock_ns() < limit);
        n_seen = 0;
        turn();
        for (size_t i = 0; i < n_seen; i++) {
            CHECK(seen[i].kind != MN_EV_CONNECT_FAILED);
            if (seen[i].kind == MN_EV_ACCEPTED || seen[i].kind == MN_EV_CONNECTED) {
                fds[seen_by[i]]++;
                close(seen[i].fd);
            }
        }
    }
    while (e[A]->flows.count + e[B]->flows.count > 0) {
        CHECK(mn_clock_ns() < limit);
        n_seen = 0;
        turn();
    }
    n_seen = 0;
    stop();
}

static void test_threads_questions_and_stop(void)
{
    struct mn_answer answer;
    start(MN_MODE_DIRECT);
    listen_on(B, 80);
    for (int side = A; side <= B; side++)
        CHECK_INT(mn_engine_start(e[side]), 0);
    connect_to(A, 80);
    struct pollfd p = {.fd = e[A]->events.fd, .events = POLLIN};
    while (find(A, MN_EV_CONNECTED) == NULL) {
        CHECK_INT(poll(&p, 1, 10000), 1);
        take_events(A);
    }
    struct mn_command stats = {.kind = MN_CMD_STATS};
    CHECK_INT(mn_engine_call(e[A], &stats, &answer), 0);
    CHECK(answer.count > 50 && answer.values[0] > 0);
    struct mn_command peer = {.kind = MN_CMD_PEER_STATS};
    key_of(B, peer.key);
    CHECK_INT(mn_engine_call(e[A], &peer, &answer), 0);
    CHECK_INT(answer.err, 0);
    CHECK_INT(answer.values[3], 1); /* session */
    peer.key[0] ^= 1;
    CHECK_INT(mn_engine_call(e[A], &peer, &answer), 0);
    CHECK_INT(answer.err, -ENOENT);
    struct mn_command bad = with_blob(MN_CMD_SET_FILTER, "x", 1);
    CHECK_INT(mn_engine_call(e[A], &bad, &answer), 0);
    CHECK(answer.err < 0);
    CHECK(mn_engine_stop(e[A], 5.0));
    CHECK(mn_engine_stop(e[A], 5.0));
    CHECK_INT(mn_engine_state(e[A]), MN_ENGINE_STOPPED);
    CHECK_INT(mn_engine_call(e[A], &stats, &answer), -ENETDOWN);
    take_events(A);
    CHECK_INT(find(A, MN_EV_FLOW_ENDED)->err, ENETDOWN);
    CHECK(mn_engine_stop(e[B], 5.0));
    take_events(B);
    stop();
}

static void test_child_of_a_fork(void)
{
    int client, server, status = 0;
    start(MN_MODE_DIRECT);
    join(&client, &server);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        _exit(mn_engine_state(e[A]) == MN_ENGINE_FORKED && e[A]->socks.fd[MN_SOCK_V4] == -1 && e[A]->epoll_fd == -1
                  ? 0
                  : 1);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    CHECK_INT(mn_engine_state(e[A]), MN_ENGINE_RUNNING);
    pump(client, server, 100000);
    stop();
}

int main(void)
{
    RUN(test_transfer_direct);
    RUN(test_transfer_by_relay);
    RUN(test_transfer_by_both);
    RUN(test_half_close_both_ways);
    RUN(test_close_after_writing_delivers_all);
    RUN(test_close_with_unread_bytes_resets);
    RUN(test_refused);
    RUN(test_no_route);
    RUN(test_abort_of_a_pending_connect);
    RUN(test_waiting_initiation_leaves_with_the_path);
    RUN(test_sealed_packets_wait_for_a_path);
    RUN(test_what_waits_is_bounded);
    RUN(test_answer_returns_by_the_relay_even_without_a_path);
    RUN(test_initiations_alternate);
    RUN(test_a_waiting_initiation_is_sent_once);
    RUN(test_a_limit_makes_new_connections_fit);
    RUN(test_a_limit_shrinks_what_runs);
    RUN(test_what_is_too_long_goes_by_relay);
    RUN(test_further_endpoints);
    RUN(test_roaming_peer_is_answered_where_it_is);
    RUN(test_a_peer_equal_to_us_is_gone);
    RUN(test_rebind);
    RUN(test_extra_socket_carries_a_path);
    RUN(test_rebind_to_another_port);
    RUN(test_offloads_switched_under_way);
    RUN(test_ecn_through_the_tunnel);
    RUN(test_source_of_a_path);
    RUN(test_notices_of_keys);
    RUN(test_icmp_is_told_as_a_hint);
    RUN(test_passing_errors_are_told_when_there_are_many);
    RUN(test_hints_are_throttled);
    RUN(test_ping);
    RUN(test_datagrams_and_their_errors);
    RUN(test_removed_peer);
    RUN(test_many_connections);
    RUN(test_threads_questions_and_stop);
    RUN(test_child_of_a_fork);
    return 0;
}
