/* The kernel interface of an engine. See tun.h. */
#include "tun.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "../ip/cut.h"
#include "../ip/merge.h"
#include "internal.h"

enum {
    BUF = MN_VNET_SIZE + 65536, /* a packet longer than IP allows is then seen as too long */
    READS = 16,                 /* super-packets per turn: a megabyte, then others have their turn */
    REFUSED_MAX = 4,
    ERRORS_PER_S = 100,
    ERROR_MAX = 1280,
    DONT_FRAGMENT = 0x40, /* of the seventh byte of an IPv4 header */
    LEAST_MTU6 = 1280,
};

void mn_tun_init(struct mn_engine *e)
{
    e->tun.fd = -1;
    e->tun.writev = writev;
    e->tun.wanted = MN_TUN_TCP | MN_TUN_UDP;
}

/* What is merged: offered by the kernel, wanted by the owner, and not refused all the time. */
static void choose_merge(struct mn_tun *t)
{
    unsigned both = t->offered & t->wanted;
    t->merge->tcp = (both & MN_TUN_TCP) != 0 && t->refused[0] < REFUSED_MAX;
    t->merge->udp = (both & MN_TUN_UDP) != 0 && t->refused[1] < REFUSED_MAX;
}

int mn_tun_attach(struct mn_engine *e, int fd, unsigned merge)
{
    struct mn_tun *t = &e->tun;
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = MN_TAG_TUN};
    if (t->fd >= 0)
        return -EBUSY;
    if (t->buf == NULL)
        t->buf = malloc(BUF);
    if (t->merge == NULL)
        t->merge = calloc(1, sizeof *t->merge);
    if (t->buf == NULL || t->merge == NULL)
        return -ENOMEM;
    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0)
        return -errno;
    t->fd = fd;
    t->offered = merge;
    t->refused[0] = t->refused[1] = 0;
    choose_merge(t);
    mn_stack_share_addresses(e->stack, true);
    return 0;
}

void mn_tun_set_merge(struct mn_engine *e, unsigned merge)
{
    e->tun.wanted = merge;
    if (e->tun.merge != NULL)
        choose_merge(&e->tun);
}

void mn_tun_close(struct mn_engine *e)
{
    struct mn_tun *t = &e->tun;
    if (t->fd >= 0)
        close(t->fd); /* epoll forgets it by itself */
    t->fd = -1;
    t->is_ready = false;
    if (e->stack != NULL)
        mn_stack_share_addresses(e->stack, false);
    free(t->buf);
    free(t->merge);
    t->buf = NULL;
    t->merge = NULL;
}

/* Somebody removed the interface: the owner must know, and nothing is to spin on it. */
static void lose(struct mn_engine *e, int err)
{
    struct mn_event ev = {.kind = MN_EV_TUN_LOST, .err = err};
    mn_tun_close(e);
    (void)mn_events_post(&e->events, &ev);
}

/* ---- to the kernel ---- */

static void write_single(struct mn_engine *e, const uint8_t *pkt, size_t len)
{
    static uint8_t plain[MN_VNET_SIZE]; /* nothing left to do */
    struct mn_tun *t = &e->tun;
    struct iovec iov[2] = {{plain, sizeof plain}, {.iov_len = len}};
    memcpy(&iov[1].iov_base, &pkt, sizeof pkt);
    t->stats.writes++;
    if (t->writev(t->fd, iov, 2) < 0) {
        t->stats.write_errors++;
        return;
    }
    t->stats.written++;
    t->stats.written_bytes += len;
}

/* A kernel that takes no super-packets, or not this one: the packets as they came. */
static void write_apart(struct mn_engine *e, const struct mn_merge_item *item)
{
    struct mn_tun *t = &e->tun;
    t->stats.merge_refused++;
    t->refused[item->proto == MN_PROTO_UDP]++;
    choose_merge(t);
    for (unsigned i = 0; i < item->count; i++) {
        size_t len;
        const uint8_t *pkt = mn_merge_packet(item, i, &len);
        write_single(e, pkt, len);
    }
}

static void write_item(struct mn_engine *e, struct mn_merge_item *item)
{
    struct mn_tun *t = &e->tun;
    uint8_t head[MN_MERGE_HEAD];
    int n;
    struct iovec *iov = mn_merge_build(item, head, &n);
    t->stats.writes++;
    if (t->writev(t->fd, iov, n) >= 0) {
        t->stats.written += item->count;
        t->stats.written_bytes += item->len;
        if (item->count > 1)
            t->refused[item->proto == MN_PROTO_UDP] = 0;
    } else if (errno == EINVAL && item->count > 1) {
        write_apart(e, item);
    } else {
        t->stats.write_errors++;
    }
}

