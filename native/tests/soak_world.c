/* Gigabytes through two stacks in virtual time, over the impairment grid: many connections both ways, half-closes,
 * closes and aborts in between, links that change under way. Every byte tells its position and is checked where it
 * arrives; a FIN must come behind the last byte that was written, and never after an abort.
 *
 *     soak_world GIB [SEED]      runs rounds until so many GiB were delivered; a failure names the round's seed
 *
 * `make -C native/tests soak` builds it. The same rounds over real sockets and processes are
 * tests/soak/integrity.py's.
 */
#include <time.h>

#include "world.h"

enum {
    CELLS = 30,
    CUTS = WORLD_CONNS,
};

struct soak {
    uint64_t seed, bytes, clean, aborted, failed, timed_out, rounds;
    uint64_t by_cell[CELLS];
};

static uint64_t g_seed;
static uint64_t g_most; /* bytes an end writes at most in this round */

/* Nearly as often a few bytes as many megabytes. */
static uint64_t some_size(struct world *w)
{
    uint64_t most = 1;
    while (most < g_most && world_random(w) % 12 != 0)
        most *= 4;
    return world_random(w) % (most < g_most ? most : g_most);
}

static void world_on_accept(struct world_side *d, struct world_end *e)
{
    e->to_write = some_size(d->w);
    e->greed = world_random(d->w) % 8 == 0 ? (uint32_t)(500 + world_random(d->w) % 30000) : 0;
}

static void leave(struct world_side *d, struct world_end *e, bool is_abort)
{
    e->is_orphaned = true;
    e->is_open = false;
    if (is_abort) {
        mn_tcp_abort(d->s, e->conn, d->w->now);
    } else {
        e->fin_sent = true;
        mn_tcp_close(d->s, e->conn, d->w->now);
    }
}

/* What has been written is ended one way or another; few connections are cut off in the middle. */
static void act(struct world *w, struct soak *k)
{
    for (int i = 0; i < 2; i++) {
        struct world_side *d = &w->side[i];
        for (int n = 0; n < d->end_count; n++) {
            struct world_end *e = &d->ends[n];
            if (!e->is_open)
                continue;
            bool is_doomed = (e->key >> 8 & 15) == 0;
            if (is_doomed && e->read + e->written > (e->key >> 16) % (2 * g_most)) {
                leave(d, e, true);
                k->aborted++;
            } else if (e->fin_sent || e->written < e->to_write) {
                continue;
            } else if (e->fin_seen && (e->key >> 12 & 1) == 0) {
                leave(d, e, false);
            } else {
                e->fin_sent = true;
                mn_tcp_shutdown(d->s, e->conn, w->now);
            }
        }
    }
}

static bool is_over(const struct world *w)
{
    for (int i = 0; i < 2; i++)
        for (int n = 0; n < w->side[i].end_count; n++)
            if (!w->side[i].ends[n].is_closed && !w->side[i].ends[n].is_orphaned)
                return false;
    return true;
}

static void shape(struct world *w, uint32_t cell)
{
    static const double losses[] = {0, 0.001, 0.01, 0.05, 0.2};
    static const uint64_t rtts[] = {0, 40, 150};
    static const uint64_t rates[] = {1000000, 12500000, 12500000, 125000000};
    w->loss = losses[cell / 6];
    w->delay = rtts[cell / 2 % 3] * MN_MS / 2;
    w->reorder = cell % 2 * 0.25;
    w->late = w->delay / 4 + MN_MS / 2;
    w->duplicate = world_random(w) % 3 == 0 ? 0.05 : 0;
    w->corrupt = world_random(w) % 3 == 0 ? 0.01 : 0;
    w->no_buffer = world_random(w) % 8 == 0 ? 0.01 : 0;
    w->rate = w->loss > 0.01 ? 0 : rates[world_random(w) % 4];
    w->queue = (20 + world_random(w) % 400) * WORLD_MTU;
}

