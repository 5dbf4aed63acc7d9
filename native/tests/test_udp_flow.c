/* UDP flows: open, send, deliver, refuse; which replies may enter and for how long (PF-02, PF-03). */
#include "rig.h"

static void send_in(struct rig *r, uint16_t from, uint16_t to, const char *text)
{
    uint8_t pkt[RIG_MTU];
    struct mn_ep a = {.ip = r->v6 ? r->peer6 : r->peer4, .port = from},
                 b = {.ip = r->v6 ? r->own6 : r->own4, .port = to};
    rig_ip_in(r, pkt, mn_udp_write(pkt, &a, &b, (const uint8_t *)text, strlen(text)));
}

static struct mn_ep peer_at(const struct rig *r, uint16_t port)
{
    return (struct mn_ep){.ip = r->v6 ? r->peer6 : r->peer4, .port = port};
}

static void test_both_ways(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        uint32_t udp;
        struct mn_udp u;
        rig_start(&r);
        r.v6 = v6 != 0;
        CHECK_INT(mn_udp_open(r.s, NULL, 53, &udp), 0);
        send_in(&r, 4000, 53, "question");
        CHECK_INT(r.udps, 1);
        CHECK_INT(r.udp_id, udp);
        CHECK(r.udp_len == 8 && memcmp(r.udp_data, "question", 8) == 0);
        CHECK_INT(r.udp_from.port, 4000);
        CHECK_INT(mn_udp_send(r.s, udp, NULL, &r.udp_from, (const uint8_t *)"answer", 6, r.now), 0);
        CHECK(rig_take(&r));
        CHECK_INT(mn_udp_parse(&u, &r.seen_packet), 0);
        CHECK(u.sport == 53 && u.dport == 4000 && u.len == 6 && memcmp(u.data, "answer", 6) == 0);
        mn_udp_close(r.s, udp);
        CHECK_INT(mn_udp_send(r.s, udp, NULL, &r.udp_from, NULL, 0, r.now), -EBADF);
        send_in(&r, 4000, 53, "again");
        CHECK_INT(r.udps, 1);
        CHECK(rig_take(&r)); /* port unreachable */
        CHECK_INT(r.seen_packet.proto, v6 != 0 ? MN_PROTO_ICMP6 : MN_PROTO_ICMP);
        rig_stop(&r);
    }
}

static void test_binding(void)
{
    struct rig r;
    uint32_t any, one, other;
    rig_start(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 53, &any), 0);
    CHECK_INT(mn_udp_open(r.s, NULL, 53, &other), -EADDRINUSE);
    CHECK_INT(mn_udp_open(r.s, &r.own4, 53, &one), 0); /* the more particular one wins */
    CHECK_INT(mn_udp_open(r.s, &r.peer4, 53, &other), -EADDRNOTAVAIL);
    send_in(&r, 1, 53, "x");
    CHECK_INT(r.udp_id, one);
    r.v6 = true;
    send_in(&r, 1, 53, "x");
    CHECK_INT(r.udp_id, any);
    CHECK_INT(mn_udp_open(r.s, NULL, 0, &other), 0);
    CHECK(mn_udp_port(r.s, other) >= 32768);
    rig_stop(&r);
}

static void test_limits(void)
{
    struct rig r;
    uint32_t udp, id = 0;
    static uint8_t big[1300];
    rig_start(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 53, &udp), 0);
    struct mn_ep to = peer_at(&r, 9);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, big, 1252, r.now), 0);
    CHECK(rig_take(&r));
    CHECK_INT(r.seen_packet.ip_len, 1280);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, big, 1253, r.now), -EMSGSIZE);
    CHECK_INT(mn_udp_send(r.s, udp, &r.own6, &to, big, 1, r.now), -EINVAL);
    to.port = 0;
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, big, 1, r.now), -EINVAL);
    int opened = 0;
    while (mn_udp_open(r.s, NULL, 0, &id) == 0)
        opened++;
    CHECK_INT(opened, MN_PORTS_MAX - 1);
    rig_stop(&r);
}

