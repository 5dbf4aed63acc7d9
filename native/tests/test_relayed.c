/* Paths by a peer relay: the header before every datagram and every segment, what comes back stripped of it, and two
 * engines that reach each other through a relay alone. */
#include "../udp/geneve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "engine_pair.h"

enum { VNI = 0x0a0b0c, LOG_MAX = 256, PACKET_MAX = 2048 };

static struct {
    uint8_t head[MN_GENEVE_LEN];
    uint8_t first;
    size_t len;
    bool segmented;
} sent[LOG_MAX];
static size_t n_sent;
static int refuse_segments;
static const struct mn_ip any;

static uint16_t segment_of(struct msghdr *h)
{
    uint16_t value = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL; c = CMSG_NXTHDR(h, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == 103)
            memcpy(&value, CMSG_DATA(c), sizeof value);
    return value;
}

static int fake_sendmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    (void)fd, (void)flags;
    for (unsigned i = 0; i < n; i++) {
        struct msghdr *h = &msgs[i].msg_hdr;
        size_t len = h->msg_iov[0].iov_len, seg = segment_of(h);
        if (seg != 0 && refuse_segments > 0) {
            refuse_segments--;
            errno = EIO;
            return i > 0 ? (int)i : -1;
        }
        for (size_t at = 0, step = seg != 0 ? seg : len; at < len; at += step, n_sent++) {
            const uint8_t *p = (const uint8_t *)h->msg_iov[0].iov_base + at;
            CHECK(n_sent < LOG_MAX);
            sent[n_sent].len = len - at < step ? len - at : step;
            memcpy(sent[n_sent].head, p, MN_GENEVE_LEN);
            sent[n_sent].first = p[MN_GENEVE_LEN];
            sent[n_sent].segmented = seg != 0;
        }
    }
    return (int)n;
}

static void put(struct mn_socks *s, uint32_t vni, size_t len, uint8_t mark)
{
    static uint8_t buf[MN_SOCK_BUF];
    struct mn_ep to = {.ip = pair_v4(127, 0, 0, 1), .port = 7, .vni = vni};
    memset(buf, mark, len);
    mn_sock_put(s, &to, &any, buf, len);
}

static void open_one(struct mn_socks *s)
{
    struct mn_sock_config config = {.use4 = true, .bind4 = pair_v4(127, 0, 0, 1)};
    CHECK_INT(mn_sock_open(s, &config), 0);
    s->has_gso[MN_SOCK_V4] = true;
    s->calls.sendmmsg = fake_sendmmsg;
    s->now_ns = 1;
    n_sent = 0;
    refuse_segments = 0;
}

static void check_sent(size_t i, uint32_t vni, size_t len, uint8_t mark)
{
    CHECK(i < n_sent);
    CHECK_INT(sent[i].len, len + (vni != 0 ? MN_GENEVE_LEN : 0));
    if (vni == 0)
        return;
    CHECK_INT(mn_geneve_protocol(sent[i].head, MN_GENEVE_LEN), MN_GENEVE_WIREGUARD);
    CHECK_INT(sent[i].head[1], 0);
    CHECK_INT(mn_geneve_vni(sent[i].head), vni);
    CHECK_INT(sent[i].first, mark);
}

static void test_each_segment_has_its_header(void)
{
    struct mn_socks s;
    open_one(&s);
    for (uint8_t i = 0; i < 30; i++)
        put(&s, VNI, 1312, i);
    put(&s, VNI, 100, 30);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 31);
    CHECK(sent[0].segmented);
    for (uint8_t i = 0; i < 30; i++)
        check_sent(i, VNI, 1312, i);
    check_sent(30, VNI, 100, 30);
    mn_sock_close(&s);
}

static void test_plain_after_a_refusal_too(void)
{
    struct mn_socks s;
    open_one(&s);
    refuse_segments = 1;
    for (uint8_t i = 0; i < 10; i++)
        put(&s, VNI, 500, i);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 10);
    for (uint8_t i = 0; i < 10; i++) {
        CHECK(!sent[i].segmented);
        check_sent(i, VNI, 500, i);
    }
    mn_sock_close(&s);
}

/* Sizes that change, legs and the bare address side by side: nobody gets another's header, order stays per leg. */
static void test_legs_are_kept_apart(void)
{
    struct mn_socks s;
    const uint32_t legs[3] = {0, VNI, VNI + 1};
    uint64_t seed = 5;
    size_t lengths[3][LOG_MAX], n[3] = {0}, seen[3] = {0};
    open_one(&s);
    for (int i = 0; i < 200; i++) {
        unsigned leg = (unsigned)(test_random(&seed) % 3);
        lengths[leg][n[leg]] = 200 + leg * 1000 + 16 * (size_t)(test_random(&seed) % 20);
        put(&s, legs[leg], lengths[leg][n[leg]], (uint8_t)(0x80 + leg));
        n[leg]++;
        if (test_random(&seed) % 31 == 0)
            mn_sock_flush(&s);
    }
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 200);
    for (size_t i = 0; i < n_sent; i++) {
        unsigned leg = sent[i].len < 1000 ? 0 : sent[i].len < 2000 ? 1 : 2;
        check_sent(i, legs[leg], lengths[leg][seen[leg]++], (uint8_t)(0x80 + leg));
    }
    mn_sock_close(&s);
}

