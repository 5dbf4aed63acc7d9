/* When the engine looks again rather than sleeps. */
#include "check.h"
#include "engine/spin.h"

enum { US = 1000, MS = 1000 * 1000 };

/* `count` turns that found something, `gap` apart, each 5 us long; returns when the last one ended. */
static uint64_t work(struct mn_spin *s, uint64_t now, unsigned count, uint64_t gap)
{
    while (count-- > 0) {
        now += gap;
        mn_spin_worked(s, now, now + 5 * US);
        now += 5 * US;
    }
    return now;
}

static void test_an_idle_engine_sleeps(void)
{
    struct mn_spin s;
    mn_spin_init(&s, 0);
    CHECK(!mn_spin_wanted(&s, 0));
    uint64_t now = work(&s, 0, 20, 10 * MS);
    CHECK(!mn_spin_wanted(&s, now));
}

static void test_one_packet_after_a_pause_is_no_reason(void)
{
    struct mn_spin s;
    mn_spin_init(&s, 0);
    uint64_t now = work(&s, 1000ull * MS, 1, 0);
    CHECK(!mn_spin_wanted(&s, now));
}

static void test_steady_work_is_waited_for_and_not_for_long(void)
{
    struct mn_spin s;
    mn_spin_init(&s, 0);
    uint64_t now = work(&s, 0, 100, 60 * US);
    CHECK(mn_spin_wanted(&s, now));
    CHECK(mn_spin_wanted(&s, now + MN_SPIN_NS - 1));
    CHECK(!mn_spin_wanted(&s, now + MN_SPIN_NS));
    now = work(&s, now, 30, MN_SPIN_GAP_NS + 50 * US);
    CHECK(!mn_spin_wanted(&s, now));
}

static void test_a_core_that_somebody_computes_on_is_left_alone(void)
{
    struct mn_spin s;
    mn_spin_init(&s, 0);
    uint64_t now = work(&s, 0, 100, 60 * US);
    mn_spin_yielded(&s, now, now + 30 * US);
    CHECK(mn_spin_wanted(&s, now));
    mn_spin_yielded(&s, now, now + 3 * MS);
    uint64_t again = now + 3 * MS + MN_SPIN_REST_NS;
    now = work(&s, now, 200, 60 * US); /* 13 ms */
    CHECK(now < again);
    CHECK(!mn_spin_wanted(&s, now));
    now = work(&s, now, 400, 60 * US);
    CHECK(now > again);
    CHECK(mn_spin_wanted(&s, now));
}

int main(void)
{
    RUN(test_an_idle_engine_sleeps);
    RUN(test_one_packet_after_a_pause_is_no_reason);
    RUN(test_steady_work_is_waited_for_and_not_for_long);
    RUN(test_a_core_that_somebody_computes_on_is_left_alone);
    return 0;
}
