/* Scripts of timed segments in the manner of packetdrill, run against one stack in virtual time.
 *
 * A script is text, one event a line; its language is described in scripts/README.md. The stack under test has the
 * address 100.64.0.1 (fd7a::1), the script speaks for its peer 100.64.0.2 (fd7a::2). Numbers in a script are relative:
 * ours to our first sequence number, the peer's to its own, timestamps to the first we sent. Everything the stack
 * sends must be expected by a line, in order, at its time; a script ends only when nothing is left over.
 */
#ifndef MN_TESTS_SCRIPT_H
#define MN_TESTS_SCRIPT_H

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>

#include "../tcp/internal.h"
#include "check.h"

enum {
    SCRIPT_MTU = 9000,
    SCRIPT_OUT = 4096,
    SCRIPT_FLOWS = 64,
    SCRIPT_LINE = 400,
    SCRIPT_PEER = 7,
};

struct script_packet {
    uint64_t at;
    uint16_t len;
    uint8_t data[SCRIPT_MTU];
};

/* One connection as the script knows it, named by the peer's port. */
struct script_flow {
    uint16_t port, own_port; /* the peer's, ours */
    uint32_t conn;
    uint32_t iss, irs; /* ours, the peer's */
    bool has_iss, has_ts, peer_ts;
    uint8_t shift;                /* what the peer's windows are shifted by */
    uint32_t ts_first, ts_last;   /* of what we sent: the first, the last that a line has seen */
    uint32_t them, us;            /* next numbers, relative, for lines that name none */
    uint64_t written, got, limit; /* by our application; limit: what it takes in all */
    int accepted, connected, fins, closed, failed, writable;
    int err;
    bool is_open;
};

struct script {
    const char *path;
    int line;
    struct mn_stack *s;
    struct mn_stack_config cfg;
    uint64_t now, start, base, rng, tolerance;
    bool v6, no_buffer, no_route, in_batch, has_failed;
    uint32_t isn; /* the peer's, of flows that begin from now on */
    uint32_t listener;
    uint16_t listen_port;
    struct script_flow flows[SCRIPT_FLOWS], *flow;
    int flow_count;
    struct script_packet *out;
    uint32_t out_head, out_count;
    uint8_t batch[64][SCRIPT_MTU];
    int batched;
    struct mn_packet seen_packet;
    struct mn_segment seen;
};

/* A segment as a line describes it. */
struct script_line {
    uint8_t flags;
    bool has_seq, has_ack, has_win, has_ecn, is_range, is_optional;
    uint32_t seq, end, ack, win;
    uint8_t ecn;
    bool has_mss, may_sack, no_sack_ok, has_wscale, any_wscale, no_wscale, has_ts, no_ts, any_tsval, has_ecr, any_ecr;
    bool has_sack, no_sack;
    uint16_t mss;
    int wscale;
    uint32_t tsval, tsecr;
    struct mn_block sack[MN_TCP_SACK_MAX];
    uint8_t sack_count;
    uint32_t mss_cut; /* of a range that is injected */
};

static inline void script_fail(struct script *x, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "%s:%d: at %.6f s: ", x->path, x->line, (double)(x->now - x->start) / 1e9);
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    exit(1);
}

static inline uint8_t script_byte(uint32_t relative)
{
    return (uint8_t)((relative * 0x9e3779b1U) >> 24 ^ relative);
}

static inline struct mn_ip script_ip(const struct script *x, uint8_t number)
{
    if (x->v6)
        return mn_ip_from6((const uint8_t[16]){0xfd, 0x7a, [15] = number});
    return mn_ip_from4((const uint8_t[4]){100, 64, 0, number});
}

static inline struct script_flow *script_flow_of(struct script *x, uint32_t conn)
{
    for (int i = 0; i < x->flow_count; i++)
        if (x->flows[i].conn == conn && x->flows[i].is_open)
            return &x->flows[i];
    script_fail(x, "an upcall for a connection the script does not know");
    return NULL;
}

static inline struct script_flow *script_port(struct script *x, uint16_t port)
{
    for (int i = x->flow_count - 1; i >= 0; i--)
        if (x->flows[i].port == port)
            return &x->flows[i];
    return NULL;
}

static inline struct script_flow *script_new_flow(struct script *x, uint16_t port)
{
    if (x->flow_count == SCRIPT_FLOWS)
        script_fail(x, "too many flows");
    struct script_flow *f = &x->flows[x->flow_count++];
    *f = (struct script_flow){
        .port = port, .own_port = x->listen_port, .irs = x->isn, .them = 1, .us = 1, .limit = UINT64_MAX};
    return f;
}

/* ---- what the stack calls ---- */

static inline uint8_t *script_out_begin(void *ctx, const struct mn_ip *dst, size_t max, int *err)
{
    struct script *x = ctx;
    (void)dst;
    if (x->no_buffer || x->no_route) {
        *err = x->no_route ? EHOSTUNREACH : ENOBUFS;
        return NULL;
    }
    if (x->out_count == SCRIPT_OUT || max > x->cfg.mtu)
        script_fail(x, "%s", max > x->cfg.mtu ? "a packet beyond the MTU" : "more packets than a script can hold");
    return x->out[(x->out_head + x->out_count) % SCRIPT_OUT].data;
}

