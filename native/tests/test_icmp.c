/* Echo in both directions, errors we send, their rates, strange protocols, source and destination checks (IP-04,
 * IP-05). */
#include "rig.h"

static size_t echo(struct rig *r, uint8_t *pkt, bool is_reply, size_t len)
{
    static uint8_t payload[2000];
    for (size_t i = 0; i < len; i++)
        payload[i] = (uint8_t)i;
    return mn_icmp_write_echo(pkt, r->v6 ? &r->peer6 : &r->peer4, r->v6 ? &r->own6 : &r->own4, is_reply, 0x1234, 7,
                              payload, len);
}

static void test_echo_is_answered(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        for (size_t len = 0; len <= 1200; len += 61) {
            struct rig r;
            struct mn_icmp m;
            uint8_t pkt[RIG_MTU];
            rig_start(&r);
            r.v6 = v6 != 0;
            rig_ip_in(&r, pkt, echo(&r, pkt, false, len));
            CHECK(rig_take(&r));
            CHECK_INT(mn_icmp_parse(&m, &r.seen_packet), 0);
            CHECK(m.kind == MN_ICMP_ECHO_REPLY && m.id == 0x1234 && m.seq == 7 && m.body_len == len);
            for (size_t i = 0; i < len; i++)
                CHECK_INT(m.body[i], (uint8_t)i);
            CHECK(mn_ip_equal(&r.seen_packet.dst, r.v6 ? &r.peer6 : &r.peer4));
            rig_stop(&r);
        }
    }
}

static void test_echo_needs_a_rule(void)
{
    struct rig r;
    uint8_t pkt[RIG_MTU];
    rig_start(&r);
    rig_deny_all(&r);
    rig_ip_in(&r, pkt, echo(&r, pkt, false, 8));
    rig_none(&r);
    CHECK_INT(mn_stack_stats(r.s)->filter_drop, 1);
    const struct rig_rule tcp_only[] = {{6, "4", "4", 22, 22}}; /* any rule for these hosts will do */
    rig_filter(&r, tcp_only, 1);
    rig_ip_in(&r, pkt, echo(&r, pkt, false, 8));
    CHECK(rig_take(&r));
    r.v6 = true;
    rig_ip_in(&r, pkt, echo(&r, pkt, false, 8));
    rig_none(&r);
    rig_stop(&r);
}

static void test_echo_rate_is_bounded(void)
{
    struct rig r;
    uint8_t pkt[RIG_MTU];
    int answers = 0;
    rig_start(&r);
    size_t n = echo(&r, pkt, false, 8);
    for (int i = 0; i < 3000; i++) {
        rig_ip_in(&r, pkt, n);
        while (rig_take(&r))
            answers++;
    }
    CHECK_INT(answers, MN_ECHO_PER_S);
    CHECK_INT(mn_stack_stats(r.s)->icmp_echo_limited, 3000 - MN_ECHO_PER_S);
    r.now += 100 * MN_MS;
    for (int i = 0; i < 3000; i++) {
        rig_ip_in(&r, pkt, n);
        while (rig_take(&r))
            answers++;
    }
    CHECK_INT(answers, MN_ECHO_PER_S + MN_ECHO_PER_S / 10);
    rig_stop(&r);
}

/* ---- echoes beyond the MTU ---- */

enum {
    LARGEST = 65535,
};

static uint8_t g_long[LARGEST];

/* A request with this payload, in the pieces a peer of our MTU makes, the last first if told. */
static void ask_in_pieces(struct rig *r, size_t len, bool is_reversed)
{
    static uint8_t message[LARGEST];
    struct mn_ip src = r->v6 ? r->peer6 : r->peer4, dst = r->v6 ? r->own6 : r->own4;
    size_t total = MN_ICMP_HEADER + len, share = mn_piece_share(&dst, RIG_MTU), count = (total + share - 1) / share;
    mn_icmp_write_echo_header(message, &src, &dst, false, 0x1234, 7, g_long, len);
    memcpy(message + MN_ICMP_HEADER, g_long, len);
    for (size_t i = 0; i < count; i++) {
        uint8_t pkt[RIG_MTU];
        size_t at = (is_reversed ? count - 1 - i : i) * share;
        struct mn_piece k = {.src = src, .dst = dst, .id = 77, .at = (uint32_t)at, .more = total - at > share};
        k.proto = r->v6 ? MN_PROTO_ICMP6 : MN_PROTO_ICMP;
        k.len = k.more ? share : total - at;
        size_t n = mn_piece_write_header(pkt, &k);
        memcpy(pkt + n, message + at, k.len);
        rig_ip_in(r, pkt, n + k.len);
    }
}

