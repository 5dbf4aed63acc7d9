/* The timer wheel against a plain list of deadlines. */
#include "check.h"
#include "mem/wheel.h"

enum { TIMERS = 300 };

struct fired {
    struct mn_wheel *w;
    uint64_t want[TIMERS]; /* the model: MN_NEVER if not armed */
    uint64_t seed, before; /* time of the last advance */
    unsigned count;
    bool rearms;
    struct mn_timer *timers;
};

static uint64_t tick_up(uint64_t ns)
{
    return (ns + MN_WHEEL_TICK_NS - 1) / MN_WHEEL_TICK_NS * MN_WHEEL_TICK_NS;
}

static void on_fire(void *ctx, struct mn_timer *t, uint64_t now)
{
    struct fired *f = ctx;
    CHECK(f->want[t->owner] != MN_NEVER);
    CHECK(f->want[t->owner] <= now);
    CHECK(!mn_timer_is_armed(t));
    f->want[t->owner] = MN_NEVER;
    f->count++;
    if (f->rearms && test_random(&f->seed) % 2 == 0) {
        f->want[t->owner] = now + test_random(&f->seed) % 3000000000U;
        mn_wheel_arm(f->w, t, f->want[t->owner]);
    }
    if (f->rearms && test_random(&f->seed) % 8 == 0) { /* a callback may take others out, of this very slot too */
        uint32_t other = (uint32_t)(test_random(&f->seed) % TIMERS);
        mn_wheel_remove(f->w, &f->timers[other]);
        f->want[other] = MN_NEVER;
    }
}

/* Ranges from one tick to far beyond the wheel's own span. */
static uint64_t some_delay(uint64_t *seed)
{
    static const uint64_t spans[] = {1, 8000000, 50000000, 2100000000ULL, 131000000000ULL, 600000000000ULL};
    return test_random(seed) % spans[test_random(seed) % 6];
}

static void check_against_model(struct fired *f, uint64_t now)
{
    uint64_t next = mn_wheel_next(f->w);
    for (unsigned i = 0; i < TIMERS; i++) {
        if (f->want[i] == MN_NEVER)
            continue;
        CHECK(next <= tick_up(f->want[i]) || next <= tick_up(now) + MN_WHEEL_TICK_NS);
        if (f->rearms) /* armed by a callback for a moment that is past: next tick */
            CHECK(f->want[i] + 2 * MN_WHEEL_TICK_NS > now);
        else
            CHECK(tick_up(f->want[i]) > now || f->want[i] > f->before);
    }
}

static void run_random(uint64_t seed, bool rearms)
{
    struct mn_wheel w;
    static struct mn_timer timers[TIMERS];
    struct fired f = {.w = &w, .seed = seed, .rearms = rearms, .timers = timers};
    uint64_t now = test_random(&seed) % 1000000000000ULL;
    mn_wheel_init(&w, now);
    for (uint32_t i = 0; i < TIMERS; i++) {
        mn_timer_init(&timers[i], i, 0);
        f.want[i] = MN_NEVER;
    }
    for (int step = 0; step < 4000 / MN_TEST_SLOW; step++) {
        for (int i = 0; i < 5; i++) {
            uint32_t t = (uint32_t)(test_random(&seed) % TIMERS);
            unsigned what = (unsigned)(test_random(&seed) % 8);
            f.want[t] = what < 6 ? now + some_delay(&seed) : MN_NEVER;
            if (what < 6)
                mn_wheel_arm(&w, &timers[t], f.want[t]);
            else if (what == 6)
                mn_wheel_cancel(&timers[t]);
            else
                mn_wheel_remove(&w, &timers[t]);
        }
        f.before = now;
        now += some_delay(&seed) / (1 + test_random(&seed) % 16);
        mn_wheel_advance(&w, now, on_fire, &f);
        check_against_model(&f, now);
    }
    f.rearms = false;
    mn_wheel_advance(&w, now + 1000000000000ULL, on_fire, &f);
    for (unsigned i = 0; i < TIMERS; i++)
        CHECK(f.want[i] == MN_NEVER);
    CHECK(mn_wheel_next(&w) == MN_NEVER);
    CHECK(f.count > 500 / MN_TEST_SLOW);
}

static void test_random_against_model(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++)
        run_random(seed, false);
}

static void test_callbacks_that_arm_and_remove(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++)
        run_random(seed, true);
}

/* Following next() alone, every timer fires within one tick of its time and none early. */
static void test_next_is_enough(void)
{
    static const uint64_t delays[] = {0,          1,          7999999,      8000000,      8000001,      2047000000,
                                      2048000000, 2056000000, 131000000000, 131072000000, 133000000000, 540000000000};
    for (uint64_t start = 0; start < 5000000000ULL; start += 777777777) {
        for (size_t i = 0; i < sizeof delays / sizeof *delays; i++) {
            struct mn_wheel w;
            struct mn_timer t;
            struct fired f = {.w = &w};
            mn_wheel_init(&w, start);
            mn_timer_init(&t, 0, 0);
            f.want[0] = start + delays[i];
            mn_wheel_arm(&w, &t, f.want[0]);
            uint64_t now = start;
            for (int hops = 0; f.count == 0; hops++) {
                CHECK(hops < 20);
                now = mn_wheel_next(&w);
                CHECK(now != MN_NEVER);
                mn_wheel_advance(&w, now, on_fire, &f);
            }
            CHECK(now >= start + delays[i] && now <= start + delays[i] + 2 * MN_WHEEL_TICK_NS);
        }
    }
}

/* Postponing is a store; a slot that fires nobody costs one early wake-up and no more. */
static void test_postpone(void)
{
    struct mn_wheel w;
    struct mn_timer t;
    struct fired f = {.w = &w};
    mn_wheel_init(&w, 0);
    mn_timer_init(&t, 0, 0);
    mn_wheel_arm(&w, &t, 100000000);
    for (uint64_t due = 200000000; due <= 1000000000; due += 100000000)
        mn_wheel_arm(&w, &t, due);
    f.want[0] = 1000000000;
    mn_wheel_advance(&w, 999000000, on_fire, &f);
    CHECK_INT(f.count, 0);
    mn_wheel_arm(&w, &t, f.want[0] = 1001000000);
    mn_wheel_advance(&w, 1008000000, on_fire, &f);
    CHECK_INT(f.count, 1);
    mn_wheel_arm(&w, &t, 5000000000);
    mn_wheel_arm(&w, &t, f.want[0] = 2000000000); /* earlier is moved */
    mn_wheel_advance(&w, 2000000000, on_fire, &f);
    CHECK_INT(f.count, 2);
}

int main(void)
{
    RUN(test_random_against_model);
    RUN(test_callbacks_that_arm_and_remove);
    RUN(test_next_is_enough);
    RUN(test_postpone);
    return 0;
}
