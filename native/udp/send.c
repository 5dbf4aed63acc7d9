/* The sending half of the sockets: runs, segmentation and its fall-backs. See sockets.h. */
#include <errno.h>
#include <string.h>

#include "control.h"
#include "geneve.h"
#include "sockaddr.h"
#include "sockets.h"

#define PLAIN_FOR_NS (600ull * 1000000000ull)

/* No protocol of ours begins with SENTINEL. */
enum { SENTINEL = 0x07, SENTINEL_FROM = 8, ECHOES_MAX = 4 };

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
    s->stats.tx_plain_paths++;
}

static uint8_t *run_base(const struct mn_socks *s, unsigned run)
{
    return s->tx_slab + (size_t)run * MN_SOCK_BUF;
}

static void count_dropped(struct mn_socks *s, const struct mn_ep *to, uint64_t datagrams, int err)
{
    s->stats.tx_dropped += datagrams;
    if (s->on_error != NULL)
        s->on_error(s->ctx, to, err);
}

/* Errors of a datagram to elsewhere, which the network told and the socket now reports to whoever comes next. */
static bool is_echo(struct mn_socks *s, int sock, int err)
{
    unsigned drained = mn_sock_drain_errors(s, sock);
    return drained > 0 || err == ECONNREFUSED || err == EPROTO || err == EHOSTDOWN;
}

/* Send msgs[0..n) of one socket; returns how many went, with *err the reason the next one did not.
 * A full buffer is waited for once per flush, as *stall says. */
