/* The packet filter: blobs, meaning, a naive evaluator beside it, and its place in front of the stack (PF-01 … PF-08).
 */
#include "../filter/rules.h"
#include "rig.h"

/* ---- a naive evaluator over the same blob, straight from its description ---- */

static bool naive_prefix(const uint8_t *p, const struct mn_ip *a)
{
    unsigned bits = p[16];
    bool prefix_is4 = bits >= 96 && memcmp(p, mn_ip4_prefix, 12) == 0;
    if (prefix_is4 != mn_ip_is4(a))
        return false;
    for (unsigned i = 0; i < bits; i++)
        if ((p[i / 8] >> (7 - i % 8) & 1) != (a->b[i / 8] >> (7 - i % 8) & 1))
            return false;
    return true;
}

enum naive_question {
    PORT,
    HOST,
    PROTO,
};

static bool naive(const uint8_t *blob, enum naive_question q, uint8_t proto, const struct mn_ip *src,
                  const struct mn_ip *dst, uint16_t port)
{
    uint32_t rules, jailed;
    memcpy(&rules, blob + 4, 4);
    const uint8_t *p = blob + 8;
    bool allowed = false;
    for (uint32_t i = 0; i < rules; i++) {
        unsigned np = p[0], ns = p[1] | p[2] << 8, nd = p[3] | p[4] << 8;
        bool proto_ok = q == HOST && np > 0, src_ok = false, dst_ok = false;
        p += 5;
        for (unsigned k = 0; k < np; k++)
            proto_ok |= q != HOST && p[k] == proto;
        p += np;
        for (unsigned k = 0; k < ns; k++)
            src_ok |= naive_prefix(p + 17 * k, src);
        p += 17 * ns;
        for (unsigned k = 0; k < nd; k++) {
            const uint8_t *d = p + 21 * k;
            unsigned first = d[17] | d[18] << 8, last = d[19] | d[20] << 8;
            bool ports = q == HOST || (q == PORT && port >= first && port <= last) ||
                         (q == PROTO && first == 0 && last == 65535);
            dst_ok |= ports && naive_prefix(d, dst);
        }
        p += 21 * nd;
        allowed |= proto_ok && src_ok && dst_ok;
    }
    memcpy(&jailed, p, 4);
    for (uint32_t i = 0; i < jailed; i++)
        if (naive_prefix(p + 4 + 17 * i, src))
            return false;
    return allowed;
}

/* ---- random blobs over a small world, so that things match ---- */

static struct mn_ip random_ip(uint64_t *rng)
{
    struct mn_ip ip;
    uint64_t v = test_random(rng);
    memset(&ip, 0, sizeof ip);
    if (v % 2 == 0) {
        memcpy(ip.b, mn_ip4_prefix, 12);
        ip.b[12] = 100;
        ip.b[13] = (uint8_t)(v >> 8 & 1);
        ip.b[15] = (uint8_t)(v >> 16 & 7);
    } else {
        ip.b[0] = (v >> 8 & 3) == 0 ? 0 : 0xfd;
        ip.b[1] = (uint8_t)(v >> 10 & 1);
        ip.b[10] = ip.b[11] = (v >> 12 & 7) == 0 ? 0xff : 0;
        if (mn_ip_is4(&ip))
            ip.b[9] = 1;
        ip.b[15] = (uint8_t)(v >> 16 & 7);
    }
    return ip;
}

static size_t put_prefix(uint8_t *p, uint64_t *rng)
{
    struct mn_ip ip = random_ip(rng);
    uint64_t v = test_random(rng);
    memcpy(p, ip.b, 16);
    if (v % 8 == 0)
        p[16] = (uint8_t)(v >> 8 & 127);
    else if (mn_ip_is4(&ip))
        p[16] = (uint8_t)(96 + (v >> 8) % 33);
    else
        p[16] = (uint8_t)(v >> 8) % 129;
    return 17;
}

static size_t random_blob(uint8_t *b, uint64_t *rng)
{
    static const uint8_t protos[] = {6, 17, 1, 58, 132};
    static const uint16_t ports[] = {0, 22, 80, 443, 65535};
    uint32_t rules = (uint32_t)(test_random(rng) % 6), jailed = test_random(rng) % 4 == 0 ? 2 : 0;
    size_t n = 8;
    memcpy(b, "MNF1", 4);
    memcpy(b + 4, &rules, 4);
    for (uint32_t i = 0; i < rules; i++) {
        uint8_t np = (uint8_t)(test_random(rng) % 4), ns = (uint8_t)(test_random(rng) % 12),
                nd = (uint8_t)(test_random(rng) % 4);
        const uint8_t head[] = {np, ns, 0, nd, 0};
        memcpy(b + n, head, 5);
        n += 5;
        for (uint8_t k = 0; k < np; k++)
            b[n++] = protos[test_random(rng) % 5];
        for (uint8_t k = 0; k < ns; k++)
            n += put_prefix(b + n, rng);
        for (uint8_t k = 0; k < nd; k++) {
            n += put_prefix(b + n, rng);
            uint16_t x = ports[test_random(rng) % 5], y = ports[test_random(rng) % 5];
            uint16_t range[2] = {x < y ? x : y, x < y ? y : x};
            memcpy(b + n, range, 4);
            n += 4;
        }
    }
    memcpy(b + n, &jailed, 4);
    n += 4;
    for (uint32_t i = 0; i < jailed; i++)
        n += put_prefix(b + n, rng);
    return n;
}

