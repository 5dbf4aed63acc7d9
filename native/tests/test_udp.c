/* The sockets: runs and their limits, every send fall-back by injected faults, splitting what the kernel coalesced,
 * and the real thing over loopback. */
#include "../udp/sockets.h"

#include <errno.h>
#include <netinet/udp.h>
#include <poll.h>
#include <unistd.h>

#include "check.h"

enum { LOG_MAX = 4096 };

/* What a fake sendmmsg was asked to send: one entry per datagram after segmentation. */
static struct {
    size_t len;
    uint8_t first;
    uint16_t to;
    bool segmented;
} sent[LOG_MAX];
static size_t n_sent;
static unsigned calls;
static int fail_errno, fail_times, fail_segmented_only, partial, waits;

static uint16_t gso_of(const struct msghdr *h)
{
    struct cmsghdr *c = CMSG_FIRSTHDR((struct msghdr *)(uintptr_t)h);
    uint16_t seg = 0;
    if (c != NULL && c->cmsg_type == 103)
        memcpy(&seg, CMSG_DATA(c), sizeof seg);
    return seg;
}

static uint16_t port_of(const struct msghdr *h)
{
    uint16_t port;
    memcpy(&port, (uint8_t *)h->msg_name + 2, sizeof port);
    return (uint16_t)((port >> 8) | (port << 8));
}

static void log_message(const struct msghdr *h)
{
    CHECK_INT(h->msg_iovlen, 1);
    size_t len = h->msg_iov->iov_len, seg = gso_of(h);
    const uint8_t *p = h->msg_iov->iov_base;
    CHECK(len <= MN_SOCK_BYTES_MAX);
    CHECK(seg == 0 || (len + seg - 1) / seg <= MN_SOCK_SEGS_MAX);
    for (size_t at = 0, step = seg != 0 ? seg : len; at < len; at += step) {
        CHECK(n_sent < LOG_MAX);
        sent[n_sent].len = len - at < step ? len - at : step;
        sent[n_sent].first = p[at];
        sent[n_sent].to = port_of(h);
        sent[n_sent].segmented = seg != 0;
        n_sent++;
    }
}

static int fake_sendmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    (void)fd, (void)flags;
    calls++;
    unsigned done = 0;
    for (; done < n; done++) {
        bool segmented = gso_of(&msgs[done].msg_hdr) != 0;
        if (fail_times > 0 && (!fail_segmented_only || segmented)) {
            if (done > 0)
                return (int)done;
            fail_times--;
            errno = fail_errno;
            return -1;
        }
        log_message(&msgs[done].msg_hdr);
        if (partial != 0)
            return (int)done + 1;
    }
    return (int)done;
}

static int fake_wait(int fd, int timeout_ms)
{
    (void)fd;
    CHECK(timeout_ms <= MN_SOCK_STALL_MS);
    waits++;
    return 1;
}

static unsigned reported;
static int reported_errno;

static void on_error(void *ctx, const struct mn_ep *to, int err)
{
    (void)ctx, (void)to;
    reported++;
    reported_errno = err;
}

static struct mn_ep loopback(uint16_t port)
{
    const uint8_t v4[4] = {127, 0, 0, 1};
    return (struct mn_ep){.ip = mn_ip_from4(v4), .port = port};
}

static void open_pair(struct mn_socks *s, bool fake)
{
    struct mn_sock_config config = {.use4 = true, .use6 = true, .bind4 = loopback(0).ip};
    config.bind6.b[15] = 1;
    CHECK_INT(mn_sock_open(s, &config), 0);
    s->on_error = on_error;
    s->now_ns = 1;
    n_sent = calls = reported = 0;
    fail_errno = fail_times = fail_segmented_only = partial = waits = reported_errno = 0;
    if (fake) {
        s->has_gso[0] = s->has_gso[1] = true;
        s->calls.sendmmsg = fake_sendmmsg;
        s->calls.wait_writable = fake_wait;
    }
}

static void put(struct mn_socks *s, uint16_t port, size_t len, uint8_t mark)
{
    uint8_t buf[9000];
    struct mn_ep to = loopback(port);
    memset(buf, mark, len);
    mn_sock_put(s, &to, buf, len);
}

static void expect(size_t i, uint16_t port, size_t len, uint8_t mark)
{
    CHECK(i < n_sent);
    CHECK_INT(sent[i].to, port);
    CHECK_INT(sent[i].len, len);
    CHECK_INT(sent[i].first, mark);
}