/* Read the pieces of one answer, put them together as any host would, and return their identification. */
static uint32_t expect_in_pieces(struct rig *r, size_t len)
{
    struct mn_fragments f = {0};
    struct mn_packet whole;
    struct mn_icmp m;
    const uint8_t *out = NULL;
    size_t n = 0, at = 0, share = mn_piece_share(&r->peer4, RIG_MTU);
    uint32_t id = 0;
    if (r->v6)
        share = mn_piece_share(&r->peer6, RIG_MTU);
    for (bool is_whole = false; !is_whole; at += share) {
        CHECK(rig_take(r));
        const struct mn_packet *p = &r->seen_packet;
        CHECK(p->is_fragment && p->fragment_at == at && p->ip_len <= RIG_MTU);
        CHECK(at == 0 || p->fragment_id == id);
        CHECK(r->v6 || (p->ip[6] & 0x40) == 0); /* nobody is asked not to fragment what is a fragment */
        id = p->fragment_id;
        is_whole = mn_fragments_take(&f, 1, p, r->now, &out, &n);
        CHECK(is_whole == !p->fragment_more);
    }
    CHECK_INT(mn_packet_parse(&whole, out, n), 0);
    CHECK_INT(mn_icmp_parse(&m, &whole), 0);
    CHECK(m.kind == MN_ICMP_ECHO_REPLY && m.id == 0x1234 && m.seq == 7 && m.body_len == len);
    CHECK(memcmp(m.body, g_long, len) == 0);
    CHECK(mn_ip_equal(&whole.src, r->v6 ? &r->own6 : &r->own4));
    CHECK(mn_ip_equal(&whole.dst, r->v6 ? &r->peer6 : &r->peer4));
    rig_none(r);
    mn_fragments_free(&f);
    return id;
}

static void test_large_echoes_are_answered(void)
{
    static const size_t sizes[] = {1253, 2 * 1232 - 8, 2 * 1256 - 8, 4000, 8000, 65535 - 20 - 8};
    uint64_t rng = 5;
    test_random_bytes(&rng, g_long, sizeof g_long);
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        rig_start(&r);
        r.v6 = v6 != 0;
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            ask_in_pieces(&r, sizes[i], false);
            uint32_t id = expect_in_pieces(&r, sizes[i]), mask = r.v6 ? UINT32_MAX : 0xffff;
            ask_in_pieces(&r, sizes[i], true);
            CHECK_INT(expect_in_pieces(&r, sizes[i]), (id + 1) & mask);
            r.now += MN_SECOND;
        }
        CHECK_INT(mn_stack_stats(r.s)->icmp_echo_in, 2 * sizeof sizes / sizeof sizes[0]);
        CHECK_INT(mn_stack_stats(r.s)->icmp_echo_limited, 0);
        rig_deny_all(&r);
        ask_in_pieces(&r, 4000, false);
        rig_none(&r);
        rig_stop(&r);
    }
}

/* A request that fits one packet is answered in one, however it came; one that a larger MTU let through is not. */
static void test_answers_are_cut_by_our_mtu_alone(void)
{
    static const struct mn_stack_config small = {.mtu = 600};
    struct rig r;
    struct mn_icmp m;
    uint8_t pkt[RIG_MTU];
    rig_start(&r);
    size_t n = echo(&r, pkt, false, 1000);
    for (int i = 0; i < 2; i++) {
        struct mn_piece k = {.src = r.peer4, .dst = r.own4, .proto = MN_PROTO_ICMP, .id = 1, .at = i == 0 ? 0 : 504};
        uint8_t piece[RIG_MTU];
        k.len = i == 0 ? 504 : n - 20 - 504;
        k.more = i == 0;
        size_t head = mn_piece_write_header(piece, &k);
        memcpy(piece + head, pkt + 20 + k.at, k.len);
        rig_ip_in(&r, piece, head + k.len);
    }
    CHECK(rig_take(&r));
    CHECK_INT(mn_icmp_parse(&m, &r.seen_packet), 0);
    CHECK(!r.seen_packet.is_fragment && m.kind == MN_ICMP_ECHO_REPLY && m.body_len == 1000);
    rig_stop(&r);
    rig_start_with(&r, &small);
    rig_ip_in(&r, pkt, n);
    for (int i = 0; i < 2; i++) {
        CHECK(rig_take(&r));
        CHECK(r.seen_packet.is_fragment && r.seen_packet.ip_len <= 600);
    }
    rig_none(&r);
    rig_stop(&r);
}

