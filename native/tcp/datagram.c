/* What is not TCP: UDP flows, ICMP as it comes in, errors as they go out, TSMP, and the filter's part in them. */
#include <errno.h>

#include "internal.h"

/* ---- errors we send ---- */

static bool may_send_error(struct mn_stack *s, uint32_t peer)
{
    if (mn_bucket_take(&s->errors_by_peer[peer % MN_BUCKETS], MN_PEER_ERRORS_PER_S, s->now) &&
        mn_bucket_take(&s->errors, MN_ERRORS_PER_S, s->now))
        return true;
    s->stats.icmp_error_limited++;
    return false;
}

void mn_stack_send_too_big(struct mn_stack *s, uint32_t peer, size_t mtu, const struct mn_packet *about)
{
    int err;
    if (!may_send_error(s, peer))
        return;
    uint8_t *out = mn_stack_begin(s, &about->src, s->cfg.mtu, &err);
    if (out == NULL)
        return;
    mn_stack_commit(s, mn_icmp_write_too_big(out, s->cfg.mtu, mtu, about));
    s->stats.icmp_error_out++;
}

void mn_stack_send_error(struct mn_stack *s, uint32_t peer, enum mn_icmp_kind kind, const struct mn_packet *about)
{
    int err;
    if (!may_send_error(s, peer))
        return;
    uint8_t *out = mn_stack_begin(s, &about->src, s->cfg.mtu, &err);
    if (out == NULL)
        return;
    mn_stack_commit(s, mn_icmp_write_error(out, s->cfg.mtu, kind, about));
    s->stats.icmp_error_out++;
}

enum {
    TSMP_REJECT = '!',
    TSMP_PING = 'p',
    TSMP_PONG = 'o',
    TSMP_DISCO_KEY = 'a',
    TSMP_BY_ACL = 'A',
    TSMP_REJECT_SIZE = 7,
    TSMP_PING_SIZE = 9,
    TSMP_PONG_SIZE = 11,
    TSMP_DISCO_KEY_SIZE = 33,
};

/* Tell a peer that its SYN met the rules: IPv4 only, as the peers that understand it do. */
void mn_stack_send_tsmp_reject(struct mn_stack *s, uint32_t peer, const struct mn_packet *about,
                               const struct mn_segment *g)
{
    int err;
    if (about->version != 4 || !may_send_error(s, peer))
        return;
    uint8_t *out = mn_stack_begin(s, &about->src, MN_IP4_HEADER + TSMP_REJECT_SIZE, &err);
    if (out == NULL)
        return;
    size_t n = mn_packet_write_header(out, &about->dst, &about->src, MN_PROTO_TSMP, TSMP_REJECT_SIZE);
    out[n] = TSMP_REJECT;
    out[n + 1] = MN_PROTO_TCP;
    out[n + 2] = TSMP_BY_ACL;
    mn_store16(out + n + 3, g->sport);
    mn_store16(out + n + 5, g->dport);
    mn_stack_commit(s, n + TSMP_REJECT_SIZE);
    s->stats.tsmp_sent++;
}

/* ---- TSMP in ---- */

static void answer_tsmp_ping(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    int err;
    if (!mn_bucket_take(&s->echo_by_peer[peer % MN_BUCKETS], MN_ECHO_PER_S, s->now)) {
        s->stats.icmp_echo_limited++;
        return;
    }
    uint8_t *out = mn_stack_begin(s, &p->src, MN_IP6_HEADER + TSMP_PONG_SIZE, &err);
    if (out == NULL)
        return;
    size_t n = mn_packet_write_header(out, &p->dst, &p->src, MN_PROTO_TSMP, TSMP_PONG_SIZE);
    out[n] = TSMP_PONG;
    memcpy(out + n + 1, p->l4 + 1, 8);
    mn_store16(out + n + 9, 0); /* no peer API port */
    mn_stack_commit(s, n + TSMP_PONG_SIZE);
    s->stats.tsmp_sent++;
}

void mn_stack_input_tsmp(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    s->stats.tsmp_received++;
    if (p->l4_len >= TSMP_PING_SIZE && p->l4[0] == TSMP_PING) {
        answer_tsmp_ping(s, peer, p);
        return;
    }
    if (p->l4_len >= TSMP_DISCO_KEY_SIZE && p->l4[0] == TSMP_DISCO_KEY) {
        if (s->ops.disco_key != NULL && peer != MN_PEER_SELF)
            s->ops.disco_key(s->ops.ctx, peer, p->l4 + 1);
        return;
    }
    if (p->l4_len < TSMP_REJECT_SIZE || p->l4[0] != TSMP_REJECT || p->l4[1] != MN_PROTO_TCP)
        return;
    struct mn_tuple t = {p->dst, p->src, mn_load16(p->l4 + 3), mn_load16(p->l4 + 5)};
    struct mn_node *n = mn_demux_find(&s->demux, &t);
    if (n == NULL || n->kind != MN_NODE_CONN)
        return;
    struct mn_conn *c = (struct mn_conn *)n;
    if (c->state == MN_SYN_SENT)
        mn_conn_end(s, c, EACCES);
}

