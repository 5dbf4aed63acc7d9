/* Throughput of one flow between two of our stacks in virtual time, over loss, delay, reordering, duplication,
 * corruption and bandwidth, beside the table kept in golden/throughput.txt.
 *
 *     test_golden            compare some rows: goodput within 3 %, or 0.02 Mbit/s where that is more
 *     test_golden --all      compare every row
 *     test_golden --write    run all and replace the table; look at the difference before keeping it
 *     test_golden --show     run all and print
 *
 * The same seed gives the same packets, so on one build the figures are exact; the tolerance is for compilers and their
 * floating point. A change of the sender that moves a row by more must show the new table, and say why it is better.
 * The link is what tests/bench/loss.py uses on real sockets: the impairments hold both ways, half the RTT each way, a
 * reordered packet up to RTT/8 + 0.5 ms late, a drop-tail queue of one bandwidth-delay product, at least 100 packets.
 * A row is the mean over seeds, slow start included. Virtual time has no CPU: a row without loss is the link's rate.
 */
#include <libgen.h>

#include "world.h"

enum {
    SEEDS = 4,
    ROWS_MAX = 64,
};

struct row {
    double loss, rtt_ms, reorder, duplicate, corrupt; /* per cent, but for the RTT */
    double rate_mbit;
    uint32_t queue; /* packets; 0: one bandwidth-delay product */
    double seconds;
    /* found */
    double mbit, resent; /* resent: retransmissions per hundred segments that the link lost */
    double timeouts;
};

static void world_on_accept(struct world_side *d, struct world_end *e)
{
    (void)d, (void)e;
}

static void run_once(struct row *r, uint64_t seed)
{
    struct world *w = malloc(sizeof *w);
    CHECK(w != NULL);
    world_start(w, seed, NULL);
    w->is_greedy = true;
    w->delay = (uint64_t)(r->rtt_ms * 5e5);
    w->late = w->delay / 4 + MN_MS / 2;
    w->rate = (uint64_t)(r->rate_mbit * 1e6 / 8);
    uint64_t bdp = (uint64_t)((double)w->rate * r->rtt_ms / 1e3), least = (uint64_t)100 * WORLD_MTU;
    w->queue = r->queue > 0 ? (uint64_t)r->queue * WORLD_MTU : bdp > least ? bdp : least;
    int k = world_connect(w, 0, 1, false, UINT64_MAX / 2);
    struct world_end *e = &w->side[0].ends[k];
    while (!e->is_connected)
        CHECK(world_step(w));
    /* A handshake that loses packets would be measured otherwise. */
    w->loss = r->loss / 100;
    w->reorder = r->reorder / 100;
    w->duplicate = r->duplicate / 100;
    w->corrupt = r->corrupt / 100;
    uint64_t until = w->now + (uint64_t)(r->seconds * 1e9);
    while (w->now < until)
        CHECK(world_step(w));
    CHECK(w->side[1].end_count == 1);
    const struct mn_stack_stats *t = mn_stack_stats(w->side[0].s);
    uint64_t gone = w->lost + w->queue_full + mn_stack_stats(w->side[1].s)->drop_checksum;
    r->mbit += (double)w->side[1].ends[0].read * 8 / r->seconds / 1e6 / SEEDS;
    r->resent += gone > 0 ? (double)t->tcp_retransmits * 100 / (double)gone / SEEDS : 0;
    r->timeouts += (double)t->tcp_timeouts / SEEDS;
    world_stop(w);
    free(w);
}

