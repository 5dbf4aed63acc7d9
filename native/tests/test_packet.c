/* The checked view of IP packets and the checksums (IP-02, IP-07). */
#include "../ip/packet.h"
#include "check.h"

static uint32_t slow_sum(const uint8_t *p, size_t n)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += i % 2 == 0 ? (uint32_t)p[i] << 8 : p[i];
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static uint32_t as_number(uint64_t sum)
{
    uint16_t v = mn_csum_fold(sum);
    uint8_t b[2];
    memcpy(b, &v, 2);
    return mn_load16(b);
}

static void test_checksum_differential(void)
{
    static uint8_t buf[4200], out[4200];
    uint64_t rng = 3;
    test_random_bytes(&rng, buf, sizeof buf);
    for (size_t n = 0; n <= 4096; n++) {
        size_t at = n % 33, to = n % 29;
        CHECK_INT(as_number(mn_csum_add(0, buf + at, n)), slow_sum(buf + at, n));
        memset(out, 0xaa, sizeof out);
        CHECK_INT(as_number(mn_csum_copy(0, out + to, buf + at, n)), slow_sum(buf + at, n));
        CHECK(memcmp(out + to, buf + at, n) == 0);
        CHECK(out[to + n] == 0xaa && (to == 0 || out[to - 1] == 0xaa));
        size_t cut = n / 3;
        uint64_t first = mn_csum_add(0, buf + at, cut), second = mn_csum_add(0, buf + at + cut, n - cut);
        CHECK_INT(as_number(first + (cut % 2 == 0 ? second : mn_csum_shift(second))), slow_sum(buf + at, n));
    }
    memset(buf, 0xff, sizeof buf); /* the largest sums fold right */
    for (size_t n = 0; n <= 4096; n += 7)
        CHECK_INT(as_number(mn_csum_add(0, buf, n)), slow_sum(buf, n));
    memset(buf, 0, sizeof buf);
    CHECK_INT(as_number(mn_csum_add(0, buf, 4096)), 0);
}

static size_t good4(uint8_t *p, size_t options, size_t payload)
{
    size_t header = 20 + options;
    memset(p, 0, header + payload);
    p[0] = (uint8_t)(0x40 | header / 4);
    mn_store16(p + 2, (uint32_t)(header + payload));
    p[8] = 64;
    p[9] = 17;
    const uint8_t src[] = {100, 64, 0, 1}, dst[] = {100, 64, 0, 2};
    memcpy(p + 12, src, 4);
    memcpy(p + 16, dst, 4);
    memset(p + 20, 1, options); /* no-ops */
    return header + payload;
}

static void close4(uint8_t *p)
{
    mn_store16(p + 10, 0);
    mn_csum_store(p + 10, mn_csum_add(0, p, (size_t)(p[0] & 15) * 4));
}

static int parse(const uint8_t *p, size_t n, struct mn_packet *v)
{
    /* An exact copy, so that a sanitizer sees a read past the end. */
    uint8_t *exact = malloc(n > 0 ? n : 1);
    CHECK(exact != NULL);
    memcpy(exact, p, n);
    int err = mn_packet_parse(v, exact, n);
    v->l4 = err == 0 ? p + (v->l4 - exact) : NULL;
    free(exact);
    return err;
}

static void test_ipv4(void)
{
    uint8_t p[128];
    struct mn_packet v;
    size_t n = good4(p, 0, 30);
    close4(p);
    CHECK_INT(parse(p, n, &v), 0);
    CHECK(v.version == 4 && v.proto == 17 && v.l4 == p + 20 && v.l4_len == 30 && !v.is_fragment && v.ip_len == 50);
    CHECK(mn_ip_is4(&v.src) && v.src.b[15] == 1 && v.dst.b[15] == 2);
    CHECK_INT(parse(p, n + 40, &v), 0); /* WireGuard's padding */
    CHECK_INT(v.l4_len, 30);
    for (size_t k = 0; k < n; k++)
        CHECK_INT(parse(p, k, &v), MN_PACKET_MALFORMED);
    p[15] ^= 1;
    CHECK_INT(parse(p, n, &v), MN_PACKET_CHECKSUM);
    n = good4(p, 0, 30);
    p[0] = 0x44; /* header of 16 */
    close4(p);
    CHECK_INT(parse(p, n, &v), MN_PACKET_MALFORMED);
    n = good4(p, 0, 0);
    mn_store16(p + 2, 19);
    close4(p);
    CHECK_INT(parse(p, n, &v), MN_PACKET_MALFORMED);
    n = good4(p, 0, 30);
    p[8] = 0;
    close4(p);
    CHECK_INT(parse(p, n, &v), MN_PACKET_MALFORMED);
    p[0] = 0x55;
    CHECK_INT(parse(p, n, &v), MN_PACKET_MALFORMED);
    n = good4(p, 0, 30);
    mn_store16(p + 6, 0x4000); /* don't fragment */
    close4(p);
    CHECK_INT(parse(p, n, &v), 0);
    CHECK(!v.is_fragment);
    mn_store16(p + 6, 0x2000);
    close4(p);
    CHECK_INT(parse(p, n, &v), 0);
    CHECK(v.is_fragment && v.fragment_more && v.fragment_at == 0);
    mn_store16(p + 6, 3);
    close4(p);
    CHECK_INT(parse(p, n, &v), 0);
    CHECK(v.is_fragment && !v.fragment_more && v.fragment_at == 24);
}