int mn_disco_key_send(struct mn_stack *s, const struct mn_ip *dst, const uint8_t key[32], uint64_t now_ns)
{
    struct mn_ip src;
    int err = 0;
    if (!mn_stack_choose_source(s, dst, &src))
        return -EADDRNOTAVAIL;
    mn_turn_enter(s, now_ns);
    uint8_t *out = mn_stack_begin(s, dst, MN_IP6_HEADER + TSMP_DISCO_KEY_SIZE, &err);
    if (out != NULL) {
        size_t n = mn_packet_write_header(out, &src, dst, MN_PROTO_TSMP, TSMP_DISCO_KEY_SIZE);
        out[n] = TSMP_DISCO_KEY;
        memcpy(out + n + 1, key, 32);
        mn_stack_commit(s, n + TSMP_DISCO_KEY_SIZE);
        s->stats.tsmp_sent++;
    }
    mn_turn_leave(s);
    return out != NULL ? 0 : -err;
}

/* ---- ICMP in ---- */

enum {
    LEAST_MTU4 = 576,
    LEAST_MTU6 = 1280,
};

/* Somebody says that the path takes less than we thought: believe it down to a floor. */
static uint32_t believable_mtu(const struct mn_conn *c, uint32_t mtu)
{
    uint32_t least = mn_ip_is4(&c->node.tuple.remote) ? LEAST_MTU4 : LEAST_MTU6;
    return mtu < least ? least : mtu;
}

/* False: the error speaks of nothing we sent. Its sequence number must be in flight (RFC 5927). */
static bool take_tcp_error(struct mn_stack *s, const struct mn_icmp *m, const struct mn_icmp_quote *q)
{
    struct mn_tuple t = {q->src, q->dst, q->sport, q->dport};
    struct mn_node *n = mn_demux_find(&s->demux, &t);
    if (n == NULL || n->kind != MN_NODE_CONN)
        return false;
    struct mn_conn *c = (struct mn_conn *)n;
    if (!mn_seq_le(c->snd.una, q->seq) || !mn_seq_le(q->seq, c->snd.nxt))
        return false;
    if (m->kind == MN_ICMP_TOO_BIG && c->state >= MN_ESTABLISHED) {
        mn_path_on_shrunk(s, c, believable_mtu(c, m->mtu));
    } else if (c->state == MN_SYN_SENT && m->kind == MN_ICMP_PORT_UNREACHABLE) {
        mn_conn_end(s, c, ECONNREFUSED);
    } else if (c->state == MN_SYN_SENT && m->kind == MN_ICMP_HOST_UNREACHABLE) {
        c->soft_error = EHOSTUNREACH;
    }
    return true;
}

static bool take_udp_error(struct mn_stack *s, const struct mn_icmp *m, const struct mn_icmp_quote *q)
{
    struct mn_flow_key k = {q->src, q->dst, q->sport, q->dport};
    struct mn_ep to = {.ip = q->dst, .port = q->dport};
    if (!mn_stack_is_own(s, &q->dst) && !mn_flows_is_live(&s->flows, &k, s->now))
        return false;
    const struct mn_port *u = mn_ports_find(&s->udp, &q->src, q->sport);
    if (u == NULL)
        return false;
    int err = m->kind == MN_ICMP_PORT_UNREACHABLE                                           ? ECONNREFUSED
              : m->kind == MN_ICMP_TOO_BIG                                                  ? EMSGSIZE
              : m->kind == MN_ICMP_HOST_UNREACHABLE || m->kind == MN_ICMP_PROTO_UNREACHABLE ? EHOSTUNREACH
                                                                                            : 0;
    if (err != 0 && s->ops.udp_error != NULL)
        s->ops.udp_error(s->ops.ctx, u->id, &to, err);
    return true;
}

static void take_error(struct mn_stack *s, const struct mn_packet *p, const struct mn_icmp *m)
{
    struct mn_icmp_quote q;
    bool is_matched = false;
    s->stats.icmp_error_in++;
    if (mn_icmp_parse_quote(&q, m->body, m->body_len) == 0 && mn_ip_equal(&q.src, &p->dst)) {
        if (q.proto == MN_PROTO_TCP)
            is_matched = take_tcp_error(s, m, &q);
        else if (q.proto == MN_PROTO_UDP)
            is_matched = take_udp_error(s, m, &q);
    }
    if (!is_matched)
        s->stats.icmp_error_unmatched++;
}

void mn_stack_input_icmp(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    struct mn_icmp m;
    int err = mn_icmp_parse(&m, p);
    if (err != 0) {
        if (err == MN_PACKET_CHECKSUM)
            s->stats.drop_checksum++;
        else
            s->stats.drop_malformed++;
        return;
    }
    if (m.kind == MN_ICMP_ECHO_REPLY) {
        s->ops.ping_reply(s->ops.ctx, m.id, m.seq, &p->src, m.body, m.body_len);
    } else if (m.is_error) {
        take_error(s, p, &m);
    } else if (peer != MN_PEER_SELF && !mn_rules_allow_host(s->rules, &p->src, &p->dst)) {
        s->stats.filter_drop++;
    } else if (m.kind == MN_ICMP_ECHO_REQUEST) {
        s->stats.filter_accept++;
        mn_stack_answer_echo(s, peer, p, &m);
    }
}

