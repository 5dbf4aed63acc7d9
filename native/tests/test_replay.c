/* The replay window: a table by meaning, fills, and a model that remembers everything. WG-12. */
#include "check.h"
#include "wg/replay.h"

#define LIMIT MN_REJECT_AFTER_MESSAGES
enum { WINDOW = MN_REPLAY_WINDOW, EDGE = WINDOW + 1 };

struct step {
    uint64_t counter;
    bool accepted;
};

/* The cases that the kernel's self-test walks through: first, repeats, backwards, the edge of the window from both
 * sides, jumps beyond it, and the last counters there are. */
static void test_table(void)
{
    static const struct step steps[] = {
        {0, true},
        {1, true},
        {1, false},
        {9, true},
        {8, true},
        {7, true},
        {7, false},
        {EDGE, true},
        {EDGE - 1, true},
        {EDGE - 1, false},
        {EDGE - 2, true},
        {2, true},
        {2, false},
        {EDGE + 16, true},
        {3, false},
        {EDGE + 16, false},
        {EDGE * 4, true},
        {EDGE * 3 + 1, true},
        {10, false},
        {EDGE * 3, false},
        {EDGE * 3 - 1, false},
        {EDGE * 3 + 2, true},
        {EDGE * 3 + 1, false},
        {0, false},
        {LIMIT, false},
        {LIMIT - 1, true},
        {LIMIT, false},
        {LIMIT - 1, false},
        {LIMIT - 2, true},
        {LIMIT + 1, false},
        {LIMIT + 2, false},
        {LIMIT - 2, false},
        {LIMIT - 3, true},
        {0, false},
        {UINT64_MAX, false},
    };
    struct mn_replay r = {0};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        bool seen_new = mn_replay_is_new(&r, steps[i].counter);
        bool got = mn_replay_commit(&r, steps[i].counter);
        if (got != steps[i].accepted || seen_new != got) {
            fprintf(stderr, "step %zu, counter %" PRIu64 "\n", i, steps[i].counter);
            CHECK(got == steps[i].accepted && seen_new == got);
        }
    }
}

static void fill_up(struct mn_replay *r, uint64_t from, uint64_t to)
{
    for (uint64_t c = from; c <= to; c++)
        CHECK(mn_replay_commit(r, c));
}

static void fill_down(struct mn_replay *r, uint64_t from, uint64_t to)
{
    for (uint64_t c = from;; c--) {
        CHECK(mn_replay_commit(r, c));
        if (c == to)
            break;
    }
}

static void test_fills(void)
{
    struct mn_replay r = {0};
    fill_up(&r, 1, WINDOW);
    CHECK(mn_replay_commit(&r, 0) && !mn_replay_commit(&r, 0));

    memset(&r, 0, sizeof r);
    fill_up(&r, 2, WINDOW + 1);
    CHECK(mn_replay_commit(&r, 1) && !mn_replay_commit(&r, 0));

    memset(&r, 0, sizeof r);
    fill_down(&r, WINDOW + 1, 1);
    CHECK(!mn_replay_commit(&r, 0));

    memset(&r, 0, sizeof r);
    fill_down(&r, WINDOW, 0);
    CHECK(mn_replay_commit(&r, WINDOW + 1) && !mn_replay_commit(&r, 0));

    memset(&r, 0, sizeof r);
    fill_up(&r, LIMIT - 1 - WINDOW, LIMIT - 1);
    CHECK(!mn_replay_commit(&r, LIMIT));
}

/* Long random walks: accepted at most once, never when older than the window, always when new and inside it. */
static void run_model(uint64_t seed, uint64_t start)
{
    enum { SPAN = 1 << 17 };
    static uint8_t seen[SPAN];
    struct mn_replay r = {0};
    uint64_t highest = 0, at = 0;
    bool any = false;
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < 200000 / MN_TEST_SLOW; i++) {
        unsigned kind = (unsigned)(test_random(&seed) % 100);
        if (kind < 60)
            at = highest + 1;
        else if (kind < 97)
            at = highest - test_random(&seed) % (kind < 90 ? 200 : 2 * WINDOW);
        else
            at = highest + test_random(&seed) % (kind == 97 ? 20 : 3 * WINDOW);
        if (at >= SPAN)
            at = any ? (highest > at ? 0 : SPAN - 1) : 0;
        bool want = !seen[at] && (!any || at + WINDOW >= highest);
        CHECK(mn_replay_is_new(&r, start + at) == want);
        CHECK(mn_replay_commit(&r, start + at) == want);
        if (want)
            seen[at] = 1;
        if (want && (!any || at > highest))
            highest = at;
        any = any || want;
    }
}

static void test_random_model(void)
{
    for (uint64_t seed = 1; seed <= 10; seed++)
        run_model(seed, 0);
}

int main(void)
{
    RUN(test_table);
    RUN(test_fills);
    RUN(test_random_model);
    return 0;
}
