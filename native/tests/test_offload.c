/* Cutting super-packets and merging neighbours: each against packets built one by one, and each against the other. */
#include "check.h"
#include "offload.h"

enum { ACK = 16, PSH = 8, FIN = 1, SYN = 2, CWR = 128, MAX = 70000, MANY = 128 };

static uint8_t super[MAX], want[MAX], got[MAX];
static uint8_t packets[MANY][1500];
static struct mn_packet views[MANY];
static struct mn_merge merge;

static uint8_t gso_type(const struct shape *s)
{
    return s->is_udp ? MN_VNET_GSO_UDP : s->is6 ? MN_VNET_GSO_TCP6 : MN_VNET_GSO_TCP4;
}

/* What a kernel hands out: a whole packet of n payload bytes, its checksum left to us, to be cut by seg. */
static size_t make_super(const struct shape *s, size_t n, uint16_t seg)
{
    struct mn_vnet v = {.flags = MN_VNET_NEEDS_CSUM, .gso_type = gso_type(s), .hdr_len = 7, .gso_size = seg};
    mn_vnet_store(super, &v);
    return MN_VNET_SIZE + offload_make(super + MN_VNET_SIZE, s, n);
}

/* Cut it, and compare each piece with the packet it should be. */
static void check_cut(const struct shape *s, size_t n, uint16_t seg)
{
    struct mn_cut c;
    size_t len = make_super(s, n, seg), at = 0;
    CHECK_INT(mn_cut_begin(&c, super, len), 0);
    while (at < n) {
        struct shape piece = *s;
        size_t take = n - at < seg ? n - at : seg;
        uint8_t flags = s->flags != 0 ? s->flags : ACK;
        piece.seq += (uint32_t)at;
        piece.at += (uint32_t)at;
        piece.id = (uint16_t)(s->id + at / seg);
        piece.flags = (uint8_t)(at + take < n ? flags & ~(FIN | PSH) : flags);
        if (at > 0)
            piece.flags &= (uint8_t)~CWR;
        size_t size = offload_make(want, &piece, take);
        CHECK_INT(mn_cut_next(&c), size);
        memset(got, 0xaa, size + 8);
        mn_cut_write(&c, got);
        CHECK(memcmp(got, want, size) == 0);
        CHECK(got[size] == 0xaa);
        at += take;
    }
    CHECK_INT(mn_cut_next(&c), 0);
}

static void test_cut_tcp(void)
{
    for (int is6 = 0; is6 < 2; is6++)
        for (uint8_t options = 0; options <= 40; options += 4) {
            struct shape s = {.is6 = is6, .options = options, .seq = 0xfffffff0, .ack = 77, .id = 0xfffe, .window = 9};
            s.flags = ACK | PSH | FIN | CWR;
            s.tos = 0x2a;
            check_cut(&s, 1, 1200);
            check_cut(&s, 1200, 1200);
            check_cut(&s, 1201, 1200);
            check_cut(&s, 61111, 1221);
            check_cut(&s, 999, 7);
            check_cut(&s, 65535U - 40U - options - (is6 ? 20U : 0U), 1208);
        }
}

static void test_cut_udp(void)
{
    for (int is6 = 0; is6 < 2; is6++) {
        struct shape s = {.is6 = is6, .is_udp = true, .id = 5};
        check_cut(&s, 1, 1200);
        check_cut(&s, 1200 * 50, 1200);
        check_cut(&s, 1200 * 50 + 3, 1200);
        check_cut(&s, 333, 1);
    }
}

static void test_cut_whole(void)
{
    for (int kind = 0; kind < 4; kind++) {
        struct shape s = {.is6 = kind & 1, .is_udp = kind >> 1, .options = kind >> 1 ? 0 : 12};
        for (size_t n = 0; n < 70; n++) {
            struct mn_cut c;
            size_t len = offload_make(want, &s, n), l4_at = s.is6 ? 40 : 20;
            struct mn_vnet v = {.flags = MN_VNET_NEEDS_CSUM, .csum_start = (uint16_t)l4_at};
            struct mn_packet p;
            v.csum_offset = s.is_udp ? 6 : 16;
            mn_vnet_store(super, &v);
            memcpy(super + MN_VNET_SIZE, want, len);
            CHECK_INT(mn_packet_parse(&p, want, len), 0);
            uint16_t pseudo = mn_csum_fold(mn_csum_pseudo(&p.src, &p.dst, p.proto, p.l4_len));
            memcpy(super + MN_VNET_SIZE + l4_at + v.csum_offset, &pseudo, 2);
            CHECK_INT(mn_cut_begin(&c, super, MN_VNET_SIZE + len), 0);
            CHECK_INT(mn_cut_next(&c), len);
            mn_cut_write(&c, got);
            CHECK(memcmp(got, want, len) == 0);
            CHECK_INT(mn_cut_next(&c), 0);
        }
    }
}