static unsigned send_some(struct mn_socks *s, int sock, struct mmsghdr *msgs, unsigned n, bool *stall, int *err)
{
    unsigned done = 0, echoes = 0;
    *err = 0;
    while (done < n) {
        int sent = s->calls.sendmmsg(s->fd[sock], msgs + done, n - done, MSG_NOSIGNAL);
        s->stats.tx_calls++;
        if (sent > 0) {
            done += (unsigned)sent;
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        *err = sent < 0 ? errno : EAGAIN;
        if (*err != EAGAIN && echoes++ < ECHOES_MAX && is_echo(s, sock, *err))
            continue;
        if (*err != EAGAIN || !*stall)
            break;
        *stall = false;
        s->stats.tx_stalls++;
        if (s->calls.wait_writable(s->fd[sock], MN_SOCK_STALL_MS) <= 0)
            break;
    }
    return done;
}

/* What every datagram of the run carries besides its data. */
static void add_extras(const struct mn_sock_run *run, struct mn_control *control, struct msghdr *h)
{
    if (run->ecn != 0)
        mn_control_add_ecn(control, h, run->sock != MN_SOCK_V6, run->ecn);
    if (!mn_ip_is_zero(&run->source))
        mn_control_add_source(control, h, &run->source);
}

/* The system refuses the run's source: it has gone, or does not fit the way there. True: try without. */
static bool unpin(struct mn_socks *s, struct mn_sock_run *run, int err)
{
    if (mn_ip_is_zero(&run->source) || (err != EINVAL && err != EADDRNOTAVAIL && err != ENETUNREACH))
        return false;
    memset(&run->source, 0, sizeof run->source);
    s->stats.tx_unpinned++;
    if (s->on_unpinned != NULL)
        s->on_unpinned(s->ctx, &run->to);
    return true;
}

struct plain_batch {
    struct mmsghdr msgs[MN_SOCK_SEGS_MAX];
    struct iovec iov[MN_SOCK_SEGS_MAX];
    struct mn_control control; /* the same for all */
};

static unsigned fill_plain(struct plain_batch *b, struct mn_sock_run *run, uint8_t *data, size_t at)
{
    struct msghdr same = {.msg_name = run->addr, .msg_namelen = run->addr_len, .msg_iovlen = 1};
    unsigned n = 0;
    add_extras(run, &b->control, &same);
    for (; at < run->len && n < MN_SOCK_SEGS_MAX; at += run->seg, n++) {
        size_t left = run->len - at;
        b->iov[n] = (struct iovec){data + at, left < run->seg ? left : run->seg};
        b->msgs[n].msg_hdr = same;
        b->msgs[n].msg_hdr.msg_iov = &b->iov[n];
    }
    return n;
}

/* One datagram per message: where segmentation is not to be had. */
static void send_plain(struct mn_socks *s, struct mn_sock_run *run, uint8_t *data, bool *stall)
{
    struct plain_batch b;
    for (size_t at = 0; at < run->len;) {
        int err = 0;
        unsigned n = fill_plain(&b, run, data, at), done = send_some(s, run->sock, b.msgs, n, stall, &err);
        at += (size_t)done * run->seg;
        if (done == n || unpin(s, run, err))
            continue;
        count_dropped(s, &run->to, 1, err);
        at += run->seg;
    }
}

/* A segmented send of this run failed with err: remember what that teaches. True: try it plainly. */
static bool learn_from(struct mn_socks *s, const struct mn_sock_run *run, int err)
{
    if (run->count < 2)
        return false;
    if (err == EIO) {
        s->has_gso[run->sock] = false;
        s->stats.tx_gso_refused++;
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
    struct iovec iov[MN_SOCK_RUNS_MAX][2];
    struct mn_control control[MN_SOCK_RUNS_MAX];
    uint8_t sentinel;
};

/* Whether the run is one of those that some drivers corrupt. */
static bool is_feared(const struct mn_socks *s, const struct mn_sock_run *run)
{
    return s->config.gso == MN_GSO_NEVER_EQUAL && run->count > 1 && !run->is_closed;
}

static void fill_message(struct mn_socks *s, struct batch *b, unsigned i, struct mn_sock_run *run, uint8_t *data)
{
    b->iov[i][0] = (struct iovec){data, run->len};
    struct msghdr *h = &b->msgs[i].msg_hdr;
    *h = (struct msghdr){.msg_name = run->addr, .msg_namelen = run->addr_len, .msg_iov = b->iov[i], .msg_iovlen = 1};
    add_extras(run, &b->control[i], h);
    if (run->count < 2)
        return;
    mn_control_add_segment(&b->control[i], h, (uint16_t)run->seg);
    if (is_feared(s, run)) {
        b->iov[i][1] = (struct iovec){&b->sentinel, 1};
        h->msg_iovlen = 2;
        s->stats.tx_sentinels++;
    }
}

static bool wants_plain(const struct mn_socks *s, const struct mn_sock_run *run)
{
    return run->count > 1 &&
           (run->is_plain || !s->has_gso[run->sock] || (is_feared(s, run) && run->count < SENTINEL_FROM));
}

/* Runs [first, end) are one socket's and may be segmented. */
static void send_runs(struct mn_socks *s, unsigned first, unsigned end, bool *stall)
{
    struct batch b;
    b.sentinel = SENTINEL;
    while (first < end) {
        int err = 0;
        for (unsigned i = first; i < end; i++)
            fill_message(s, &b, i - first, &s->runs[i], run_base(s, i));
        first += send_some(s, s->runs[first].sock, b.msgs, end - first, stall, &err);
        if (first == end)
            return;
        struct mn_sock_run *run = &s->runs[first];
        if (unpin(s, run, err))
            continue;
        if (learn_from(s, run, err))
            send_plain(s, run, run_base(s, first), stall);
        else
            count_dropped(s, &run->to, run->count, err);
        first++;
    }
}

void mn_sock_flush(struct mn_socks *s)
{
    bool stall = true;
    unsigned i = 0;
    while (i < s->n_runs) {
        struct mn_sock_run *run = &s->runs[i];
        unsigned end = i + 1;
        if (run->count == 0) { /* reserved, never committed */
            i = end;
            continue;
        }
        if (wants_plain(s, run)) {
            send_plain(s, run, run_base(s, i), &stall);
        } else {
            while (end < s->n_runs && s->runs[end].count > 0 && s->runs[end].sock == run->sock &&
                   !wants_plain(s, &s->runs[end]))
                end++;
            send_runs(s, i, end, &stall);
        }
        s->stats.tx_runs += end - i;
        i = end;
    }
    s->n_runs = 0;
}

/* Which socket speaks with `to`; -1: no such one can. */
static int socket_for(const struct mn_ep *to)
{
    if (to->sock == 0)
        return mn_ip_is4(&to->ip) ? MN_SOCK_V4 : MN_SOCK_V6;
    return to->sock <= MN_SOCK_EXTRA_MAX && mn_ip_is4(&to->ip) ? MN_SOCK_V6 + to->sock : -1;
}

/* A new, empty run for `to`; sends everything first when all are taken. */
static unsigned open_run(struct mn_socks *s, const struct mn_ep *to, const struct mn_ip *source)
{
    if (s->n_runs == MN_SOCK_RUNS_MAX)
        mn_sock_flush(s);
    struct mn_sock_run *run = &s->runs[s->n_runs];
    run->to = *to;
    run->source = *source;
    run->ecn = 0;
    run->addr_len = (uint8_t)mn_sockaddr_put(run->addr, to);
    run->sock = (uint16_t)socket_for(to);
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

/* How far a run may fill: one that may get a sentinel leaves room for it. */
static size_t bytes_max(const struct mn_socks *s)
{
    return s->config.gso == MN_GSO_NEVER_EQUAL ? MN_SOCK_BYTES_MAX - 1 : MN_SOCK_BYTES_MAX;
}

static unsigned segs_max(const struct mn_socks *s)
{
    return s->config.gso == MN_GSO_NEVER_EQUAL ? MN_SOCK_SEGS_MAX - 1 : MN_SOCK_SEGS_MAX;
}

/* What stands before each datagram of a run, in every segment anew. */
static size_t head_of(const struct mn_ep *to)
{
    return to->vni != 0 ? MN_GENEVE_LEN : 0;
}

uint8_t *mn_sock_reserve(struct mn_socks *s, const struct mn_ep *to, const struct mn_ip *source, size_t need)
{
    int sock = socket_for(to);
    size_t head = head_of(to);
    s->reserved_at = NULL;
    need += head;
    if (sock < 0 || s->fd[sock] < 0 || need > bytes_max(s))
        return NULL;
    int found = find_run(s, to);
    bool fits = found >= 0 && !s->runs[found].is_closed && mn_ip_equal(&s->runs[found].source, source);
    if (fits && s->runs[found].len + need > bytes_max(s)) {
        mn_sock_flush(s);
        fits = false;
    }
    s->reserved = fits ? (unsigned)found : open_run(s, to, source);
    s->reserved_at = run_base(s, s->reserved) + s->runs[s->reserved].len;
    if (head > 0)
        mn_geneve_put(s->reserved_at, to->vni);
    return s->reserved_at + head;
}

void mn_sock_commit(struct mn_socks *s, size_t len, uint8_t ecn)
{
    if (s->reserved_at == NULL || len == 0)
        return;
    uint8_t *at = s->reserved_at;
    struct mn_sock_run *run = &s->runs[s->reserved];
    s->reserved_at = NULL;
    len += head_of(&run->to);
    if (run->count > 0 && (len > run->seg || ecn != run->ecn)) { /* sizes never grow, one ECN: to a run of its own */
        struct mn_ep to = run->to;
        struct mn_ip source = run->source;
        unsigned fresh = open_run(s, &to, &source);
        memmove(run_base(s, fresh), at, len);
        run = &s->runs[fresh];
    }
    if (run->count == 0) {
        run->seg = (uint32_t)len;
        run->ecn = ecn;
    }
    run->count++;
    run->len += (uint32_t)len;
    run->is_closed = len < run->seg;
    s->stats.tx_datagrams++;
    s->stats.tx_bytes += len;
    if (run->count == segs_max(s))
        mn_sock_flush(s);
}

void mn_sock_put(struct mn_socks *s, const struct mn_ep *to, const struct mn_ip *source, const uint8_t *data,
                 size_t len)
{
    uint8_t *at = mn_sock_reserve(s, to, source, len);
    if (at == NULL) {
        count_dropped(s, to, 1, EAFNOSUPPORT);
        return;
    }
    memcpy(at, data, len);
    mn_sock_commit(s, len, 0);
}
