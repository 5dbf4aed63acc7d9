/* Two engines over loopback, each with a pretended kernel interface (a pair of SEQPACKET sockets keeps reads and writes
 * apart as a TUN does): packets of every size through the tunnel, what stays in the engine, what is told to the kernel,
 * the interface's end. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../engine/internal.h"
#include "check.h"
#include "offload.h"

enum { A, B, MAX = 70000 };

static struct mn_engine *e[2];
static int kernel[2]; /* the other end of each interface */
static uint8_t buf[MAX], want[MAX];

static struct mn_ip own4(int side)
{
    const uint8_t raw[4] = {100, 64, 0, (uint8_t)(1 + side)};
    return mn_ip_from4(raw);
}

static struct mn_ip own6(int side)
{
    uint8_t raw[16] = {0xfd, 0x7a};
    raw[15] = (uint8_t)(1 + side);
    return mn_ip_from6(raw);
}

static struct mn_engine *make(uint8_t key)
{
    struct mn_engine_config config = {.mtu = 1280};
    const uint8_t local[4] = {127, 0, 0, 1};
    int err = 0;
    config.private_key[0] = key;
    config.private_key[31] = 64;
    config.sockets.use4 = true;
    config.sockets.bind4 = mn_ip_from4(local);
    struct mn_engine *made = mn_engine_create(&config, &err);
    CHECK_INT(err, 0);
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

/* One rule for each family: everyone, the usual protocols, all ports. */
static void open_filter(int side)
{
    uint8_t blob[256] = {'M', 'N', 'F', '1', 2}, *p = blob + 8;
    for (int v6 = 0; v6 < 2; v6++) {
        static const uint8_t head[] = {4, 1, 0, 1, 0, 6, 17, 1, 58};
        memcpy(p, head, sizeof head);
        p += sizeof head;
        for (int i = 0; i < 2; i++, p += 17)
            if (v6 == 0) {
                memcpy(p, mn_ip4_prefix, 12);
                p[16] = 96;
            }
        memcpy(p, "\0\0\xff\xff", 4);
        p += 4;
    }
    push(side, with_blob(MN_CMD_SET_FILTER, blob, (size_t)(p + 4 - blob)));
}

static void attach(int side, unsigned merge)
{
    int fd[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
    kernel[side] = fd[1];
    push(side, (struct mn_command){.kind = MN_CMD_TUN_ATTACH, .number = (uint32_t)fd[0], .mode = (uint8_t)merge});
}

static void start(unsigned merge)
{
    e[A] = make(8);
    e[B] = make(16);
    for (int side = A; side <= B; side++) {
        struct mn_ip own[2] = {own4(side), own6(side)};
        uint8_t peer[32 + 2 * sizeof(struct mn_prefix)] = {0};
        struct mn_prefix prefixes[2] = {{own4(1 - side), 128}, {own6(1 - side), 128}};
        struct mn_command path = {.kind = MN_CMD_SET_PATH, .mode = MN_MODE_DIRECT};
        memcpy(peer + 32, prefixes, sizeof prefixes);
        push(side, with_blob(MN_CMD_SET_ADDRESSES, own, sizeof own));
        open_filter(side);
        struct mn_command upsert = with_blob(MN_CMD_UPSERT_PEER, peer, sizeof peer);
        memcpy(upsert.key, e[1 - side]->tunnel.own_key, 32);
        push(side, upsert);
        memcpy(path.key, upsert.key, 32);
        path.ep = (struct mn_ep){.ip = mn_ip_from4((const uint8_t[4]){127, 0, 0, 1}),
                                 .port = e[1 - side]->socks.port[MN_SOCK_V4]};
        push(side, path);
        attach(side, merge);
    }
}

static void stop(void)
{
    for (int side = A; side <= B; side++) {
        mn_engine_destroy(e[side]);
        close(kernel[side]);
    }
}

static void turn(void)
{
    mn_engine_turn(e[A], 0);
    mn_engine_turn(e[B], 0);
}

static void kernel_sends(int side, const struct mn_vnet *v, const uint8_t *pkt, size_t len)
{
    static uint8_t out[MAX];
    mn_vnet_store(out, v);
    memcpy(out + MN_VNET_SIZE, pkt, len);
    CHECK_INT(send(kernel[side], out, MN_VNET_SIZE + len, 0), MN_VNET_SIZE + len);
}

/* The next packet the kernel of this side gets, in buf behind its virtio header; the packet's length. */
static size_t kernel_gets(int side)
{
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    for (;;) {
        ssize_t n = recv(kernel[side], buf, sizeof buf, 0);
        if (n > 0)
            return (size_t)n - MN_VNET_SIZE;
        CHECK(errno == EAGAIN && mn_clock_ns() < limit);
        turn();
    }
}

static void kernel_gets_nothing(int side)
{
    for (int i = 0; i < 50; i++)
        turn();
    CHECK(recv(kernel[side], buf, sizeof buf, 0) < 0 && errno == EAGAIN);
}

/* A first packet makes the session: what follows is sealed at once. */
static void greet(void)
{
    const struct mn_vnet plain = {0};
    struct shape s = {.is_udp = true};
    size_t len = offload_make(want, &s, 5);
    kernel_sends(A, &plain, want, len);
    CHECK_INT(kernel_gets(B), len);
    CHECK(memcmp(buf + MN_VNET_SIZE, want, len) == 0);
}

static void test_packets_pass(void)
{
    const struct mn_vnet plain = {0};
    start(MN_TUN_TCP | MN_TUN_UDP);
    greet();
    for (int kind = 0; kind < 4; kind++)
        for (size_t n = 0; n < 1200; n += 97) {
            struct shape s = {.is6 = kind & 1, .is_udp = kind >> 1};
            size_t len = offload_make(want, &s, n);
            kernel_sends(A, &plain, want, len);
            CHECK_INT(kernel_gets(B), len);
            CHECK(memcmp(buf + MN_VNET_SIZE, want, len) == 0);
            CHECK_INT(mn_vnet_load(buf).gso_type, MN_VNET_GSO_NONE);
        }
    CHECK_INT(e[A]->tun.stats.drop_malformed, 0);
    stop();
}

/* A super-packet is cut, sealed, opened and merged into the same again; only its checksum is the kernel's to finish. */
static void test_super_packets_pass(void)
{
    start(MN_TUN_TCP | MN_TUN_UDP);
    greet();
    for (int kind = 0; kind < 4; kind++) {
        struct shape s = {.is6 = kind & 1, .is_udp = kind >> 1, .seq = 77, .id = 9};
        size_t seg = 1200, n = 40 * seg + 17, len = offload_make(want, &s, n), got = 0;
        struct mn_vnet v = {.flags = MN_VNET_NEEDS_CSUM, .gso_size = (uint16_t)seg};
        v.gso_type = s.is_udp ? MN_VNET_GSO_UDP : s.is6 ? MN_VNET_GSO_TCP6 : MN_VNET_GSO_TCP4;
        size_t head = len - n;
        kernel_sends(A, &v, want, len);
        unsigned writes = 0;
        while (got < n) { /* loopback may deliver it in two batches */
            size_t size = kernel_gets(B);
            CHECK(size > head);
            CHECK(memcmp(buf + MN_VNET_SIZE + head, want + head + got, size - head) == 0);
            got += size - head;
            writes++;
        }
        CHECK_INT(got, n);
        CHECK(writes <= 20);
    }
    CHECK(e[B]->tun.stats.writes < e[B]->tun.stats.written / 2);
    CHECK_INT(e[A]->tun.stats.sent, 1 + 4 * 41);
    stop();
}

static void test_merging_can_be_off(void)
{
    struct shape s = {.seq = 1};
    const struct mn_vnet v = {.flags = 1, .gso_type = MN_VNET_GSO_TCP4, .gso_size = 1000};
    start(MN_TUN_TCP | MN_TUN_UDP);
    push(B, (struct mn_command){.kind = MN_CMD_TUN_MERGE, .mode = MN_TUN_UDP});
    greet();
    kernel_sends(A, &v, want, offload_make(want, &s, 10 * 1000));
    for (int i = 0; i < 10; i++) {
        CHECK_INT(kernel_gets(B), 1040);
        CHECK_INT(mn_vnet_load(buf).gso_type, MN_VNET_GSO_NONE);
    }
    kernel_gets_nothing(B);
    stop();
}

/* As the releases of Linux that took no merged packets. */
static ssize_t refuse_merged(int fd, const struct iovec *iov, int n)
{
    if (((const uint8_t *)iov[0].iov_base)[1] != MN_VNET_GSO_NONE) {
        errno = EINVAL;
        return -1;
    }
    return writev(fd, iov, n);
}

static void test_a_kernel_that_refuses_merged_packets(void)
{
    const struct mn_vnet v = {.flags = 1, .gso_type = MN_VNET_GSO_TCP4, .gso_size = 1000};
    start(MN_TUN_TCP | MN_TUN_UDP);
    greet();
    e[B]->tun.writev = refuse_merged;
    for (uint32_t round = 0; round < 6; round++) { /* nothing is lost, and after a few it is no longer tried */
        struct shape s = {.seq = round * 5000};
        kernel_sends(A, &v, want, offload_make(want, &s, 5000));
        for (unsigned i = 0; i < 5; i++) {
            CHECK_INT(kernel_gets(B), 1040);
            CHECK_INT(mn_load32(buf + MN_VNET_SIZE + 24), round * 5000 + i * 1000);
        }
    }
    CHECK_INT(e[B]->tun.stats.merge_refused, 4);
    CHECK(!e[B]->tun.merge->tcp && e[B]->tun.merge->udp);
    CHECK_INT(e[B]->tun.stats.write_errors, 0);
    stop();
}

static void test_what_the_engine_keeps(void)
{
    struct mn_command listen = {.kind = MN_CMD_LISTEN, .req = 5, .number = 64, .ep.port = 80};
    const struct mn_vnet plain = {0};
    struct shape s = {.flags = 2, .port = 80};
    start(MN_TUN_TCP | MN_TUN_UDP);
    greet();
    push(B, listen);
    turn();
    kernel_sends(A, &plain, want, offload_make(want, &s, 0)); /* a SYN: B's stack answers, A's kernel gets it */
    CHECK_INT(kernel_gets(A), 20 + (size_t)(buf[MN_VNET_SIZE + 32] >> 4) * 4);
    CHECK_INT(buf[MN_VNET_SIZE + 20 + 13], 2 | 16);
    kernel_gets_nothing(B);
    s.port = 81; /* nobody here: B's kernel will refuse it */
    size_t len = offload_make(want, &s, 0);
    kernel_sends(A, &plain, want, len);
    CHECK_INT(kernel_gets(B), len);
    stop();
}

static void test_what_goes_nowhere(void)
{
    const struct mn_vnet plain = {0};
    struct shape s = {.is_udp = true};
    struct mn_icmp m;
    struct mn_packet p;
    start(MN_TUN_TCP | MN_TUN_UDP);
    greet();
    size_t len = offload_make(want, &s, 5);
    memcpy(want + 16, (const uint8_t[4]){100, 64, 9, 9}, 4); /* no peer's */
    offload_seal(want, len, 20, MN_PROTO_UDP);
    kernel_sends(A, &plain, want, len);
    size_t n = kernel_gets(A);
    CHECK_INT(mn_packet_parse(&p, buf + MN_VNET_SIZE, n), 0);
    CHECK_INT(mn_icmp_parse(&m, &p), 0);
    CHECK_INT(m.kind, MN_ICMP_HOST_UNREACHABLE);
    memcpy(want + 16, (const uint8_t[4]){224, 0, 0, 251}, 4);
    offload_seal(want, len, 20, MN_PROTO_UDP);
    kernel_sends(A, &plain, want, len);
    len = offload_make(want, &s, 5);
    mn_store16(want + 20, e[A]->socks.port[MN_SOCK_V4]); /* the tunnel's own port */
    offload_seal(want, len, 20, MN_PROTO_UDP);
    kernel_sends(A, &plain, want, len);
    len = offload_make(want, &s, 1400);
    kernel_sends(A, &plain, want, len);
    kernel_sends(A, &plain, (const uint8_t *)"nonsense", 8);
    kernel_gets_nothing(B);
    const struct mn_tun_stats *st = &e[A]->tun.stats;
    CHECK_INT(st->drop_unreachable, 1);
    CHECK_INT(st->drop_special, 1);
    CHECK_INT(st->drop_loop, 1);
    CHECK_INT(st->drop_too_big, 1);
    CHECK_INT(st->drop_malformed, 1);
    stop();
}

/* What the direct path does not carry is sent all the same (here there is no relay), and its sender is told: if it set
 * the bit that forbids fragments, and if a path of IPv6 may be that small. */
static void test_what_is_too_long_for_the_path(void)
{
    const struct mn_vnet plain = {0};
    struct mn_icmp m;
    struct mn_packet p;
    start(0);
    greet();
    struct mn_command path = {.kind = MN_CMD_SET_PATH, .mode = MN_MODE_DIRECT, .number = 1280};
    memcpy(path.key, e[B]->tunnel.own_key, 32);
    path.ep = (struct mn_ep){.ip = mn_ip_from4((const uint8_t[4]){127, 0, 0, 1}), .port = e[B]->socks.port[MN_SOCK_V4]};
    push(A, path);
    turn();
    for (int kind = 0; kind < 4; kind++) { /* too long by one and as long as may be; IPv4 and IPv6 */
        struct shape s = {.is6 = kind & 1, .is_udp = true};
        size_t headers = s.is6 ? 48 : 28, inner = kind < 2 ? 1217 : 1216, len = offload_make(want, &s, inner - headers);
        kernel_sends(A, &plain, want, len);
        CHECK_INT(kernel_gets(B), len);
        if (kind != 0) {
            kernel_gets_nothing(A);
            continue;
        }
        size_t n = kernel_gets(A);
        CHECK_INT(mn_packet_parse(&p, buf + MN_VNET_SIZE, n), 0);
        CHECK_INT(mn_icmp_parse(&m, &p), 0);
        CHECK_INT(m.kind, MN_ICMP_TOO_BIG);
        CHECK_INT(m.mtu, 1216);
        CHECK(memcmp(m.body, want, m.body_len) == 0);
    }
    struct shape s = {.is_udp = true, .no_df = true};
    size_t len = offload_make(want, &s, 1217 - 28);
    kernel_sends(A, &plain, want, len); /* whoever may cut it is not told */
    CHECK_INT(kernel_gets(B), len);
    kernel_gets_nothing(A);
    CHECK_INT(e[A]->tun.stats.told_too_big, 1);
    stop();
}

static struct mn_event take_event(int side, uint8_t kind)
{
    static uint8_t out[2 * MN_EVENT_RECORD_MAX];
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    for (;;) {
        size_t n, used = mn_events_take(&e[side]->events, out, sizeof out, 1, &n);
        struct mn_event ev;
        CHECK(mn_clock_ns() < limit);
        if (used == 0) {
            turn();
            continue;
        }
        memcpy(&ev, out, sizeof ev);
        if (ev.kind == kind)
            return ev;
    }
}

static void test_the_interface_goes(void)
{
    start(MN_TUN_TCP);
    greet();
    shutdown(kernel[A], SHUT_WR);
    struct mn_event ev = take_event(A, MN_EV_TUN_LOST);
    CHECK_INT(ev.err, EPIPE);
    CHECK_INT(e[A]->tun.fd, -1);
    close(kernel[A]);
    attach(A, MN_TUN_TCP); /* another takes its place */
    greet();
    stop();
}

static void test_one_interface_only(void)
{
    int fd[2];
    start(MN_TUN_TCP);
    turn();
    CHECK_INT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fd), 0);
    CHECK_INT(mn_tun_attach(e[A], fd[0], MN_TUN_TCP), -EBUSY);
    close(fd[0]);
    close(fd[1]);
    stop();
}