static void test_checksum_zero(void)
{
    struct rig r;
    uint32_t udp;
    uint8_t pkt[RIG_MTU];
    rig_start(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 53, &udp), 0);
    for (int v6 = 0; v6 < 2; v6++) {
        struct mn_ep a = {.ip = v6 != 0 ? r.peer6 : r.peer4, .port = 1},
                     b = {.ip = v6 != 0 ? r.own6 : r.own4, .port = 53};
        size_t n = mn_udp_write(pkt, &a, &b, (const uint8_t *)"x", 1);
        mn_store16(pkt + mn_packet_header_len(&a.ip) + 6, 0);
        rig_ip_in(&r, pkt, n);
    }
    CHECK_INT(r.udps, 1); /* none means none in IPv4, and is forbidden in IPv6 */
    CHECK_INT(mn_stack_stats(r.s)->drop_checksum, 1);
    /* A sum that comes out as zero is sent as ones. */
    struct mn_ep a = {.ip = r.peer4, .port = 1}, b = {.ip = r.own4, .port = 53};
    for (uint32_t v = 0; v < 65536; v++) {
        uint8_t data[2];
        mn_store16(data, v);
        mn_udp_write(pkt, &a, &b, data, 2);
        CHECK(mn_load16(pkt + 26) != 0);
    }
    rig_stop(&r);
}

static void test_replies_need_no_rule(void)
{
    struct rig r;
    uint32_t udp;
    rig_start(&r);
    rig_deny_all(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 5353, &udp), 0);
    send_in(&r, 53, 5353, "unasked");
    CHECK_INT(r.udps, 0);
    struct mn_ep to = peer_at(&r, 53);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, (const uint8_t *)"q", 1, r.now), 0);
    rig_take(&r);
    send_in(&r, 53, 5353, "reply");
    CHECK_INT(r.udps, 1);
    send_in(&r, 54, 5353, "other port"); /* only the very tuple */
    CHECK_INT(r.udps, 1);
    r.now += 179 * MN_SECOND; /* both have spoken: three minutes */
    send_in(&r, 53, 5353, "late");
    CHECK_INT(r.udps, 2);
    r.now += 181 * MN_SECOND;
    send_in(&r, 53, 5353, "too late");
    CHECK_INT(r.udps, 2);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, (const uint8_t *)"q", 1, r.now), 0);
    rig_take(&r);
    r.now += 31 * MN_SECOND; /* unanswered: half a minute */
    send_in(&r, 53, 5353, "too late");
    CHECK_INT(r.udps, 2);
    CHECK_INT(mn_stack_stats(r.s)->filter_drop, 4);
    rig_stop(&r);
}

static void test_a_scan_does_not_evict_our_flows(void)
{
    struct rig r;
    uint32_t udp;
    rig_start(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 5353, &udp), 0);
    struct mn_ep to = peer_at(&r, 53);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, (const uint8_t *)"q", 1, r.now), 0);
    rig_take(&r);
    for (uint32_t port = 1024; port < 1024 + 20000; port++) /* allowed, to an open port */
        send_in(&r, (uint16_t)port, 5353, "scan");
    CHECK_INT(r.s->flows.by[MN_FLOW_PEERS].count, MN_FLOWS_PER_ORIGIN);
    CHECK_INT(r.s->flows.by[MN_FLOW_OURS].count, 1);
    rig_deny_all(&r);
    int before = r.udps;
    send_in(&r, 53, 5353, "reply");
    CHECK_INT(r.udps, before + 1);
    rig_stop(&r);
}