void mn_tun_flush(struct mn_engine *e)
{
    struct mn_tun *t = &e->tun;
    if (t->merge == NULL || t->merge->count == 0)
        return;
    for (unsigned i = 0; i < t->merge->count; i++)
        write_item(e, &t->merge->items[i]);
    mn_merge_clear(t->merge);
}

static void on_to_kernel(void *ctx, const struct mn_packet *p)
{
    struct mn_engine *e = ctx;
    if (e->tun.merge == NULL || mn_merge_add(e->tun.merge, p))
        return;
    mn_tun_flush(e);
    (void)mn_merge_add(e->tun.merge, p);
}

void mn_tun_set_stack_ops(struct mn_stack_ops *ops)
{
    ops->to_kernel = on_to_kernel;
}

/* ---- from the kernel ---- */

/* Its connect fails at once instead of running into a time-out. */
static void tell_unreachable(struct mn_engine *e, const struct mn_packet *about)
{
    uint8_t out[ERROR_MAX];
    e->tun.stats.drop_unreachable++;
    if (about->proto == MN_PROTO_ICMP || about->proto == MN_PROTO_ICMP6 || about->fragment_at != 0 ||
        !mn_bucket_take(&e->tun.errors, ERRORS_PER_S, e->now_ns))
        return;
    write_single(e, out, mn_icmp_write_error(out, sizeof out, MN_ICMP_HOST_UNREACHABLE, about));
}

/* The direct path does not carry this much. The packet goes by relay all the same, so that one whose sender does not
 * listen (IPv6 below 1280) arrives; the others make shorter ones from now on. */
static void tell_too_big(struct mn_engine *e, const struct mn_packet *about, size_t mtu)
{
    uint8_t out[ERROR_MAX];
    bool may_be_cut = about->version == 4 && (about->ip[6] & DONT_FRAGMENT) == 0;
    if (may_be_cut || (about->version == 6 && mtu < LEAST_MTU6) ||
        !mn_bucket_take(&e->tun.errors, ERRORS_PER_S, e->now_ns))
        return;
    e->tun.stats.told_too_big++;
    write_single(e, out, mn_icmp_write_too_big(out, sizeof out, mtu, about));
}

/* Our own sealed messages, sent into the tunnel they come from: a peer's endpoint must never be routed so. */
static bool is_loop(const struct mn_engine *e, const struct mn_packet *p)
{
    if (p->proto != MN_PROTO_UDP || p->l4_len < 2 || p->fragment_at != 0)
        return false;
    uint16_t own = e->socks.port[p->version == 4 ? MN_SOCK_V4 : MN_SOCK_V6];
    return own != 0 && mn_load16(p->l4) == own;
}

static void send_pieces(struct mn_engine *e, struct mn_cut *c)
{
    struct mn_tun_stats *s = &e->tun.stats;
    bool has_told = false;
    size_t len;
    while ((len = mn_cut_next(c)) > 0) {
        int err = 0;
        uint8_t *out = mn_tunnel_begin(e, &c->packet.dst, len, &err);
        if (out == NULL && err == EMSGSIZE) {
            s->drop_too_big++;
            return;
        }
        if (out == NULL) {
            tell_unreachable(e, &c->packet);
            return;
        }
        size_t mtu = mn_tunnel_out_mtu(e);
        mn_cut_write(c, out);
        mn_tunnel_commit(e, len);
        if (len > mtu && !has_told) {
            has_told = true;
            tell_too_big(e, &c->packet, mtu);
        }
        s->sent++;
    }
}

static void send_super(struct mn_engine *e, size_t len)
{
    struct mn_tun *t = &e->tun;
    struct mn_cut c;
    if (mn_cut_begin(&c, t->buf, len) != 0) {
        t->stats.drop_malformed++;
    } else if (mn_packet_destination_is_special(&c.packet.dst)) {
        t->stats.drop_special++; /* multicast of the kernel's own: discovery, router solicitations */
    } else if (is_loop(e, &c.packet)) {
        t->stats.drop_loop++;
    } else {
        mn_stack_kernel_sent(e->stack, &c.packet, e->now_ns);
        send_pieces(e, &c);
    }
}

bool mn_tun_read(struct mn_engine *e)
{
    struct mn_tun *t = &e->tun;
    bool did = false;
    if (!t->is_ready)
        return false;
    t->is_ready = false;
    for (int i = 0; i < READS && t->fd >= 0; i++) {
        ssize_t n = read(t->fd, t->buf, BUF);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0) {
            lose(e, n < 0 ? errno : EPIPE);
            break;
        }
        did = true;
        t->stats.reads++;
        t->stats.read_bytes += (uint64_t)n;
        send_super(e, (size_t)n);
    }
    return did;
}
