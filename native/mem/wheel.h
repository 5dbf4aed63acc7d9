/* A timer wheel: 256 slots of 8 ms and above them 64 slots of 2.048 s; what lies further waits in the last slot.
 *
 * Owns no timer: they are embedded in their owners. Arm and cancel are O(1), and moving an armed timer later or
 * cancelling it is one store: the timer stays where it is linked, and when its slot comes round it is put where it
 * belongs by then. Deadlines round up to 8 ms; a timer never fires early.
 * A timer's memory may only go after mn_wheel_remove. */
#ifndef MN_MEM_WHEEL_H
#define MN_MEM_WHEEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MN_NEVER UINT64_MAX

enum {
    MN_WHEEL_TICK_NS = 8000000,
    MN_WHEEL_SLOTS = 256,
    MN_WHEEL_FAR = 64,
};

struct mn_timer {
    struct mn_timer *next, **link; /* link NULL: not in the wheel */
    uint64_t due_ns;               /* MN_NEVER: not armed */
    uint64_t tick;                 /* where it is linked */
    uint32_t owner;                /* for the caller: whose timer */
    uint32_t kind;                 /* for the caller: which of the owner's */
};

struct mn_wheel {
    uint64_t tick; /* everything up to here has fired */
    uint64_t near_used[MN_WHEEL_SLOTS / 64], far_used;
    struct mn_timer *near[MN_WHEEL_SLOTS], *far[MN_WHEEL_FAR];
};

/* The timer is disarmed and unlinked when this is called; it may be armed again, others removed. */
typedef void (*mn_wheel_fire)(void *ctx, struct mn_timer *t, uint64_t now_ns);

void mn_wheel_init(struct mn_wheel *w, uint64_t now_ns);
void mn_timer_init(struct mn_timer *t, uint32_t owner, uint32_t kind);
/* due_ns in the past fires at the next tick. */
void mn_wheel_arm(struct mn_wheel *w, struct mn_timer *t, uint64_t due_ns);
void mn_wheel_remove(struct mn_wheel *w, struct mn_timer *t);

static inline void mn_wheel_cancel(struct mn_timer *t)
{
    t->due_ns = MN_NEVER;
}

static inline bool mn_timer_is_armed(const struct mn_timer *t)
{
    return t->due_ns != MN_NEVER;
}

/* A lower bound of the next deadline (a cancelled or postponed timer may have left a slot that fires nobody). */
uint64_t mn_wheel_next(const struct mn_wheel *w);
void mn_wheel_advance(struct mn_wheel *w, uint64_t now_ns, mn_wheel_fire fire, void *ctx);

#endif
