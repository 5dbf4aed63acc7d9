/* Two stacks in virtual time over a bad link: every byte exactly once and in order, FIN and RST told truly, every
 * connection ends, nothing leaks. Many seeds; a failure names its own. */
#include "world.h"

static uint64_t g_seed;

static void world_on_accept(struct world_side *d, struct world_end *e)
{
    struct world *w = d->w;
    e->to_write = world_random(w) % 4 == 0 ? 0 : world_random(w) % (1 + (1U << (world_random(w) % 18)));
    e->greed = world_random(w) % 3 == 0 ? (uint32_t)(500 + world_random(w) % 30000) : 0;
}

/* Once an end has written everything it says so, or closes, or (rarely) aborts. */
static void end_actions(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        struct world_side *d = &w->side[i];
        for (int k = 0; k < d->end_count; k++) {
            struct world_end *e = &d->ends[k];
            if (!e->is_open || e->fin_sent || e->written < e->to_write)
                continue;
            if (e->fin_seen && world_random(w) % 2 == 0) {
                e->fin_sent = true;
                e->is_orphaned = true;
                e->is_open = false;
                mn_tcp_close(d->s, e->conn, w->now);
            } else if (e->fin_seen || world_random(w) % 4 != 0) {
                e->fin_sent = true;
                mn_tcp_shutdown(d->s, e->conn, w->now);
            }
        }
    }
}

static bool all_done(const struct world *w)
{
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < w->side[i].end_count; k++)
            if (!w->side[i].ends[k].is_closed && !w->side[i].ends[k].is_orphaned)
                return false;
    return true;
}

static void check_drained(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        const struct mn_stack_stats *t = mn_stack_stats(w->side[i].s);
        CHECK_INT(t->tcp_conns, 0);
        CHECK_INT(t->tcp_half_open, 0);
        CHECK_INT(t->tcp_time_wait, 0);
        CHECK_INT(t->ring_bytes, 0);
        CHECK_INT(t->drop_checksum, 0);
        CHECK_INT(t->drop_malformed, 0);
        CHECK_INT(mn_stack_next_deadline(w->side[i].s), MN_DEADLINE_NONE);
    }
}

static void run_to_end(struct world *w, uint64_t limit, uint64_t max_steps)
{
    uint64_t until = w->now + limit, steps = 0;
    while (!all_done(w)) {
        end_actions(w);
        CHECK(world_step(w));
        CHECK(w->now < until);
        CHECK(++steps < max_steps);
    }
    while (world_step(w))
        CHECK(++steps < max_steps && w->now < until + 1000 * MN_SECOND);
    check_drained(w);
}

static const struct world_end *twin_of(const struct world *w, const struct world_end *e)
{
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < w->side[i].end_count; k++)
            if (w->side[i].ends[k].key == e->peer_key)
                return &w->side[i].ends[k];
    CHECK(false);
    return NULL;
}

static void check_ends(const struct world *w)
{
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < w->side[i].end_count; k++) {
            const struct world_end *e = &w->side[i].ends[k];
            if (e->is_failed && e->err == ETIMEDOUT && w->loss > 0.1)
                continue; /* seven SYNs in a row can be unlucky */
            CHECK(e->is_connected);
            /* Keepalives and last ACKs may all be lost on such a link; what was said must have arrived. */
            if (e->err != 0 && w->loss >= 0.05) {
                const struct world_end *t = twin_of(w, e);
                CHECK(t->fin_seen && t->read == e->written);
                continue;
            }
            CHECK_INT(e->err, 0);
            CHECK(e->fin_seen);
            CHECK_INT(e->written, e->to_write);
        }
    }
}

static void shape_link(struct world *w)
{
    static const double losses[] = {0, 0, 0.001, 0.01, 0.05, 0.2};
    static const uint64_t delays[] = {0, 1000, MN_MS, 20 * MN_MS, 75 * MN_MS};
    w->loss = losses[world_random(w) % 6];
    w->delay = delays[world_random(w) % 5];
    w->duplicate = world_random(w) % 3 == 0 ? 0.05 : 0;
    w->reorder = world_random(w) % 3 == 0 ? 0.25 : 0;
    w->jitter = world_random(w) % 3 == 0 ? w->delay / 4 : 0;
    w->no_buffer = world_random(w) % 4 == 0 ? 0.05 : 0;
    if (world_random(w) % 5 == 0) {
        w->cut_from = w->now + world_random(w) % MN_SECOND;
        w->cut_until = w->cut_from + world_random(w) % (10 * MN_SECOND);
    }
}

