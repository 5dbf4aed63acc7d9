/* A kernel beside the stack: what becomes its, what stays here, what the rules keep out, what its sending lets in. */
#include "rig.h"

enum { HERE = 80, THERE = 22 }; /* a port somebody listens on here; one that nobody knows */

static void start(struct rig *r, bool v6)
{
    uint32_t listener;
    rig_start(r);
    r->v6 = v6;
    CHECK_INT(mn_tcp_listen(r->s, NULL, HERE, 0, &listener), 0);
    mn_stack_share_addresses(r->s, true);
}

static void segment_in(struct rig *r, uint16_t port, uint8_t flags)
{
    struct mn_segment g = {
        .dport = port, .sport = 40000, .seq = 1, .ack = 1, .flags = flags, .wnd = 1000, .wscale = -1};
    rig_in(r, g);
}

static void udp_in(struct rig *r, uint16_t from_port, uint16_t to_port)
{
    uint8_t pkt[RIG_MTU];
    struct mn_ep from = {.ip = r->v6 ? r->peer6 : r->peer4, .port = from_port},
                 to = {.ip = r->v6 ? r->own6 : r->own4, .port = to_port};
    rig_ip_in(r, pkt, mn_udp_write(pkt, &from, &to, (const uint8_t *)"x", 1));
}

static void echo_in(struct rig *r, bool is_reply)
{
    uint8_t pkt[RIG_MTU];
    rig_ip_in(r, pkt,
              mn_icmp_write_echo(pkt, r->v6 ? &r->peer6 : &r->peer4, r->v6 ? &r->own6 : &r->own4, is_reply, 5, 6,
                                 (const uint8_t *)"x", 1));
}

/* What the kernel says leaves the stack's memory richer. */
static void kernel_sends_udp(struct rig *r, uint16_t from_port, uint16_t to_port)
{
    uint8_t pkt[RIG_MTU];
    struct mn_packet p;
    struct mn_ep from = {.ip = r->v6 ? r->own6 : r->own4, .port = from_port},
                 to = {.ip = r->v6 ? r->peer6 : r->peer4, .port = to_port};
    CHECK_INT(mn_packet_parse(&p, pkt, mn_udp_write(pkt, &from, &to, (const uint8_t *)"x", 1)), 0);
    mn_stack_kernel_sent(r->s, &p, r->now);
}

static void test_who_gets_what(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        uint32_t udp;
        start(&r, v6 != 0);
        segment_in(&r, THERE, MN_TCP_SYN);
        CHECK_INT(r.kernels, 1);
        segment_in(&r, THERE, MN_TCP_ACK);
        segment_in(&r, THERE, MN_TCP_RST);
        CHECK_INT(r.kernels, 3);
        rig_none(&r); /* no RST of ours */
        CHECK_INT(mn_udp_open(r.s, NULL, 53, &udp), 0);
        udp_in(&r, 999, 53);
        CHECK(r.udps == 1 && r.kernels == 3);
        udp_in(&r, 999, 54);
        CHECK(r.udps == 1 && r.kernels == 4);
        echo_in(&r, false);
        CHECK_INT(r.kernels, 5);
        echo_in(&r, true);
        CHECK(r.pings == 1 && r.kernels == 6);
        rig_none(&r);
        CHECK_INT(mn_stack_stats(r.s)->to_kernel, 6);
        rig_stop(&r);
    }
}

static void test_connections_here_stay_here(void)
{
    struct rig r;
    rig_start(&r);
    mn_stack_share_addresses(r.s, true);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1200});
    mn_tcp_unlisten(r.s, r.listener); /* the port alone no longer says so */
    rig_in(&r, rig_segment(&f, MN_TCP_ACK | MN_TCP_PSH, "hello", 5));
    CHECK_INT(r.got, 5);
    CHECK_INT(r.kernels, 0);
    while (rig_take(&r))
        ;
    rig_stop(&r);
    rig_start(&r);
    mn_stack_share_addresses(r.s, true);
    (void)rig_connected_flow(&r, true); /* nobody listens on its port here, and its SYN-ACK still finds it */
    CHECK(r.connected == 1 && r.kernels == 0);
    while (rig_take(&r))
        ;
    rig_stop(&r);
}

static void test_rules_hold(void)
{
    struct rig r;
    start(&r, false);
    rig_deny_all(&r);
    segment_in(&r, THERE, MN_TCP_SYN);
    CHECK_INT(r.kernels, 0);
    CHECK(rig_take(&r)); /* the peer is told, as stock nodes do */
    CHECK_INT(r.seen_packet.proto, MN_PROTO_TSMP);
    udp_in(&r, 999, 54);
    echo_in(&r, false);
    CHECK_INT(r.kernels, 0);
    CHECK_INT(mn_stack_stats(r.s)->filter_drop, 3);
    segment_in(&r, THERE, MN_TCP_SYN | MN_TCP_ACK); /* the answer to a SYN of the kernel's */
    echo_in(&r, true);
    CHECK_INT(r.kernels, 2);
    rig_none(&r);
    rig_stop(&r);
}

static void test_sending_lets_answers_in(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        start(&r, v6 != 0);
        rig_deny_all(&r);
        kernel_sends_udp(&r, 5353, 53);
        udp_in(&r, 53, 5353);
        CHECK_INT(r.kernels, 1);
        udp_in(&r, 54, 5353);
        udp_in(&r, 53, 5354);
        CHECK_INT(r.kernels, 1);
        r.now += 181 * MN_SECOND;
        udp_in(&r, 53, 5353);
        CHECK_INT(r.kernels, 1);
        rig_stop(&r);
    }
}