static void test_ipv4_options(void)
{
    static const struct {
        const char *options;
        int result;
    } cases[] = {
        {"01010101", 0},
        {"94040000", 0},
        {"00ffffff", 0},
        {"83030400", MN_PACKET_SOURCE_ROUTE},
        {"89030400", MN_PACKET_SOURCE_ROUTE},
        {"01010144", MN_PACKET_MALFORMED},
        {"44000000", MN_PACKET_MALFORMED},
        {"44010101", MN_PACKET_MALFORMED},
        {"44050101", MN_PACKET_MALFORMED},
        {"44040101", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t p[128];
        struct mn_packet v;
        size_t n = good4(p, 4, 10);
        test_hex(cases[i].options, p + 20, 4);
        close4(p);
        CHECK_INT(parse(p, n, &v), cases[i].result);
        if (cases[i].result == 0)
            CHECK(v.l4 == p + 24 && v.l4_len == 10);
    }
}

static size_t good6(uint8_t *p, const char *extensions, uint8_t first, size_t payload)
{
    memset(p, 0, 600);
    size_t n = test_hex(extensions, p + 40, 500);
    p[0] = 0x60;
    mn_store16(p + 4, (uint32_t)(n + payload));
    p[6] = first;
    p[7] = 64;
    p[8] = p[24] = 0xfd;
    p[23] = 1;
    p[39] = 2;
    return 40 + n + payload;
}

static void test_ipv6(void)
{
    static const struct {
        const char *extensions;
        uint8_t first;
        int result;
        uint8_t proto;
        size_t at;
        bool is_fragment;
    } cases[] = {
        {"", 6, 0, 6, 40, false},
        {"", 200, 0, 200, 40, false},
        {"0600000000000000", 0, 0, 6, 48, false},                                    /* hop-by-hop */
        {"3c00000000000000 0600000000000000", 0, 0, 6, 56, false},                   /* and destination options */
        {"0000000000000000 0600000000000000", 60, MN_PACKET_MALFORMED, 0, 0, false}, /* hop-by-hop not first */
        {"0600000000000000", 43, MN_PACKET_SOURCE_ROUTE, 0, 0, false},               /* routing type 0 */
        {"0600020000000000", 43, 0, 6, 48, false},                                   /* type 2 */
        {"0600000000000000", 44, 0, 6, 48, false},                                   /* atomic fragment */
        {"0600000100000007", 44, 0, 6, 48, true},                                    /* first of several */
        {"0000001000000007", 44, 0, 0, 48, true}, /* a later one is not walked into */
        {"2c00000100000007 0600000100000007", 44, MN_PACKET_MALFORMED, 0, 0, false}, /* fragment in fragment */
        {"06ff000000000000", 60, MN_PACKET_MALFORMED, 0, 0, false},                  /* longer than the packet */
        {"3c00000000000000 3c00000000000000 3c00000000000000 3c00000000000000 3c00000000000000 3c00000000000000 "
         "3c00000000000000 0600000000000000",
         60, 0, 6, 104, false}, /* eight */
        {"3c00000000000000 3c00000000000000 3c00000000000000 3c00000000000000 3c00000000000000 3c00000000000000 "
         "3c00000000000000 3c00000000000000 0600000000000000",
         60, MN_PACKET_MALFORMED, 0, 0, false}, /* nine */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t p[600];
        struct mn_packet v;
        size_t n = good6(p, cases[i].extensions, cases[i].first, 24);
        CHECK_INT(parse(p, n, &v), cases[i].result);
        if (cases[i].result != 0)
            continue;
        CHECK_INT(v.proto, cases[i].proto);
        CHECK_INT(v.l4 - p, cases[i].at);
        CHECK_INT(v.l4_len, n - cases[i].at);
        CHECK_INT(v.is_fragment, cases[i].is_fragment);
        for (size_t k = 0; k < n; k++)
            CHECK_INT(parse(p, k, &v), MN_PACKET_MALFORMED);
        CHECK_INT(parse(p, n + 16, &v), 0);
        CHECK_INT(v.ip_len, n);
    }
    uint8_t p[600];
    struct mn_packet v;
    size_t n = good6(p, "", 6, 24);
    memcpy(p + 8, mn_ip4_prefix, 12); /* an IPv4-mapped source on the wire would pass for IPv4 */
    CHECK_INT(parse(p, n, &v), MN_PACKET_MALFORMED);
    n = good6(p, "", 6, 24);
    mn_store16(p + 4, 65535);
    CHECK_INT(parse(p, n, &v), MN_PACKET_MALFORMED);
}

static struct mn_ip ip4(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
    return mn_ip_from4((const uint8_t[4]){a, b, c, d});
}

static struct mn_ip ip6(const char *hex)
{
    struct mn_ip ip;
    CHECK_INT(test_hex(hex, ip.b, 16), 16);
    return ip;
}

static void test_addresses(void)
{
    const struct mn_ip bad_sources[] = {ip4(0, 0, 0, 0),
                                        ip4(127, 0, 0, 1),
                                        ip4(224, 0, 0, 1),
                                        ip4(255, 255, 255, 255),
                                        ip6("00000000000000000000000000000000"),
                                        ip6("00000000000000000000000000000001"),
                                        ip6("ff020000000000000000000000000001")};
    for (size_t i = 0; i < sizeof bad_sources / sizeof bad_sources[0]; i++)
        CHECK(!mn_packet_source_is_sane(&bad_sources[i]));
    const struct mn_ip good[] = {ip4(100, 64, 0, 1), ip4(1, 1, 1, 1), ip4(223, 255, 255, 255),
                                 ip6("fd7a115ca1e000000000000000000001"), ip6("00000000000000000000000000000002")};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        CHECK(mn_packet_source_is_sane(&good[i]));
        CHECK(!mn_packet_destination_is_special(&good[i]));
    }
    const struct mn_ip special[] = {ip4(224, 0, 0, 251),
                                    ip4(255, 255, 255, 255),
                                    ip4(169, 254, 1, 1),
                                    ip6("ff020000000000000000000000000001"),
                                    ip6("fe800000000000000000000000000001"),
                                    ip6("febf0000000000000000000000000001")};
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
        CHECK(mn_packet_destination_is_special(&special[i]));
}

