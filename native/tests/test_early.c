/* Ranges of early bytes: against a bitmap, in the order that selective acknowledgements need, and within their bound
 * (T-06, T-32). */
#include "../tcp/early.h"
#include "check.h"

enum {
    SPACE = 600,
};

static bool holds(const struct mn_early *e, const struct mn_block *b)
{
    for (uint16_t i = 0; i < e->count; i++)
        if (e->ranges[i].first == b->first && e->ranges[i].end == b->end)
            return true;
    return false;
}

/* Sorted, disjoint, not touching, and exactly the bytes of the map beyond nxt. */
static void check_against(const struct mn_early *e, const uint8_t *map, uint32_t base, uint32_t nxt)
{
    uint32_t bytes = 0;
    for (uint16_t i = 0; i < e->count; i++) {
        const struct mn_block *b = &e->ranges[i];
        CHECK(mn_seq_lt(b->first, b->end));
        CHECK(mn_seq_lt(i == 0 ? nxt : e->ranges[i - 1].end, b->first));
        for (uint32_t s = b->first; s != b->end; s++)
            CHECK(map[s - base] != 0);
        bytes += b->end - b->first;
    }
    for (uint32_t s = nxt - base; s < SPACE; s++)
        bytes -= map[s];
    CHECK_INT(bytes, 0);
}

static void check_told(struct mn_early *e, uint32_t newest, bool is_fresh)
{
    struct mn_block out[4];
    bool had_twice = e->has_twice;
    uint8_t n = mn_early_tell(e, out, 3), from = had_twice ? 1 : 0;
    CHECK(n <= 3 && (n == 3 || n >= e->count));
    for (uint8_t i = from; i < n; i++) {
        CHECK(holds(e, &out[i]));
        for (uint8_t k = from; k < i; k++)
            CHECK(out[k].first != out[i].first);
    }
    if (is_fresh && !had_twice)
        CHECK(n > 0 && newest - out[0].first < out[0].end - out[0].first);
    CHECK_INT(e->untold, 0);
    CHECK(!e->has_twice);
}

static void test_against_a_bitmap(void)
{
    for (uint64_t seed = 1; seed <= 400 / MN_TEST_SLOW; seed++) {
        struct mn_early e = {0};
        uint8_t map[SPACE] = {0};
        uint64_t rng = seed;
        uint32_t base = seed % 2 == 0 ? 1000 : 0xffffff00U, nxt = base; /* also across the wrap */
        for (int i = 0; i < 300; i++) {
            uint32_t at = (uint32_t)(test_random(&rng) % (SPACE - 40)), n = (uint32_t)(1 + test_random(&rng) % 12);
            struct mn_block part;
            bool was_there = false;
            uint32_t there = 0, first = base + at;
            if (mn_seq_le(first, nxt))
                continue;
            for (uint32_t k = n; k-- > 0;) {
                if (map[at + k] != 0) {
                    was_there = true;
                    there = at + k;
                }
            }
            CHECK_INT(mn_early_overlap(&e, first, first + n, &part), was_there);
            if (was_there) {
                CHECK_INT(part.first, base + there);
                CHECK(mn_seq_le(part.end, first + n) && map[part.end - 1 - base] != 0);
            }
            CHECK(mn_early_add(&e, first, first + n));
            memset(map + at, 1, n);
            check_against(&e, map, base, nxt);
            if (i % 3 == 0)
                check_told(&e, first, true);
            if (i % 17 == 0) { /* a hole is filled */
                uint32_t end = nxt + 1 + (uint32_t)(test_random(&rng) % 10);
                if (end - base > SPACE)
                    continue;
                memset(map + (nxt - base), 1, end - nxt);
                nxt = end;
                mn_early_absorb(&e, &nxt);
                check_against(&e, map, base, nxt);
                check_told(&e, first, false);
            }
            if (i == 250) {
                mn_early_cut(&e, base + 400);
                memset(map + 400, 0, SPACE - 400);
                if (mn_seq_lt(nxt, base + 400))
                    check_against(&e, map, base, nxt);
                check_told(&e, first, false);
                break;
            }
        }
        mn_early_free(&e);
    }
}