static void test_room_for_the_header(void)
{
    struct mn_socks s;
    struct mn_ep to = {.ip = pair_v4(127, 0, 0, 1), .port = 7, .vni = VNI};
    open_one(&s);
    CHECK(mn_sock_reserve(&s, &to, &any, MN_SOCK_BYTES_MAX) == NULL);
    CHECK(mn_sock_reserve(&s, &to, &any, MN_SOCK_BYTES_MAX - MN_GENEVE_LEN) != NULL);
    put(&s, VNI, 30000, 1);
    put(&s, VNI, 30000, 2);
    put(&s, VNI, 5600, 3); /* one byte too many with its header */
    CHECK_INT(n_sent, 2);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 3);
    mn_sock_close(&s);
}

/* ---- two engines and a relay ---- */

static int relay_open(uint16_t *port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof in;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_INT(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
    CHECK_INT(getsockname(fd, (struct sockaddr *)&in, &len), 0);
    *port = ntohs(in.sin_port);
    return fd;
}

/* Hand on what has our VNI, to the other of the two. */
static void relay_turn(int fd, const struct engine_pair *p)
{
    uint8_t buf[PACKET_MAX];
    struct sockaddr_in from;
    socklen_t len = sizeof from;
    for (;;) {
        ssize_t n = recvfrom(fd, buf, sizeof buf, 0, (struct sockaddr *)&from, &len);
        if (n < 0)
            return;
        CHECK_INT(mn_geneve_vni(buf), VNI);
        bool from_a = ntohs(from.sin_port) == mn_engine_port(p->e[PAIR_A], MN_SOCK_V4);
        from.sin_port = htons(mn_engine_port(p->e[from_a ? PAIR_B : PAIR_A], MN_SOCK_V4));
        CHECK_INT(sendto(fd, buf, (size_t)n, 0, (struct sockaddr *)&from, sizeof from), n);
    }
}

static void turn(const struct engine_pair *p, int relay)
{
    for (int side = PAIR_A; side <= PAIR_B; side++) {
        mn_engine_turn(p->e[side], 0);
        relay_turn(relay, p);
    }
}

static int await_fd(const struct engine_pair *p, int relay, int side, uint8_t kind, struct mn_event *recv_event)
{
    static uint8_t taken[2 * MN_EVENT_RECORD_MAX];
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    for (;;) {
        size_t n;
        CHECK(mn_clock_ns() < limit);
        turn(p, relay);
        size_t used = mn_events_take(&p->e[side]->events, taken, sizeof taken, 64, &n);
        for (size_t at = 0; at < used;) {
            struct mn_event ev;
            memcpy(&ev, taken + at, sizeof ev);
            at += mn_event_size(&ev);
            if (ev.kind == MN_EV_PEER_RECV)
                *recv_event = ev;
            if (ev.kind == kind)
                return ev.fd;
        }
    }
}

static void pump(const struct engine_pair *p, int relay, int from, int to, size_t total)
{
    static uint8_t buf[65536];
    uint64_t limit = mn_clock_ns() + 60 * MN_NS_PER_S;
    size_t out = 0, got = 0;
    while (got < total) {
        CHECK(mn_clock_ns() < limit);
        size_t n = total - out < sizeof buf ? total - out : sizeof buf;
        for (size_t i = 0; i < n; i++)
            buf[i] = (uint8_t)((out + i) * 31 >> 3);
        ssize_t w = n > 0 ? send(from, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
        out += w > 0 ? (size_t)w : 0;
        turn(p, relay);
        ssize_t r = recv(to, buf, sizeof buf, MSG_DONTWAIT);
        for (ssize_t i = 0; i < r; i++, got++)
            CHECK_INT(buf[i], (uint8_t)(got * 31 >> 3));
    }
}

static void test_two_engines_through_a_relay(void)
{
    struct engine_pair p;
    struct mn_event heard = {0};
    uint16_t port;
    int relay = relay_open(&port);
    engine_pair_start(&p);
    for (int side = PAIR_A; side <= PAIR_B; side++) {
        uint8_t other[32];
        pair_key(&p, 1 - side, other);
        struct mn_command cmd = pair_path(other, port);
        cmd.ep.vni = VNI;
        pair_push(&p, side, cmd);
    }
    pair_connect_to_b(&p, 1);
    int client = await_fd(&p, relay, PAIR_A, MN_EV_CONNECTED, &heard);
    CHECK_INT(heard.remote.vni, VNI);
    CHECK_INT(heard.remote.port, port);
    int server = await_fd(&p, relay, PAIR_B, MN_EV_ACCEPTED, &heard);
    pump(&p, relay, client, server, (4u << 20) / MN_TEST_SLOW);
    pump(&p, relay, server, client, (4u << 20) / MN_TEST_SLOW);
    CHECK(p.e[PAIR_A]->stats.rx_relayed > 100 / MN_TEST_SLOW);
    CHECK_INT(p.e[PAIR_A]->stats.rx_unknown + p.e[PAIR_B]->stats.rx_unknown, 0);
    close(client);
    close(server);
    close(relay);
    mn_engine_destroy(p.e[PAIR_A]);
    mn_engine_destroy(p.e[PAIR_B]);
}

int main(void)
{
    RUN(test_each_segment_has_its_header);
    RUN(test_plain_after_a_refusal_too);
    RUN(test_legs_are_kept_apart);
    RUN(test_room_for_the_header);
    RUN(test_two_engines_through_a_relay);
    return 0;
}