static inline void script_out_commit(void *ctx, size_t len)
{
    struct script *x = ctx;
    struct script_packet *p = &x->out[(x->out_head + x->out_count) % SCRIPT_OUT];
    if (len == 0)
        return;
    p->at = x->now;
    p->len = (uint16_t)len;
    x->out_count++;
}

static inline void script_random(void *ctx, uint8_t *p, size_t n)
{
    test_random_bytes(&((struct script *)ctx)->rng, p, n);
}

static inline uint32_t script_route(void *ctx, const struct mn_ip *dst)
{
    const struct script *x = ctx;
    struct mn_ip peer = script_ip(x, 2);
    return mn_ip_equal(dst, &peer) ? SCRIPT_PEER : MN_PEER_NONE;
}

static inline void script_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    struct script *x = ctx;
    struct mn_ep remote;
    CHECK_INT(listener, x->listener);
    CHECK_INT(mn_tcp_addrs(x->s, conn, NULL, &remote, NULL), 0);
    struct script_flow *f = script_port(x, remote.port);
    if (f == NULL)
        script_fail(x, "accepted a connection from port %u, which no line opened", remote.port);
    f->conn = conn;
    f->is_open = true;
    f->accepted++;
}

static inline void script_connected(void *ctx, uint32_t conn)
{
    script_flow_of(ctx, conn)->connected++;
}

static inline void script_failed(void *ctx, uint32_t conn, int err)
{
    struct script_flow *f = script_flow_of(ctx, conn);
    f->failed++;
    f->err = err;
    f->is_open = false;
}

static inline size_t script_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    struct script *x = ctx;
    struct script_flow *f = script_flow_of(x, conn);
    size_t taken = 0;
    for (int i = 0; i < n; i++) {
        const uint8_t *p = iov[i].iov_base;
        for (size_t k = 0; k < iov[i].iov_len && f->got < f->limit; k++, f->got++, taken++)
            if (p[k] != script_byte((uint32_t)f->got + 1))
                script_fail(x, "byte %llu of the stream reached the application wrong", (unsigned long long)f->got);
    }
    return taken;
}

static inline void script_peer_fin(void *ctx, uint32_t conn)
{
    script_flow_of(ctx, conn)->fins++;
}

static inline void script_writable(void *ctx, uint32_t conn)
{
    script_flow_of(ctx, conn)->writable++;
}

static inline void script_closed(void *ctx, uint32_t conn, int err)
{
    struct script_flow *f = script_flow_of(ctx, conn);
    f->closed++;
    f->err = err;
    f->is_open = false;
}

static inline void script_udp(void *ctx, uint32_t udp, const struct mn_ep *from, const struct mn_ep *to,
                              const uint8_t *data, size_t len)
{
    (void)ctx, (void)udp, (void)from, (void)to, (void)data, (void)len;
}

static inline void script_ping(void *ctx, uint16_t id, uint16_t seq, const struct mn_ip *from, const uint8_t *p,
                               size_t len)
{
    (void)ctx, (void)id, (void)seq, (void)from, (void)p, (void)len;
}

static inline void script_start(struct script *x)
{
    if (x->s != NULL)
        return;
    struct mn_stack_ops ops = {
        .ctx = x,
        .random = script_random,
        .out_begin = script_out_begin,
        .out_commit = script_out_commit,
        .route = script_route,
        .tcp_accepted = script_accepted,
        .tcp_connected = script_connected,
        .tcp_failed = script_failed,
        .tcp_deliver = script_deliver,
        .tcp_peer_fin = script_peer_fin,
        .tcp_writable = script_writable,
        .tcp_closed = script_closed,
        .udp_deliver = script_udp,
        .ping_reply = script_ping,
    };
    if (x->cfg.mtu == 0)
        x->cfg.mtu = 1280;
    x->cfg.cc = x->cfg.cc != NULL ? x->cfg.cc : "cubic"; /* every loss has its answer */
    x->s = mn_stack_create(&ops, &x->cfg, x->now);
    CHECK(x->s != NULL);
    struct mn_ip own = script_ip(x, 1);
    CHECK_INT(mn_stack_set_addresses(x->s, &own, 1), 0);
    /* One rule: everyone may use every port, both families. */
    uint8_t blob[256] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 4, 2, 0, 2, 0, 6, 17, 1, 58};
    size_t n = 17;
    for (int pass = 0; pass < 2; pass++) {
        for (int family = 0; family < 2; family++) {
            if (family == 0) {
                memcpy(blob + n, mn_ip4_prefix, 12);
                blob[n + 16] = 96;
            }
            if (pass == 1)
                blob[n + 19] = blob[n + 20] = 0xff;
            n += pass == 0 ? 17 : 21;
        }
    }
    CHECK_INT(mn_stack_set_filter(x->s, blob, n + 4), 0);
}

/* ---- time ---- */

