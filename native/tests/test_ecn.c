/* WG-27: the sixteen combinations of RFC 6040 4.2 in both families, with IPv4's checksum right afterwards. */
#include "../ip/ecn.h"

#include "check.h"

enum { LOST = 0xff };

/* By outer, then inner bits; rows in the order Not-ECT, ECT(1), ECT(0), CE. */
static const uint8_t want[4][4] = {
    {MN_ECN_NONE, MN_ECN_ECT1, MN_ECN_ECT0, MN_ECN_CE},
    {MN_ECN_NONE, MN_ECN_ECT1, MN_ECN_ECT1, MN_ECN_CE},
    {MN_ECN_NONE, MN_ECN_ECT1, MN_ECN_ECT0, MN_ECN_CE},
    {LOST, MN_ECN_CE, MN_ECN_CE, MN_ECN_CE},
};

static uint16_t sum_of(const uint8_t *p)
{
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2)
        sum += (uint32_t)(p[i] << 8 | p[i + 1]);
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* Any header with these bits and a right checksum. */
static void make4(uint8_t p[20], uint64_t *seed, uint8_t ecn)
{
    test_random_bytes(seed, p, 20);
    p[0] = 0x45;
    p[1] = (uint8_t)((p[1] & ~3) | ecn);
    p[10] = p[11] = 0;
    uint16_t sum = (uint16_t)~sum_of(p);
    p[10] = (uint8_t)(sum >> 8);
    p[11] = (uint8_t)sum;
}

static void make6(uint8_t p[40], uint64_t *seed, uint8_t ecn)
{
    test_random_bytes(seed, p, 40);
    p[0] = (uint8_t)(0x60 | (p[0] & 15));
    p[1] = (uint8_t)((p[1] & ~0x30) | ecn << 4);
}

static void check(uint8_t *p, size_t len, uint8_t outer, uint8_t inner)
{
    uint8_t before[40];
    memcpy(before, p, len);
    CHECK_INT(mn_ecn_get(p), inner);
    CHECK_INT(mn_ecn_decapsulate(p, outer), want[outer][inner] != LOST);
    if (want[outer][inner] == LOST) {
        CHECK(memcmp(before, p, len) == 0);
        return;
    }
    CHECK_INT(mn_ecn_get(p), want[outer][inner]);
    mn_ecn_set(before, want[outer][inner]); /* nothing else has changed */
    CHECK(memcmp(before, p, len) == 0);
}

static void test_every_combination(void)
{
    uint64_t seed = 1;
    for (int round = 0; round < 5000; round++)
        for (uint8_t outer = 0; outer < 4; outer++)
            for (uint8_t inner = 0; inner < 4; inner++) {
                uint8_t v4[40], v6[40];
                make4(v4, &seed, inner);
                check(v4, 20, outer, inner);
                CHECK_INT(sum_of(v4), 0xffff);
                make6(v6, &seed, inner);
                check(v6, 40, outer, inner);
            }
}

static void test_setting_touches_two_bits(void)
{
    uint64_t seed = 2;
    uint8_t p[40], q[40];
    make6(p, &seed, MN_ECN_NONE);
    memcpy(q, p, sizeof q);
    mn_ecn_set(p, MN_ECN_CE);
    CHECK_INT(p[1] ^ q[1], 0x30);
    mn_ecn_set(p, MN_ECN_NONE);
    CHECK(memcmp(p, q, sizeof p) == 0);
    make4(p, &seed, MN_ECN_CE);
    p[1] |= 0xfc;
    memcpy(q, p, sizeof q);
    mn_ecn_set(p, MN_ECN_ECT0);
    CHECK_INT(p[1], 0xfe);
    CHECK(memcmp(p + 2, q + 2, 8) == 0 && memcmp(p + 12, q + 12, 8) == 0);
}

int main(void)
{
    RUN(test_every_combination);
    RUN(test_setting_touches_two_bits);
    return 0;
}
