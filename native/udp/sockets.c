/* Opening and reading the sockets; sending is in send.c. See sockets.h. */
#include "sockets.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "control.h"
#include "probe.h"
#include "sockaddr.h"

#ifndef IPV6_MTU_DISCOVER
#define IPV6_MTU_DISCOVER 23
#endif

enum { BUFFER_WANTED = 7 << 20, BIND_TRIES = 8, RX_IDLE = 2, CONTROL_LEN = 160, ERRORS_MAX = 64 };
enum { ECN_MASK = 3 };

static int real_sendmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    return sendmmsg(fd, msgs, n, flags);
}

static int real_recvmmsg(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    return recvmmsg(fd, msgs, n, flags, NULL);
}

static int real_wait_writable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    return poll(&p, 1, timeout_ms);
}

static void set_int(int fd, int level, int name, int value)
{
    (void)setsockopt(fd, level, name, &value, sizeof value);
}

/* The FORCE forms pass the system's limit when we may; the plain ones take what the limit allows. */
static void enlarge_buffers(int fd)
{
    int want = BUFFER_WANTED;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &want, sizeof want) != 0)
        set_int(fd, SOL_SOCKET, SO_RCVBUF, want);
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &want, sizeof want) != 0)
        set_int(fd, SOL_SOCKET, SO_SNDBUF, want);
}

static uint32_t get_u32(int fd, int level, int name)
{
    int value = 0;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) == 0 && value > 0 ? (uint32_t)value : 0;
}

/* What is to come with each datagram, and how errors are told. A socket bound to one address need not hear of it. */
static void ask_for_more(int fd, int family, bool wants_local)
{
    set_int(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
    /* 0 is "do not discover": datagrams above the path MTU are fragmented rather than lost. */
    if (family == MN_SOCK_V4) {
        set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, 0);
        set_int(fd, IPPROTO_IP, IP_RECVTOS, 1);
        set_int(fd, IPPROTO_IP, IP_RECVERR, 1);
        set_int(fd, IPPROTO_IP, IP_PKTINFO, wants_local);
    } else {
        set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, 0);
        set_int(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
        set_int(fd, IPPROTO_IPV6, IPV6_RECVERR, 1);
        set_int(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, wants_local);
    }
}

/* What the kernel has and the settings allow; what a socket refused is asked of it anew. */
static void set_offloads(struct mn_socks *s, int sock)
{
    int gro = !s->config.is_gro_off, gso = 0;
    socklen_t len = sizeof gso;
    s->has_gro[sock] = setsockopt(s->fd[sock], IPPROTO_UDP, UDP_GRO, &gro, sizeof gro) == 0 && gro;
    s->has_gso[sock] = s->config.gso != MN_GSO_OFF && !s->is_gso_broken &&
                       getsockopt(s->fd[sock], IPPROTO_UDP, UDP_SEGMENT, &gso, &len) == 0;
}

/* Only one of them is not IPv4. */
static int family_of(int sock)
{
    return sock == MN_SOCK_V6 ? MN_SOCK_V6 : MN_SOCK_V4;
}