/* RFC 2018 4: the newest first, then those told before it, most recent first. */
static void test_newest_first(void)
{
    struct mn_early e = {0};
    struct mn_block out[4];
    for (uint32_t i = 1; i <= 5; i++)
        CHECK(mn_early_add(&e, i * 1000, i * 1000 + 100));
    CHECK(mn_early_add(&e, 2100, 2200)); /* grows the second */
    CHECK_INT(mn_early_tell(&e, out, 4), 4);
    CHECK_INT(out[0].first, 2000);
    CHECK_INT(out[0].end, 2200);
    CHECK_INT(out[1].first, 5000);
    CHECK_INT(out[2].first, 4000);
    CHECK_INT(out[3].first, 3000);
    CHECK(mn_early_add(&e, 2200, 4000)); /* joins three: they are one report now */
    CHECK_INT(mn_early_tell(&e, out, 3), 3);
    CHECK_INT(out[0].first, 2000);
    CHECK_INT(out[0].end, 4100);
    CHECK_INT(out[1].first, 5000);
    CHECK_INT(out[2].first, 1000);
    mn_early_free(&e);
}

static void test_twice_comes_first(void)
{
    struct mn_early e = {0};
    struct mn_block out[4];
    CHECK(mn_early_add(&e, 3000, 4000));
    CHECK(mn_early_add(&e, 6000, 7000));
    CHECK(mn_early_note_twice(&e, 500, 600)); /* below what is acknowledged */
    CHECK(mn_early_note_twice(&e, 600, 700)); /* joins */
    CHECK(!mn_early_note_twice(&e, 3000, 3500));
    CHECK_INT(mn_early_tell(&e, out, 3), 3);
    CHECK_INT(out[0].first, 500);
    CHECK_INT(out[0].end, 700);
    CHECK_INT(out[1].first, 6000);
    CHECK(mn_early_note_twice(&e, 3000, 3500)); /* within a range: the range comes second */
    CHECK_INT(mn_early_tell(&e, out, 3), 3);
    CHECK_INT(out[0].first, 3000);
    CHECK_INT(out[0].end, 3500);
    CHECK_INT(out[1].first, 3000);
    CHECK_INT(out[1].end, 4000);
    CHECK_INT(out[2].first, 6000);
    CHECK_INT(mn_early_tell(&e, out, 3), 2); /* told once */
    CHECK_INT(out[0].first, 6000);
    mn_early_free(&e);
}

/* T-32: what a hostile peer can make it hold and do is bounded. Every other byte, from the far end: each insert moves
 * all that is there. */
static void test_hostile_ranges(void)
{
    struct mn_early e = {0};
    uint32_t refused = 0;
    for (uint32_t i = 20000; i > 0; i--)
        refused += mn_early_add(&e, 1 + 2 * i, 2 + 2 * i) ? 0 : 1;
    CHECK_INT(e.count, MN_EARLY_RANGES);
    CHECK_INT(e.room, MN_EARLY_RANGES);
    CHECK_INT(refused, 20000 - MN_EARLY_RANGES);
    uint32_t last = e.ranges[MN_EARLY_RANGES - 1].end;
    CHECK(mn_early_add(&e, e.ranges[0].end, e.ranges[0].end + 1)); /* joining needs no place */
    CHECK_INT(e.count, MN_EARLY_RANGES - 1);
    CHECK(mn_early_add(&e, 1, last));
    CHECK_INT(e.count, 1);
    mn_early_free(&e);
}

int main(void)
{
    RUN(test_against_a_bitmap);
    RUN(test_newest_first);
    RUN(test_twice_comes_first);
    RUN(test_hostile_ranges);
    return 0;
}