static void test_differential(void)
{
    static uint8_t blob[65536];
    static const uint8_t protos[] = {6, 17, 1, 58, 132, 99};
    static const uint16_t ports[] = {0, 1, 22, 80, 443, 444, 65535};
    uint64_t rng = 11;
    int allowed = 0, total = 0;
    for (int i = 0; i < 4000 / MN_TEST_SLOW; i++) {
        size_t n = random_blob(blob, &rng);
        struct mn_rules *r = mn_rules_load(blob, n);
        CHECK(r != NULL);
        for (int k = 0; k < 200; k++) {
            struct mn_ip src = random_ip(&rng), dst = random_ip(&rng);
            uint8_t proto = protos[test_random(&rng) % 6];
            uint16_t port = ports[test_random(&rng) % 7];
            bool a = mn_rules_allow_port(r, proto, &src, &dst, port);
            CHECK_INT(a, naive(blob, PORT, proto, &src, &dst, port));
            CHECK_INT(mn_rules_allow_host(r, &src, &dst), naive(blob, HOST, 0, &src, &dst, 0));
            CHECK_INT(mn_rules_allow_proto(r, proto, &src, &dst), naive(blob, PROTO, proto, &src, &dst, 0));
            allowed += a;
            total++;
        }
        mn_rules_free(r);
    }
    CHECK(allowed > total / 100); /* or it would prove nothing */
}

static void test_every_truncation_and_surplus_is_refused(void)
{
    static uint8_t blob[65537];
    uint64_t rng = 12;
    for (int i = 0; i < 50; i++) {
        size_t n = random_blob(blob, &rng);
        for (size_t k = 0; k < n; k++) {
            uint8_t *exact = malloc(k > 0 ? k : 1);
            CHECK(exact != NULL);
            memcpy(exact, blob, k);
            CHECK(mn_rules_load(exact, k) == NULL);
            free(exact);
        }
        blob[n] = 0;
        CHECK(mn_rules_load(blob, n + 1) == NULL);
    }
}

static void test_malformed_blobs(void)
{
    uint8_t blob[256];
    const struct rig_rule one[] = {{6, "4", "4", 80, 80}};
    size_t n = rig_blob(blob, one, 1, NULL);
    struct mn_rules *r = mn_rules_load(blob, n);
    CHECK(r != NULL);
    mn_rules_free(r);
    blob[0] ^= 1;
    CHECK(mn_rules_load(blob, n) == NULL);
    blob[0] ^= 1;
    blob[14 + 16] = 129; /* source bits */
    CHECK(mn_rules_load(blob, n) == NULL);
    blob[14 + 16] = 96;
    blob[14 + 17 + 16] = 200; /* destination bits */
    CHECK(mn_rules_load(blob, n) == NULL);
    blob[14 + 17 + 16] = 96;
    blob[14 + 17 + 17] = 81; /* first port behind the last */
    CHECK(mn_rules_load(blob, n) == NULL);
    const uint8_t many[] = {'M', 'N', 'F', '1', 0xff, 0xff, 0xff, 0xff};
    CHECK(mn_rules_load(many, sizeof many) == NULL);
    const uint8_t jailed[] = {'M', 'N', 'F', '1', 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff};
    CHECK(mn_rules_load(jailed, sizeof jailed) == NULL);
}

