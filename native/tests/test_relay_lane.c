/* What waits for a connection: order, bounds, age, memory given back. */
#include "../relay/lane.h"
#include "check.h"

static uint8_t g_out[1 << 20];

static bool put(struct mn_relay_lane *l, struct mn_chunks *c, uint8_t tag, size_t n, uint32_t now, uint32_t max,
                uint64_t *dropped)
{
    static uint8_t body[200000];
    memset(body, tag, n);
    struct iovec parts[] = {{&tag, 1}, {body, n - 1}};
    return mn_lane_put(l, c, parts, 2, now, max, dropped);
}

static void test_frames_leave_in_order_and_memory_goes_back(void)
{
    struct mn_chunks c;
    struct mn_relay_lane l = {0};
    uint64_t dropped = 0;
    mn_chunks_init(&c, 1000);
    for (int i = 0; i < 100; i++)
        CHECK(put(&l, &c, (uint8_t)i, 1000 + (size_t)i * 7, 1, 1 << 20, &dropped));
    CHECK_INT(l.count, 100);
    CHECK(c.used >= 6);
    size_t at = 0;
    for (int i = 0; i < 100;) {
        size_t n = mn_lane_take(&l, &c, g_out, 5000, 1, 0, &dropped);
        CHECK(n > 0 && n <= 5000);
        for (at = 0; at < n; i++) {
            size_t len = 1000 + (size_t)i * 7;
            CHECK_INT(g_out[at], i);
            CHECK_INT(g_out[at + len - 1], i);
            at += len;
        }
        CHECK_INT(at, n);
    }
    CHECK_INT(dropped, 0);
    CHECK_INT(c.used, 0);
    CHECK(l.first == NULL && l.bytes == 0);
    mn_chunks_destroy(&c);
}

static void test_the_oldest_gives_way(void)
{
    struct mn_chunks c;
    struct mn_relay_lane l = {0};
    uint64_t dropped = 0;
    mn_chunks_init(&c, 1000);
    for (int i = 0; i < 10; i++)
        CHECK(put(&l, &c, (uint8_t)i, 1000, 1, 5000, &dropped));
    CHECK_INT(dropped, 5);
    CHECK_INT(l.bytes, 5000);
    CHECK_INT(mn_lane_take(&l, &c, g_out, sizeof g_out, 1, 0, &dropped), 5000);
    CHECK_INT(g_out[0], 5);
    CHECK_INT(g_out[4999], 9);
    /* One frame above the bound is still kept: a lane is never useless. */
    CHECK(put(&l, &c, 7, 6000, 1, 5000, &dropped));
    CHECK_INT(l.count, 1);
    mn_lane_clear(&l, &c);
    CHECK_INT(c.used, 0);
    mn_chunks_destroy(&c);
}

static void test_old_frames_are_not_sent(void)
{
    struct mn_chunks c;
    struct mn_relay_lane l = {0};
    uint64_t dropped = 0;
    mn_chunks_init(&c, 1000);
    put(&l, &c, 1, 100, UINT32_MAX - 10, 1 << 20, &dropped);
    put(&l, &c, 2, 100, 50, 1 << 20, &dropped); /* the clock has wrapped */
    CHECK_INT(mn_lane_age(&l, 60), 71);
    CHECK_INT(mn_lane_take(&l, &c, g_out, sizeof g_out, 100, 60, &dropped), 100);
    CHECK_INT(g_out[0], 2);
    CHECK_INT(dropped, 1);
    CHECK_INT(mn_lane_age(&l, 100), 0);
    mn_chunks_destroy(&c);
}

static void test_memory_is_bounded_over_all_lanes(void)
{
    struct mn_chunks c;
    struct mn_relay_lane a = {0}, b = {0};
    uint64_t dropped = 0;
    mn_chunks_init(&c, 3);
    CHECK(put(&a, &c, 1, 30000, 1, 1 << 20, &dropped)); /* two chunks */
    CHECK(put(&b, &c, 2, 10000, 1, 1 << 20, &dropped));
    CHECK(!put(&b, &c, 3, 30000, 1, 1 << 20, &dropped)); /* its own oldest went, and still there is no room */
    CHECK_INT(dropped, 2);
    CHECK_INT(b.count, 0);
    CHECK_INT(a.count, 1);
    CHECK_INT(c.used, 2);
    CHECK_INT(mn_lane_take(&a, &c, g_out, sizeof g_out, 1, 0, &dropped), 30000);
    CHECK_INT(c.used, 0);
    mn_chunks_destroy(&c);
}

static void test_any_sizes(void)
{
    struct mn_chunks c;
    struct mn_relay_lane l = {0};
    uint64_t dropped = 0, seed = 7;
    size_t in = 0, out = 0;
    mn_chunks_init(&c, 100000);
    for (int i = 0; i < 20000 / MN_TEST_SLOW; i++) {
        if (test_random(&seed) % 3 != 0) {
            size_t n = 1 + test_random(&seed) % (test_random(&seed) % 50 == 0 ? 70000 : 1500);
            CHECK(put(&l, &c, (uint8_t)n, n, 1, UINT32_MAX, &dropped));
            in += n;
        } else {
            out += mn_lane_take(&l, &c, g_out, 70000 + test_random(&seed) % 100000, 1, 0, &dropped);
        }
        CHECK_INT(l.bytes, in - out);
    }
    mn_lane_clear(&l, &c);
    CHECK_INT(c.used, 0);
    CHECK_INT(dropped, 0);
    mn_chunks_destroy(&c);
}

int main(void)
{
    RUN(test_frames_leave_in_order_and_memory_goes_back);
    RUN(test_the_oldest_gives_way);
    RUN(test_old_frames_are_not_sent);
    RUN(test_memory_is_bounded_over_all_lanes);
    RUN(test_any_sizes);
    return 0;
}
