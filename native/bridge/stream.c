/* The socketpair's mechanics. See stream.h.
 * Source: docs/protocol/dataplane.md 6.2, 6.3 for what AF_UNIX says when. */
#include "stream.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void set_sndbuf(int fd, uint32_t size)
{
    int value = (int)size;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &value, sizeof value);
}

int mn_stream_open(struct mn_stream *s, int *app_fd)
{
    int pair[2];
    s->fd = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return -errno;
    s->fd = pair[0];
    s->sndbuf = MN_STREAM_SNDBUF_FIRST;
    *app_fd = pair[1];
    return 0;
}

void mn_stream_close(struct mn_stream *s)
{
    int fd = s->fd;
    s->fd = -1; /* first: a fork in between must not close a number that is someone else's by then */
    if (fd >= 0)
        close(fd);
}

static ssize_t send_iov(int fd, const struct iovec *iov, int n)
{
    union {
        const struct iovec *given;
        struct iovec *asked; /* sendmsg reads it only, and does not say so */
    } pieces = {.given = iov};
    struct msghdr h = {.msg_iov = pieces.asked, .msg_iovlen = (size_t)n};
    ssize_t sent;
    do {
        sent = sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return sent;
    return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? 0 : -errno;
}

static size_t total_of(const struct iovec *iov, int n)
{
    size_t total = 0;
    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    return total;
}

static bool enlarge(struct mn_stream *s)
{
    if (s->sndbuf >= MN_STREAM_SNDBUF_MAX)
        return false;
    s->sndbuf = s->sndbuf * 2 < MN_STREAM_SNDBUF_MAX ? s->sndbuf * 2 : MN_STREAM_SNDBUF_MAX;
    set_sndbuf(s->fd, s->sndbuf);
    return true;
}

/* Skip `sent` bytes of iov into rest[]; returns how many pieces remain. */
static int skip_sent(const struct iovec *iov, int n, size_t sent, struct iovec rest[MN_STREAM_IOV_MAX])
{
    int first = 0;
    while (first < n && sent >= iov[first].iov_len)
        sent -= iov[first++].iov_len;
    int left = n - first;
    if (left <= 0)
        return 0;
    memcpy(rest, iov + first, (size_t)left * sizeof *rest);
    rest[0].iov_base = (uint8_t *)rest[0].iov_base + sent;
    rest[0].iov_len -= sent;
    return left;
}

ssize_t mn_stream_deliver(struct mn_stream *s, const struct iovec *iov, int n)
{
    if (n > MN_STREAM_IOV_MAX)
        n = MN_STREAM_IOV_MAX;
    ssize_t sent = send_iov(s->fd, iov, n);
    if (sent < 0 || (size_t)sent == total_of(iov, n) || !enlarge(s))
        return sent;
    struct iovec rest[MN_STREAM_IOV_MAX];
    int left = skip_sent(iov, n, (size_t)sent, rest);
    ssize_t more = left > 0 ? send_iov(s->fd, rest, left) : 0;
    return more > 0 ? sent + more : sent;
}

ssize_t mn_stream_take(struct mn_stream *s, uint8_t *to, size_t room)
{
    ssize_t n;
    do {
        n = recv(s->fd, to, room, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n >= 0 ? n : -errno;
}

void mn_stream_end(struct mn_stream *s)
{
    (void)shutdown(s->fd, SHUT_WR);
}

bool mn_stream_is_hung_up(const struct mn_stream *s)
{
    struct pollfd p = {.fd = s->fd};
    return poll(&p, 1, 0) > 0 && (p.revents & POLLHUP) != 0;
}

bool mn_stream_was_reset(const struct mn_stream *s)
{
    int err = 0;
    socklen_t len = sizeof err;
    return getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err == ECONNRESET;
}
