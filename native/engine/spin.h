/* When the engine looks again rather than sleeps: for a moment after work, while work keeps coming.
 *
 * Waking a thread that sleeps costs 5 to 50 us, most of a small request's time. So as long as the mean pause between
 * turns that found something is short, the thread goes on looking for MN_SPIN_NS after each; then it sleeps, and an
 * idle engine costs nothing. Between looks it yields: on a machine whose cores are all busy, the application that
 * is to answer may be waiting for this very core. A yield that took long means that somebody computes there; then
 * there is no looking for a while, since each yield gives that one a whole slice.
 * Times are in nanoseconds of one clock, given by the caller. */
#ifndef MN_ENGINE_SPIN_H
#define MN_ENGINE_SPIN_H

#include <stdbool.h>
#include <stdint.h>

enum {
    MN_SPIN_NS = 50 * 1000,             /* about what a wake-up costs: more would lose more than it can win */
    MN_SPIN_GAP_NS = 150 * 1000,        /* a small request and its answer, there and back */
    MN_SPIN_LONG_YIELD_NS = 400 * 1000, /* more than an application takes to answer one of them */
    MN_SPIN_REST_NS = 20 * 1000 * 1000,
};

struct mn_spin {
    uint64_t worked_at; /* when a turn last did something */
    uint64_t gap_ns;    /* mean pause between such turns */
    uint64_t rests_until;
};

void mn_spin_init(struct mn_spin *s, uint64_t now);
/* A turn that began at began_at and ended now found something to do. */
void mn_spin_worked(struct mn_spin *s, uint64_t began_at, uint64_t now);
bool mn_spin_wanted(const struct mn_spin *s, uint64_t now);
/* A yield took so long. */
void mn_spin_yielded(struct mn_spin *s, uint64_t before, uint64_t now);

#endif