static void refuse(size_t len)
{
    struct mn_cut c;
    CHECK(mn_cut_begin(&c, super, len) < 0);
    CHECK_INT(mn_cut_next(&c), 0);
    mn_cut_write(&c, got);
    mn_cut_skip(&c);
}

static void test_cut_refuses(void)
{
    struct shape tcp = {0}, udp = {.is_udp = true};
    for (size_t len = 0; len < MN_VNET_SIZE + 40; len++) {
        make_super(&tcp, 100, 50);
        refuse(len);
    }
    size_t len = make_super(&tcp, 100, 0); /* no size to cut by */
    refuse(len);
    make_super(&tcp, 100, 50);
    super[1] = MN_VNET_GSO_TCP6; /* of another family */
    refuse(len);
    super[1] = MN_VNET_GSO_UDP;
    refuse(len);
    super[1] = 3; /* UFO is long dead */
    refuse(len);
    make_super(&tcp, 100, 50);
    super[MN_VNET_SIZE + 20 + 12] = 0x40; /* a TCP header of 16 bytes */
    refuse(len);
    super[MN_VNET_SIZE + 20 + 12] = 0xf0;
    refuse(MN_VNET_SIZE + offload_make(super + MN_VNET_SIZE, &tcp, 0)); /* nothing to cut */
    len = make_super(&udp, 0, 50);
    refuse(len);
    len = make_super(&tcp, 100, 50);
    struct mn_vnet v = {.flags = MN_VNET_NEEDS_CSUM, .csum_start = 20, .csum_offset = 119};
    mn_vnet_store(super, &v);
    refuse(len);
    v.csum_start = 65535;
    mn_vnet_store(super, &v);
    refuse(len);
}

static void test_cut_skips(void)
{
    struct shape s = {0};
    struct mn_cut c;
    size_t len = make_super(&s, 250, 100);
    CHECK_INT(mn_cut_begin(&c, super, len), 0);
    mn_cut_skip(&c);
    mn_cut_skip(&c);
    CHECK_INT(mn_cut_next(&c), 40 + 50);
    mn_cut_skip(&c);
    CHECK_INT(mn_cut_next(&c), 0);
}

/* ---- merging ---- */

static bool add(unsigned i, const struct shape *s, size_t n)
{
    size_t len = offload_make(packets[i], s, n);
    CHECK_INT(mn_packet_parse(&views[i], packets[i], len), 0);
    return mn_merge_add(&merge, &views[i]);
}

static void fresh(void)
{
    mn_merge_clear(&merge);
    merge.tcp = merge.udp = true;
}

/* Two packets of one stream: how many items do they become? */
static unsigned items_of(const struct shape *a, size_t n_a, const struct shape *b, size_t n_b)
{
    fresh();
    CHECK(add(0, a, n_a));
    CHECK(add(1, b, n_b));
    return merge.count;
}

static void test_merge_tcp(void)
{
    for (int is6 = 0; is6 < 2; is6++) {
        struct shape s = {.is6 = is6, .options = 12, .seq = 0xffffff00, .window = 3, .id = 40};
        fresh();
        for (unsigned i = 0; i < 40; i++) {
            s.flags = i == 39 ? ACK | PSH : ACK;
            CHECK(add(i, &s, i == 39 ? 11 : 1201));
            s.seq += 1201;
            s.at += 1201;
            s.id++;
        }
        CHECK_INT(merge.count, 1);
        CHECK_INT(merge.items[0].count, 40);
        size_t len = offload_gather(&merge.items[0], got);
        struct mn_vnet v = mn_vnet_load(got);
        struct shape whole = {.is6 = is6, .options = 12, .seq = 0xffffff00, .window = 3, .id = 40, .flags = ACK | PSH};
        CHECK_INT(len, MN_VNET_SIZE + offload_make(want, &whole, 39 * 1201 + 11));
        CHECK_INT(v.flags, MN_VNET_NEEDS_CSUM);
        CHECK_INT(v.gso_type, is6 ? MN_VNET_GSO_TCP6 : MN_VNET_GSO_TCP4);
        CHECK_INT(v.gso_size, 1201);
        CHECK_INT(v.csum_start, is6 ? 40 : 20);
        CHECK_INT(v.csum_offset, 16);
        CHECK_INT(v.hdr_len, v.csum_start + 32);
        size_t field = MN_VNET_SIZE + (size_t)v.csum_start + 16; /* the kernel would complete it */
        CHECK(mn_csum_fold(mn_csum_add(0, got + MN_VNET_SIZE + v.csum_start, len - MN_VNET_SIZE - v.csum_start)) != 0);
        memcpy(got + field, want + field - MN_VNET_SIZE, 2);
        CHECK(memcmp(got + MN_VNET_SIZE, want, len - MN_VNET_SIZE) == 0);
    }
}