static int count_out(struct rig *r)
{
    int n = 0;
    while (rig_take(r))
        n++;
    return n;
}

/* Each packet of an answer counts, and an answer leaves whole or not at all. */
static void test_large_echoes_are_bounded(void)
{
    struct rig r;
    int packets = 0;
    rig_start(&r);
    for (int i = 0; i < 500; i++) { /* seven packets each */
        ask_in_pieces(&r, 8000, false);
        packets += count_out(&r);
    }
    CHECK_INT(packets, MN_ECHO_PER_S / 7 * 7);
    CHECK_INT(mn_stack_stats(r.s)->icmp_echo_limited, 500 - MN_ECHO_PER_S / 7);
    r.now += MN_SECOND;
    r.no_buffer = true;
    ask_in_pieces(&r, 8000, false);
    CHECK_INT(count_out(&r), 0);
    CHECK_INT(mn_stack_stats(r.s)->tx_no_buffer, 1);
    rig_stop(&r);
}

static void test_our_ping(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        struct mn_icmp m;
        uint8_t pkt[RIG_MTU];
        rig_start(&r);
        r.v6 = v6 != 0;
        rig_deny_all(&r); /* answers to what we asked need no rule */
        struct mn_ip to = r.v6 ? r.peer6 : r.peer4;
        CHECK_INT(mn_ping_send(r.s, &to, 0x1234, 7, (const uint8_t *)"abc", 3, r.now), 0);
        CHECK(rig_take(&r));
        CHECK_INT(mn_icmp_parse(&m, &r.seen_packet), 0);
        CHECK(m.kind == MN_ICMP_ECHO_REQUEST && m.body_len == 3);
        rig_ip_in(&r, pkt, echo(&r, pkt, true, 3));
        CHECK_INT(r.pings, 1);
        CHECK(r.ping_id == 0x1234 && r.ping_seq == 7);
        CHECK_INT(mn_ping_send(r.s, &to, 1, 1, pkt, 1280, r.now), -EMSGSIZE);
        r.no_route = true;
        CHECK_INT(mn_ping_send(r.s, &to, 1, 1, pkt, 8, r.now), -EHOSTUNREACH);
        rig_stop(&r);
    }
}

static void test_ping_to_self(void)
{
    struct rig r;
    rig_start(&r);
    rig_deny_all(&r);
    CHECK_INT(mn_ping_send(r.s, &r.own4, 5, 6, (const uint8_t *)"x", 1, r.now), 0);
    CHECK_INT(mn_stack_next_deadline(r.s), 0);
    mn_stack_flush(r.s, r.now);
    CHECK_INT(r.pings, 1);
    rig_none(&r);
    rig_stop(&r);
}

static size_t udp(struct rig *r, uint8_t *pkt, uint16_t port)
{
    struct mn_ep from = {.ip = r->v6 ? r->peer6 : r->peer4, .port = 999},
                 to = {.ip = r->v6 ? r->own6 : r->own4, .port = port};
    return mn_udp_write(pkt, &from, &to, (const uint8_t *)"hello", 5);
}

static void test_port_unreachable(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        struct mn_icmp m;
        struct mn_icmp_quote q;
        uint8_t pkt[RIG_MTU];
        rig_start(&r);
        r.v6 = v6 != 0;
        rig_ip_in(&r, pkt, udp(&r, pkt, 33434));
        CHECK(rig_take(&r));
        CHECK_INT(mn_icmp_parse(&m, &r.seen_packet), 0);
        CHECK_INT(m.kind, MN_ICMP_PORT_UNREACHABLE);
        CHECK_INT(r.seen_packet.l4[0], v6 != 0 ? 1 : 3);
        CHECK_INT(r.seen_packet.l4[1], v6 != 0 ? 4 : 3);
        CHECK_INT(mn_icmp_parse_quote(&q, m.body, m.body_len), 0);
        CHECK(q.proto == MN_PROTO_UDP && q.sport == 999 && q.dport == 33434);
        rig_deny_all(&r); /* not allowed: not even that is told */
        rig_ip_in(&r, pkt, udp(&r, pkt, 33434));
        rig_none(&r);
        rig_stop(&r);
    }
}