static void run_seed(uint64_t seed, uint64_t *trace)
{
    struct world *w = malloc(sizeof *w);
    struct mn_stack_config cfg = {.mtu = WORLD_MTU};
    g_seed = seed;
    CHECK(w != NULL);
    if (seed % 3 == 0)
        cfg.rcvbuf_max = cfg.sndbuf_max = 16384U << (seed % 4);
    world_start(w, seed, &cfg);
    shape_link(w);
    int conns = 1 + (int)(world_random(w) % 6);
    for (int i = 0; i < conns; i++) {
        int from = (int)(world_random(w) % 2), to = world_random(w) % 8 == 0 ? from : 1 - from;
        uint64_t bytes = world_random(w) % (1 + (1U << (world_random(w) % 20)));
        int k = world_connect(w, from, to, world_random(w) % 2 == 0, bytes);
        w->side[from].ends[k].greed = world_random(w) % 3 == 0 ? (uint32_t)(500 + world_random(w) % 30000) : 0;
    }
    run_to_end(w, (w->loss > 0.1 ? 12U : 1U) * 3600 * MN_SECOND, 2000000);
    check_ends(w);
    *trace = w->trace;
    world_stop(w);
    free(w);
}

static void test_seeds(void)
{
    uint64_t first = 1, count = 4000 / MN_TEST_SLOW, trace;
    if (getenv("SEED") != NULL) {
        first = strtoull(getenv("SEED"), NULL, 10);
        count = 1;
    }
    if (getenv("SEEDS") != NULL)
        count = strtoull(getenv("SEEDS"), NULL, 10);
    for (uint64_t i = 0; i < count; i++)
        run_seed(first + i, &trace);
}

static void test_same_seed_same_packets(void)
{
    uint64_t a, b;
    run_seed(7, &a);
    run_seed(7, &b);
    CHECK_INT(a, b);
}

/* Aborts at random moments: the other side never sees a clean end it should not. */
static void run_abort_seed(uint64_t seed)
{
    struct world *w = malloc(sizeof *w);
    g_seed = seed;
    CHECK(w != NULL);
    world_start(w, seed, NULL);
    shape_link(w);
    int k = world_connect(w, 0, 1, seed % 2 == 0, 1 + world_random(w) % 300000);
    uint64_t steps = world_random(w) % 200, n = 0;
    int who = (int)(world_random(w) % 2);
    bool is_close = world_random(w) % 2 == 0;
    while (n++ < steps && !all_done(w) && world_step(w))
        end_actions(w);
    struct world_side *d = &w->side[who];
    struct world_end *e = d->end_count > 0 ? &d->ends[0] : NULL;
    bool acted = e != NULL && !e->is_closed && !e->is_orphaned && e->conn != 0;
    (void)k;
    if (acted) {
        e->is_orphaned = true;
        e->is_open = false;
        if (is_close) {
            e->fin_sent = true;
            mn_tcp_close(d->s, e->conn, w->now);
        } else {
            mn_tcp_abort(d->s, e->conn, w->now);
        }
    }
    run_to_end(w, 7200 * MN_SECOND, 2000000);
    world_stop(w);
    free(w);
}

static void test_aborts(void)
{
    for (uint64_t seed = 1; seed <= 3000 / MN_TEST_SLOW; seed++)
        run_abort_seed(seed);
}

static void report_seed(void)
{
    if (g_seed != 0)
        fprintf(stderr, "last seed: %llu\n", (unsigned long long)g_seed);
}

int main(void)
{
    atexit(report_seed);
    RUN(test_seeds);
    RUN(test_same_seed_same_packets);
    RUN(test_aborts);
    g_seed = 0;
    return 0;
}