/* PF-01: the meaning of families, default protocols, hosts and whole protocols. */
static void test_meaning(void)
{
    uint8_t blob[512];
    struct mn_ip a4 = mn_ip_from4((const uint8_t[4]){100, 64, 0, 2}),
                 b4 = mn_ip_from4((const uint8_t[4]){100, 64, 0, 1});
    struct mn_ip a6 = mn_ip_from6((const uint8_t[16]){0xfd, [15] = 2}),
                 b6 = mn_ip_from6((const uint8_t[16]){0xfd, [15] = 1});
    const struct rig_rule six[] = {{0, "6", "6", 0, 65535}};
    struct mn_rules *r = mn_rules_load(blob, rig_blob(blob, six, 1, NULL));
    CHECK(r != NULL);
    CHECK(mn_rules_allow_port(r, 6, &a6, &b6, 80));
    CHECK(!mn_rules_allow_port(r, 6, &a4, &b4, 80)); /* ::/0 does not mean IPv4 */
    CHECK(!mn_rules_allow_host(r, &a4, &b4));
    CHECK(!mn_rules_allow_port(r, 132, &a6, &b6, 80));
    mn_rules_free(r);
    const uint8_t no_protos[] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    r = mn_rules_load(no_protos, sizeof no_protos);
    CHECK(r != NULL);
    CHECK(!mn_rules_allow_port(r, 6, &a4, &b4, 80) && !mn_rules_allow_host(r, &a4, &b4));
    mn_rules_free(r);
    CHECK(!mn_rules_allow_port(NULL, 6, &a4, &b4, 80));
    const struct rig_rule four[] = {{6, "4", "4", 80, 90}};
    r = mn_rules_load(blob, rig_blob(blob, four, 1, "00000000000000000000ffff64400002"));
    CHECK(r != NULL);
    CHECK(!mn_rules_allow_port(r, 6, &a4, &b4, 80)); /* jailed */
    CHECK(mn_rules_allow_port(r, 6, &b4, &b4, 80));
    CHECK(!mn_rules_allow_port(r, 6, &b4, &b4, 79) && !mn_rules_allow_port(r, 6, &b4, &b4, 91));
    mn_rules_free(r);
}

/* ---- in front of the stack ---- */

static void syn_in(struct rig *r, uint16_t from, uint16_t to)
{
    struct rig_flow f = {.them = 1000, .port = to, .peer_port = from};
    rig_in(r, rig_segment(&f, MN_TCP_SYN, NULL, 0));
}

static void test_nothing_enters_before_the_first_filter(void)
{
    struct rig r;
    rig_start(&r);
    mn_rules_free(r.s->rules);
    r.s->rules = NULL; /* as it is born */
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
    syn_in(&r, 1, RIG_PORT);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    CHECK_INT(mn_stack_stats(r.s)->filter_drop, 1);
    while (rig_take(&r))
        CHECK_INT(r.seen_packet.proto, MN_PROTO_TSMP);
    rig_stop(&r);
}

/* PF-06: no RST for what is not allowed; peers that understand it learn the reason. */
static void test_filtered_syn(void)
{
    struct rig r;
    rig_start(&r);
    const struct rig_rule only80[] = {{6, "4", "4", 80, 80}, {6, "6", "6", 80, 80}};
    rig_filter(&r, only80, 2);
    CHECK_INT(mn_tcp_listen(r.s, NULL, 22, 0, &r.listener), 0);
    syn_in(&r, 4000, 22);
    CHECK(rig_take(&r));
    const uint8_t reject[] = {'!', MN_PROTO_TCP, 'A', 4000 >> 8, 4000 & 255, 0, 22};
    CHECK_INT(r.seen_packet.proto, MN_PROTO_TSMP);
    CHECK_INT(r.seen_packet.l4_len, sizeof reject);
    CHECK(memcmp(r.seen_packet.l4, reject, sizeof reject) == 0);
    r.v6 = true;
    syn_in(&r, 4000, 22); /* IPv6: silence */
    rig_none(&r);
    r.v6 = false;
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    syn_in(&r, 4000, 80); /* allowed and closed: refused at once */
    CHECK(rig_take(&r));
    CHECK((r.seen.flags & MN_TCP_RST) != 0);
    CHECK_INT(mn_stack_stats(r.s)->filter_drop, 2);
    CHECK_INT(mn_stack_stats(r.s)->filter_accept, 1);
    rig_stop(&r);
}

static void test_strays_learn_nothing_of_closed_doors(void)
{
    struct rig r;
    struct rig_flow f = {.them = 1, .us = 2, .port = 22, .peer_port = 9};
    rig_start(&r);
    const struct rig_rule only80[] = {{6, "4", "4", 80, 80}};
    rig_filter(&r, only80, 1);
    rig_in(&r, rig_segment(&f, MN_TCP_ACK, NULL, 0)); /* an ACK scan */
    rig_none(&r);
    rig_in(&r, rig_segment(&f, MN_TCP_SYN | MN_TCP_ACK, NULL, 0));
    rig_none(&r);
    f.port = 80;
    rig_in(&r, rig_segment(&f, MN_TCP_ACK, NULL, 0));
    RIG_EXPECT(&r, MN_TCP_RST, 2, 0, 0);
    rig_stop(&r);
}