static void error_in(struct rig *r, uint16_t our_port, uint16_t their_port)
{
    uint8_t ours[RIG_MTU], pkt[RIG_MTU];
    struct mn_packet p;
    struct mn_ep from = {.ip = r->own4, .port = our_port}, to = {.ip = r->peer4, .port = their_port};
    CHECK_INT(mn_packet_parse(&p, ours, mn_udp_write(ours, &from, &to, (const uint8_t *)"x", 1)), 0);
    rig_ip_in(r, pkt, mn_icmp_write_error(pkt, sizeof pkt, MN_ICMP_PORT_UNREACHABLE, &p));
}

static void test_errors_find_their_flow(void)
{
    struct rig r;
    uint32_t udp;
    start(&r, false);
    rig_deny_all(&r);
    error_in(&r, 5353, 53); /* about nothing */
    CHECK_INT(r.kernels, 0);
    kernel_sends_udp(&r, 5353, 53);
    error_in(&r, 5353, 53);
    CHECK_INT(r.kernels, 1);
    CHECK_INT(mn_udp_open(r.s, NULL, 7000, &udp), 0);
    struct mn_ep to = {.ip = r.peer4, .port = 53};
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, (const uint8_t *)"q", 1, r.now), 0);
    CHECK(rig_take(&r));
    error_in(&r, 7000, 53); /* about a flow here */
    CHECK(r.udp_errors == 1 && r.kernels == 1);
    rig_stop(&r);
}

/* Mark a packet as a piece of a larger one. */
static size_t fragment(uint8_t *pkt, size_t len, uint16_t at, bool more)
{
    mn_store16(pkt + 6, (uint32_t)(at / 8 | (more ? 0x2000 : 0)));
    pkt[10] = pkt[11] = 0;
    mn_csum_store(pkt + 10, mn_csum_add(0, pkt, MN_IP4_HEADER));
    return len;
}

static void fragment_in(struct rig *r, uint16_t to_port, uint16_t at, bool more)
{
    uint8_t pkt[RIG_MTU], data[104] = {0};
    struct mn_ep from = {.ip = r->peer4, .port = 999}, to = {.ip = r->own4, .port = to_port};
    rig_ip_in(r, pkt, fragment(pkt, mn_udp_write(pkt, &from, &to, data, sizeof data), at, more));
}

static void test_fragments(void)
{
    struct rig r;
    uint8_t pkt[RIG_MTU], data[200] = {0};
    start(&r, false);
    fragment_in(&r, 54, 0, true);
    fragment_in(&r, 54, 112, false);
    CHECK_INT(r.kernels, 2);
    fragment_in(&r, 54, 8, false); /* over the ports that the rules saw */
    CHECK_INT(r.kernels, 2);
    CHECK_INT(mn_stack_stats(r.s)->drop_fragment, 1);
    size_t len = mn_icmp_write_echo(pkt, &r.peer4, &r.own4, false, 1, 2, data, sizeof data);
    rig_ip_in(&r, pkt, fragment(pkt, len, 0, true));
    CHECK_INT(r.kernels, 3);
    rig_deny_all(&r);
    rig_ip_in(&r, pkt, len);
    fragment_in(&r, 54, 0, true);
    CHECK_INT(r.kernels, 3);
    rig_stop(&r);
}

static void test_other_protocols(void)
{
    struct rig r;
    uint8_t pkt[64] = {0};
    const struct rig_rule sctp[] = {{MN_PROTO_SCTP, "4", "4", 0, 65535}};
    start(&r, false);
    mn_packet_write_header(pkt, &r.peer4, &r.own4, MN_PROTO_SCTP, 40);
    rig_ip_in(&r, pkt, 60);
    CHECK_INT(r.kernels, 0);
    rig_filter(&r, sctp, 1);
    rig_ip_in(&r, pkt, 60);
    CHECK_INT(r.kernels, 1);
    pkt[9] = MN_PROTO_ICMP; /* a timestamp request: nobody's business */
    pkt[20] = 13;
    fragment(pkt, 60, 0, false);
    mn_csum_store(pkt + 22, mn_csum_add(0, pkt + 20, 40));
    rig_ip_in(&r, pkt, 60);
    CHECK_INT(r.kernels, 1);
    rig_stop(&r);
}

/* What is too short or not for us never reaches the kernel; without a share, nothing does. */
static void test_what_never_passes(void)
{
    struct rig r;
    uint8_t pkt[64] = {0};
    struct mn_ip other = mn_ip_from4((const uint8_t[4]){100, 64, 0, 9});
    start(&r, false);
    static const uint8_t protos[] = {MN_PROTO_TCP, MN_PROTO_UDP, MN_PROTO_ICMP};
    for (size_t i = 0; i < sizeof protos; i++)
        for (size_t n = 0; n < 20; n++) {
            size_t least = protos[i] == MN_PROTO_TCP ? 20 : 8;
            mn_packet_write_header(pkt, &r.peer4, &r.own4, protos[i], n);
            if (n < least)
                rig_ip_in(&r, pkt, 20 + n);
        }
    mn_packet_write_header(pkt, &r.peer4, &other, MN_PROTO_TCP, 20);
    rig_ip_in(&r, pkt, 40);
    CHECK_INT(r.kernels, 0);
    mn_stack_share_addresses(r.s, false);
    segment_in(&r, THERE, MN_TCP_SYN);
    CHECK(rig_take(&r) && (r.seen.flags & MN_TCP_RST) != 0);
    CHECK_INT(r.kernels, 0);
    rig_stop(&r);
}

int main(void)
{
    RUN(test_who_gets_what);
    RUN(test_connections_here_stay_here);
    RUN(test_rules_hold);
    RUN(test_sending_lets_answers_in);
    RUN(test_errors_find_their_flow);
    RUN(test_fragments);
    RUN(test_other_protocols);
    RUN(test_what_never_passes);
    return 0;
}
