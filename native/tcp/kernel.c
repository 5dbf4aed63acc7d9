/* A kernel that has our addresses too: which packets are its, under the same rules, and what its own packets teach
 * the filter.
 *
 * Ours is what a connection, a listener's port or an open UDP flow here owns; all else is the kernel's. Its TCP is not
 * tracked: a SYN meets the rules, later segments pass, as with stock nodes; what nobody expects its stack refuses.
 * UDP enters by a rule or as the answer to something sent. Source: docs/protocol/dataplane.md 7. */
#include "internal.h"

enum {
    TCP_FLAGS = 13,
    TCP_MIN = 20,
    PORTS = 4,
    /* A later fragment this near the front could rewrite the header that the rules saw (RFC 3128). */
    FRAGMENT_AT_LEAST = 80,
};

void mn_stack_share_addresses(struct mn_stack *s, bool with_kernel)
{
    s->is_shared = with_kernel && s->ops.to_kernel != NULL;
}

static void hand_over(struct mn_stack *s, const struct mn_packet *p)
{
    s->stats.to_kernel++;
    s->ops.to_kernel(s->ops.ctx, p);
}

/* Hand over what the rules allow. */
static bool judge(struct mn_stack *s, const struct mn_packet *p, bool is_allowed)
{
    if (is_allowed) {
        s->stats.filter_accept++;
        hand_over(s, p);
    } else {
        s->stats.filter_drop++;
    }
    return is_allowed;
}

static struct mn_tuple tuple_of(const struct mn_packet *p)
{
    return (struct mn_tuple){p->dst, p->src, mn_load16(p->l4 + 2), mn_load16(p->l4)};
}

static bool input_tcp(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    struct mn_segment g;
    struct mn_tuple t = tuple_of(p);
    if (mn_demux_find(&s->demux, &t) != NULL || mn_ports_find(&s->listeners, &t.local, t.lport) != NULL)
        return false;
    if ((p->l4[TCP_FLAGS] & (MN_TCP_SYN | MN_TCP_ACK)) != MN_TCP_SYN) {
        hand_over(s, p);
        return true;
    }
    bool is_allowed = mn_rules_allow_port(s->rules, MN_PROTO_TCP, &t.remote, &t.local, t.lport);
    if (!judge(s, p, is_allowed) && !p->is_fragment && mn_segment_parse(&g, p) == 0)
        mn_stack_send_tsmp_reject(s, peer, p, &g);
    return true;
}

static bool input_udp(struct mn_stack *s, const struct mn_packet *p)
{
    struct mn_flow_key k = {p->dst, p->src, mn_load16(p->l4 + 2), mn_load16(p->l4)};
    if (mn_ports_find(&s->udp, &k.local, k.local_port) != NULL)
        return false;
    if (mn_stack_admit_udp(s, &k, true))
        hand_over(s, p);
    return true;
}

/* An error about something of ours is ours; about something else it must at least speak of our address. */
static bool input_error(struct mn_stack *s, const struct mn_packet *p, const struct mn_icmp *m)
{
    struct mn_icmp_quote q;
    if (mn_icmp_parse_quote(&q, m->body, m->body_len) != 0 || !mn_ip_equal(&q.src, &p->dst))
        return false;
    struct mn_tuple t = {q.src, q.dst, q.sport, q.dport};
    struct mn_flow_key k = {q.src, q.dst, q.sport, q.dport};
    if (q.proto == MN_PROTO_TCP && mn_demux_find(&s->demux, &t) != NULL)
        return false;
    if (q.proto == MN_PROTO_UDP &&
        (mn_ports_find(&s->udp, &q.src, q.sport) != NULL || !mn_flows_is_live(&s->flows, &k, s->now)))
        return false;
    s->stats.icmp_error_in++;
    hand_over(s, p);
    return true;
}

static bool input_icmp(struct mn_stack *s, const struct mn_packet *p)
{
    struct mn_icmp m;
    if (p->is_fragment) /* of a long ping: what it is stands in its first byte */
        m = (struct mn_icmp){.kind = p->l4[0] == 8 || p->l4[0] == 128 ? MN_ICMP_ECHO_REQUEST : MN_ICMP_OTHER};
    else if (mn_icmp_parse(&m, p) != 0)
        return false;
    bool is_reply = p->is_fragment ? p->l4[0] == (p->version == 4 ? 0 : 129) : m.kind == MN_ICMP_ECHO_REPLY;
    if (m.is_error)
        return input_error(s, p, &m);
    if (is_reply) {
        if (!p->is_fragment) /* whose ping it was, the number tells each side */
            s->ops.ping_reply(s->ops.ctx, m.id, m.seq, &p->src, m.body, m.body_len);
        hand_over(s, p);
        return true;
    }
    if (m.kind != MN_ICMP_ECHO_REQUEST) {
        s->stats.drop_protocol++;
        return true;
    }
    (void)judge(s, p, mn_rules_allow_host(s->rules, &p->src, &p->dst));
    return true;
}

bool mn_kernel_input(struct mn_stack *s, uint32_t peer, const struct mn_packet *p)
{
    bool is_icmp = p->proto == (p->version == 4 ? MN_PROTO_ICMP : MN_PROTO_ICMP6);
    if (p->proto == MN_PROTO_TSMP)
        return false;
    if (p->is_fragment && p->fragment_at != 0) { /* worth nothing without its first, which met the rules */
        if (p->fragment_at < FRAGMENT_AT_LEAST)
            return false;
        hand_over(s, p);
        return true;
    }
    if (p->proto == MN_PROTO_TCP)
        return p->l4_len >= TCP_MIN && input_tcp(s, peer, p);
    if (p->proto == MN_PROTO_UDP)
        return p->l4_len >= MN_UDP_HEADER && input_udp(s, p);
    if (is_icmp)
        return p->l4_len >= MN_ICMP_HEADER && input_icmp(s, p);
    (void)judge(s, p, mn_rules_allow_proto(s->rules, p->proto, &p->src, &p->dst));
    return true;
}

void mn_stack_kernel_sent(struct mn_stack *s, const struct mn_packet *p, uint64_t now_ns)
{
    if (now_ns > s->now)
        s->now = now_ns;
    if (p->proto != MN_PROTO_UDP || p->l4_len < PORTS || p->fragment_at != 0)
        return;
    struct mn_flow_key k = {p->src, p->dst, mn_load16(p->l4), mn_load16(p->l4 + 2)};
    (void)mn_flows_on_sent(&s->flows, &k, s->now);
}
