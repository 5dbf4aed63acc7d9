/* The sending half of the sockets: runs, segmentation and its fall-backs. See sockets.h. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>

#include "sockaddr.h"
#include "sockets.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define PLAIN_FOR_NS (600ull * 1000000000ull)

static bool is_plain_destination(const struct mn_socks *s, const struct mn_ep *to)
{
    for (int i = 0; i < MN_SOCK_PLAIN_MAX; i++)
        if (s->plain[i].until_ns > s->now_ns && mn_ep_equal(&s->plain[i].to, to))
            return true;
    return false;
}

/* Remember a destination in the slot that expires first. */
static void note_plain(struct mn_socks *s, const struct mn_ep *to)
{
    struct mn_sock_plain *slot = &s->plain[0];
    for (int i = 1; i < MN_SOCK_PLAIN_MAX; i++)
        if (s->plain[i].until_ns < slot->until_ns)
            slot = &s->plain[i];
    slot->to = *to;
    slot->until_ns = s->now_ns + PLAIN_FOR_NS;
}

static uint8_t *run_base(const struct mn_socks *s, unsigned run)
{
    return s->tx_slab + (size_t)run * MN_SOCK_BUF;
}

static void count_dropped(struct mn_socks *s, const struct mn_ep *to, uint64_t datagrams, int err)
{
    s->stats.tx_dropped += datagrams;
    if (s->on_error != NULL && err != EAGAIN && err != ENOBUFS)
        s->on_error(s->ctx, to, err);
}

/* Send msgs[0..n) of one socket; returns how many went, with *err the reason the next one did not.
 * A full buffer is waited for once per flush, as *stall says. */