/* PF-02 */
static void test_replies_to_our_connections(void)
{
    struct rig r;
    rig_start(&r);
    rig_deny_all(&r);
    struct rig_flow f = rig_connected_flow(&r, true);
    rig_in(&r, rig_segment(&f, MN_TCP_ACK, "data", 4));
    CHECK_INT(r.got, 4);
    rig_advance(&r, 10 * MN_MS);
    while (rig_take(&r))
        ;
    rig_stop(&r);
}

/* PF-04 */
static void test_rule_change_cuts_what_peers_opened(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    uint32_t theirs = r.conn;
    syn_in(&r, 77, RIG_PORT); /* and one half-open */
    rig_take(&r);
    const struct rig_rule other[] = {{6, "4", "4", RIG_PORT, RIG_PORT}};
    rig_filter(&r, other, 1); /* still allowed: stays */
    mn_stack_on_deadline(r.s, r.now);
    CHECK_INT(r.closed, 0);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 1);
    rig_deny_all(&r);
    CHECK_INT(mn_stack_next_deadline(r.s), 0); /* without waiting for a packet */
    mn_stack_on_deadline(r.s, r.now);
    CHECK_INT(r.closed, 1);
    CHECK_INT(r.err, ECONNABORTED);
    RIG_EXPECT(&r, MN_TCP_RST | MN_TCP_ACK, f.us, f.them, 0);
    CHECK_INT(mn_stack_stats(r.s)->filter_cut, 1);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    CHECK_INT(mn_tcp_addrs(r.s, theirs, NULL, NULL, NULL), -EBADF);
    rig_stop(&r);
}

static void test_rule_change_keeps_what_we_opened(void)
{
    struct rig r;
    rig_start(&r);
    rig_connected_flow(&r, false);
    rig_deny_all(&r);
    mn_stack_on_deadline(r.s, r.now);
    CHECK_INT(r.closed, 0);
    CHECK_INT(rig_state(&r), MN_ESTABLISHED);
    rig_none(&r);
    rig_stop(&r);
}

static void test_cut_happens_before_the_next_packet(void)
{
    struct rig r;
    rig_start(&r);
    struct rig_flow f = rig_accept(&r, (struct rig_open){.mss = 1240});
    rig_deny_all(&r);
    rig_in(&r, rig_segment(&f, MN_TCP_ACK, "evil", 4));
    CHECK_INT(r.got, 0);
    CHECK_INT(r.closed, 1);
    while (rig_take(&r))
        ;
    rig_stop(&r);
}

static void test_bad_blob_changes_nothing(void)
{
    struct rig r;
    rig_start(&r);
    CHECK_INT(mn_stack_set_filter(r.s, (const uint8_t *)"MNF1", 4), -EINVAL);
    rig_accept(&r, (struct rig_open){.mss = 1240}); /* the old rules still hold */
    rig_stop(&r);
}

/* PF-08: a jailed source starts nothing and answers all. */
static void test_jailed(void)
{
    struct rig r;
    uint8_t blob[512];
    uint32_t udp;
    rig_start(&r);
    const struct rig_rule all[] = {{0, "4", "4", 0, 65535}};
    CHECK_INT(mn_stack_set_filter(r.s, blob, rig_blob(blob, all, 1, "00000000000000000000ffff64400002")), 0);
    CHECK_INT(mn_tcp_listen(r.s, NULL, RIG_PORT, 0, &r.listener), 0);
    syn_in(&r, 1, RIG_PORT);
    CHECK_INT(mn_stack_stats(r.s)->tcp_half_open, 0);
    while (rig_take(&r))
        CHECK_INT(r.seen_packet.proto, MN_PROTO_TSMP);
    rig_connected_flow(&r, false);
    CHECK_INT(mn_udp_open(r.s, NULL, 5353, &udp), 0);
    struct mn_ep to = {.ip = r.peer4, .port = 53}, from = {.ip = r.own4, .port = 5353};
    CHECK_INT(mn_udp_send(r.s, udp, NULL, &to, (const uint8_t *)"q", 1, r.now), 0);
    rig_take(&r);
    rig_ip_in(&r, blob, mn_udp_write(blob, &to, &from, (const uint8_t *)"a", 1));
    CHECK_INT(r.udps, 1);
    rig_stop(&r);
}

int main(void)
{
    RUN(test_differential);
    RUN(test_every_truncation_and_surplus_is_refused);
    RUN(test_malformed_blobs);
    RUN(test_meaning);
    RUN(test_nothing_enters_before_the_first_filter);
    RUN(test_filtered_syn);
    RUN(test_strays_learn_nothing_of_closed_doors);
    RUN(test_replies_to_our_connections);
    RUN(test_rule_change_cuts_what_peers_opened);
    RUN(test_rule_change_keeps_what_we_opened);
    RUN(test_cut_happens_before_the_next_packet);
    RUN(test_bad_blob_changes_nothing);
    RUN(test_jailed);
    return 0;
}
