/* Opening and reading the sockets; sending is in send.c. See sockets.h. */
#include "sockets.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sockaddr.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef IPV6_MTU_DISCOVER
#define IPV6_MTU_DISCOVER 23
#endif

enum { BUFFER_WANTED = 7 << 20, BIND_TRIES = 8, RX_IDLE = 2, CONTROL_LEN = 128 };

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

static int bind_family(struct mn_socks *s, int family, const struct mn_ip *local, uint16_t port)
{
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
        s->port[family] = ep.port;
    }
    enlarge_buffers(fd);
    /* 0 is "do not discover": datagrams above the path MTU are fragmented rather than lost. */
    if (family == MN_SOCK_V4)
        set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, 0);
    else
        set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, 0);
    set_int(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
    int on = 1, gso = 0;
    socklen_t gso_len = sizeof gso;
    s->has_gro[family] = setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on) == 0;
    s->has_gso[family] = getsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &gso, &gso_len) == 0;
    s->fd[family] = fd;
    return 0;
}

static void close_fds(struct mn_socks *s)
{
    for (int f = 0; f < 2; f++) {
        if (s->fd[f] >= 0)
            close(s->fd[f]);
        s->fd[f] = -1;
        s->port[f] = 0;
    }
}

/* IPv4 decides the port; IPv6 wants the same one, and with a port of our choosing a taken number is
 * a reason to choose again. */
static int bind_both(struct mn_socks *s, const struct mn_sock_config *c)
{
    for (int attempt = 0; attempt < BIND_TRIES; attempt++) {
        int err4 = c->use4 ? bind_family(s, MN_SOCK_V4, &c->bind4, c->port) : -EAFNOSUPPORT;
        if (err4 != 0 && (err4 != -EAFNOSUPPORT || !c->use6))
            return err4;
        if (!c->use6)
            return 0;
        uint16_t port = s->fd[MN_SOCK_V4] >= 0 ? s->port[MN_SOCK_V4] : c->port;
        int err6 = bind_family(s, MN_SOCK_V6, &c->bind6, port);
        if (err6 == 0)
            return 0;
        if (s->fd[MN_SOCK_V4] < 0)
            return err6;
        if (err6 != -EADDRINUSE || c->port != 0)
            return 0;
        if (attempt + 1 < BIND_TRIES)
            close_fds(s);
    }
    (void)bind_family(s, MN_SOCK_V6, &c->bind6, 0);
    return 0;
}

static uint8_t *map_slab(size_t buffers)
{
    void *p = mmap(NULL, buffers * MN_SOCK_BUF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

int mn_sock_open(struct mn_socks *s, const struct mn_sock_config *config)
{
    memset(s, 0, sizeof *s);
    s->fd[0] = s->fd[1] = -1;
    s->rx_want = RX_IDLE;
    s->calls = (struct mn_sock_calls){real_sendmmsg, real_recvmmsg, real_wait_writable};
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
    int fd = s->fd[MN_SOCK_V4] >= 0 ? s->fd[MN_SOCK_V4] : s->fd[MN_SOCK_V6];
    s->rcvbuf = get_u32(fd, SOL_SOCKET, SO_RCVBUF);
    s->sndbuf = get_u32(fd, SOL_SOCKET, SO_SNDBUF);
    return 0;
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

/* The segment size of a coalesced buffer, 0 if the kernel gave none; notes its drop counter. */
static size_t read_control(struct mn_socks *s, int family, struct msghdr *h)
{
    size_t seg = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int value = 0;
            memcpy(&value, CMSG_DATA(c), sizeof value);
            seg = value > 0 ? (size_t)value : 0;
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
            uint32_t drops = 0;
            memcpy(&drops, CMSG_DATA(c), sizeof drops);
            s->stats.rx_kernel_drops += drops - s->kernel_drops[family];
            s->kernel_drops[family] = drops;
        }
    }
    return seg;
}

int mn_sock_read(struct mn_socks *s, int family, struct mn_sock_rx out[MN_SOCK_RX_MAX])
{
    struct mmsghdr msgs[MN_SOCK_RX_MAX];
    struct iovec iov[MN_SOCK_RX_MAX];
    uint8_t addrs[MN_SOCK_RX_MAX][MN_SOCKADDR_MAX];
    _Alignas(struct cmsghdr) uint8_t control[MN_SOCK_RX_MAX][CONTROL_LEN];
    unsigned want = s->rx_want;
    if (s->fd[family] < 0)
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
    int n = s->calls.recvmmsg(s->fd[family], msgs, want, MSG_DONTWAIT);
    s->stats.rx_calls++;
    if (n <= 0) {
        s->rx_want = RX_IDLE;
        return 0;
    }
    s->rx_want = (unsigned)n == want ? MN_SOCK_RX_MAX : RX_IDLE;
    int kept = 0;
    for (unsigned i = 0; i < want && i < (unsigned)n; i++) {
        size_t len = msgs[i].msg_len;
        size_t seg = read_control(s, family, &msgs[i].msg_hdr);
        s->stats.rx_buffers++;
        if ((msgs[i].msg_hdr.msg_flags & MSG_TRUNC) != 0) {
            s->stats.rx_truncated++;
            continue;
        }
        if (seg == 0 || seg > len)
            seg = len;
        if (len == 0 || !mn_sockaddr_get(addrs[i], &out[kept].from))
            continue;
        s->stats.rx_datagrams += (len + seg - 1) / seg;
        s->stats.rx_bytes += len;
        out[kept].buf = iov[i].iov_base;
        out[kept].len = len;
        out[kept].seg = seg;
        kept++;
    }
    return kept > 0 ? kept : -1; /* -1: there were some, all unusable; worth another look */
}