static void test_rule_change(void)
{
    struct rig r;
    uint32_t udp;
    rig_start(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 53, &udp), 0);
    send_in(&r, 4000, 53, "a"); /* begun by the peer */
    struct mn_ep theirs = peer_at(&r, 4000), ours = peer_at(&r, 5000);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &theirs, (const uint8_t *)"b", 1, r.now), 0);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &ours, (const uint8_t *)"b", 1, r.now), 0); /* begun by us */
    rig_take(&r);
    rig_take(&r);
    rig_deny_all(&r);
    send_in(&r, 4000, 53, "a"); /* our answers gave it no right of its own */
    CHECK_INT(r.udps, 1);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &theirs, (const uint8_t *)"b", 1, r.now), 0);
    rig_take(&r);
    send_in(&r, 4000, 53, "a");
    CHECK_INT(r.udps, 1);
    send_in(&r, 5000, 53, "c");
    CHECK_INT(r.udps, 2);
    rig_allow_all(&r);
    send_in(&r, 4000, 53, "a");
    CHECK_INT(r.udps, 3);
    rig_stop(&r);
}

static void test_errors_reach_the_flow(void)
{
    struct rig r;
    uint32_t udp;
    uint8_t pkt[RIG_MTU];
    rig_start(&r);
    rig_deny_all(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 5353, &udp), 0);
    struct mn_ep to = peer_at(&r, 53);
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, (const uint8_t *)"q", 1, r.now), 0);
    CHECK(rig_take(&r));
    size_t n = mn_icmp_write_error(pkt, sizeof pkt, MN_ICMP_PORT_UNREACHABLE, &r.seen_packet);
    rig_ip_in(&r, pkt, n);
    CHECK_INT(r.udp_errors, 1);
    CHECK_INT(r.udp_id, udp);
    CHECK_INT(r.err, ECONNREFUSED);
    /* About something we never sent: not believed. */
    struct mn_ep from = {.ip = r.own4, .port = 5353}, never = peer_at(&r, 54);
    uint8_t fake[64];
    struct mn_packet p;
    CHECK_INT(mn_packet_parse(&p, fake, mn_udp_write(fake, &from, &never, (const uint8_t *)"q", 1)), 0);
    rig_ip_in(&r, pkt, mn_icmp_write_error(pkt, sizeof pkt, MN_ICMP_PORT_UNREACHABLE, &p));
    CHECK_INT(r.udp_errors, 1);
    CHECK_INT(mn_stack_stats(r.s)->icmp_error_unmatched, 1);
    rig_stop(&r);
}

static void test_to_self(void)
{
    struct rig r;
    uint32_t a, b;
    rig_start(&r);
    rig_deny_all(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 1000, &a), 0);
    CHECK_INT(mn_udp_open(r.s, NULL, 2000, &b), 0);
    struct mn_ep to = {.ip = r.own4, .port = 2000};
    CHECK_INT(mn_udp_send(r.s, a, NULL, &to, (const uint8_t *)"me", 2, r.now), 0);
    mn_stack_flush(r.s, r.now);
    CHECK_INT(r.udps, 1);
    CHECK_INT(r.udp_id, b);
    to.port = 3000;
    CHECK_INT(mn_udp_send(r.s, a, NULL, &to, (const uint8_t *)"me", 2, r.now), 0);
    mn_stack_flush(r.s, r.now);
    CHECK_INT(r.udp_errors, 1);
    CHECK_INT(r.udp_id, a);
    rig_none(&r);
    rig_stop(&r);
}

static void test_generations(void)
{
    struct rig r;
    uint32_t first, id = 0;
    rig_start(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 53, &first), 0);
    for (int i = 0; i < 1000; i++) {
        mn_udp_close(r.s, i == 0 ? first : id);
        CHECK_INT(mn_udp_open(r.s, NULL, 53, &id), 0);
        CHECK(id != first);
    }
    mn_udp_close(r.s, first); /* long dead: does nothing */
    send_in(&r, 1, 53, "x");
    CHECK_INT(r.udp_id, id);
    rig_stop(&r);
}

int main(void)
{
    RUN(test_both_ways);
    RUN(test_binding);
    RUN(test_limits);
    RUN(test_checksum_zero);
    RUN(test_replies_need_no_rule);
    RUN(test_a_scan_does_not_evict_our_flows);
    RUN(test_rule_change);
    RUN(test_errors_reach_the_flow);
    RUN(test_to_self);
    RUN(test_generations);
    return 0;
}