/* Let time pass until `until`, or until something was sent if `stop`. */
static inline void script_run(struct script *x, uint64_t until, bool stop)
{
    while (!stop || x->out_count == 0) {
        uint64_t at = mn_stack_next_deadline(x->s);
        if (at > until)
            break;
        if (at > x->now)
            x->now = at;
        mn_stack_on_deadline(x->s, x->now);
        mn_stack_flush(x->s, x->now);
    }
    if ((!stop || x->out_count == 0) && until > x->now)
        x->now = until;
}

/* ---- segments out ---- */

static inline void script_describe(struct script *x, char *out, size_t room)
{
    const struct mn_segment *g = &x->seen;
    const struct script_flow *f = script_port(x, g->dport);
    uint32_t iss = f == NULL ? 0 : f->iss, irs = f == NULL ? 0 : f->irs;
    int n = snprintf(out, room, "%s%s%s%s%s%s%s %u:%u(%u) ack %u win %u", (g->flags & MN_TCP_SYN) != 0 ? "S" : "",
                     (g->flags & MN_TCP_FIN) != 0 ? "F" : "", (g->flags & MN_TCP_RST) != 0 ? "R" : "",
                     (g->flags & MN_TCP_PSH) != 0 ? "P" : "", (g->flags & MN_TCP_ECE) != 0 ? "E" : "",
                     (g->flags & MN_TCP_CWR) != 0 ? "W" : "", (g->flags & MN_TCP_ACK) != 0 ? "." : "", g->seq - iss,
                     g->seq - iss + g->len, g->len, (g->flags & MN_TCP_ACK) != 0 ? g->ack - irs : 0, g->wnd);
    if (g->has_ts && f != NULL && n > 0 && (size_t)n < room)
        n += snprintf(out + n, room - (size_t)n, " TS %u ecr %u", g->tsval - f->ts_first, g->tsecr);
    for (int i = 0; i < g->sack_count && n > 0 && (size_t)n < room; i++)
        n += snprintf(out + n, room - (size_t)n, " sack %u:%u", g->sack[i].first - irs, g->sack[i].end - irs);
}

/* The next packet into x->seen; its time, 0: there is none. */
static inline uint64_t script_pop(struct script *x)
{
    if (x->out_count == 0)
        return 0;
    struct script_packet *p = &x->out[x->out_head];
    x->out_head = (x->out_head + 1) % SCRIPT_OUT;
    x->out_count--;
    if (mn_packet_parse(&x->seen_packet, p->data, p->len) != 0 || x->seen_packet.proto != MN_PROTO_TCP ||
        mn_segment_parse(&x->seen, &x->seen_packet) != 0)
        script_fail(x, "the stack sent what is no good TCP segment");
    const struct mn_segment *g = &x->seen;
    struct script_flow *f = script_port(x, g->dport);
    if (f == NULL)
        script_fail(x, "the stack sent a segment to port %u, which no line opened", g->dport);
    if (!f->has_iss || (g->flags & MN_TCP_SYN) != 0)
        f->iss = g->seq;
    f->has_iss = true;
    f->own_port = g->sport;
    if (g->has_ts) {
        if (!f->has_ts)
            f->ts_first = g->tsval;
        f->has_ts = true;
        f->ts_last = g->tsval;
    }
    for (uint32_t i = 0; i < g->len; i++)
        if (g->data[i] != script_byte(g->seq - f->iss + i))
            script_fail(x, "byte %u of segment %u is wrong", i, g->seq - f->iss);
    if (getenv("TRACE") != NULL) {
        char text[256];
        script_describe(x, text, sizeof text);
        fprintf(stderr, "%12.6f > %s\n", (double)(p->at - x->start) / 1e9, text);
    }
    return p->at;
}

static inline void script_nothing(struct script *x)
{
    char text[256];
    if (script_pop(x) == 0)
        return;
    script_describe(x, text, sizeof text);
    script_fail(x, "not expected: > %s", text);
}

/* ---- words ---- */

static inline bool script_word(char **at, const char *word)
{
    size_t n = strlen(word);
    while (isspace((unsigned char)**at))
        (*at)++;
    if (strncmp(*at, word, n) != 0 || (isalnum((unsigned char)(*at)[n]) && isalnum((unsigned char)word[n - 1])))
        return false;
    *at += n;
    return true;
}

static inline void script_end(struct script *x, const char *at)
{
    if (at[strspn(at, " \t")] != '\0')
        script_fail(x, "not understood: %s", at);
}

/* Digits and perhaps a fraction; unlike strtod it leaves the dots of 0..5 alone. */
static inline double script_number(struct script *x, char **at)
{
    double v = 0, unit = 1;
    if (!isdigit((unsigned char)**at))
        script_fail(x, "want a number at: %s", *at);
    for (; isdigit((unsigned char)**at); (*at)++)
        v = v * 10 + (**at - '0');
    if (**at != '.' || !isdigit((unsigned char)(*at)[1]))
        return v;
    for ((*at)++; isdigit((unsigned char)**at); (*at)++)
        v += (**at - '0') * (unit /= 10);
    return v;
}

