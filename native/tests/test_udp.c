/* The sockets: runs and their limits, every send fall-back by injected faults, splitting what the kernel coalesced,
 * and the real thing over loopback. */
#include "../udp/sockets.h"

#include <errno.h>
#include <netinet/in.h>
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
    bool segmented, pinned;
    int ecn;
} sent[LOG_MAX];
static const struct mn_ip any;
static size_t n_sent;
static unsigned calls;
static int fail_errno, fail_times, fail_segmented_only, fail_pinned_only, partial, waits;

/* The value of one kind of control message; 0: not there. */
static int control_of(const struct msghdr *h, int level, int type)
{
    struct msghdr *m = (struct msghdr *)(uintptr_t)h;
    int value = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c))
        if (c->cmsg_level == level && c->cmsg_type == type)
            memcpy(&value, CMSG_DATA(c),
                   c->cmsg_len - CMSG_LEN(0) < sizeof value ? c->cmsg_len - CMSG_LEN(0) : sizeof value);
    return value;
}

static uint16_t gso_of(const struct msghdr *h)
{
    return (uint16_t)control_of(h, IPPROTO_UDP, 103);
}

static bool has_source(const struct msghdr *h)
{
    struct msghdr *m = (struct msghdr *)(uintptr_t)h;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c))
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
            return true;
    return false;
}

static uint16_t port_of(const struct msghdr *h)
{
    uint16_t port;
    memcpy(&port, (uint8_t *)h->msg_name + 2, sizeof port);
    return (uint16_t)((port >> 8) | (port << 8));
}

