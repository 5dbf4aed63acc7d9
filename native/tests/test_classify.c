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
    RUN(test_short_and_random);
    return 0;
}