static void test_error_rate_is_bounded(void)
{
    struct rig r;
    uint8_t pkt[RIG_MTU];
    int answers = 0;
    rig_start(&r);
    for (int i = 0; i < 500; i++) {
        rig_ip_in(&r, pkt, udp(&r, pkt, 33434));
        while (rig_take(&r))
            answers++;
    }
    CHECK_INT(answers, MN_PEER_ERRORS_PER_S);
    for (uint32_t peer = 0; peer < 64; peer++) { /* many peers together meet the global bound */
        for (int i = 0; i < 10; i++) {
            memcpy(r.sent, pkt, sizeof pkt);
            mn_stack_input(r.s, peer, r.sent, udp(&r, r.sent, 33434), r.now);
            mn_stack_flush(r.s, r.now);
            while (rig_take(&r))
                answers++;
        }
    }
    CHECK_INT(answers, MN_ERRORS_PER_S);
    rig_stop(&r);
}

static void test_unknown_protocols(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct rig r;
        struct mn_icmp m;
        uint8_t pkt[RIG_MTU] = {0};
        rig_start(&r);
        r.v6 = v6 != 0;
        struct mn_ip *src = r.v6 ? &r.peer6 : &r.peer4, *dst = r.v6 ? &r.own6 : &r.own4;
        size_t n = mn_packet_write_header(pkt, src, dst, 132, 20) + 20;
        rig_ip_in(&r, pkt, n); /* the usual rules do not name it */
        rig_none(&r);
        const struct rig_rule narrow[] = {{132, "4", "4", 0, 100}, {132, "6", "6", 0, 100}};
        rig_filter(&r, narrow, 2);
        rig_ip_in(&r, pkt, n);
        rig_none(&r);
        const struct rig_rule named[] = {{132, "4", "4", 0, 65535}, {132, "6", "6", 0, 65535}};
        rig_filter(&r, named, 2);
        rig_ip_in(&r, pkt, n);
        CHECK(rig_take(&r));
        CHECK_INT(mn_icmp_parse(&m, &r.seen_packet), 0);
        CHECK_INT(m.kind, MN_ICMP_PROTO_UNREACHABLE);
        rig_stop(&r);
    }
}

static void test_bad_addresses_are_dropped(void)
{
    static const uint8_t sources[][4] = {
        {127, 0, 0, 1}, {0, 0, 0, 0}, {224, 1, 1, 1}, {255, 255, 255, 255}, {100, 64, 0, 1}};
    struct rig r;
    uint8_t pkt[RIG_MTU];
    rig_start(&r);
    for (size_t i = 0; i < 5; i++) {
        struct mn_ip src = mn_ip_from4(sources[i]);
        rig_ip_in(&r, pkt, mn_icmp_write_echo(pkt, &src, &r.own4, false, 1, 1, NULL, 0));
    }
    CHECK_INT(mn_stack_stats(r.s)->drop_source, 5);
    static const uint8_t targets[][4] = {{100, 64, 0, 3}, {224, 0, 0, 1}, {169, 254, 0, 1}, {255, 255, 255, 255}};
    for (size_t i = 0; i < 4; i++) {
        struct mn_ip dst = mn_ip_from4(targets[i]);
        rig_ip_in(&r, pkt, mn_icmp_write_echo(pkt, &r.peer4, &dst, false, 1, 1, NULL, 0));
    }
    CHECK_INT(mn_stack_stats(r.s)->drop_not_local, 4);
    rig_none(&r);
    rig_stop(&r);
}

static void test_damaged_icmp(void)
{
    struct rig r;
    uint8_t pkt[RIG_MTU];
    rig_start(&r);
    for (int v6 = 0; v6 < 2; v6++) {
        r.v6 = v6 != 0;
        size_t n = echo(&r, pkt, false, 16);
        pkt[n - 1] ^= 1;
        rig_ip_in(&r, pkt, n);
    }
    CHECK_INT(mn_stack_stats(r.s)->drop_checksum, 2);
    rig_none(&r);
    rig_stop(&r);
}

static void test_tsmp_ping(void)
{
    struct rig r;
    uint8_t pkt[64];
    rig_start(&r);
    rig_deny_all(&r); /* it only says that the node is there, which the peer knows */
    size_t n = mn_packet_write_header(pkt, &r.peer4, &r.own4, MN_PROTO_TSMP, 9);
    memcpy(pkt + n, "p12345678", 9);
    rig_ip_in(&r, pkt, n + 9);
    CHECK(rig_take(&r));
    CHECK_INT(r.seen_packet.proto, MN_PROTO_TSMP);
    CHECK_INT(r.seen_packet.l4_len, 11);
    CHECK(memcmp(r.seen_packet.l4, "o12345678", 9) == 0);
    rig_stop(&r);
}

