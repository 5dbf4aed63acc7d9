/* The heap of deadlines against a list searched from end to end. */
#include "../tcp/timers.h"
#include "check.h"

enum {
    COUNT = 300,
};

static uint64_t earliest(const struct mn_deadline *d)
{
    uint64_t at = UINT64_MAX;
    for (int i = 0; i < COUNT; i++)
        if (d[i].place != 0 && d[i].at < at)
            at = d[i].at;
    return at;
}

static void check_places(const struct mn_timers *t, const struct mn_deadline *d)
{
    uint32_t armed = 0;
    for (int i = 0; i < COUNT; i++) {
        if (d[i].place == 0)
            continue;
        armed++;
        CHECK(t->heap[d[i].place - 1] == &d[i]);
    }
    CHECK_INT(armed, t->count);
}

static void test_differential(void)
{
    static struct mn_deadline d[COUNT];
    struct mn_timers t = {0};
    uint64_t rng = 9, now = 0;
    CHECK(mn_timers_reserve(&t, COUNT));
    for (int i = 0; i < 200000 / MN_TEST_SLOW; i++) {
        struct mn_deadline *one = &d[test_random(&rng) % COUNT];
        switch (test_random(&rng) % 4) {
        case 0:
        case 1:
            mn_timers_arm(&t, one, now + test_random(&rng) % 1000);
            break;
        case 2:
            mn_timers_cancel(&t, one);
            CHECK_INT(one->place, 0);
            break;
        default: {
            uint64_t due = earliest(d);
            now += test_random(&rng) % 20;
            struct mn_deadline *popped = mn_timers_pop(&t, now);
            CHECK_INT(popped != NULL, due <= now);
            if (popped != NULL)
                CHECK_INT(popped->at, due);
            break;
        }
        }
        CHECK_INT(mn_timers_next(&t), earliest(d));
        if (i % 64 == 0)
            check_places(&t, d);
    }
    mn_timers_free(&t);
}

int main(void)
{
    RUN(test_differential);
    return 0;
}
