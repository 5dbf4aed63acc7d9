/* A test of segmentation on this kernel. See probe.h. */
#include "probe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "control.h"

enum { SEGS = 5, SEG = 1312, PATIENCE_MS = 20, PLAIN = 0xee, RX_BYTES = 65536 };

struct probe {
    const struct mn_sock_calls *calls;
    int tx, rx;
    struct sockaddr_in to;
    uint8_t sent[SEGS * SEG];
};

static int open_one(struct sockaddr_in *at)
{
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 ||
        (bind(fd, (struct sockaddr *)at, sizeof *at) == 0 && getsockname(fd, (struct sockaddr *)at, &len) == 0))
        return fd;
    close(fd);
    return -1;
}

static bool send_one(struct probe *p, uint8_t *data, size_t len, uint16_t seg)
{
    struct iovec iov = {data, len};
    struct mn_control control;
    struct mmsghdr msg = {
        .msg_hdr = {.msg_name = &p->to, .msg_namelen = sizeof p->to, .msg_iov = &iov, .msg_iovlen = 1}};
    if (seg != 0)
        mn_control_add_segment(&control, &msg.msg_hdr, seg);
    return p->calls->sendmmsg(p->tx, &msg, 1, MSG_NOSIGNAL) == 1;
}

/* One datagram, or a super-buffer of *seg each; its length, 0: none came. */
static size_t receive(struct probe *p, uint8_t buf[RX_BYTES], size_t *seg)
{
    struct pollfd ready = {.fd = p->rx, .events = POLLIN};
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {buf, RX_BYTES};
    struct mmsghdr msg = {
        .msg_hdr = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control}};
    if (poll(&ready, 1, PATIENCE_MS) != 1 || p->calls->recvmmsg(p->rx, &msg, 1, MSG_DONTWAIT) != 1)
        return 0;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg.msg_hdr);
    int value = 0;
    if (c != NULL && c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO)
        memcpy(&value, CMSG_DATA(c), sizeof value);
    *seg = value > 0 ? (size_t)value : msg.msg_len;
    return msg.msg_len;
}

/* Everything up to the plain datagram that ends it, each of the right length and in order. */
static enum mn_probe_result judge(struct probe *p, uint8_t buf[RX_BYTES])
{
    size_t at = 0, seg, len;
    while ((len = receive(p, buf, &seg)) > 0) {
        if (len == 1 && buf[0] == PLAIN)
            return at == sizeof p->sent ? MN_PROBE_WHOLE : MN_PROBE_BROKEN;
        if (seg != SEG || len % SEG != 0 || at + len > sizeof p->sent || memcmp(p->sent + at, buf, len) != 0)
            return MN_PROBE_BROKEN;
        at += len;
    }
    return at == 0 ? MN_PROBE_UNKNOWN : MN_PROBE_BROKEN;
}

static enum mn_probe_result run(struct probe *p)
{
    uint8_t buf[RX_BYTES], end = PLAIN;
    int on = 1;
    (void)setsockopt(p->rx, IPPROTO_UDP, UDP_GRO, &on, sizeof on);
    for (size_t i = 0; i < sizeof p->sent; i++)
        p->sent[i] = (uint8_t)(i * 7 + i / SEG + 1);
    bool went = send_one(p, p->sent, sizeof p->sent, SEG);
    bool is_old = !went && (errno == EINVAL || errno == ENOPROTOOPT);
    if (is_old || !send_one(p, &end, 1, 0))
        return MN_PROBE_UNKNOWN; /* without segmentation there is nothing to judge */
    return went ? judge(p, buf) : MN_PROBE_BROKEN;
}

enum mn_probe_result mn_probe_offload(const struct mn_sock_calls *calls)
{
    struct probe p = {.calls = calls};
    struct sockaddr_in own;
    enum mn_probe_result result = MN_PROBE_UNKNOWN;
    p.tx = open_one(&own);
    p.rx = open_one(&p.to);
    if (p.tx >= 0 && p.rx >= 0 && connect(p.rx, (struct sockaddr *)&own, sizeof own) == 0)
        result = run(&p);
    if (p.tx >= 0)
        close(p.tx);
    if (p.rx >= 0)
        close(p.rx);
    return result;
}