static unsigned send_some(struct mn_socks *s, int family, struct mmsghdr *msgs, unsigned n, bool *stall, int *err)
{
    unsigned done = 0;
    *err = 0;
    while (done < n) {
        int sent = s->calls.sendmmsg(s->fd[family], msgs + done, n - done, MSG_NOSIGNAL);
        s->stats.tx_calls++;
        if (sent > 0) {
            done += (unsigned)sent;
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        *err = sent < 0 ? errno : EAGAIN;
        if (*err != EAGAIN || !*stall)
            break;
        *stall = false;
        s->stats.tx_stalls++;
        if (s->calls.wait_writable(s->fd[family], MN_SOCK_STALL_MS) <= 0)
            break;
    }
    return done;
}

/* One datagram per message: where segmentation is not to be had. */
static void send_plain(struct mn_socks *s, const struct mn_sock_run *run, uint8_t *data, bool *stall)
{
    struct mmsghdr msgs[MN_SOCK_SEGS_MAX];
    struct iovec iov[MN_SOCK_SEGS_MAX];
    uint8_t addr[MN_SOCKADDR_MAX];
    memcpy(addr, run->addr, sizeof addr);
    unsigned n = 0;
    for (size_t at = 0; at < run->len && n < MN_SOCK_SEGS_MAX; at += run->seg, n++) {
        size_t left = run->len - at;
        iov[n] = (struct iovec){data + at, left < run->seg ? left : run->seg};
        msgs[n].msg_hdr =
            (struct msghdr){.msg_name = addr, .msg_namelen = run->addr_len, .msg_iov = &iov[n], .msg_iovlen = 1};
    }
    for (unsigned done = 0; done < n;) {
        int err = 0;
        done += send_some(s, run->family, msgs + done, n - done, stall, &err);
        if (done < n) {
            count_dropped(s, &run->to, 1, err);
            done++;
        }
    }
}

/* A segmented send of this run failed with err: remember what that teaches. True: try it plainly. */
static bool learn_from(struct mn_socks *s, const struct mn_sock_run *run, int err)
{
    if (run->count < 2)
        return false;
    if (err == EIO) {
        s->has_gso[run->family] = false;
    } else if (err == EMSGSIZE || err == EINVAL) {
        note_plain(s, &run->to);
    } else {
        return false;
    }
    s->stats.tx_fallbacks++;
    return true;
}

struct batch {
    struct mmsghdr msgs[MN_SOCK_RUNS_MAX];
    struct iovec iov[MN_SOCK_RUNS_MAX];
    _Alignas(struct cmsghdr) uint8_t control[MN_SOCK_RUNS_MAX][CMSG_SPACE(sizeof(uint16_t))];
};

static void fill_message(struct batch *b, unsigned i, struct mn_sock_run *run, uint8_t *data)
{
    b->iov[i] = (struct iovec){data, run->len};
    struct msghdr *h = &b->msgs[i].msg_hdr;
    *h = (struct msghdr){.msg_name = run->addr, .msg_namelen = run->addr_len, .msg_iov = &b->iov[i], .msg_iovlen = 1};
    if (run->count < 2)
        return;
    memset(b->control[i], 0, sizeof b->control[i]);
    h->msg_control = b->control[i];
    h->msg_controllen = sizeof b->control[i];
    struct cmsghdr *c = CMSG_FIRSTHDR(h);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    uint16_t seg = (uint16_t)run->seg;
    memcpy(CMSG_DATA(c), &seg, sizeof seg);
}

static bool wants_plain(const struct mn_socks *s, const struct mn_sock_run *run)
{
    return run->count > 1 && (run->is_plain || !s->has_gso[run->family]);
}

/* Runs [first, end) are one family's and may be segmented. */
static void send_runs(struct mn_socks *s, unsigned first, unsigned end, bool *stall)
{
    struct batch b;
    for (unsigned i = first; i < end; i++)
        fill_message(&b, i - first, &s->runs[i], run_base(s, i));
    while (first < end) {
        int err = 0;
        first += send_some(s, s->runs[first].family, b.msgs, end - first, stall, &err);
        if (first == end)
            return;
        struct mn_sock_run *run = &s->runs[first];
        if (learn_from(s, run, err))
            send_plain(s, run, run_base(s, first), stall);
        else
            count_dropped(s, &run->to, run->count, err);
        first++;
        for (unsigned i = first; i < end; i++)
            fill_message(&b, i - first, &s->runs[i], run_base(s, i));
    }
}

void mn_sock_flush(struct mn_socks *s)
{
    bool stall = true;
    unsigned i = 0;
    while (i < s->n_runs) {
        struct mn_sock_run *run = &s->runs[i];
        s->stats.tx_runs++;
        if (run->count == 0) {
            i++;
        } else if (wants_plain(s, run)) {
            send_plain(s, run, run_base(s, i), &stall);
            i++;
        } else {
            unsigned end = i + 1;
            while (end < s->n_runs && s->runs[end].count > 0 && s->runs[end].family == run->family &&
                   !wants_plain(s, &s->runs[end]))
                end++;
            send_runs(s, i, end, &stall);
            i = end;
        }
    }
    s->n_runs = 0;
}

/* A new, empty run for `to`; sends everything first when all are taken. */
static unsigned open_run(struct mn_socks *s, const struct mn_ep *to)
{
    if (s->n_runs == MN_SOCK_RUNS_MAX)
        mn_sock_flush(s);
    struct mn_sock_run *run = &s->runs[s->n_runs];
    run->to = *to;
    run->addr_len = (uint8_t)mn_sockaddr_put(run->addr, to);
    run->family = mn_ip_is4(&to->ip) ? MN_SOCK_V4 : MN_SOCK_V6;
    run->is_plain = is_plain_destination(s, to);
    run->is_closed = false;
    run->count = 0;
    run->seg = run->len = 0;
    return s->n_runs++;
}

/* The newest run of a destination is the only one that may grow: older ones must leave before it. */
static int find_run(const struct mn_socks *s, const struct mn_ep *to)
{
    for (unsigned i = s->n_runs; i-- > 0;)
        if (mn_ep_equal(&s->runs[i].to, to))
            return (int)i;
    return -1;
}

uint8_t *mn_sock_reserve(struct mn_socks *s, const struct mn_ep *to, size_t need)
{
    int family = mn_ip_is4(&to->ip) ? MN_SOCK_V4 : MN_SOCK_V6;
    s->reserved_at = NULL;
    if (s->fd[family] < 0 || need > MN_SOCK_BYTES_MAX)
        return NULL;
    int found = find_run(s, to);
    if (found >= 0 && !s->runs[found].is_closed && s->runs[found].len + need > MN_SOCK_BYTES_MAX) {
        mn_sock_flush(s);
        found = -1;
    }
    s->reserved = found >= 0 && !s->runs[found].is_closed ? (unsigned)found : open_run(s, to);
    s->reserved_at = run_base(s, s->reserved) + s->runs[s->reserved].len;
    return s->reserved_at;
}

void mn_sock_commit(struct mn_socks *s, size_t len)
{
    if (s->reserved_at == NULL || len == 0)
        return;
    uint8_t *at = s->reserved_at;
    struct mn_sock_run *run = &s->runs[s->reserved];
    s->reserved_at = NULL;
    if (run->count > 0 && len > run->seg) { /* a run's sizes never grow: move it to one of its own */
        struct mn_ep to = run->to;
        unsigned fresh = open_run(s, &to);
        memmove(run_base(s, fresh), at, len);
        run = &s->runs[fresh];
    }
    if (run->count == 0)
        run->seg = (uint32_t)len;
    run->count++;
    run->len += (uint32_t)len;
    run->is_closed = len < run->seg;
    s->stats.tx_datagrams++;
    s->stats.tx_bytes += len;
    if (run->count == MN_SOCK_SEGS_MAX)
        mn_sock_flush(s);
}

void mn_sock_put(struct mn_socks *s, const struct mn_ep *to, const uint8_t *data, size_t len)
{
    uint8_t *at = mn_sock_reserve(s, to, len);
    if (at == NULL) {
        count_dropped(s, to, 1, EAFNOSUPPORT);
        return;
    }
    memcpy(at, data, len);
    mn_sock_commit(s, len);
}