static int make_rows(struct row *rows)
{
    static const double losses[] = {0, 0.1, 1, 5, 20}, rtts[] = {0, 40, 150};
    int n = 0;
    for (int l = 0; l < 5; l++)
        for (int t = 0; t < 3; t++)
            for (int o = 0; o < 2; o++)
                rows[n++] = (struct row){.loss = losses[l],
                                         .rtt_ms = rtts[t],
                                         .reorder = o * 25,
                                         .rate_mbit = 100,
                                         .seconds = l >= 3   ? 40
                                                    : t == 0 ? 3
                                                             : 8};
    static const struct row more[] = {
        {.rtt_ms = 40, .duplicate = 5, .rate_mbit = 100, .seconds = 4},
        {.rtt_ms = 40, .loss = 1, .duplicate = 5, .rate_mbit = 100, .seconds = 30},
        {.rtt_ms = 40, .corrupt = 1, .rate_mbit = 100, .seconds = 30},
        {.rtt_ms = 40, .loss = 1, .reorder = 25, .duplicate = 5, .corrupt = 1, .rate_mbit = 100, .seconds = 30},
        {.rtt_ms = 40, .rate_mbit = 1, .seconds = 30},
        {.rtt_ms = 40, .rate_mbit = 10, .seconds = 10},
        {.rtt_ms = 40, .rate_mbit = 1000, .seconds = 1.5},
        {.rtt_ms = 150, .rate_mbit = 10, .seconds = 20},
        {.rtt_ms = 50, .rate_mbit = 100, .queue = 20, .seconds = 10},  /* T-14: a shallow queue */
        {.rtt_ms = 66, .rate_mbit = 100, .reorder = 50, .seconds = 6}, /* T-08 */
        {.rtt_ms = 600, .rate_mbit = 10, .loss = 0.1, .seconds = 60},
    };
    memcpy(rows + n, more, sizeof more);
    n += (int)(sizeof more / sizeof *more);
    CHECK(n <= ROWS_MAX);
    return n;
}

static void run_row(struct row *r)
{
    r->mbit = r->resent = r->timeouts = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        run_once(r, seed);
}

static void name_row(const struct row *r, char *out, size_t room)
{
    char queue[16] = "bdp";
    if (r->queue > 0)
        snprintf(queue, sizeof queue, "%u", r->queue);
    snprintf(out, room, "%5g %5g %7g %4g %7g %6g %5s", r->loss, r->rtt_ms, r->reorder, r->duplicate, r->corrupt,
             r->rate_mbit, queue);
}

static const char g_head[] = "# Written by test_golden --write; see test_golden.c.\n"
                             "# loss%  rtt reorder% dup% corrupt%  Mbit/s queue | goodput Mbit/s, resent per 100 lost, "
                             "timeouts\n";

static void print_row(FILE *file, const struct row *r)
{
    char name[128];
    name_row(r, name, sizeof name);
    fprintf(file, "%s | %9.3f %8.1f %7.1f\n", name, r->mbit, r->resent, r->timeouts);
}

static void write_all(const char *path, struct row *rows, int n)
{
    FILE *file = path == NULL ? stdout : fopen(path, "w");
    CHECK(file != NULL);
    fputs(g_head, file);
    for (int i = 0; i < n; i++) {
        run_row(&rows[i]);
        print_row(file, &rows[i]);
        fflush(file);
    }
    if (path != NULL)
        fclose(file);
}

/* The kept goodput of a row; the table must have it. */
static double kept(FILE *file, const struct row *r)
{
    char line[256], name[128];
    name_row(r, name, sizeof name);
    rewind(file);
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0)
            return strtod(line + strlen(name) + 2, NULL);
    fprintf(stderr, "the table has no row %s: regenerate it\n", name);
    exit(1);
}

int main(int argc, char **argv)
{
    static struct row rows[ROWS_MAX];
    char here[] = __FILE__, path[512];
    int n = make_rows(rows), bad = 0;
    snprintf(path, sizeof path, "%s/golden/throughput.txt", dirname(here));
    bool is_all = argc > 1 && strcmp(argv[1], "--all") == 0;
    if (argc > 1 && !is_all) {
        bool is_write = strcmp(argv[1], "--write") == 0;
        CHECK(is_write || strcmp(argv[1], "--show") == 0);
        write_all(is_write ? path : NULL, rows, n);
        return 0;
    }
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    /* The suite takes its share of the rows, under sanitizers a smaller one; the figures of a row are the same. */
    int step = is_all ? 1 : MN_TEST_SLOW > 1 ? 10 : 4;
    for (int i = 0; i < n; i += step) {
        run_row(&rows[i]);
        print_row(stdout, &rows[i]);
        double want = kept(file, &rows[i]), slack = want * 0.03 > 0.02 ? want * 0.03 : 0.02;
        if (rows[i].mbit < want - slack || rows[i].mbit > want + slack) {
            fprintf(stderr, "want %.3f Mbit/s:\n", want);
            print_row(stderr, &rows[i]);
            bad++;
        }
    }
    fclose(file);
    CHECK_INT(bad, 0);
    return 0;
}
