/* Which ways a message takes: modes, length, the allowance for copies, the mtu that fits a limit. */
#include "../engine/engine.h"
#include "../engine/way.h"
#include "check.h"

#define S 1000000000ull
enum { BOTH = MN_WAY_DIRECT | MN_WAY_RELAY, FULL = 1312 };

static struct mn_peer peer(uint8_t mode)
{
    static const uint8_t raw[4] = {192, 0, 2, 1};
    struct mn_peer p = {.mode = mode, .region = 1, .direct = {.ip = mn_ip_from4(raw), .port = 9}};
    return p;
}

static void test_modes(void)
{
    static const unsigned want[] = {0, MN_WAY_DIRECT, MN_WAY_RELAY, BOTH};
    for (uint8_t mode = 0; mode < 4; mode++) {
        struct mn_peer p = peer(mode);
        CHECK_INT(mn_way_of_data(&p, FULL, S), want[mode]);
        p.direct.port = 0;
        CHECK_INT(mn_way_of_data(&p, FULL, S), want[mode] & MN_WAY_RELAY);
        p = peer(mode);
        p.region = 0;
        CHECK_INT(mn_way_of_data(&p, FULL, S), want[mode] & MN_WAY_DIRECT);
    }
}

static void test_too_long_goes_by_relay_whatever_the_mode(void)
{
    for (uint8_t mode = MN_MODE_DIRECT; mode < MN_MODES; mode++) {
        struct mn_peer p = peer(mode);
        p.limit = 1280;
        if (!mn_way_has_direct(&p))
            continue;
        CHECK_INT(mn_way_of_data(&p, 1280 - 28 + 1, S), MN_WAY_RELAY);
        CHECK((mn_way_of_data(&p, 1280 - 28, S) & MN_WAY_DIRECT) != 0);
        CHECK(!mn_way_is_plain(&p));
        p.region = 0; /* no relay: better in fragments than not at all */
        CHECK_INT(mn_way_of_data(&p, FULL, S), MN_WAY_DIRECT);
    }
    struct mn_peer p = peer(MN_MODE_DIRECT);
    p.direct.ip.b[0] = 0x20; /* IPv6: a longer header */
    p.limit = 1280;
    CHECK_INT(mn_way_of_data(&p, 1280 - 48 + 1, S), MN_WAY_RELAY);
    CHECK_INT(mn_way_of_data(&p, 1280 - 48, S), MN_WAY_DIRECT);
}

/* Sends at this rate for ten seconds; returns how many bytes of copies there were. */
static uint64_t copies(uint8_t mode, size_t len, unsigned per_s, unsigned *direct, unsigned *relay)
{
    struct mn_peer p = peer(mode);
    uint64_t copied = 0;
    *direct = *relay = 0;
    for (unsigned i = 0; i < 10 * per_s; i++) {
        unsigned ways = mn_way_of_data(&p, len, S + (uint64_t)i * S / per_s);
        *direct += (ways & MN_WAY_DIRECT) != 0;
        *relay += (ways & MN_WAY_RELAY) != 0;
        copied += ways == BOTH ? len : 0;
    }
    return copied;
}

static void test_copies_are_bounded(void)
{
    unsigned direct, relay;
    uint64_t copied = copies(MN_MODE_BOTH, FULL, 10000, &direct, &relay);
    CHECK_INT(direct, 100000);
    CHECK(copied > 10u << 20 && copied < (10u << 20) + (600u << 10)); /* 1 MiB/s and a burst */
    copied = copies(MN_MODE_DOUBTED, FULL, 10000, &direct, &relay);
    CHECK_INT(relay, 100000); /* what is in doubt is always relayed */
    CHECK(direct > relay / 8 && direct < relay / 8 + (12u << 20) / FULL);
}

static void test_small_and_slow_are_always_copied(void)
{
    unsigned direct, relay;
    (void)copies(MN_MODE_BOTH, MN_COPY_SMALL - 1, 20000, &direct, &relay);
    CHECK_INT(direct, 200000);
    CHECK_INT(relay, 200000);
    (void)copies(MN_MODE_DOUBTED, FULL, 500, &direct, &relay);
    CHECK_INT(direct, 5000);
    CHECK_INT(relay, 5000);
}

/* A message padded to a multiple of 16 is never longer than the limit, and one more byte inside would be. */
static void test_inner_mtu(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        struct mn_peer p = peer(MN_MODE_DIRECT);
        size_t around = v6 ? 80 : 60;
        if (v6)
            p.direct.ip.b[0] = 0x20;
        CHECK_INT(mn_way_inner_mtu(&p, 1280), 1280);
        for (uint16_t limit = 700; limit < 1400; limit++) {
            p.limit = limit;
            size_t mtu = mn_way_inner_mtu(&p, 1280);
            CHECK(mtu <= 1280 && ((mtu + 15) & ~(size_t)15) + around <= limit);
            CHECK(mtu == 1280 || ((mtu + 16) & ~(size_t)15) + around > limit);
        }
        p.limit = 1280;
        CHECK_INT(mn_way_inner_mtu(&p, 1280), v6 ? 1200 : 1216);
    }
}

int main(void)
{
    RUN(test_modes);
    RUN(test_too_long_goes_by_relay_whatever_the_mode);
    RUN(test_copies_are_bounded);
    RUN(test_small_and_slow_are_always_copied);
    RUN(test_inner_mtu);
    return 0;
}