static void test_equal_sizes_coalesce(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    for (uint8_t i = 0; i < 10; i++)
        put(&s, 7, 1312, i);
    put(&s, 7, 100, 10);
    mn_sock_flush(&s);
    CHECK_INT(calls, 1);
    CHECK_INT(n_sent, 11);
    for (uint8_t i = 0; i < 10; i++)
        expect(i, 7, 1312, i);
    expect(10, 7, 100, 10);
    CHECK(sent[0].segmented);
    mn_sock_flush(&s);
    CHECK_INT(calls, 1);
    mn_sock_close(&s);
}

static void test_order_is_kept_when_sizes_change(void)
{
    struct mn_socks s;
    uint64_t seed = 7;
    open_pair(&s, true);
    uint8_t next[3] = {0, 0, 0};
    for (int i = 0; i < 600; i++) {
        unsigned to = (unsigned)(test_random(&seed) % 3);
        size_t len = 32 + 16 * (size_t)(test_random(&seed) % 80);
        put(&s, (uint16_t)(100 + to), len, next[to]++);
        if (test_random(&seed) % 97 == 0)
            mn_sock_flush(&s);
    }
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 600);
    uint8_t seen[3] = {0, 0, 0};
    for (size_t i = 0; i < n_sent; i++)
        CHECK_INT(sent[i].first, seen[sent[i].to - 100]++);
    mn_sock_close(&s);
}

static void test_limits(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    for (int i = 0; i < 64; i++)
        put(&s, 7, 64, (uint8_t)i);
    CHECK_INT(n_sent, 64); /* the 64th filled the run: it left by itself */
    put(&s, 7, 64, 64);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 65);
    CHECK(!sent[64].segmented);
    n_sent = 0;
    for (int i = 0; i < 8; i++)
        put(&s, 7, 9000, (uint8_t)i); /* seven fit into 65507 bytes */
    CHECK_INT(n_sent, 7);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 8);
    n_sent = 0;
    for (uint16_t to = 1; to <= 20; to++) /* more destinations than runs */
        put(&s, to, 100, (uint8_t)to);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 20);
    for (uint16_t to = 1; to <= 20; to++)
        expect((size_t)to - 1, to, 100, (uint8_t)to);
    mn_sock_close(&s);
}

static void test_reserve_without_commit(void)
{
    struct mn_socks s;
    struct mn_ep to = loopback(7);
    open_pair(&s, true);
    put(&s, 7, 100, 1);
    uint8_t *p = mn_sock_reserve(&s, &to, 1312);
    CHECK(p != NULL);
    memset(p, 0xee, 1312);
    put(&s, 7, 100, 2);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 2);
    expect(0, 7, 100, 1);
    expect(1, 7, 100, 2);
    mn_sock_close(&s);
}

static void fill(struct mn_socks *s, int n)
{
    for (int i = 0; i < n; i++)
        put(s, 7, 500, (uint8_t)i);
    mn_sock_flush(s);
}

static void test_eio_turns_segmentation_off(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    fail_errno = EIO;
    fail_times = 1000;
    fail_segmented_only = 1;
    fill(&s, 10);
    CHECK_INT(n_sent, 10);
    CHECK(!sent[0].segmented && !s.has_gso[MN_SOCK_V4] && s.has_gso[MN_SOCK_V6]);
    CHECK_INT(s.stats.tx_fallbacks, 1);
    fill(&s, 10);
    CHECK_INT(n_sent, 20);
    CHECK_INT(s.stats.tx_fallbacks, 1); /* remembered: not tried again */
    CHECK_INT(reported, 0);
    mn_sock_close(&s);
}

static void test_emsgsize_is_remembered_per_destination(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    fail_errno = EMSGSIZE;
    fail_times = 1;
    fail_segmented_only = 1;
    fill(&s, 10);
    CHECK_INT(n_sent, 10);
    CHECK(!sent[0].segmented && s.has_gso[MN_SOCK_V4]);
    fill(&s, 10);
    CHECK(!sent[19].segmented);
    put(&s, 8, 500, 0);
    put(&s, 8, 500, 1);
    mn_sock_flush(&s);
    CHECK(sent[20].segmented && sent[21].segmented); /* others are not concerned */
    s.now_ns += 601ull * 1000000000ull;
    fill(&s, 10);
    CHECK(sent[22].segmented); /* ten minutes later it may be tried again */
    mn_sock_close(&s);
}

static void test_unreachable_is_reported_and_the_rest_goes(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    fail_errno = ENETUNREACH;
    fail_times = 1;
    put(&s, 7, 500, 1);
    put(&s, 8, 500, 2);
    put(&s, 9, 500, 3);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 2);
    expect(0, 8, 500, 2);
    expect(1, 9, 500, 3);
    CHECK_INT(reported, 1);
    CHECK_INT(reported_errno, ENETUNREACH);
    CHECK_INT(s.stats.tx_dropped, 1);
    mn_sock_close(&s);
}