static void test_names(void)
{
    static const char *const bad[] = {"",     ".",       "..", "a/b", "a b", "mesh%d", "a:b", "sixteen-letters-",
                                      "\x7f", "\xc3\xa4"};
    struct mn_tundev d;
    enum mn_tundev_step step;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_INT(mn_tundev_open(&d, bad[i], &step), -EINVAL);
        CHECK(step == MN_TUNDEV_NAME && d.fd == -1);
    }
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(mn_tundev_adopt(&d, fd, &step) < 0);
    CHECK_INT(step, MN_TUNDEV_OPEN);
    close(fd);
}

static void bring_up(const char *name)
{
    struct ifreq ifr = {.ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    memcpy(ifr.ifr_name, name, strlen(name) + 1);
    CHECK_INT(ioctl(fd, SIOCSIFFLAGS, &ifr), 0);
    close(fd);
}

/* The kernel takes what merging makes of packets, of either kind and family, and refuses a header that lies. */
static void write_merged(int fd, unsigned merge)
{
    static uint8_t packets[4][1300];
    static struct mn_packet views[4];
    static struct mn_merge m;
    for (int kind = 0; kind < ((merge & MN_TUN_UDP) != 0 ? 4 : 2); kind++) {
        struct shape s = {.is6 = kind & 1, .is_udp = kind >> 1, .seq = 5};
        uint8_t head[MN_MERGE_HEAD];
        int n;
        mn_merge_clear(&m);
        m.tcp = m.udp = true;
        for (unsigned i = 0; i < 4; i++) {
            CHECK_INT(mn_packet_parse(&views[i], packets[i], offload_make(packets[i], &s, i < 3 ? 1001 : 9)), 0);
            CHECK(mn_merge_add(&m, &views[i]));
            s.seq += 1001;
        }
        CHECK_INT(m.count, 1);
        struct iovec *iov = mn_merge_build(&m.items[0], head, &n);
        CHECK_INT(writev(fd, iov, n), MN_VNET_SIZE + m.items[0].len);
        struct mn_vnet v = mn_vnet_load(head);
        v.csum_start = 60000;
        mn_vnet_store(head, &v);
        CHECK(writev(fd, iov, n) < 0 && errno == EINVAL);
    }
}

/* In a network namespace of its own, where the machine lets us have one. */
static void test_a_real_interface(void)
{
    struct mn_tundev d, other;
    enum mn_tundev_step step;
    struct ifreq bare = {.ifr_name = "bare0", .ifr_flags = IFF_TUN};
    int plain = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (plain < 0 || unshare(CLONE_NEWNET) != 0) {
        printf("not here: %s\n", strerror(errno));
        close(plain);
        return;
    }
    close(plain);
    CHECK_INT(mn_tundev_open(&d, "lo", &step), -EBUSY);
    CHECK_INT(step, MN_TUNDEV_MAKE);
    CHECK_INT(mn_tundev_open(&d, "mesh0", &step), 0);
    CHECK(strcmp(d.name, "mesh0") == 0 && (d.merge & MN_TUN_TCP) != 0);
    CHECK_INT(mn_tundev_open(&other, "mesh0", &step), -EBUSY);
    CHECK_INT(other.fd, -1);
    CHECK_INT(mn_tundev_adopt(&other, d.fd, &step), 0);
    CHECK(strcmp(other.name, "mesh0") == 0 && other.merge == d.merge);
    bring_up("mesh0");
    write_merged(d.fd, d.merge);
    close(d.fd);
    CHECK_INT(mn_tundev_open(&d, "mesh0", &step), 0); /* it went with its descriptor */
    close(d.fd);
    plain = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    CHECK_INT(ioctl(plain, TUNSETIFF, &bare), 0);
    CHECK_INT(mn_tundev_adopt(&other, plain, &step), -EINVAL); /* no virtio headers */
    CHECK_INT(step, MN_TUNDEV_MAKE);
    close(plain);
}

int main(void)
{
    RUN(test_packets_pass);
    RUN(test_super_packets_pass);
    RUN(test_merging_can_be_off);
    RUN(test_a_kernel_that_refuses_merged_packets);
    RUN(test_what_the_engine_keeps);
    RUN(test_what_goes_nowhere);
    RUN(test_what_is_too_long_for_the_path);
    RUN(test_the_interface_goes);
    RUN(test_one_interface_only);
    RUN(test_names);
    RUN(test_a_real_interface); /* last: it moves this process to another network */
    return 0;
}