static int bind_one(struct mn_socks *s, int sock, const struct mn_ip *local, uint16_t port)
{
    int family = family_of(sock);
    int fd = socket(family == MN_SOCK_V4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (family == MN_SOCK_V6)
        set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    struct mn_ep ep = {.ip = *local, .port = port};
    uint8_t addr[MN_SOCKADDR_MAX];
    socklen_t len = mn_sockaddr_put_family(addr, &ep, family == MN_SOCK_V4);
    if (bind(fd, (struct sockaddr *)(void *)addr, len) != 0) {
        int err = errno;
        close(fd);
        return -err;
    }
    len = sizeof addr;
    if (getsockname(fd, (struct sockaddr *)(void *)addr, &len) == 0) {
        mn_sockaddr_get(addr, &ep);
        s->port[sock] = ep.port;
    }
    enlarge_buffers(fd);
    ask_for_more(fd, family, mn_ip_is_zero(local));
    s->fd[sock] = fd;
    s->kernel_drops[sock] = 0;
    set_offloads(s, sock);
    return 0;
}

static void close_fd(struct mn_socks *s, int sock)
{
    int fd = s->fd[sock];
    s->fd[sock] = -1; /* before the number is free: a fork at this moment closes what it finds here */
    s->port[sock] = 0;
    if (fd >= 0)
        close(fd);
}

static void close_fds(struct mn_socks *s)
{
    for (int sock = 0; sock < MN_SOCKS_MAX; sock++)
        close_fd(s, sock);
}

/* IPv4 decides the port; IPv6 wants the same one, and with a port of our choosing a taken number is
 * a reason to choose again. */
static int bind_both(struct mn_socks *s, const struct mn_sock_config *c)
{
    for (int attempt = 0; attempt < BIND_TRIES; attempt++) {
        int err4 = c->use4 ? bind_one(s, MN_SOCK_V4, &c->bind4, c->port) : -EAFNOSUPPORT;
        if (err4 != 0 && (err4 != -EAFNOSUPPORT || !c->use6))
            return err4;
        if (!c->use6)
            return 0;
        uint16_t port = s->fd[MN_SOCK_V4] >= 0 ? s->port[MN_SOCK_V4] : c->port;
        int err6 = bind_one(s, MN_SOCK_V6, &c->bind6, port);
        if (err6 == 0)
            return 0;
        if (s->fd[MN_SOCK_V4] < 0)
            return err6;
        if (err6 != -EADDRINUSE || c->port != 0)
            return 0;
        if (attempt + 1 < BIND_TRIES)
            close_fds(s);
    }
    (void)bind_one(s, MN_SOCK_V6, &c->bind6, 0);
    return 0;
}

static uint8_t *map_slab(size_t buffers)
{
    void *p = mmap(NULL, buffers * MN_SOCK_BUF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void note_buffers(struct mn_socks *s)
{
    int fd = s->fd[MN_SOCK_V4] >= 0 ? s->fd[MN_SOCK_V4] : s->fd[MN_SOCK_V6];
    s->rcvbuf = get_u32(fd, SOL_SOCKET, SO_RCVBUF);
    s->sndbuf = get_u32(fd, SOL_SOCKET, SO_SNDBUF);
}

void mn_sock_clear(struct mn_socks *s)
{
    memset(s, 0, sizeof *s);
    for (int sock = 0; sock < MN_SOCKS_MAX; sock++)
        s->fd[sock] = -1;
}

int mn_sock_open(struct mn_socks *s, const struct mn_sock_config *config)
{
    mn_sock_clear(s);
    s->rx_want = RX_IDLE;
    s->config = *config;
    s->calls = (struct mn_sock_calls){real_sendmmsg, real_recvmmsg, real_wait_writable};
    if (config->gso != MN_GSO_OFF && mn_probe_offload(&s->calls) == MN_PROBE_BROKEN) {
        s->is_gso_broken = true;
        s->stats.tx_gso_refused++;
    }
    int err = bind_both(s, config);
    if (err == 0) {
        s->rx_slab = map_slab(MN_SOCK_RX_MAX);
        s->tx_slab = map_slab(MN_SOCK_RUNS_MAX);
        if (s->rx_slab == NULL || s->tx_slab == NULL)
            err = -ENOMEM;
    }
    if (err != 0) {
        mn_sock_close(s);
        return err;
    }
    note_buffers(s);
    return 0;
}

int mn_sock_open_extra(struct mn_socks *s, unsigned n)
{
    if (n == 0 || n > MN_SOCK_EXTRA_MAX)
        return -EINVAL;
    mn_sock_close_extra(s, n);
    return bind_one(s, MN_SOCK_V6 + (int)n, &s->config.bind4, 0);
}

void mn_sock_close_extra(struct mn_socks *s, unsigned n)
{
    if (n == 0 || n > MN_SOCK_EXTRA_MAX)
        return;
    mn_sock_flush(s); /* what waits for it leaves by it */
    close_fd(s, MN_SOCK_V6 + (int)n);
}

int mn_sock_rebind(struct mn_socks *s)
{
    struct mn_sock_config config = s->config;
    uint16_t port = s->port[MN_SOCK_V4] != 0 ? s->port[MN_SOCK_V4] : s->port[MN_SOCK_V6];
    config.port = s->config.port = port != 0 ? port : config.port; /* wanted again next time, too */
    s->n_runs = 0;
    s->reserved_at = NULL;
    s->stats.rebinds++;
    close_fds(s);
    int err = bind_both(s, &config);
    if (err == -EADDRINUSE) {
        config.port = 0;
        err = bind_both(s, &config);
    }
    if (err == 0)
        note_buffers(s);
    else
        close_fds(s);
    return err;
}

void mn_sock_set_offloads(struct mn_socks *s, enum mn_gso gso, bool is_gro_off)
{
    s->config.gso = gso;
    s->config.is_gro_off = is_gro_off;
    for (int sock = 0; sock < MN_SOCKS_MAX; sock++)
        if (s->fd[sock] >= 0)
            set_offloads(s, sock);
}

void mn_sock_close(struct mn_socks *s)
{
    close_fds(s);
    if (s->rx_slab != NULL)
        munmap(s->rx_slab, (size_t)MN_SOCK_RX_MAX * MN_SOCK_BUF);
    if (s->tx_slab != NULL)
        munmap(s->tx_slab, (size_t)MN_SOCK_RUNS_MAX * MN_SOCK_BUF);
    s->rx_slab = s->tx_slab = NULL;
    s->n_runs = 0;
}

static int control_int(const struct cmsghdr *c)
{
    int value = 0;
    memcpy(&value, CMSG_DATA(c), sizeof value);
    return value;
}

static void note_kernel_drops(struct mn_socks *s, int sock, uint32_t drops)
{
    s->stats.rx_kernel_drops += drops - s->kernel_drops[sock];
    s->kernel_drops[sock] = drops;
}

/* What the kernel says of one super-buffer; seg stays 0 where it coalesced nothing. */
static void read_control(struct mn_socks *s, int sock, struct msghdr *h, struct mn_sock_rx *rx)
{
    rx->seg = 0;
    rx->ecn = 0;
    memset(&rx->local, 0, sizeof rx->local);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int value = control_int(c);
            rx->seg = value > 0 ? (size_t)value : 0;
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
            rx->ecn = *CMSG_DATA(c) & ECN_MASK; /* one byte, unlike IPv6's */
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
            rx->ecn = (uint8_t)(control_int(c) & ECN_MASK);
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            rx->local = mn_ip_from4((const uint8_t *)&info.ipi_spec_dst);
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            rx->local = mn_ip_from6(info.ipi6_addr.s6_addr);
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
            note_kernel_drops(s, sock, (uint32_t)control_int(c));
        }
    }
}

/* The error of one queued report, 0 if it is none from the network. */
static int icmp_error(struct msghdr *h)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL; c = CMSG_NXTHDR(h, c)) {
        struct sock_extended_err ee;
        bool is_error = (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) ||
                        (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR);
        if (!is_error || c->cmsg_len < CMSG_LEN(sizeof ee))
            continue;
        memcpy(&ee, CMSG_DATA(c), sizeof ee);
        if (ee.ee_origin == SO_EE_ORIGIN_ICMP || ee.ee_origin == SO_EE_ORIGIN_ICMP6)
            return (int)ee.ee_errno;
    }
    return 0;
}