static void test_full_buffer_is_waited_for(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    fail_errno = EAGAIN;
    fail_times = 1;
    fill(&s, 10);
    CHECK_INT(n_sent, 10);
    CHECK_INT(waits, 1);
    CHECK_INT(s.stats.tx_stalls, 1);
    fail_times = 1000; /* still full after the wait: dropped, counted, not reported as an error */
    fill(&s, 10);
    CHECK_INT(waits, 2);
    CHECK_INT(s.stats.tx_dropped, 10);
    CHECK_INT(reported, 0);
    fail_times = 0;
    fill(&s, 1);
    CHECK_INT(n_sent, 11);
    mn_sock_close(&s);
}

static void test_no_buffers_drop_quietly(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    fail_errno = ENOBUFS;
    fail_times = 1;
    fill(&s, 5);
    CHECK_INT(s.stats.tx_dropped, 5);
    CHECK_INT(reported, 0);
    mn_sock_close(&s);
}

static void test_partial_sends_continue(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    partial = 1;
    for (uint16_t to = 1; to <= 6; to++)
        put(&s, to, 100, (uint8_t)to);
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 6);
    CHECK_INT(calls, 6);
    mn_sock_close(&s);
}

static void await_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK_INT(poll(&p, 1, 5000), 1);
}

/* Everything that arrives within bounds, in order, as (len, first byte). */
static size_t drain(struct mn_socks *s, int family, size_t want, uint8_t *firsts, size_t *bytes)
{
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    size_t got = 0;
    while (got < want) {
        await_readable(s->fd[family]);
        int n = mn_sock_read(s, family, rx);
        for (int i = 0; i < n; i++)
            for (size_t at = 0; at < rx[i].len; at += rx[i].seg) {
                firsts[got++] = rx[i].buf[at];
                *bytes += rx[i].len - at < rx[i].seg ? rx[i].len - at : rx[i].seg;
            }
    }
    return got;
}

static void exchange(struct mn_socks *a, struct mn_socks *b, struct mn_ep to, int family)
{
    uint8_t buf[1312], firsts[256];
    size_t bytes = 0;
    to.port = b->port[family];
    for (int i = 0; i < 200; i++) {
        memset(buf, i, sizeof buf);
        mn_sock_put(a, &to, buf, i % 50 == 49 ? 700 : sizeof buf);
    }
    mn_sock_flush(a);
    CHECK_INT(drain(b, family, 200, firsts, &bytes), 200);
    for (int i = 0; i < 200; i++)
        CHECK_INT(firsts[i], i);
    CHECK_INT(bytes, 196 * sizeof buf + 4 * 700);
}

static void test_loopback_both_families(bool gso)
{
    struct mn_socks a, b;
    open_pair(&a, false);
    open_pair(&b, false);
    CHECK(a.port[MN_SOCK_V4] != 0);
    if (!gso)
        a.has_gso[0] = a.has_gso[1] = false;
    exchange(&a, &b, loopback(0), MN_SOCK_V4);
    if (a.fd[MN_SOCK_V6] >= 0) {
        struct mn_ep six = {.port = 0};
        six.ip.b[15] = 1;
        CHECK_INT(a.port[MN_SOCK_V6], a.port[MN_SOCK_V4]);
        exchange(&a, &b, six, MN_SOCK_V6);
    }
    CHECK_INT(b.stats.rx_truncated, 0);
    mn_sock_close(&a);
    mn_sock_close(&b);
}

static void test_loopback_segmented(void)
{
    test_loopback_both_families(true);
}

static void test_loopback_plain(void)
{
    test_loopback_both_families(false);
}

static void test_taken_port(void)
{
    struct mn_socks a, b;
    open_pair(&a, false);
    struct mn_sock_config config = {.use4 = true, .use6 = true, .bind4 = loopback(0).ip, .port = a.port[MN_SOCK_V4]};
    CHECK_INT(mn_sock_open(&b, &config), -EADDRINUSE);
    CHECK_INT(b.fd[MN_SOCK_V4], -1);
    mn_sock_close(&a);
}

int main(void)
{
    RUN(test_equal_sizes_coalesce);
    RUN(test_order_is_kept_when_sizes_change);
    RUN(test_limits);
    RUN(test_reserve_without_commit);
    RUN(test_eio_turns_segmentation_off);
    RUN(test_emsgsize_is_remembered_per_destination);
    RUN(test_unreachable_is_reported_and_the_rest_goes);
    RUN(test_full_buffer_is_waited_for);
    RUN(test_no_buffers_drop_quietly);
    RUN(test_partial_sends_continue);
    RUN(test_loopback_segmented);
    RUN(test_loopback_plain);
    RUN(test_taken_port);
    return 0;
}