static inline uint32_t script_count(struct script *x, char **at)
{
    while (isspace((unsigned char)**at))
        (*at)++;
    return (uint32_t)script_number(x, at);
}

static inline void script_options(struct script *x, char **at, struct script_line *l)
{
    for (;;) {
        if (script_word(at, ">"))
            return;
        if (script_word(at, "mss")) {
            l->has_mss = true;
            l->mss = (uint16_t)script_count(x, at);
        } else if (script_word(at, "sackOK")) {
            l->may_sack = true;
        } else if (script_word(at, "nosackOK")) {
            l->no_sack_ok = true;
        } else if (script_word(at, "wscale")) {
            l->has_wscale = true;
            l->any_wscale = script_word(at, "*");
            if (!l->any_wscale)
                l->wscale = (int)script_count(x, at);
        } else if (script_word(at, "nowscale")) {
            l->no_wscale = true;
        } else if (script_word(at, "TS")) {
            l->has_ts = true;
            if (script_word(at, "val")) {
                l->any_tsval = script_word(at, "*");
                if (!l->any_tsval)
                    l->tsval = script_count(x, at);
            } else {
                l->any_tsval = true;
            }
            if (script_word(at, "ecr")) {
                l->has_ecr = true;
                l->any_ecr = script_word(at, "*");
                if (!l->any_ecr)
                    l->tsecr = script_count(x, at);
            }
        } else if (script_word(at, "noTS")) {
            l->no_ts = true;
        } else if (script_word(at, "sack")) {
            l->has_sack = true;
            char *end;
            while (strtoul(*at, &end, 10), end != *at && *end == ':') {
                if (l->sack_count == MN_TCP_SACK_MAX)
                    script_fail(x, "a header holds no more than four blocks");
                struct mn_block *b = &l->sack[l->sack_count++];
                b->first = (uint32_t)strtoul(*at, at, 10);
                (*at)++;
                b->end = script_count(x, at);
            }
        } else if (script_word(at, "nosack")) {
            l->no_sack = true;
        } else if (!script_word(at, "nop") && !script_word(at, "eol")) {
            script_fail(x, "no such option: %s", *at);
        }
        script_word(at, ",");
    }
}

/* [ecn] FLAGS SEQ:END(LEN) ack N win N <options> */
static inline void script_segment(struct script *x, char *at, struct script_line *l)
{
    if (script_word(&at, "[")) {
        static const char *const names[] = {"noecn", "ect1", "ect0", "ce"};
        l->has_ecn = true;
        for (l->ecn = 0; l->ecn < 4 && !script_word(&at, names[l->ecn]); l->ecn++)
            ;
        if (l->ecn == 4 || !script_word(&at, "]"))
            script_fail(x, "want noecn, ect0, ect1 or ce in []");
    }
    while (isspace((unsigned char)*at))
        at++;
    for (; *at != '\0' && !isspace((unsigned char)*at); at++) {
        const char *letters = "FSRP.UEW", *hit = strchr(letters, *at);
        if (hit == NULL)
            script_fail(x, "no such flag: %c", *at);
        l->flags |= (uint8_t)(1U << (hit - letters));
    }
    while (isspace((unsigned char)*at))
        at++;
    if (isdigit((unsigned char)*at)) {
        l->has_seq = true;
        l->seq = script_count(x, &at);
        if (*at++ != ':')
            script_fail(x, "want SEQ:END(LENGTH)");
        l->end = script_count(x, &at);
        if (*at == '(') {
            at++;
            if (script_count(x, &at) != l->end - l->seq || *at++ != ')')
                script_fail(x, "the length is not what the numbers say");
        }
    }
    for (;;) {
        if (script_word(&at, "ack")) {
            l->has_ack = true;
            l->ack = script_count(x, &at);
        } else if (script_word(&at, "win")) {
            l->has_win = true;
            l->win = script_count(x, &at);
        } else if (script_word(&at, "cut")) {
            l->mss_cut = script_count(x, &at);
        } else if (script_word(&at, "<")) {
            script_options(x, &at, l);
        } else {
            break;
        }
    }
    script_end(x, at);
}

/* ---- segments in ---- */

static inline void script_put(struct script *x, const struct mn_segment *g)
{
    uint8_t *out = x->batch[x->batched];
    struct mn_ep from = {.ip = script_ip(x, 2), .port = g->sport}, to = {.ip = script_ip(x, 1), .port = g->dport};
    size_t n = mn_segment_write(out, &from, &to, g), ip = mn_packet_header_len(&to.ip);
    if (n + g->len > SCRIPT_MTU)
        script_fail(x, "the segment is too long");
    for (uint32_t i = 0; i < g->len; i++)
        out[n + i] = script_byte(g->seq - x->flow->irs + i);
    if (g->len > 0) {
        uint8_t header[MN_IP6_HEADER];
        size_t tcp = n - ip + g->len;
        mn_packet_write_header(header, &from.ip, &to.ip, MN_PROTO_TCP, tcp);
        memcpy(out, header, ip);
        if (g->ecn != MN_ECN_NONE)
            mn_packet_set_ecn(out, g->ecn);
        mn_store16(out + ip + 16, 0);
        mn_csum_store(out + ip + 16, mn_csum_add(mn_csum_pseudo(&from.ip, &to.ip, MN_PROTO_TCP, tcp), out + ip, tcp));
    }
    mn_stack_input(x->s, SCRIPT_PEER, out, n + g->len, x->now);
    if (x->in_batch && x->batched + 1 < 64) {
        x->batched++;
        return;
    }
    mn_stack_flush(x->s, x->now);
    x->batched = 0;
}