static void test_merge_refuses(void)
{
    struct shape a = {.options = 12, .seq = 100, .window = 5, .ack = 9}, b = a;
    b.seq += 500;
    CHECK_INT(items_of(&a, 500, &b, 500), 1);
    CHECK_INT(items_of(&a, 500, &b, 499), 1);
    CHECK_INT(items_of(&a, 500, &b, 501), 2); /* longer than the first */
    CHECK_INT(items_of(&a, 499, &b, 499), 2); /* a gap */
    CHECK_INT(items_of(&a, 501, &b, 500), 2); /* an overlap */
    CHECK_INT(items_of(&a, 500, &b, 0), 2);
#define DIFFERS(change)                                                                                                \
    do {                                                                                                               \
        struct shape c = b;                                                                                            \
        c.change;                                                                                                      \
        CHECK_INT(items_of(&a, 500, &c, 500), 2);                                                                      \
    } while (0)
    DIFFERS(ack = 10);
    DIFFERS(window = 6);
    DIFFERS(tos = 1);
    DIFFERS(ttl = 63);
    DIFFERS(no_df = true);
    DIFFERS(options = 16);
    DIFFERS(option = 2);
    DIFFERS(port = 81);
    DIFFERS(flags = ACK | FIN);
    DIFFERS(flags = ACK | CWR);
    DIFFERS(flags = ACK | 64); /* ECE that the first lacks */
    DIFFERS(is6 = true);
    a.flags = ACK | PSH; /* closes a super-packet */
    CHECK_INT(items_of(&a, 500, &b, 500), 2);
    a.flags = SYN;
    CHECK_INT(items_of(&a, 500, &b, 500), 2);
    a.flags = ACK;
    fresh();
    CHECK(add(0, &a, 500)); /* a bad checksum stays alone, first or second */
    CHECK(add(1, &b, 500));
    for (int bad = 0; bad < 2; bad++) {
        mn_merge_clear(&merge);
        packets[bad][100] ^= 1;
        CHECK(mn_merge_add(&merge, &views[0]) && mn_merge_add(&merge, &views[1]));
        CHECK_INT(merge.count, 2);
        packets[bad][100] ^= 1;
    }
    merge.tcp = false;
    mn_merge_clear(&merge);
    CHECK(mn_merge_add(&merge, &views[0]) && mn_merge_add(&merge, &views[1]));
    CHECK_INT(merge.count, 2);
}

static void test_merge_udp(void)
{
    struct shape a = {.is_udp = true}, b = a;
    for (int is6 = 0; is6 < 2; is6++) {
        a.is6 = b.is6 = is6;
        CHECK_INT(items_of(&a, 300, &b, 300), 1);
        CHECK_INT(items_of(&a, 300, &b, 299), 1);
        CHECK_INT(items_of(&a, 300, &b, 301), 2);
        fresh();
        CHECK(add(0, &a, 300) && add(1, &a, 100) && add(2, &a, 100)); /* a short one closes */
        CHECK_INT(merge.count, 2);
        fresh();
        CHECK(add(0, &a, 300));
        CHECK_INT(views[0].l4_len, 308);
        if (!is6) { /* without a checksum there is nothing to verify */
            memset(packets[0] + 26, 0, 2);
            CHECK(add(1, &b, 300));
            mn_merge_clear(&merge);
            CHECK(mn_merge_add(&merge, &views[0]) && mn_merge_add(&merge, &views[1]));
            CHECK_INT(merge.count, 2);
        }
    }
    b.is6 = false;
    a = b;
    b.port = 9;
    fresh();
    CHECK(add(0, &a, 50) && add(1, &b, 50) && add(2, &a, 50) && add(3, &b, 50));
    CHECK_INT(merge.count, 2);
}