static void log_message(const struct msghdr *h)
{
    static uint8_t p[65536];
    size_t len = 0, seg = gso_of(h);
    for (size_t i = 0; i < h->msg_iovlen; len += h->msg_iov[i++].iov_len)
        memcpy(p + len, h->msg_iov[i].iov_base, h->msg_iov[i].iov_len);
    CHECK(len <= MN_SOCK_BYTES_MAX);
    CHECK(seg == 0 || (len + seg - 1) / seg <= MN_SOCK_SEGS_MAX);
    for (size_t at = 0, step = seg != 0 ? seg : len; at < len; at += step) {
        CHECK(n_sent < LOG_MAX);
        sent[n_sent].len = len - at < step ? len - at : step;
        sent[n_sent].first = p[at];
        sent[n_sent].to = port_of(h);
        sent[n_sent].segmented = seg != 0;
        sent[n_sent].pinned = has_source(h);
        sent[n_sent].ecn = control_of(h, IPPROTO_IP, IP_TOS);
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
        bool pinned = has_source(&msgs[done].msg_hdr);
        if (fail_times > 0 && (!fail_segmented_only || segmented) && (!fail_pinned_only || pinned)) {
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

static unsigned unpinned, hints;
static struct mn_ep hinted;

static void on_unpinned(void *ctx, const struct mn_ep *to)
{
    (void)ctx, (void)to;
    unpinned++;
}

static void on_hint(void *ctx, const struct mn_ep *to, int err)
{
    (void)ctx;
    CHECK_INT(err, ECONNREFUSED);
    hints++;
    hinted = *to;
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
    s->on_hint = on_hint;
    s->on_unpinned = on_unpinned;
    s->now_ns = 1;
    n_sent = calls = reported = 0;
    fail_errno = fail_times = fail_segmented_only = fail_pinned_only = partial = waits = reported_errno = 0;
    unpinned = hints = 0;
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
    mn_sock_put(s, &to, &any, buf, len);
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
    uint8_t *p = mn_sock_reserve(&s, &to, &any, 1312);
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
    fail_times = 1000; /* still full after the wait: dropped, counted, reported */
    fill(&s, 10);
    CHECK_INT(waits, 2);
    CHECK_INT(s.stats.tx_dropped, 10);
    CHECK_INT(reported_errno, EAGAIN);
    fail_times = 0;
    fill(&s, 1);
    CHECK_INT(n_sent, 11);
    mn_sock_close(&s);
}

static void test_no_buffers_drop(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    fail_errno = ENOBUFS;
    fail_times = 1;
    fill(&s, 5);
    CHECK_INT(s.stats.tx_dropped, 5);
    CHECK_INT(reported, 1);
    CHECK_INT(reported_errno, ENOBUFS);
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
        mn_sock_put(a, &to, &any, buf, i % 50 == 49 ? 700 : sizeof buf);
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

static void put_ecn(struct mn_socks *s, struct mn_ep to, size_t len, uint8_t mark, uint8_t ecn)
{
    uint8_t *at = mn_sock_reserve(s, &to, &any, len);
    CHECK(at != NULL);
    memset(at, mark, len);
    mn_sock_commit(s, len, ecn);
}

/* A run has one ECN value; order is kept when it changes; nothing is said where it is zero. */
static void test_runs_by_ecn(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    static const uint8_t ecn[12] = {0, 0, 2, 2, 2, 0, 3, 3, 3, 2, 2, 2};
    for (uint8_t i = 0; i < 12; i++)
        put_ecn(&s, loopback(7), 500, i, ecn[i]);
    mn_sock_flush(&s);
    CHECK_INT(calls, 1);
    CHECK_INT(s.stats.tx_runs, 5);
    CHECK_INT(n_sent, 12);
    for (uint8_t i = 0; i < 12; i++) {
        expect(i, 7, 500, i);
        CHECK_INT(sent[i].ecn, ecn[i]);
        CHECK_INT(sent[i].segmented, i != 5);
    }
    mn_sock_close(&s);
}

/* What was put under ECN bits is read under the same, whether the kernel segments or not. */
static void ecn_over_loopback(int family, enum mn_gso gso)
{
    struct mn_socks a, b;
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    open_pair(&a, false);
    open_pair(&b, false);
    mn_sock_set_offloads(&a, gso, false);
    if (b.fd[family] < 0)
        return;
    struct mn_ep to = loopback(b.port[family]);
    if (family == MN_SOCK_V6)
        to.ip = (struct mn_ip){.b = {[15] = 1}};
    for (uint8_t i = 0; i < 40; i++)
        put_ecn(&a, to, 300, i, (uint8_t)(i / 10));
    mn_sock_flush(&a);
    for (unsigned got = 0; got < 40;) {
        await_readable(b.fd[family]);
        int n = mn_sock_read(&b, family, rx);
        for (int i = 0; i < n; i++)
            for (size_t at = 0; at < rx[i].len; at += rx[i].seg, got++) {
                CHECK_INT(rx[i].buf[at], got);
                CHECK_INT(rx[i].ecn, got / 10);
            }
    }
    mn_sock_close(&a);
    mn_sock_close(&b);
}

static void test_ecn_over_loopback(void)
{
    for (int family = 0; family < 2; family++) {
        ecn_over_loopback(family, MN_GSO_AUTO);
        ecn_over_loopback(family, MN_GSO_OFF);
    }
}

/* IO-06: whatever segmentation is set to, the receiver sees the same datagrams, but for the sentinels it ignores. */
static void test_modes_send_the_same(void)
{
    for (int gso = 0; gso < MN_GSO_MODES; gso++) {
        struct mn_socks a, b;
        struct mn_sock_rx rx[MN_SOCK_RX_MAX];
        uint64_t seed = 11;
        open_pair(&a, false);
        open_pair(&b, false);
        mn_sock_set_offloads(&a, (enum mn_gso)gso, gso == MN_GSO_OFF);
        size_t lens[300], sentinels = 0;
        for (size_t i = 0; i < 300; i++) {
            lens[i] = i < 200 && test_random(&seed) % 10 == 0 ? 100 : 1312;
            put_ecn(&a, loopback(b.port[MN_SOCK_V4]), lens[i], (uint8_t)(i + (i == 7)), 0);
        }
        mn_sock_flush(&a);
        for (size_t got = 0; got < 300;) {
            await_readable(b.fd[MN_SOCK_V4]);
            int n = mn_sock_read(&b, MN_SOCK_V4, rx);
            for (int i = 0; i < n; i++)
                for (size_t at = 0; at < rx[i].len; at += rx[i].seg) {
                    size_t len = rx[i].len - at < rx[i].seg ? rx[i].len - at : rx[i].seg;
                    if (len == 1) {
                        CHECK_INT(rx[i].buf[at], 0x07);
                        sentinels++;
                        continue;
                    }
                    CHECK_INT(len, lens[got]);
                    CHECK_INT(rx[i].buf[at], (uint8_t)(got + (got == 7)));
                    got++;
                }
        }
        CHECK_INT(sentinels > 0, gso == MN_GSO_NEVER_EQUAL);
        CHECK(sentinels <= a.stats.tx_sentinels);
        mn_sock_close(&a);
        mn_sock_close(&b);
    }
}

/* The sentinel fits, and a batch too short to be worth one leaves as plain datagrams. */
static void test_never_equal_limits(void)
{
    struct mn_socks s;
    open_pair(&s, true);
    mn_sock_set_offloads(&s, MN_GSO_NEVER_EQUAL, false);
    s.has_gso[0] = true;
    fill(&s, 7);
    CHECK_INT(n_sent, 7);
    CHECK(!sent[0].segmented && s.stats.tx_sentinels == 0);
    fill(&s, 8);
    CHECK_INT(n_sent, 7 + 9);
    CHECK_INT(sent[15].len, 1);
    n_sent = 0;
    for (int i = 0; i < 63; i++)
        put(&s, 7, 1039, (uint8_t)i);
    CHECK_INT(n_sent, 64); /* 63 and the sentinel: what the oldest kernels take, and 65458 bytes */
    for (int i = 0; i < 8; i++)
        put(&s, 7, 500, 1);
    put(&s, 7, 100, 1); /* a shorter last one serves as well */
    mn_sock_flush(&s);
    CHECK_INT(n_sent, 64 + 9);
    mn_sock_close(&s);
}

static void put_from(struct mn_socks *s, struct mn_ep to, struct mn_ip source, uint8_t mark)
{
    uint8_t buf[500];
    memset(buf, mark, sizeof buf);
    mn_sock_put(s, &to, &source, buf, sizeof buf);
}

static struct mn_ip four(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
    const uint8_t raw[4] = {a, b, c, d};
    return mn_ip_from4(raw);
}

/* A source the system refuses is given up for the run, whose datagrams all leave, segmented. */
static void test_refused_source(void)
{
    static const int errors[] = {EINVAL, EADDRNOTAVAIL, ENETUNREACH};
    for (size_t k = 0; k < 3; k++) {
        struct mn_socks s;
        open_pair(&s, true);
        fail_errno = errors[k];
        fail_times = 1;
        fail_pinned_only = 1;
        put(&s, 6, 500, 0);
        for (uint8_t i = 1; i < 10; i++)
            put_from(&s, loopback(7), four(192, 0, 2, 1), i);
        put(&s, 8, 500, 10);
        mn_sock_flush(&s);
        CHECK_INT(n_sent, 11);
        for (uint8_t i = 1; i < 10; i++)
            CHECK(sent[i].first == i && sent[i].segmented && !sent[i].pinned);
        CHECK_INT(unpinned, 1);
        CHECK_INT(s.stats.tx_unpinned, 1);
        CHECK_INT(reported, 0);
        CHECK_INT(s.stats.tx_fallbacks, 0); /* segmentation is not to blame */
        mn_sock_close(&s);
    }
}

/* Two datagrams for `to` from `source` arrive, with its address as their local one; how many came from the source. */
static unsigned arrive_from(struct mn_socks *a, struct mn_socks *b, struct mn_ep to, struct mn_ip source)
{
    int family = mn_ip_is4(&to.ip) ? MN_SOCK_V4 : MN_SOCK_V6;
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    unsigned count = 0;
    to.port = b->port[family];
    put_from(a, to, source, 1);
    put_from(a, to, source, 2);
    mn_sock_flush(a);
    for (size_t got = 0; got < 1000;) {
        await_readable(b->fd[family]);
        int n = mn_sock_read(b, family, rx);
        CHECK(n > 0);
        for (int i = 0; i < n; i++) {
            got += rx[i].len;
            CHECK(mn_ip_equal(&rx[i].local, &to.ip));
            count += mn_ip_equal(&rx[i].from.ip, &source) ? (unsigned)(rx[i].len / rx[i].seg) : 0;
        }
    }
    return count;
}

/* IO-04, on loopback: a source is honoured, heard of by the other side, and given up when it is none of ours. */
static void test_sources(void)
{
    struct mn_socks a, b;
    struct mn_sock_config config = {.use4 = true, .use6 = true};
    CHECK_INT(mn_sock_open(&a, &config), 0);
    CHECK_INT(mn_sock_open(&b, &config), 0);
    a.on_unpinned = on_unpinned;
    unpinned = 0;
    struct mn_ep to = {.ip = four(127, 0, 0, 5)}, six = {.ip = {.b = {[15] = 1}}};
    CHECK_INT(arrive_from(&a, &b, to, four(127, 0, 0, 9)), 2);
    CHECK_INT(unpinned, 0);
    CHECK_INT(arrive_from(&a, &b, to, four(192, 0, 2, 77)), 0);
    CHECK_INT(unpinned, 1);
    if (a.fd[MN_SOCK_V6] >= 0) {
        CHECK_INT(arrive_from(&a, &b, six, six.ip), 2);
        CHECK_INT(arrive_from(&a, &b, six, (struct mn_ip){.b = {0x20, 1, 0xd, 0xb8, [15] = 7}}), 0);
        CHECK_INT(unpinned, 2);
    }
    CHECK_INT(a.stats.tx_dropped, 0);
    mn_sock_close(&a);
    mn_sock_close(&b);
}

/* A port that refuses is a hint; the error it leaves on the socket costs the next destination nothing. */
static void test_icmp_errors_are_hints(void)
{
    struct mn_socks a, b, gone;
    uint8_t firsts[4];
    size_t bytes = 0;
    open_pair(&gone, false);
    uint16_t closed = gone.port[MN_SOCK_V4];
    mn_sock_close(&gone);
    open_pair(&a, false);
    open_pair(&b, false);
    put(&a, closed, 500, 1);
    mn_sock_flush(&a);
    put(&a, b.port[MN_SOCK_V4], 500, 2);
    mn_sock_flush(&a);
    CHECK_INT(drain(&b, MN_SOCK_V4, 1, firsts, &bytes), 1);
    CHECK_INT(firsts[0], 2);
    CHECK_INT(hints, 1);
    CHECK_INT(hinted.port, closed);
    CHECK_INT(a.stats.rx_icmp_errors, 1);
    CHECK_INT(a.stats.tx_dropped, 0);
    CHECK_INT(reported, 0);
    put(&a, closed, 500, 1);
    mn_sock_flush(&a);
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    CHECK_INT(mn_sock_read(&a, MN_SOCK_V4, rx), -1); /* the reader finds it as well */
    CHECK_INT(mn_sock_read(&a, MN_SOCK_V4, rx), 0);
    CHECK_INT(hints, 2);
    mn_sock_close(&a);
    mn_sock_close(&b);
}

/* One that arrives at socket `at` of `s`; where it is from. */
static struct mn_ep arrived(struct mn_socks *s, int at, uint8_t first)
{
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    await_readable(s->fd[at]);
    s->rx_want = 1; /* one at a time */
    CHECK_INT(mn_sock_read(s, at, rx), 1);
    CHECK_INT(rx[0].buf[0], first);
    return rx[0].from;
}

static void put_to(struct mn_socks *s, const struct mn_ep *to, uint8_t first)
{
    uint8_t buf[500];
    memset(buf, first, sizeof buf);
    mn_sock_put(s, to, &any, buf, sizeof buf);
}

/* Each has a port of its own, is named by what arrives at it, and is no way any more once it is closed. */
static void test_extra_sockets(void)
{
    struct mn_socks a, b;
    open_pair(&a, false);
    open_pair(&b, false);
    CHECK_INT(mn_sock_open_extra(&a, 0), -EINVAL);
    CHECK_INT(mn_sock_open_extra(&a, MN_SOCK_EXTRA_MAX + 1), -EINVAL);
    CHECK_INT(mn_sock_open_extra(&a, 1), 0);
    CHECK_INT(mn_sock_open_extra(&a, MN_SOCK_EXTRA_MAX), 0);
    int last = MN_SOCKS_MAX - 1, first = MN_SOCK_V6 + 1;
    struct mn_ep usual = loopback(b.port[MN_SOCK_V4]), by_first = usual, by_last = usual;
    by_first.sock = 1;
    by_last.sock = MN_SOCK_EXTRA_MAX;
    put_to(&a, &usual, 1); /* three runs of three sockets in one flush */
    put_to(&a, &by_first, 2);
    put_to(&a, &by_last, 3);
    mn_sock_flush(&a);
    CHECK_INT(arrived(&b, MN_SOCK_V4, 1).port, a.port[MN_SOCK_V4]);
    struct mn_ep back = arrived(&b, MN_SOCK_V4, 2);
    CHECK_INT(back.port, a.port[first]);
    CHECK_INT(back.sock, 0);
    CHECK_INT(arrived(&b, MN_SOCK_V4, 3).port, a.port[last]);
    put_to(&b, &back, 4);
    mn_sock_flush(&b);
    struct mn_ep from = arrived(&a, first, 4);
    CHECK(mn_ep_equal(&from, &by_first));
    CHECK(!mn_ep_equal(&from, &usual));
    put_to(&a, &by_first, 5); /* leaves before its socket goes */
    mn_sock_close_extra(&a, 1);
    (void)arrived(&b, MN_SOCK_V4, 5);
    uint64_t dropped = a.stats.tx_dropped;
    put_to(&a, &by_first, 6);
    by_first.ip = (struct mn_ip){.b = {[15] = 1}}; /* and none of them is IPv6 */
    put_to(&a, &by_first, 7);
    CHECK_INT(a.stats.tx_dropped, dropped + 2);
    CHECK_INT(mn_sock_rebind(&a), 0);
    CHECK_INT(a.fd[last], -1);
    mn_sock_close(&a);
    mn_sock_close(&b);
}

static void test_rebind(void)
{
    struct mn_socks a, b;
    open_pair(&a, false);
    open_pair(&b, false);
    uint16_t port = a.port[MN_SOCK_V4];
    put(&a, b.port[MN_SOCK_V4], 500, 1); /* not sent: gone with the old socket */
    CHECK_INT(mn_sock_rebind(&a), 0);
    CHECK_INT(a.port[MN_SOCK_V4], port);
    CHECK(a.fd[MN_SOCK_V6] < 0 || a.port[MN_SOCK_V6] == port);
    exchange(&a, &b, loopback(0), MN_SOCK_V4);
    exchange(&b, &a, loopback(0), MN_SOCK_V4);
    mn_sock_set_offloads(&a, MN_GSO_OFF, true);
    CHECK_INT(mn_sock_rebind(&a), 0);
    CHECK(!a.has_gso[0] && !a.has_gro[0]); /* settings survive */
    exchange(&a, &b, loopback(0), MN_SOCK_V4);
    CHECK_INT(a.stats.rebinds, 2);
    mn_sock_close(&a);
    mn_sock_close(&b);
}

/* The port was taken in between: another one, rather than none. */
static void test_rebind_to_a_taken_port(void)
{
    struct mn_socks a, b;
    open_pair(&a, false);
    open_pair(&b, false);
    a.config.port = b.port[MN_SOCK_V4];
    a.port[0] = a.port[1] = b.port[MN_SOCK_V4];
    CHECK_INT(mn_sock_rebind(&a), 0);
    CHECK(a.port[MN_SOCK_V4] != 0 && a.port[MN_SOCK_V4] != b.port[MN_SOCK_V4]);
    exchange(&a, &b, loopback(0), MN_SOCK_V4);
    mn_sock_close(&a);
    mn_sock_close(&b);
}

/* What was asked for is limited by the system, what was granted is known. */
static void test_buffer_sizes_are_read_back(void)
{
    struct mn_socks a;
    int value = 0;
    socklen_t len = sizeof value;
    open_pair(&a, false);
    CHECK_INT(getsockopt(a.fd[MN_SOCK_V4], SOL_SOCKET, SO_RCVBUF, &value, &len), 0);
    CHECK_INT(a.rcvbuf, value);
    CHECK_INT(getsockopt(a.fd[MN_SOCK_V4], SOL_SOCKET, SO_SNDBUF, &value, &len), 0);
    CHECK_INT(a.sndbuf, value);
    mn_sock_close(&a);
}

/* IO-05: what the kernel dropped for want of room is counted. */
static void test_kernel_drops_are_counted(void)
{
    struct mn_socks a, b;
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    int small = 4096;
    open_pair(&a, false);
    open_pair(&b, false);
    CHECK_INT(setsockopt(b.fd[MN_SOCK_V4], SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    a.has_gso[0] = false;
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 60; i++)
            put(&a, b.port[MN_SOCK_V4], 1312, 1);
        mn_sock_flush(&a);
        while (mn_sock_read(&b, MN_SOCK_V4, rx) > 0)
            ;
    }
    put(&a, b.port[MN_SOCK_V4], 10, 1); /* the counter comes with the next datagram */
    mn_sock_flush(&a);
    await_readable(b.fd[MN_SOCK_V4]);
    CHECK(mn_sock_read(&b, MN_SOCK_V4, rx) > 0);
    CHECK(b.stats.rx_kernel_drops > 0);
    CHECK_INT(b.stats.rx_kernel_drops + b.stats.rx_datagrams, 241);
    mn_sock_close(&a);
    mn_sock_close(&b);
}

static int cutting_recvmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    int got = recvmmsg(fd, msgs, n, flags, NULL);
    for (int i = 0; i < got; i++)
        if (msgs[i].msg_len == 100)
            msgs[i].msg_hdr.msg_flags |= MSG_TRUNC;
    return got;
}

/* IO-02: what the kernel cut short is counted and not used, what is empty is nothing; what comes behind both arrives.
 */
static void test_cut_and_empty_datagrams(void)
{
    struct mn_socks a, b;
    struct mn_sock_rx rx[MN_SOCK_RX_MAX];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    size_t got = 0;
    open_pair(&a, false);
    open_pair(&b, false);
    to.sin_port = htons(b.port[MN_SOCK_V4]);
    b.calls.recvmmsg = cutting_recvmmsg;
    CHECK_INT(sendto(a.fd[MN_SOCK_V4], "", 0, 0, (struct sockaddr *)&to, sizeof to), 0);
    put(&a, b.port[MN_SOCK_V4], 100, 1);
    mn_sock_flush(&a);
    put(&a, b.port[MN_SOCK_V4], 70, 2);
    mn_sock_flush(&a);
    while (got == 0) {
        await_readable(b.fd[MN_SOCK_V4]);
        int n = mn_sock_read(&b, MN_SOCK_V4, rx);
        for (int i = 0; i < n; i++, got++) {
            CHECK_INT(rx[i].len, 70);
            CHECK_INT(rx[i].buf[0], 2);
        }
    }
    CHECK_INT(got, 1);
    CHECK_INT(b.stats.rx_truncated, 1);
    CHECK_INT(b.stats.rx_datagrams, 1);
    mn_sock_close(&a);
    mn_sock_close(&b);
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
    RUN(test_no_buffers_drop);
    RUN(test_partial_sends_continue);
    RUN(test_loopback_segmented);
    RUN(test_loopback_plain);
    RUN(test_runs_by_ecn);
    RUN(test_ecn_over_loopback);
    RUN(test_modes_send_the_same);
    RUN(test_never_equal_limits);
    RUN(test_refused_source);
    RUN(test_sources);
    RUN(test_icmp_errors_are_hints);
    RUN(test_extra_sockets);
    RUN(test_rebind);
    RUN(test_rebind_to_a_taken_port);
    RUN(test_buffer_sizes_are_read_back);
    RUN(test_kernel_drops_are_counted);
    RUN(test_cut_and_empty_datagrams);
    RUN(test_taken_port);
    return 0;
}