static inline void script_in(struct script *x, char *at)
{
    if (getenv("TRACE") != NULL)
        fprintf(stderr, "%12.6f < %s\n", (double)(x->now - x->start) / 1e9, at);
    struct script_line l = {0};
    script_segment(x, at, &l);
    struct script_flow *f = x->flow;
    bool is_syn = (l.flags & MN_TCP_SYN) != 0;
    if (is_syn && !f->peer_ts)
        f->peer_ts = l.has_ts;
    struct mn_segment g = {.sport = f->port, .dport = f->own_port, .flags = l.flags, .wscale = -1, .ecn = l.ecn};
    g.seq = f->irs + (l.has_seq ? l.seq : f->them);
    g.len = l.has_seq ? l.end - l.seq : 0;
    g.ack = (l.flags & MN_TCP_ACK) != 0 ? f->iss + (l.has_ack ? l.ack : f->us) : 0;
    g.wnd = (uint16_t)(l.has_win ? l.win : 65535);
    g.mss = l.has_mss ? l.mss : 0;
    g.may_sack = l.may_sack;
    if (l.has_wscale)
        g.wscale = (int8_t)l.wscale;
    g.has_ts = l.has_ts || (f->peer_ts && !l.no_ts && (l.flags & MN_TCP_RST) == 0);
    g.tsval = l.has_ts && !l.any_tsval ? l.tsval : 1000 + (uint32_t)((x->now - x->start) / MN_MS);
    g.tsecr = l.has_ecr ? (l.any_ecr ? 0 : l.tsecr + f->ts_first) : f->ts_last;
    if (is_syn && (l.flags & MN_TCP_ACK) == 0 && !l.has_ecr)
        g.tsecr = 0;
    g.sack_count = l.sack_count;
    for (int i = 0; i < l.sack_count; i++)
        g.sack[i] = (struct mn_block){l.sack[i].first + f->iss, l.sack[i].end + f->iss};
    uint32_t next = g.seq - f->irs + mn_segment_space(&g);
    if ((l.flags & MN_TCP_RST) == 0 && (int32_t)(next - f->them) > 0)
        f->them = next;
    if (l.has_ack)
        f->us = l.ack;
    if (l.mss_cut == 0) {
        script_put(x, &g);
        return;
    }
    bool was = x->in_batch;
    x->in_batch = true;
    for (uint32_t left = g.len; left > 0; left -= g.len, g.seq += g.len) {
        g.len = left < l.mss_cut ? left : l.mss_cut;
        script_put(x, &g);
    }
    x->in_batch = was;
    if (!was) {
        mn_stack_flush(x->s, x->now);
        x->batched = 0;
    }
}

/* ---- expectations ---- */

static inline void script_wrong(struct script *x, const char *what, uint64_t got, uint64_t want)
{
    char text[256];
    script_describe(x, text, sizeof text);
    script_fail(x, "%s is %llu, want %llu, in: > %s", what, (unsigned long long)got, (unsigned long long)want, text);
}

#define SCRIPT_SAME(what, got, want)                                                                                   \
    do {                                                                                                               \
        if ((uint64_t)(got) != (uint64_t)(want))                                                                       \
            script_wrong(x, what, (uint64_t)(got), (uint64_t)(want));                                                  \
    } while (0)

static inline void script_match_options(struct script *x, const struct script_line *l)
{
    const struct mn_segment *g = &x->seen;
    const struct script_flow *f = x->flow;
    if (l->has_mss)
        SCRIPT_SAME("mss", g->mss, l->mss);
    if (l->may_sack || l->no_sack_ok)
        SCRIPT_SAME("sackOK", g->may_sack, l->may_sack);
    if (l->no_wscale || (l->has_wscale && l->any_wscale))
        SCRIPT_SAME("the presence of wscale", g->wscale >= 0, l->has_wscale);
    if (l->has_wscale && !l->any_wscale)
        SCRIPT_SAME("wscale", g->wscale, l->wscale);
    if (l->has_ts || l->no_ts)
        SCRIPT_SAME("the presence of TS", g->has_ts, l->has_ts);
    if (l->has_ts && !l->any_tsval)
        SCRIPT_SAME("TS val", g->tsval - f->ts_first, l->tsval);
    if (l->has_ecr && !l->any_ecr)
        SCRIPT_SAME("TS ecr", g->tsecr, l->tsecr);
    if (!l->has_sack && !l->no_sack)
        return;
    SCRIPT_SAME("the count of blocks", g->sack_count, l->sack_count);
    for (int i = 0; i < l->sack_count; i++) {
        SCRIPT_SAME("a block's start", g->sack[i].first - f->irs, l->sack[i].first);
        SCRIPT_SAME("a block's end", g->sack[i].end - f->irs, l->sack[i].end);
    }
}

