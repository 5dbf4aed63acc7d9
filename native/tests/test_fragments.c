/* Putting datagrams together: orders, repeats, overlaps, ages, quotas (IP-03). */
#include "../ip/fragments.h"
#include "check.h"

#define SECOND 1000000000ULL

static uint8_t g_bytes[65536];

struct piece {
    uint32_t id, at, len;
    bool more, v6;
    uint8_t proto, ecn, host;
};

/* Build the piece and take it. */
static bool take(struct mn_fragments *f, uint32_t peer, struct piece k, uint64_t now, const uint8_t **out, size_t *len)
{
    static uint8_t pkt[66000];
    struct mn_ip a = mn_ip_from4((const uint8_t[4]){100, 64, 0, (uint8_t)(2 + k.host)});
    struct mn_ip b = mn_ip_from4((const uint8_t[4]){100, 64, 0, 1});
    struct mn_packet p;
    size_t n;
    uint8_t proto = k.proto == 0 ? MN_PROTO_UDP : k.proto;
    if (k.v6) {
        a = mn_ip_from6((const uint8_t[16]){0xfd, [15] = (uint8_t)(2 + k.host)});
        b = mn_ip_from6((const uint8_t[16]){0xfd, [15] = 1});
        n = mn_packet_write_header(pkt, &a, &b, 44, k.len + 8);
        memset(pkt + n, 0, 8);
        pkt[n] = proto;
        mn_store16(pkt + n + 2, k.at | (k.more ? 1 : 0));
        mn_store32(pkt + n + 4, k.id);
        n += 8;
    } else {
        n = mn_packet_write_header(pkt, &a, &b, proto, k.len);
        mn_store16(pkt + 4, k.id);
        mn_store16(pkt + 6, k.at / 8 | (k.more ? 0x2000U : 0));
        mn_store16(pkt + 10, 0);
        mn_csum_store(pkt + 10, mn_csum_add(0, pkt, 20));
    }
    memcpy(pkt + n, g_bytes + k.at, k.len);
    mn_packet_set_ecn(pkt, k.ecn);
    CHECK_INT(mn_packet_parse(&p, pkt, n + k.len), 0);
    if (!p.is_fragment)
        return false;
    bool whole = mn_fragments_take(f, peer, &p, now, out, len);
    CHECK(f->bytes <= MN_FRAGMENTS_BYTES);
    return whole;
}

static void check_whole(const uint8_t *packet, size_t len, uint32_t size)
{
    struct mn_packet p;
    CHECK_INT(mn_packet_parse(&p, packet, len), 0);
    CHECK(!p.is_fragment);
    CHECK_INT(p.l4_len, size);
    CHECK_INT(p.proto, MN_PROTO_UDP);
    CHECK(memcmp(p.l4, g_bytes, size) == 0);
}

static void test_every_order(void)
{
    static const int orders[24][4] = {
        {0, 1, 2, 3}, {0, 1, 3, 2}, {0, 2, 1, 3}, {0, 2, 3, 1}, {0, 3, 1, 2}, {0, 3, 2, 1}, {1, 0, 2, 3}, {1, 0, 3, 2},
        {1, 2, 0, 3}, {1, 2, 3, 0}, {1, 3, 0, 2}, {1, 3, 2, 0}, {2, 0, 1, 3}, {2, 0, 3, 1}, {2, 1, 0, 3}, {2, 1, 3, 0},
        {2, 3, 0, 1}, {2, 3, 1, 0}, {3, 0, 1, 2}, {3, 0, 2, 1}, {3, 1, 0, 2}, {3, 1, 2, 0}, {3, 2, 0, 1}, {3, 2, 1, 0}};
    struct mn_fragments f = {0};
    const uint8_t *out;
    size_t len;
    for (int v6 = 0; v6 < 2; v6++) {
        for (uint32_t o = 0; o < 24; o++) {
            for (int i = 0; i < 4; i++) {
                uint32_t at = (uint32_t)orders[o][i] * 800;
                struct piece k = {.id = o, .at = at, .len = at == 2400 ? 501 : 800, .more = at != 2400, .v6 = v6 != 0};
                CHECK_INT(take(&f, 1, k, 0, &out, &len), i == 3);
                if (i < 3) /* a repeat changes nothing */
                    CHECK(!take(&f, 1, k, 0, &out, &len));
            }
            check_whole(out, len, 2901);
            mn_fragments_release(&f);
            CHECK_INT(f.bytes, 0);
        }
    }
    CHECK_INT(f.dropped, 0);
    mn_fragments_free(&f);
}