static void test_prefixes(void)
{
    struct mn_ip a = ip4(100, 64, 3, 4), b = ip4(100, 64, 3, 5), six = ip6("fd7a115ca1e000000000000000000001");
    CHECK(mn_ip_in_prefix(&a, &b, 127));
    CHECK(!mn_ip_in_prefix(&a, &b, 128));
    CHECK(mn_ip_in_prefix(&a, &a, 128));
    CHECK(mn_ip_in_prefix(&six, &a, 0));
    CHECK(!mn_ip_in_prefix(&six, &a, 8));
}

static void test_written_headers_parse(void)
{
    uint8_t p[128] = {0};
    struct mn_packet v;
    const struct mn_ip pairs[][2] = {
        {ip4(100, 64, 0, 1), ip4(100, 64, 0, 2)},
        {ip6("fd7a115ca1e000000000000000000001"), ip6("fd7a115ca1e000000000000000000002")},
    };
    for (int i = 0; i < 2; i++) {
        size_t header = mn_packet_write_header(p, &pairs[i][0], &pairs[i][1], 6, 40);
        CHECK_INT(header, mn_packet_header_len(&pairs[i][1]));
        CHECK_INT(parse(p, header + 40, &v), 0);
        CHECK(mn_ip_equal(&v.src, &pairs[i][0]) && mn_ip_equal(&v.dst, &pairs[i][1]));
        CHECK(v.proto == 6 && v.ttl == 64 && v.l4_len == 40);
    }
}

/* Setting the two bits changes nothing else, and keeps the header's sum right (RFC 1624). */
static void test_ecn(void)
{
    struct mn_ip a4 = mn_ip_from4((const uint8_t[4]){100, 64, 0, 1}),
                 b4 = mn_ip_from4((const uint8_t[4]){100, 64, 0, 2});
    struct mn_ip a6 = mn_ip_from6((const uint8_t[16]){0xfd, [15] = 1}),
                 b6 = mn_ip_from6((const uint8_t[16]){0xfd, [15] = 2});
    for (unsigned n = 0; n < 2048; n++) {
        uint8_t p[MN_IP6_HEADER + 2048] = {0}, q[MN_IP6_HEADER];
        struct mn_packet v;
        unsigned tos = n % 256, ecn = n / 256 % 4;
        bool v6 = n >= 1024;
        size_t header = mn_packet_write_header(p, v6 ? &a6 : &a4, v6 ? &b6 : &b4, MN_PROTO_UDP, n);
        if (v6) {
            p[0] = (uint8_t)(0x60 | tos >> 4);
            p[1] = (uint8_t)(tos << 4 | 0x0a);
        } else {
            p[1] = (uint8_t)tos;
            close4(p);
        }
        memcpy(q, p, header);
        CHECK_INT(mn_packet_ecn(p), tos & 3);
        mn_packet_set_ecn(p, (uint8_t)ecn);
        CHECK_INT(mn_packet_ecn(p), ecn);
        CHECK_INT(mn_packet_parse(&v, p, header + n), 0); /* an IPv4 checksum that is wrong is refused */
        CHECK_INT(v.tos, (tos & 0xfc) | ecn);
        mn_packet_set_ecn(p, (uint8_t)(tos & 3)); /* and back: every byte as before */
        CHECK(memcmp(p, q, header) == 0);
    }
}

int main(void)
{
    RUN(test_checksum_differential);
    RUN(test_ipv4);
    RUN(test_ipv4_options);
    RUN(test_ipv6);
    RUN(test_addresses);
    RUN(test_prefixes);
    RUN(test_written_headers_parse);
    RUN(test_ecn);
    return 0;
}