static inline void script_match(struct script *x, const struct script_line *l)
{
    const struct mn_segment *g = &x->seen;
    const struct script_flow *f = x->flow;
    if (g->dport != f->port)
        script_wrong(x, "the peer's port", g->dport, f->port);
    SCRIPT_SAME("flags (without PSH)", g->flags & ~MN_TCP_PSH, l->flags & ~MN_TCP_PSH);
    if (l->has_seq && !l->is_range) {
        SCRIPT_SAME("seq", g->seq - f->iss, l->seq);
        SCRIPT_SAME("length", g->len, l->end - l->seq);
    }
    if (l->has_ack)
        SCRIPT_SAME("ack", g->ack - f->irs, l->ack);
    if (l->has_win)
        SCRIPT_SAME("win", g->wnd, l->win);
    if (l->has_ecn)
        SCRIPT_SAME("the ECN field", g->ecn, l->ecn);
    script_match_options(x, l);
}

/* A segment, or with `>>` as many as it takes, between base + from and base + to. */
static inline void script_expect(struct script *x, char *at, uint64_t from, uint64_t to, bool is_range,
                                 bool is_optional)
{
    struct script_line l = {.is_range = is_range};
    script_segment(x, at, &l);
    uint32_t next = l.seq;
    uint64_t earliest = x->base + from, latest = x->base + to, when;
    script_start(x);
    do {
        script_run(x, latest, true);
        if (x->out_count == 0 && is_optional)
            return;
        if (x->out_count == 0)
            script_fail(x, "nothing was sent by then");
        when = script_pop(x);
        script_match(x, &l);
        if (when < earliest || when > latest) {
            char text[256];
            script_describe(x, text, sizeof text);
            script_fail(x, "sent at %.6f s, %s: > %s", (double)(when - x->start) / 1e9,
                        when < earliest ? "too early" : "too late", text);
        }
        if (is_range) {
            SCRIPT_SAME("seq", x->seen.seq - x->flow->iss, next);
            next += x->seen.len;
            if ((int32_t)(next - l.end) > 0 || x->seen.len == 0)
                script_wrong(x, "the end", next, l.end);
        }
    } while (is_range && next != l.end);
    x->base = when;
}

/* ---- the application and the rest ---- */

static inline int script_errno(struct script *x, char **at)
{
    static const struct {
        const char *name;
        int number;
    } names[] = {{"ECONNREFUSED", ECONNREFUSED}, {"ECONNRESET", ECONNRESET},     {"ETIMEDOUT", ETIMEDOUT},
                 {"EHOSTUNREACH", EHOSTUNREACH}, {"ECONNABORTED", ECONNABORTED}, {"EACCES", EACCES}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (script_word(at, names[i].name))
            return names[i].number;
    return (int)script_count(x, at);
}

static inline void script_compare(struct script *x, const char *what, char **at, uint64_t got, uint64_t unit)
{
    bool less = script_word(at, "<="), more = !less && script_word(at, ">=");
    while (isspace((unsigned char)**at))
        (*at)++;
    uint64_t want = (uint64_t)(script_number(x, at) * (double)unit);
    if (less ? got > want : more ? got < want : got != want)
        script_fail(x, "%s is %llu, want %s%llu", what, (unsigned long long)got,
                    less   ? "<= "
                    : more ? ">= "
                           : "",
                    (unsigned long long)want);
}

/* All of it within one turn, as an upcall would: where the ring ends must not show in what is sent. */
static inline void script_write(struct script *x, uint32_t n)
{
    struct script_flow *f = x->flow;
    mn_turn_enter(x->s, x->now);
    while (n > 0) {
        size_t room;
        uint8_t *p = mn_tcp_send_reserve(x->s, f->conn, &room);
        if (p == NULL)
            script_fail(x, "no room to write %u bytes more", n);
        if (room > n)
            room = n;
        for (size_t i = 0; i < room; i++)
            p[i] = script_byte((uint32_t)(f->written + i) + 1);
        f->written += room;
        n -= (uint32_t)room;
        mn_tcp_send_commit(x->s, f->conn, room, x->now);
    }
    mn_turn_leave(x->s);
}

static inline void script_config(struct script *x, char **at)
{
    static const struct {
        const char *name;
        size_t offset, size;
    } fields[] = {
#define F(field) {#field, offsetof(struct mn_stack_config, field), sizeof(((struct mn_stack_config *)0)->field)}
        F(mtu), F(max_conns), F(max_half_open), F(max_time_wait), F(rcvbuf_max), F(sndbuf_max), F(ecn),
#undef F
    };
    if (x->s != NULL)
        script_fail(x, "config comes before everything else");
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (!script_word(at, fields[i].name))
            continue;
        uint64_t v = script_count(x, at);
        memcpy((uint8_t *)&x->cfg + fields[i].offset, &v, fields[i].size);
        return;
    }
    script_fail(x, "no such setting: %s", *at);
}