/* RFC 5722: any overlap, and nothing of that datagram is believed any more. */
static void test_overlaps(void)
{
    static const struct piece bad[] = {
        {.at = 400, .len = 800, .more = true},   /* across two */
        {.at = 0, .len = 1600, .more = true},    /* over all */
        {.at = 808, .len = 8, .more = true},     /* inside one */
        {.at = 800, .len = 808, .more = true},   /* longer than what was there */
        {.at = 800, .len = 800, .more = false},  /* the same place, but now the end */
        {.at = 1600, .len = 100, .more = false}, /* an end before the known end */
        {.at = 4000, .len = 800, .more = true},  /* beyond the end */
        {.at = 4000, .len = 10, .more = false},  /* another end */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct mn_fragments f = {0};
        const uint8_t *out;
        size_t len;
        CHECK(!take(&f, 1, (struct piece){.at = 0, .len = 800, .more = true}, 0, &out, &len));
        CHECK(!take(&f, 1, (struct piece){.at = 800, .len = 800, .more = true}, 0, &out, &len));
        CHECK(!take(&f, 1, (struct piece){.at = 3200, .len = 500}, 0, &out, &len));
        CHECK(!take(&f, 1, bad[i], 0, &out, &len));
        CHECK_INT(f.bytes, 0); /* its memory is back at once */
        CHECK(!take(&f, 1, (struct piece){.at = 1600, .len = 1600, .more = true}, 0, &out, &len));
        CHECK_INT(f.dropped, 2);
        /* The number is free again when its time is over. */
        CHECK(!take(&f, 1, (struct piece){.at = 0, .len = 800, .more = true}, 31 * SECOND, &out, &len));
        CHECK(take(&f, 1, (struct piece){.at = 800, .len = 9}, 31 * SECOND, &out, &len));
        check_whole(out, len, 809);
        mn_fragments_free(&f);
    }
}

static void test_pieces_that_are_refused(void)
{
    static const struct piece bad[] = {
        {.at = 0, .len = 0, .more = true},                         /* empty */
        {.at = 0, .len = 801, .more = true},                       /* not a multiple of eight, and not the last */
        {.at = 16, .len = 800, .more = true},                      /* could rewrite the header (RFC 1858) */
        {.at = 72, .len = 800, .more = false},                     /* the same */
        {.at = 0, .len = 16, .more = true, .proto = MN_PROTO_TCP}, /* half a header */
        {.at = 65528, .len = 8, .more = false},                    /* a datagram larger than any */
    };
    struct mn_fragments f = {0};
    const uint8_t *out;
    size_t len;
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(!take(&f, 1, bad[i], 0, &out, &len));
        CHECK_INT(f.dropped, i + 1);
        CHECK_INT(f.bytes, 0);
    }
    mn_fragments_free(&f);
}

static void test_they_grow_old(void)
{
    struct mn_fragments f = {0};
    const uint8_t *out;
    size_t len;
    for (int v6 = 0; v6 < 2; v6++) {
        uint64_t life = (v6 != 0 ? 60 : 30) * SECOND, start = (uint64_t)v6 * 1000 * SECOND;
        struct piece first = {.id = 1, .at = 0, .len = 800, .more = true, .v6 = v6 != 0};
        struct piece last = {.id = 1, .at = 800, .len = 8, .v6 = v6 != 0};
        CHECK(!take(&f, 1, first, start, &out, &len));
        CHECK(take(&f, 1, last, start + life - 1, &out, &len));
        mn_fragments_release(&f);
        CHECK(!take(&f, 1, first, start, &out, &len));
        CHECK(!take(&f, 1, last, start + life, &out, &len));
        CHECK(
            !take(&f, 1, (struct piece){.id = 9, .at = 80, .len = 8, .more = true}, start + 200 * SECOND, &out, &len));
    }
    mn_fragments_free(&f);
}

/* One peer can fill its quarter, and only that. */
static void test_quotas(void)
{
    struct mn_fragments f = {0};
    const uint8_t *out;
    size_t len;
    CHECK(!take(&f, 2, (struct piece){.id = 7, .at = 0, .len = 800, .more = true}, 0, &out, &len));
    for (uint32_t i = 0; i < 1000; i++) {
        take(&f, 1, (struct piece){.id = i, .at = 0, .len = 1200, .more = true}, i, &out, &len);
        take(&f, 1, (struct piece){.id = i, .at = 48000, .len = 1200, .more = true}, i, &out, &len);
        CHECK(f.bytes <= MN_FRAGMENTS_BYTES / 4 + 2048);
    }
    CHECK(take(&f, 2, (struct piece){.id = 7, .at = 800, .len = 8}, 5000, &out, &len)); /* still there */
    check_whole(out, len, 808);
    mn_fragments_release(&f);
    for (uint32_t peer = 10; peer < 40; peer++) /* many peers: the oldest give way */
        for (uint32_t i = 0; i < 20; i++)
            take(&f, peer, (struct piece){.id = i, .at = 0, .len = 8000, .more = true, .host = 3}, 6000 + peer, &out,
                 &len);
    mn_fragments_free(&f);
}

