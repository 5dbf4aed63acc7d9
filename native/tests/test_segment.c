/* TCP segments as values: options in and out. */
#include "../tcp/segment.h"
#include "check.h"

static const struct mn_ep *ep(int i, bool v6)
{
    static struct mn_ep e[2][2];
    e[0][i] = (struct mn_ep){.ip = mn_ip_from4((const uint8_t[4]){100, 64, 0, (uint8_t)(1 + i)}),
                             .port = (uint16_t)(1000 + i)};
    e[1][i] = (struct mn_ep){.ip = mn_ip_from6((const uint8_t[16]){0xfd, 0x7a, [15] = (uint8_t)(1 + i)}),
                             .port = (uint16_t)(1000 + i)};
    return &e[v6][i];
}

static struct mn_segment there_and_back(const struct mn_segment *g, bool v6)
{
    uint8_t pkt[128];
    struct mn_packet p;
    struct mn_segment got;
    size_t n = mn_segment_write(pkt, ep(0, v6), ep(1, v6), g);
    CHECK(n <= sizeof pkt);
    CHECK_INT(mn_packet_parse(&p, pkt, n), 0);
    CHECK_INT(mn_segment_parse(&got, &p), 0);
    return got;
}

/* Every combination of options that a segment of ours can have comes back as it was. */
static void test_round_trip(void)
{
    for (unsigned mask = 0; mask < 64; mask++) {
        bool syn = (mask & 1) != 0;
        struct mn_segment g = {.seq = 0xfffffff0U, .ack = 7, .wnd = 65535, .wscale = -1, .flags = MN_TCP_ACK};
        if (syn) {
            g.flags |= MN_TCP_SYN | MN_TCP_ECE | MN_TCP_CWR;
            g.mss = 1240;
            g.may_sack = (mask & 2) != 0;
            g.wscale = (mask & 4) != 0 ? 14 : -1;
        } else {
            g.sack_count = (uint8_t)((mask >> 1 & 3) + ((mask & 8) == 0 && (mask & 16) != 0 ? 1 : 0));
            for (uint8_t i = 0; i < g.sack_count; i++)
                g.sack[i] = (struct mn_block){100U + i * 1000U, 0xfffffff0U + i};
        }
        g.has_ts = (mask & 8) != 0;
        g.tsval = g.has_ts ? 0xdeadbeefU : 0;
        g.tsecr = g.has_ts ? 5 : 0;
        g.ecn = (uint8_t)(mask >> 4);
        struct mn_segment got = there_and_back(&g, (mask & 32) != 0);
        CHECK_INT(got.seq, g.seq);
        CHECK_INT(got.ack, g.ack);
        CHECK_INT(got.flags, g.flags);
        CHECK_INT(got.wnd, g.wnd);
        CHECK_INT(got.mss, g.mss);
        CHECK_INT(got.wscale, g.wscale);
        CHECK_INT(got.may_sack, g.may_sack);
        CHECK_INT(got.has_ts, g.has_ts);
        CHECK_INT(got.tsval, g.tsval);
        CHECK_INT(got.tsecr, g.tsecr);
        CHECK_INT(got.ecn, g.ecn);
        CHECK_INT(got.sack_count, g.sack_count);
        CHECK(memcmp(got.sack, g.sack, g.sack_count * sizeof *g.sack) == 0);
        CHECK_INT(got.len, 0);
    }
}

/* A segment whose options are given byte by byte. */
static struct mn_segment with_options(uint8_t flags, const char *hex)
{
    uint8_t pkt[128] = {0}, options[40] = {0};
    size_t n = test_hex(hex, options, sizeof options), size = MN_TCP_HEADER + (n + 3) / 4 * 4;
    const struct mn_ep *from = ep(0, false), *to = ep(1, false);
    size_t ip = mn_packet_write_header(pkt, &from->ip, &to->ip, MN_PROTO_TCP, size);
    uint8_t *d = pkt + ip;
    d[12] = (uint8_t)(size / 4 << 4);
    d[13] = flags;
    memcpy(d + MN_TCP_HEADER, options, n);
    mn_csum_store(d + 16, mn_csum_add(mn_csum_pseudo(&from->ip, &to->ip, MN_PROTO_TCP, size), d, size));
    struct mn_packet p;
    struct mn_segment got;
    CHECK_INT(mn_packet_parse(&p, pkt, ip + size), 0);
    CHECK_INT(mn_segment_parse(&got, &p), 0);
    return got;
}

static void test_selective_acknowledgements(void)
{
    struct mn_segment g = with_options(MN_TCP_ACK, "0101 050a 00000001 00000002");
    CHECK_INT(g.sack_count, 1);
    CHECK_INT(g.sack[0].first, 1);
    CHECK_INT(g.sack[0].end, 2);
    /* Four blocks, the last read from the very end of the option. */
    g = with_options(MN_TCP_ACK, "0522 00000001 00000002 00000003 00000004 00000005 00000006 fffffffe ffffffff");
    CHECK_INT(g.sack_count, 4);
    CHECK_INT(g.sack[3].first, 0xfffffffeU);
    CHECK_INT(g.sack[3].end, 0xffffffffU);
    CHECK_INT(with_options(MN_TCP_ACK, "0502").sack_count, 0);                            /* empty */
    CHECK_INT(with_options(MN_TCP_ACK, "0509 00000001 000000").sack_count, 0);            /* no whole block */
    CHECK_INT(with_options(MN_TCP_ACK, "0512 00000001 00000002 00000003").sack_count, 0); /* longer than the header */
    CHECK_INT(with_options(MN_TCP_SYN, "0101 050a 00000001 00000002").sack_count, 0);     /* a SYN acknowledges none */
}

static void test_sack_permitted(void)
{
    CHECK(with_options(MN_TCP_SYN, "0402").may_sack);
    CHECK(with_options(MN_TCP_SYN | MN_TCP_ACK, "0101 0402 080a 00000001 00000002").may_sack);
    CHECK(!with_options(MN_TCP_SYN, "040300").may_sack);
    CHECK(!with_options(MN_TCP_ACK, "0402").may_sack); /* only SYNs negotiate */
    CHECK(!with_options(MN_TCP_SYN, "0101").may_sack);
}

int main(void)
{
    RUN(test_round_trip);
    RUN(test_selective_acknowledgements);
    RUN(test_sack_permitted);
    return 0;
}