/* The number of an extra socket, as endpoints name it; 0 for the two. */
static uint16_t number_of(int sock)
{
    return (uint16_t)(sock > MN_SOCK_V6 ? sock - MN_SOCK_V6 : 0);
}

/* The kernel names the destination of the datagram that failed; what it held does not matter. */
unsigned mn_sock_drain_errors(struct mn_socks *s, int sock)
{
    unsigned n = 0;
    for (; n < ERRORS_MAX; n++) {
        uint8_t addr[MN_SOCKADDR_MAX] = {0}, nothing[1];
        _Alignas(struct cmsghdr) uint8_t control[512];
        struct iovec iov = {nothing, sizeof nothing};
        struct msghdr h = {.msg_name = addr,
                           .msg_namelen = sizeof addr,
                           .msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = control,
                           .msg_controllen = sizeof control};
        struct mn_ep to;
        if (recvmsg(s->fd[sock], &h, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            break;
        int err = icmp_error(&h);
        if (err == 0)
            continue;
        s->stats.rx_icmp_errors++;
        if (s->on_hint == NULL || !mn_sockaddr_get(addr, &to))
            continue;
        to.sock = number_of(sock);
        s->on_hint(s->ctx, &to, err);
    }
    return n;
}

int mn_sock_read(struct mn_socks *s, int sock, struct mn_sock_rx out[MN_SOCK_RX_MAX])
{
    struct mmsghdr msgs[MN_SOCK_RX_MAX];
    struct iovec iov[MN_SOCK_RX_MAX];
    uint8_t addrs[MN_SOCK_RX_MAX][MN_SOCKADDR_MAX];
    _Alignas(struct cmsghdr) uint8_t control[MN_SOCK_RX_MAX][CONTROL_LEN];
    unsigned want = s->rx_want;
    if (s->fd[sock] < 0)
        return 0;
    for (unsigned i = 0; i < want; i++) {
        iov[i] = (struct iovec){s->rx_slab + (size_t)i * MN_SOCK_BUF, MN_SOCK_BUF};
        msgs[i].msg_hdr = (struct msghdr){.msg_name = addrs[i],
                                          .msg_namelen = MN_SOCKADDR_MAX,
                                          .msg_iov = &iov[i],
                                          .msg_iovlen = 1,
                                          .msg_control = control[i],
                                          .msg_controllen = CONTROL_LEN};
    }
    int n = s->calls.recvmmsg(s->fd[sock], msgs, want, MSG_DONTWAIT);
    s->stats.rx_calls++;
    if (n <= 0) {
        s->rx_want = RX_IDLE;
        return n < 0 && errno != EAGAIN && mn_sock_drain_errors(s, sock) > 0 ? -1 : 0;
    }
    s->rx_want = (unsigned)n == want ? MN_SOCK_RX_MAX : RX_IDLE;
    int kept = 0;
    for (unsigned i = 0; i < want && i < (unsigned)n; i++) {
        struct mn_sock_rx *rx = &out[kept];
        size_t len = msgs[i].msg_len;
        read_control(s, sock, &msgs[i].msg_hdr, rx);
        s->stats.rx_buffers++;
        if ((msgs[i].msg_hdr.msg_flags & MSG_TRUNC) != 0) {
            s->stats.rx_truncated++;
            continue;
        }
        if (rx->seg == 0 || rx->seg > len)
            rx->seg = len;
        if (len == 0 || !mn_sockaddr_get(addrs[i], &rx->from))
            continue;
        rx->from.sock = number_of(sock);
        s->stats.rx_datagrams += (len + rx->seg - 1) / rx->seg;
        s->stats.rx_bytes += len;
        rx->buf = iov[i].iov_base;
        rx->len = len;
        kept++;
    }
    return kept > 0 ? kept : -1; /* -1: there were some, all unusable; worth another look */
}