/* A peer says what its DISCO key is, whatever the rules; and we to it. */
static void test_tsmp_disco_key(void)
{
    struct rig r;
    uint8_t pkt[128], key[32];
    memset(key, 0x5a, sizeof key);
    for (int v6 = 0; v6 < 2; v6++) {
        rig_start(&r);
        rig_deny_all(&r);
        struct mn_ip *peer = v6 != 0 ? &r.peer6 : &r.peer4, *own = v6 != 0 ? &r.own6 : &r.own4;
        for (size_t size = 32; size <= 34; size++) { /* too short, right, with more behind it */
            size_t n = mn_packet_write_header(pkt, peer, own, MN_PROTO_TSMP, size);
            pkt[n] = 'a';
            memcpy(pkt + n + 1, key, 32);
            rig_ip_in(&r, pkt, n + size);
        }
        rig_none(&r);
        CHECK_INT(r.disco_keys, 2);
        CHECK(memcmp(r.disco_key, key, 32) == 0);
        CHECK_INT(mn_disco_key_send(r.s, peer, key, r.now), 0);
        CHECK(rig_take(&r));
        CHECK_INT(r.seen_packet.proto, MN_PROTO_TSMP);
        CHECK_INT(r.seen_packet.l4_len, 33);
        CHECK(r.seen_packet.l4[0] == 'a' && memcmp(r.seen_packet.l4 + 1, key, 32) == 0);
        rig_stop(&r);
    }
}

/* Cut the packet into two pieces of IPv4 and put them in, the second first if told. */
static void in_pieces(struct rig *r, const uint8_t *pkt, size_t n, size_t cut, bool is_reversed)
{
    for (int i = 0; i < 2; i++) {
        uint8_t piece[RIG_MTU];
        bool is_second = (i != 0) != is_reversed;
        size_t from = is_second ? cut : 0, len = is_second ? n - 20 - cut : cut;
        memcpy(piece, pkt, 20);
        memcpy(piece + 20, pkt + 20 + from, len);
        mn_store16(piece + 2, (uint32_t)(20 + len));
        mn_store16(piece + 6, (uint32_t)(from / 8) | (is_second ? 0 : 0x2000U));
        mn_store16(piece + 10, 0);
        mn_csum_store(piece + 10, mn_csum_add(0, piece, 20));
        rig_ip_in(r, piece, 20 + len);
    }
}

/* Pieces are put together and then judged as the datagram they are. */
static void test_fragments(void)
{
    struct rig r;
    static uint8_t data[2000];
    uint8_t pkt[2100];
    uint32_t id;
    rig_start(&r);
    CHECK_INT(mn_udp_open(r.s, NULL, 5353, &id), 0);
    struct mn_ep from = {.ip = r.peer4, .port = 4444}, to = {.ip = r.own4, .port = 5353};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    size_t n = mn_udp_write(pkt, &from, &to, data, sizeof data);
    for (int reversed = 0; reversed < 2; reversed++) {
        in_pieces(&r, pkt, n, 1000, reversed != 0);
        CHECK_INT(r.udps, reversed + 1);
        CHECK_INT(r.udp_len, sizeof data);
        CHECK(memcmp(r.udp_data, data, sizeof data) == 0);
    }
    rig_deny_all(&r); /* the rules still decide */
    uint64_t before = mn_stack_stats(r.s)->filter_drop;
    from.port = 4445;
    n = mn_udp_write(pkt, &from, &to, data, sizeof data);
    in_pieces(&r, pkt, n, 1000, false);
    CHECK_INT(r.udps, 2);
    CHECK_INT(mn_stack_stats(r.s)->filter_drop, before + 1);
    CHECK_INT(mn_stack_stats(r.s)->reassembled, 3);
    CHECK_INT(mn_stack_stats(r.s)->drop_fragment, 0);
    rig_none(&r);
    rig_stop(&r);
}

int main(void)
{
    RUN(test_echo_is_answered);
    RUN(test_echo_needs_a_rule);
    RUN(test_echo_rate_is_bounded);
    RUN(test_large_echoes_are_answered);
    RUN(test_answers_are_cut_by_our_mtu_alone);
    RUN(test_large_echoes_are_bounded);
    RUN(test_our_ping);
    RUN(test_ping_to_self);
    RUN(test_port_unreachable);
    RUN(test_error_rate_is_bounded);
    RUN(test_unknown_protocols);
    RUN(test_bad_addresses_are_dropped);
    RUN(test_damaged_icmp);
    RUN(test_tsmp_ping);
    RUN(test_tsmp_disco_key);
    RUN(test_fragments);
    return 0;
}
