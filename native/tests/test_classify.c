/* The classifier: exact lengths, no overlap, nothing read behind the end. */
#include "../udp/classify.h"

#include "check.h"

static enum mn_class of(uint8_t first, size_t len)
{
    static uint8_t buf[2048];
    memset(buf, 0, sizeof buf);
    buf[0] = first;
    return mn_classify(buf, len);
}

static void test_wireguard_lengths(void)
{
    CHECK_INT(of(1, 148), MN_CLASS_WG_HANDSHAKE);
    CHECK_INT(of(1, 147), MN_CLASS_UNKNOWN);
    CHECK_INT(of(1, 149), MN_CLASS_UNKNOWN);
    CHECK_INT(of(2, 92), MN_CLASS_WG_HANDSHAKE);
    CHECK_INT(of(2, 148), MN_CLASS_UNKNOWN);
    CHECK_INT(of(3, 64), MN_CLASS_WG_HANDSHAKE);
    CHECK_INT(of(3, 65), MN_CLASS_UNKNOWN);
    CHECK_INT(of(4, 31), MN_CLASS_UNKNOWN);
    CHECK_INT(of(4, 32), MN_CLASS_WG_DATA);
    CHECK_INT(of(4, 1500), MN_CLASS_WG_DATA);
    CHECK_INT(of(5, 148), MN_CLASS_UNKNOWN);
    CHECK_INT(of(0, 148), MN_CLASS_UNKNOWN);
}

static void test_reserved_bytes_are_zero(void)
{
    for (int at = 1; at < 4; at++) {
        uint8_t buf[148] = {1};
        buf[at] = 1;
        CHECK(mn_classify(buf, sizeof buf) != MN_CLASS_WG_HANDSHAKE);
    }
}

static void test_disco(void)
{
    uint8_t buf[200] = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};
    CHECK_INT(mn_classify(buf, 200), MN_CLASS_DISCO);
    CHECK_INT(mn_classify(buf, 78), MN_CLASS_DISCO);
    CHECK_INT(mn_classify(buf, 77), MN_CLASS_UNKNOWN);
    buf[5] ^= 1;
    CHECK_INT(mn_classify(buf, 200), MN_CLASS_UNKNOWN);
}

static void test_stun(void)
{
    uint8_t buf[64] = {0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xa4, 0x42};
    CHECK_INT(mn_classify(buf, 20), MN_CLASS_STUN);
    buf[0] = 0x01;
    CHECK_INT(mn_classify(buf, 20), MN_CLASS_STUN);
    buf[1] = 0x11;
    CHECK_INT(mn_classify(buf, 20), MN_CLASS_STUN);
    buf[1] = 0x01;
    buf[3] = 12;
    CHECK_INT(mn_classify(buf, 32), MN_CLASS_STUN);
    CHECK_INT(mn_classify(buf, 31), MN_CLASS_UNKNOWN);
    CHECK_INT(mn_classify(buf, 36), MN_CLASS_UNKNOWN);
    buf[3] = 13;
    CHECK_INT(mn_classify(buf, 33), MN_CLASS_UNKNOWN);
    buf[3] = 12;
    buf[4] = 0;
    CHECK_INT(mn_classify(buf, 32), MN_CLASS_UNKNOWN);
}

/* A Geneve header in front of `inner`. */
static enum mn_class behind(uint16_t protocol, uint8_t flags, uint32_t vni, const uint8_t *inner, size_t len)
{
    uint8_t buf[256] = {0, flags, (uint8_t)(protocol >> 8), (uint8_t)protocol};
    buf[4] = (uint8_t)(vni >> 16);
    buf[5] = (uint8_t)(vni >> 8);
    buf[6] = (uint8_t)vni;
    memcpy(buf + 8, inner, len);
    return mn_classify(buf, len + 8);
}

static void test_behind_a_peer_relay(void)
{
    uint8_t disco[200] = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac}, data[200] = {4}, initiation[200] = {1};
    CHECK_INT(behind(0x7a11, 0, 1, disco, 100), MN_CLASS_RELAYED_DISCO);
    CHECK_INT(behind(0x7a11, 0x80, 0xffffff, disco, 100), MN_CLASS_RELAYED_DISCO);
    CHECK_INT(behind(0x7a12, 0, 1, data, 100), MN_CLASS_RELAYED_WG);
    CHECK_INT(behind(0x7a12, 0, 1, data, 32), MN_CLASS_RELAYED_WG);
    CHECK_INT(behind(0x7a12, 0, 1, initiation, 148), MN_CLASS_RELAYED_WG);
    CHECK_INT(behind(0x7a12, 0x80, 1, data, 100), MN_CLASS_UNKNOWN); /* data is not for the relay itself */
    CHECK_INT(behind(0x7a12, 0, 0, data, 100), MN_CLASS_UNKNOWN);
    CHECK_INT(behind(0x7a12, 0, 1, data, 31), MN_CLASS_UNKNOWN);
    CHECK_INT(behind(0x7a12, 0, 1, initiation, 147), MN_CLASS_UNKNOWN);
    CHECK_INT(behind(0x7a12, 0, 1, disco, 100), MN_CLASS_UNKNOWN);
    CHECK_INT(behind(0x7a11, 0, 1, data, 100), MN_CLASS_UNKNOWN);
    CHECK_INT(behind(0x7a11, 0x40, 1, disco, 100), MN_CLASS_UNKNOWN);
    CHECK_INT(behind(0x6558, 0, 1, disco, 100), MN_CLASS_UNKNOWN);
    uint8_t with_options[108] = {1, 0, 0x7a, 0x11, 0, 0, 1};
    memcpy(with_options + 8, disco, 100);
    CHECK_INT(mn_classify(with_options, 108), MN_CLASS_UNKNOWN);
}

static void test_short_and_random(void)
{
    uint64_t seed = 1;
    for (int i = 0; i < 200000 / MN_TEST_SLOW; i++) {
        size_t len = test_random(&seed) % 64;
        uint8_t *p = malloc(len != 0 ? len : 1); /* exact size: a sanitizer sees any byte too far */
        CHECK(p != NULL);
        test_random_bytes(&seed, p, len);
        if (len < 20)
            CHECK_INT(mn_classify(p, len), MN_CLASS_UNKNOWN);
        else
            (void)mn_classify(p, len);
        free(p);
    }
}

int main(void)
{
    RUN(test_wireguard_lengths);
    RUN(test_reserved_bytes_are_zero);
    RUN(test_disco);
    RUN(test_stun);
    RUN(test_behind_a_peer_relay);
    RUN(test_short_and_random);
    return 0;
}