/* ---- UDP ---- */

/* May this datagram enter? Memory first, then the rules, whose answer is remembered for open flows. */
bool mn_stack_admit_udp(struct mn_stack *s, const struct mn_flow_key *k, bool is_open)
{
    if (mn_flows_on_received(&s->flows, k, s->rules_generation, s->now))
        return true;
    if (!mn_rules_allow_port(s->rules, MN_PROTO_UDP, &k->remote, &k->local, k->local_port)) {
        s->stats.filter_drop++;
        return false;
    }
    s->stats.filter_accept++;
    if (is_open)
        mn_flows_on_allowed(&s->flows, k, s->rules_generation, s->now);
    return true;
}

void mn_stack_input_udp(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    struct mn_udp u;
    int err = mn_udp_parse(&u, p);
    if (err != 0) {
        if (err == MN_PACKET_CHECKSUM)
            s->stats.drop_checksum++;
        else
            s->stats.drop_malformed++;
        return;
    }
    struct mn_ep from = {.ip = p->src, .port = u.sport}, to = {.ip = p->dst, .port = u.dport};
    struct mn_flow_key k = {p->dst, p->src, u.dport, u.sport};
    const struct mn_port *port = mn_ports_find(&s->udp, &p->dst, u.dport);
    if (peer != MN_PEER_SELF && !mn_stack_admit_udp(s, &k, port != NULL))
        return;
    if (port == NULL) {
        s->stats.udp_no_port++;
        mn_stack_send_error(s, peer, MN_ICMP_PORT_UNREACHABLE, p);
        return;
    }
    s->stats.udp_in++;
    s->ops.udp_deliver(s->ops.ctx, port->id, &from, &to, u.data, u.len);
}

int mn_udp_open(struct mn_stack *s, const struct mn_ip *addr_or_null, uint16_t port, uint32_t *udp)
{
    static const struct mn_ip any;
    uint16_t start;
    if (addr_or_null != NULL && !mn_stack_is_own(s, addr_or_null))
        return -EADDRNOTAVAIL;
    s->ops.random(s->ops.ctx, (uint8_t *)&start, sizeof start);
    int err = mn_ports_open(&s->udp, addr_or_null != NULL ? addr_or_null : &any, port, start, udp);
    s->stats.udp_flows = s->udp.count;
    return err;
}

uint16_t mn_udp_port(const struct mn_stack *s, uint32_t udp)
{
    const struct mn_port *p = mn_ports_get(&s->udp, udp);
    return p == NULL ? 0 : p->local.port;
}

void mn_udp_close(struct mn_stack *s, uint32_t udp)
{
    mn_ports_close(&s->udp, udp);
    s->stats.udp_flows = s->udp.count;
}

static int choose_udp_source(const struct mn_stack *s, const struct mn_port *p, const struct mn_ip *from,
                             const struct mn_ip *to, struct mn_ip *source)
{
    if (!mn_ip_is_zero(&p->local.ip))
        *source = p->local.ip;
    else if (from != NULL)
        *source = *from;
    else if (!mn_stack_choose_source(s, to, source))
        return -EADDRNOTAVAIL;
    if (!mn_stack_is_own(s, source))
        return -EADDRNOTAVAIL;
    return mn_ip_is4(source) == mn_ip_is4(to) ? 0 : -EINVAL;
}

int mn_udp_send(struct mn_stack *s, uint32_t udp, const struct mn_ip *from_or_null, const struct mn_ep *to,
                const uint8_t *data, size_t len, uint64_t now_ns)
{
    const struct mn_port *p = mn_ports_get(&s->udp, udp);
    struct mn_ep from;
    if (p == NULL)
        return -EBADF;
    if (to->port == 0 || mn_packet_destination_is_special(&to->ip))
        return -EINVAL;
    int err = choose_udp_source(s, p, from_or_null, &to->ip, &from.ip);
    if (err != 0)
        return err;
    from.port = p->local.port;
    size_t size = mn_packet_header_len(&to->ip) + MN_UDP_HEADER + len;
    if (size > s->cfg.mtu)
        return -EMSGSIZE;
    mn_turn_enter(s, now_ns);
    uint8_t *out = mn_stack_begin(s, &to->ip, size, &err);
    if (out != NULL) {
        mn_stack_commit(s, mn_udp_write(out, &from, to, data, len));
        s->stats.udp_out++;
        struct mn_flow_key k = {from.ip, to->ip, from.port, to->port};
        if (!mn_stack_is_own(s, &to->ip))
            mn_flows_on_sent(&s->flows, &k, s->now);
    }
    mn_turn_leave(s);
    return out != NULL ? 0 : -err;
}
