/* Deadlines in order: a binary heap of timers that live inside their owners. Exact to the nanosecond, so that pacing
 * and probes need no second clock. */
#ifndef MN_TCP_TIMERS_H
#define MN_TCP_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

struct mn_deadline {
    uint64_t at;
    uint32_t place; /* in the heap, from 1; 0: not armed */
    uint8_t kind;   /* the owner's */
};

struct mn_timers {
    struct mn_deadline **heap;
    uint32_t count, room;
};

/* Make sure that n timers can be armed at once: arming never fails then. False: no memory. */
bool mn_timers_reserve(struct mn_timers *t, uint32_t n);
void mn_timers_arm(struct mn_timers *t, struct mn_deadline *d, uint64_t at); /* or move */
void mn_timers_cancel(struct mn_timers *t, struct mn_deadline *d);
void mn_timers_free(struct mn_timers *t);

static inline uint64_t mn_timers_next(const struct mn_timers *t)
{
    return t->count == 0 ? UINT64_MAX : t->heap[0]->at;
}

/* Take out the earliest that is due, or NULL. */
struct mn_deadline *mn_timers_pop(struct mn_timers *t, uint64_t now_ns);

#endif