static void check_ended(const struct world *w, struct soak *k)
{
    for (int i = 0; i < 2; i++) {
        for (int n = 0; n < w->side[i].end_count; n++) {
            const struct world_end *e = &w->side[i].ends[n];
            k->bytes += e->read;
            if (e->is_closed && e->err == 0 && e->is_connected) {
                CHECK(e->fin_seen && e->fin_sent && e->written == e->to_write);
                k->clean++;
            } else if (e->is_failed) {
                k->failed++;
            } else if (e->is_closed && e->err == ETIMEDOUT) {
                k->timed_out++;
            }
        }
        const struct mn_stack_stats *t = mn_stack_stats(w->side[i].s);
        CHECK_INT(t->tcp_conns, 0);
        CHECK_INT(t->tcp_half_open, 0);
        CHECK_INT(t->ring_bytes, 0);
    }
}

static void run_round(struct soak *k, uint64_t seed)
{
    struct world *w = malloc(sizeof *w);
    uint64_t steps = 0, change_at = 0;
    uint32_t cell = (uint32_t)(seed % CELLS);
    CHECK(w != NULL);
    g_seed = seed;
    world_start(w, seed, NULL);
    w->is_greedy = true;
    shape(w, cell);
    g_most = cell < 12 ? 64U << 20 : cell < 18 ? 16U << 20 : cell < 24 ? 4U << 20 : 1U << 20;
    int conns = 1 + (int)(world_random(w) % 10);
    for (int i = 0; i < conns; i++) {
        int from = (int)(world_random(w) % 2);
        world_connect(w, from, 1 - from, world_random(w) % 2 == 0, some_size(w));
    }
    uint64_t until = w->now + 24ULL * 3600 * MN_SECOND;
    while (!is_over(w)) {
        act(w, k);
        CHECK(world_step(w));
        CHECK(w->now < until);
        CHECK(++steps < 400000000);
        if (w->now < change_at || cell >= 24)
            continue;
        /* Now and then the path is another, no worse than the round's kind. */
        if (change_at != 0)
            shape(w, (uint32_t)(world_random(w) % (cell / 6 * 6 + 6)));
        change_at = w->now + MN_SECOND + world_random(w) % (20 * MN_SECOND);
    }
    while (world_step(w))
        CHECK(w->now < until + 3600 * MN_SECOND);
    uint64_t before = k->bytes;
    check_ended(w, k);
    k->by_cell[cell] += k->bytes - before;
    k->rounds++;
    world_stop(w);
    free(w);
}

static void report_seed(void)
{
    if (g_seed != 0)
        fprintf(stderr, "failed in the round of seed %" PRIu64 "\n", g_seed);
}

static void tell(const struct soak *k)
{
    printf("%.2f GiB in %" PRIu64 " rounds, next seed %" PRIu64 "; ends: %" PRIu64 " clean, %" PRIu64
           " aborted by plan, %" PRIu64 " never connected, %" PRIu64 " timed out\n",
           (double)k->bytes / (1ULL << 30), k->rounds, k->seed, k->clean, k->aborted, k->failed, k->timed_out);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct soak k = {.seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1};
    CHECK(argc > 1);
    double gib = strtod(argv[1], NULL);
    time_t told = time(NULL);
    atexit(report_seed);
    while ((double)k.bytes < gib * (double)(1ULL << 30)) {
        run_round(&k, k.seed++);
        if (time(NULL) - told < 20)
            continue;
        told = time(NULL);
        tell(&k);
    }
    g_seed = 0;
    tell(&k);
    printf("MiB by cell (loss 0, 0.1, 1, 5, 20 %% x RTT 0, 40, 150 ms x reordering 0, 25 %%):");
    for (int i = 0; i < CELLS; i++)
        printf("%s%" PRIu64, i % 6 == 0 ? "\n  " : " ", k.by_cell[i] >> 20);
    printf("\n");
    return 0;
}