static inline void script_stat(struct script *x, char **at)
{
    const struct mn_stack_stats *t = mn_stack_stats(x->s);
#define X(name)                                                                                                        \
    if (script_word(at, #name)) {                                                                                      \
        script_compare(x, #name, at, t->name, 1);                                                                      \
        return;                                                                                                        \
    }
    MN_STACK_COUNTERS(X)
    X(tcp_conns)
    X(tcp_half_open)
    X(tcp_time_wait)
    X(ring_bytes)
#undef X
    script_fail(x, "no such counter: %s", *at);
}

static inline void script_info(struct script *x, char **at)
{
    struct mn_tcp_info t;
    if (mn_tcp_info(x->s, x->flow->conn, &t) != 0)
        script_fail(x, "the connection is gone");
#define X(name, unit)                                                                                                  \
    if (script_word(at, #name)) {                                                                                      \
        script_compare(x, #name, at, t.name, unit);                                                                    \
        return;                                                                                                        \
    }
    X(cwnd, t.mss) /* in segments */
    X(ssthresh, t.mss)
    X(mss, 1)
    X(snd_wnd, 1)
    X(rcv_wnd, 1)
    X(flight, 1)
    X(unsent, 1)
    X(unread, 1)
    X(retransmits, 1)
    X(timeouts, 1)
    X(srtt_ns, 1)
    X(rto_ns, 1)
#undef X
    script_fail(x, "no such fact of a connection: %s", *at);
}

static inline void script_state(struct script *x, char **at)
{
    static const char *const names[] = {"CLOSED",     "SYN_SENT",   "SYN_RCVD", "ESTABLISHED", "FIN_WAIT_1",
                                        "FIN_WAIT_2", "CLOSE_WAIT", "CLOSING",  "LAST_ACK"};
    struct mn_tcp_info t;
    bool is_there = mn_tcp_info(x->s, x->flow->conn, &t) == 0;
    if (script_word(at, "GONE")) {
        if (is_there)
            script_fail(x, "the connection is still there, in %s", names[t.state]);
        return;
    }
    if (!is_there)
        script_fail(x, "the connection is gone");
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (!script_word(at, names[i]))
            continue;
        if (t.state != i)
            script_fail(x, "the state is %s, want %s", names[t.state], names[i]);
        return;
    }
    script_fail(x, "no such state: %s", *at);
}

static inline void script_connect(struct script *x)
{
    struct mn_ep to = {.ip = script_ip(x, 2), .port = x->flow->port};
    script_start(x);
    int err = mn_tcp_connect(x->s, &to, NULL, &x->flow->conn, x->now);
    if (err != 0)
        script_fail(x, "connect: %s", strerror(-err));
    x->flow->is_open = true;
}

/* What an application does, or what a test asks about it. False: no such word. */
static inline bool script_app(struct script *x, char **at)
{
    struct script_flow *f = x->flow;
    if (script_word(at, "write")) {
        script_write(x, script_count(x, at));
    } else if (script_word(at, "take")) { /* the application takes no more than N bytes in all */
        f->limit = script_count(x, at);
        mn_tcp_recv_resume(x->s, f->conn, x->now);
    } else if (script_word(at, "shutdown")) {
        mn_tcp_shutdown(x->s, f->conn, x->now);
    } else if (script_word(at, "close")) {
        mn_tcp_close(x->s, f->conn, x->now);
        f->is_open = false;
    } else if (script_word(at, "abort")) {
        mn_tcp_abort(x->s, f->conn, x->now);
        f->is_open = false;
    } else if (script_word(at, "connect")) {
        script_connect(x);
    } else if (script_word(at, "accepted")) {
        SCRIPT_SAME("accepted", f->accepted, script_count(x, at));
    } else if (script_word(at, "connected")) {
        SCRIPT_SAME("connected", f->connected, script_count(x, at));
    } else if (script_word(at, "writable")) {
        script_compare(x, "writable", at, (uint64_t)f->writable, 1);
    } else if (script_word(at, "fin")) {
        SCRIPT_SAME("FINs told", f->fins, script_count(x, at));
    } else if (script_word(at, "got")) {
        script_compare(x, "bytes the application got", at, f->got, 1);
    } else if (script_word(at, "closed")) {
        int want = script_errno(x, at);
        if (f->closed != 1 || f->err != want)
            script_fail(x, "closed %d times, with: %s", f->closed, strerror(f->err));
    } else if (script_word(at, "failed")) {
        int want = script_errno(x, at);
        if (f->failed != 1 || f->err != want)
            script_fail(x, "failed %d times, with: %s", f->failed, strerror(f->err));
    } else if (script_word(at, "alive")) {
        if (f->closed != 0 || f->failed != 0)
            script_fail(x, "the connection ended: %s", strerror(f->err));
    } else {
        return false;
    }
    mn_stack_flush(x->s, x->now);
    return true;
}

static inline bool script_switch(struct script *x, char **at, bool *to)
{
    if (script_word(at, "on"))
        *to = true;
    else if (script_word(at, "off"))
        *to = false;
    else
        script_fail(x, "want on or off");
    return true;
}

static inline void script_command(struct script *x, char *at)
{
    char *line = at;
    if (script_word(&at, "config")) {
        script_config(x, &at);
    } else if (script_word(&at, "family")) {
        x->v6 = script_count(x, &at) == 6;
    } else if (script_word(&at, "tolerance")) {
        at += strspn(at, " ");
        x->tolerance = (uint64_t)(script_number(x, &at) * 1e9);
    } else if (script_word(&at, "isn")) {
        x->isn = script_count(x, &at);
        if (x->flow != NULL && !x->flow->has_iss)
            x->flow->irs = x->isn;
    } else if (script_word(&at, "listen")) {
        script_start(x);
        x->listen_port = (uint16_t)script_count(x, &at);
        unsigned backlog = script_word(&at, "backlog") ? script_count(x, &at) : 0;
        CHECK_INT(mn_tcp_listen(x->s, NULL, x->listen_port, backlog, &x->listener), 0);
    } else if (script_word(&at, "port")) { /* the flow that lines are about from here on */
        uint16_t port = (uint16_t)script_count(x, &at);
        bool is_new = script_word(&at, "again");
        struct script_flow *f = is_new ? NULL : script_port(x, port);
        x->flow = f != NULL ? f : script_new_flow(x, port);
    } else if (script_word(&at, "batch")) {
        x->in_batch = true;
    } else if (script_word(&at, "flush")) {
        x->in_batch = false;
        x->batched = 0;
        mn_stack_flush(x->s, x->now);
    } else if (script_word(&at, "nobuffer")) {
        script_switch(x, &at, &x->no_buffer);
    } else if (script_word(&at, "noroute")) {
        script_switch(x, &at, &x->no_route);
    } else if (script_word(&at, "stat")) {
        script_stat(x, &at);
    } else if (script_word(&at, "info")) {
        script_info(x, &at);
    } else if (script_word(&at, "state")) {
        script_state(x, &at);
    } else if (script_word(&at, "none")) {
        script_nothing(x);
    } else if (script_word(&at, "drain")) {
        while (script_pop(x) != 0)
            ;
    } else if (!script_app(x, &at)) {
        script_fail(x, "not understood: %s", line);
    }
    script_end(x, at);
}

/* +T, +T..U or +T~D in front of a line; 0 without. */
static inline void script_times(struct script *x, char **at, uint64_t *from, uint64_t *to)
{
    double first = 0, last, slack = -1;
    if (script_word(at, "+")) {
        first = last = script_number(x, at);
        if (script_word(at, ".."))
            last = script_number(x, at);
        else if (script_word(at, "~"))
            slack = script_number(x, at);
    } else {
        last = first;
    }
    *from = (uint64_t)(first * 1e9);
    *to = (uint64_t)(last * 1e9);
    uint64_t by = slack >= 0 ? (uint64_t)(slack * 1e9) : first == last ? x->tolerance : 0;
    *from = *from > by ? *from - by : 0;
    *to += by;
}

static inline void script_line(struct script *x, char *at)
{
    uint64_t from, to;
    char *hash = strchr(at, '#');
    if (hash != NULL)
        *hash = '\0';
    at[strcspn(at, "\r\n")] = '\0';
    if (at[strspn(at, " \t")] == '\0')
        return;
    char *time = at;
    script_times(x, &at, &from, &to);
    if (!script_word(&at, ">")) {
        /* Not an expectation: it happens at its exact time, and nothing may be left over from before it. */
        bool is_timed = script_word(&time, "+");
        uint64_t when = x->base + (is_timed ? (uint64_t)(script_number(x, &time) * 1e9) : 0);
        if (x->s != NULL && when > x->now)
            script_run(x, when, false);
        if (script_word(&at, "<")) {
            script_nothing(x);
            script_start(x);
            script_in(x, at);
        } else {
            script_command(x, at);
        }
        x->base = x->now > when ? x->now : when;
        return;
    }
    bool is_range = at[0] == '>', is_optional = at[0] == '?';
    script_expect(x, at + (is_range || is_optional ? 1 : 0), from, to, is_range, is_optional);
}

/* Run a whole script; a failure says where and why and ends the program. */
static inline void script_run_text(const char *path, FILE *file)
{
    char line[SCRIPT_LINE];
    struct script *x = calloc(1, sizeof *x);
    CHECK(x != NULL);
    x->path = path;
    x->rng = 42;
    x->now = x->start = x->base = 1000 * MN_SECOND;
    x->tolerance = MN_MS;
    x->isn = 5000;
    x->listen_port = 80;
    x->out = malloc(SCRIPT_OUT * sizeof *x->out);
    CHECK(x->out != NULL);
    x->flow = script_new_flow(x, 4000);
    while (fgets(line, sizeof line, file) != NULL) {
        x->line++;
        if (strchr(line, '\n') == NULL && strlen(line) == sizeof line - 1)
            script_fail(x, "the line is too long");
        script_line(x, line);
    }
    if (x->s != NULL)
        script_nothing(x);
    mn_stack_destroy(x->s);
    free(x->out);
    free(x);
}

#endif