/* What may not be merged still keeps its place in its flow. */
static void test_merge_keeps_order(void)
{
    struct shape s = {.seq = 1};
    fresh();
    CHECK(add(0, &s, 100));
    s.flags = ACK | FIN;
    s.seq = 301;
    CHECK(add(1, &s, 100)); /* ahead of its time */
    s.flags = ACK;
    s.seq = 101;
    CHECK(add(2, &s, 100)); /* would fit item 0, but must come after item 1 */
    CHECK_INT(merge.count, 3);
    size_t len;
    CHECK(mn_merge_packet(&merge.items[1], 0, &len) == packets[1] && len == 140);
}

static void test_merge_bounds(void)
{
    struct shape s = {.is_udp = true};
    fresh();
    for (unsigned i = 0; i < MN_MERGE_PIECES + 2; i++)
        CHECK(add(i, &s, 10));
    CHECK_INT(merge.count, 2);
    CHECK_INT(merge.items[0].count, MN_MERGE_PIECES);
    CHECK_INT(merge.items[1].count, 2);
    fresh();
    for (unsigned i = 0; i < 60; i++)
        CHECK(add(i, &s, 1400));
    CHECK_INT(merge.items[0].count, 46); /* 46 * 1400 + 28 is the most below 65536 */
    fresh();
    for (unsigned i = 0; i < MN_MERGE_ITEMS; i++) {
        s.port = (uint16_t)(2000 + i);
        CHECK(add(i, &s, 10));
    }
    CHECK(add(MN_MERGE_ITEMS, &s, 10)); /* joins the last */
    s.port = 1;
    CHECK(!add(MN_MERGE_ITEMS + 1, &s, 10));
}

/* Whatever is merged comes apart again into what it was, in order per flow. */
static void test_merge_and_cut_agree(void)
{
    uint64_t rng = 11;
    for (int round = 0; round < 3000 / MN_TEST_SLOW; round++) {
        struct shape flows[3] = {{.options = 12}, {.is6 = true, .no_df = true}, {.is_udp = true}};
        unsigned n = 1 + (unsigned)(test_random(&rng) % 60), order[3][MANY], have[3] = {0}, seen[3] = {0};
        fresh();
        for (unsigned i = 0; i < n; i++) {
            unsigned f = (unsigned)(test_random(&rng) % 3);
            struct shape *s = &flows[f];
            size_t size = test_random(&rng) % 4 == 0 ? test_random(&rng) % 700 : 600;
            s->flags = test_random(&rng) % 9 == 0 ? ACK | PSH : ACK;
            s->id = (uint16_t)i;
            s->port = (uint16_t)(90 + f);
            if (test_random(&rng) % 16 == 0)
                s->ack++;
            CHECK(add(i, s, size));
            s->seq += (uint32_t)size;
            s->at += (uint32_t)size;
            order[f][have[f]++] = i;
        }
        for (unsigned i = 0; i < merge.count; i++) {
            struct mn_cut c;
            size_t len = offload_gather(&merge.items[i], got);
            CHECK_INT(mn_cut_begin(&c, got, len), 0);
            unsigned f = mn_load16(c.packet.l4 + 2) - 90U, pieces = 0;
            for (size_t size; (size = mn_cut_next(&c)) > 0; pieces++) {
                unsigned which = order[f][seen[f]++];
                size_t raw;
                CHECK(mn_merge_packet(&merge.items[i], pieces, &raw) == packets[which]);
                mn_cut_write(&c, want);
                CHECK_INT(size, views[which].ip_len);
                CHECK_INT(raw, size);
                if (want[0] >> 4 == 4) { /* identification counts on from the first packet's */
                    memcpy(want + 4, packets[which] + 4, 2);
                    memcpy(want + 10, packets[which] + 10, 2);
                }
                CHECK(memcmp(want, packets[which], size) == 0);
            }
            CHECK_INT(pieces, merge.items[i].count);
        }
        for (int f = 0; f < 3; f++)
            CHECK_INT(seen[f], have[f]);
    }
}

int main(void)
{
    RUN(test_cut_tcp);
    RUN(test_cut_udp);
    RUN(test_cut_whole);
    RUN(test_cut_refuses);
    RUN(test_cut_skips);
    RUN(test_merge_tcp);
    RUN(test_merge_refuses);
    RUN(test_merge_udp);
    RUN(test_merge_keeps_order);
    RUN(test_merge_bounds);
    RUN(test_merge_and_cut_agree);
    return 0;
}