/* The largest datagram there is, and no more than so many whole ones held. */
static void test_large_and_many(void)
{
    struct mn_fragments f = {0};
    const uint8_t *out;
    size_t len;
    uint32_t size = 65507 + 8;
    for (uint32_t at = 0; at < size; at += 1232) {
        uint32_t n = size - at < 1232 ? size - at : 1232;
        CHECK_INT(take(&f, 1, (struct piece){.at = at, .len = n, .more = at + n < size}, 0, &out, &len),
                  at + n == size);
    }
    check_whole(out, len, size);
    mn_fragments_release(&f);
    for (uint32_t i = 0; i < 12; i++) {
        CHECK(!take(&f, 1, (struct piece){.id = i, .at = 0, .len = 800, .more = true}, 0, &out, &len));
        CHECK_INT(take(&f, 1, (struct piece){.id = i, .at = 800, .len = 8}, 0, &out, &len), i < MN_FRAGMENTS_WHOLE);
    }
    mn_fragments_free(&f);
}

static void test_a_mark_survives(void)
{
    for (int which = 0; which < 3; which++) {
        struct mn_fragments f = {0};
        const uint8_t *out;
        size_t len;
        CHECK(
            !take(&f, 1, (struct piece){.at = 0, .len = 800, .more = true, .ecn = which == 0 ? 3 : 2}, 0, &out, &len));
        CHECK(take(&f, 1, (struct piece){.at = 800, .len = 8, .ecn = which == 1 ? 3 : 2}, 0, &out, &len));
        CHECK_INT(mn_packet_ecn(out), which < 2 ? 3 : 2);
        check_whole(out, len, 808);
        mn_fragments_free(&f);
    }
}

/* The headers of our own pieces, byte for byte (RFC 791 3.1, RFC 8200 4.5), and the shares that fill a packet. */
static void test_pieces_of_ours(void)
{
    static const uint8_t want4[20] = {0x45, 0,          0x04, 0xfc, 0xbe, 0xef, 0x20, 150, 64,
                                      1,    [12] = 100, 64,   0,    1,    100,  64,   0,   2};
    static const uint8_t want6[8] = {58, 0, 0x04, 0xb1, 0xde, 0xad, 0xbe, 0xef};
    uint8_t out[48];
    struct mn_piece k = {.id = 0xdeadbeef, .at = 1200, .len = 1256, .proto = MN_PROTO_ICMP, .more = true};
    k.src = mn_ip_from4((const uint8_t[4]){100, 64, 0, 1});
    k.dst = mn_ip_from4((const uint8_t[4]){100, 64, 0, 2});
    CHECK_INT(mn_piece_share(&k.dst, 1280), 1256);
    CHECK_INT(mn_piece_write_header(out, &k), 20);
    CHECK(mn_csum_is_good(mn_csum_add(0, out, 20)));
    mn_store16(out + 10, 0);
    CHECK(memcmp(out, want4, 20) == 0);
    k.more = false;
    CHECK_INT(mn_piece_write_header(out, &k), 20);
    CHECK_INT(mn_load16(out + 6), 150);
    k.src = mn_ip_from6((const uint8_t[16]){0xfd, [15] = 1});
    k.dst = mn_ip_from6((const uint8_t[16]){0xfd, [15] = 2});
    k.proto = MN_PROTO_ICMP6;
    k.len = 1232;
    k.more = true;
    CHECK_INT(mn_piece_share(&k.dst, 1280), 1232);
    CHECK_INT(mn_piece_write_header(out, &k), 48);
    CHECK_INT(mn_load16(out + 4), 1240);
    CHECK_INT(out[6], 44);
    CHECK(memcmp(out + 40, want6, 8) == 0);
}

int main(void)
{
    uint64_t rng = 3;
    test_random_bytes(&rng, g_bytes, sizeof g_bytes);
    RUN(test_every_order);
    RUN(test_overlaps);
    RUN(test_pieces_that_are_refused);
    RUN(test_they_grow_old);
    RUN(test_quotas);
    RUN(test_large_and_many);
    RUN(test_a_mark_survives);
    RUN(test_pieces_of_ours);
    return 0;
}
