/* The timer wheel. See wheel.h.
 *
 * A timer is linked in near[tick % 256] when its tick is less than 256 ahead, else in far[(tick / 256) % 64], at most
 * 63 turns of the near wheel ahead. When the near wheel comes round, one far slot is dealt out into it. */
#include "wheel.h"

#include <string.h>

enum { NEAR_MASK = MN_WHEEL_SLOTS - 1, FAR_MASK = MN_WHEEL_FAR - 1, NEAR_BITS = 8 };

void mn_wheel_init(struct mn_wheel *w, uint64_t now_ns)
{
    memset(w, 0, sizeof *w);
    w->tick = now_ns / MN_WHEEL_TICK_NS;
}

void mn_timer_init(struct mn_timer *t, uint32_t owner, uint32_t kind)
{
    *t = (struct mn_timer){.due_ns = MN_NEVER, .owner = owner, .kind = kind};
}

static uint64_t tick_of(uint64_t due_ns)
{
    return due_ns / MN_WHEEL_TICK_NS + (due_ns % MN_WHEEL_TICK_NS != 0);
}

static void link_at(struct mn_timer **head, struct mn_timer *t)
{
    t->next = *head;
    t->link = head;
    if (t->next != NULL)
        t->next->link = &t->next;
    *head = t;
}

static void place_near(struct mn_wheel *w, struct mn_timer *t, uint64_t tick)
{
    unsigned slot = (unsigned)(tick & NEAR_MASK);
    t->tick = tick;
    w->near_used[slot / 64] |= 1ULL << (slot % 64);
    link_at(&w->near[slot], t);
}

static void place(struct mn_wheel *w, struct mn_timer *t)
{
    uint64_t tick = tick_of(t->due_ns);
    if (tick <= w->tick)
        tick = w->tick + 1;
    if (tick - w->tick < MN_WHEEL_SLOTS) {
        place_near(w, t, tick);
        return;
    }
    uint64_t turn = tick >> NEAR_BITS, last = (w->tick >> NEAR_BITS) + MN_WHEEL_FAR - 1;
    if (turn > last)
        turn = last;
    unsigned slot = (unsigned)(turn & FAR_MASK);
    t->tick = turn << NEAR_BITS;
    w->far_used |= 1ULL << slot;
    link_at(&w->far[slot], t);
}

static void detach(struct mn_timer *t)
{
    *t->link = t->next;
    if (t->next != NULL)
        t->next->link = t->link;
    t->next = NULL;
    t->link = NULL;
}

void mn_wheel_remove(struct mn_wheel *w, struct mn_timer *t)
{
    (void)w; /* a slot left empty is noticed when its time comes */
    t->due_ns = MN_NEVER;
    if (t->link != NULL)
        detach(t);
}

void mn_wheel_arm(struct mn_wheel *w, struct mn_timer *t, uint64_t due_ns)
{
    if (due_ns == MN_NEVER)
        due_ns--;
    t->due_ns = due_ns;
    if (t->link != NULL) {
        if (tick_of(due_ns) >= t->tick)
            return;
        detach(t);
    }
    place(w, t);
}

/* Slots from `from` on, going round; returns how many steps to the first used one, or slots if there is none. */
static unsigned steps_to_used(const uint64_t *used, unsigned slots, unsigned from)
{
    for (unsigned step = 0; step < slots;) {
        unsigned slot = (from + step) % slots;
        uint64_t word = used[slot / 64] >> (slot % 64);
        if (word != 0) {
            unsigned found = step + (unsigned)__builtin_ctzll(word);
            return found < slots ? found : slots;
        }
        step += 64 - slot % 64;
    }
    return slots;
}

/* The next tick after w->tick at which there is anything to do. */
static uint64_t next_tick(const struct mn_wheel *w)
{
    uint64_t best = MN_NEVER, from = w->tick + 1, turn = (w->tick >> NEAR_BITS) + 1;
    unsigned step = steps_to_used(w->near_used, MN_WHEEL_SLOTS, (unsigned)(from & NEAR_MASK));
    if (step < MN_WHEEL_SLOTS)
        best = from + step;
    step = steps_to_used(&w->far_used, MN_WHEEL_FAR, (unsigned)(turn & FAR_MASK));
    if (step < MN_WHEEL_FAR && (turn + step) << NEAR_BITS < best)
        best = (turn + step) << NEAR_BITS;
    return best;
}

uint64_t mn_wheel_next(const struct mn_wheel *w)
{
    uint64_t tick = next_tick(w);
    return tick > MN_NEVER / MN_WHEEL_TICK_NS ? MN_NEVER : tick * MN_WHEEL_TICK_NS;
}

/* Deal the far slot of this turn out into the near wheel; called while w->tick is the tick before the turn. */
static void deal_out(struct mn_wheel *w, uint64_t turn)
{
    unsigned slot = (unsigned)(turn & FAR_MASK);
    w->far_used &= ~(1ULL << slot);
    struct mn_timer *rest = w->far[slot];
    w->far[slot] = NULL;
    if (rest != NULL)
        rest->link = &rest;
    while (rest != NULL) {
        struct mn_timer *t = rest;
        detach(t);
        if (t->due_ns == MN_NEVER)
            continue;
        uint64_t tick = tick_of(t->due_ns);
        if (tick >> NEAR_BITS <= turn)
            place_near(w, t, tick >> NEAR_BITS < turn ? turn << NEAR_BITS : tick);
        else
            place(w, t);
    }
}

/* Fires see w->tick at the slot's own tick, so what they arm lands in a later slot. */
static void run_slot(struct mn_wheel *w, uint64_t now_ns, mn_wheel_fire fire, void *ctx)
{
    unsigned slot = (unsigned)(w->tick & NEAR_MASK);
    w->near_used[slot / 64] &= ~(1ULL << (slot % 64));
    struct mn_timer *rest = w->near[slot];
    w->near[slot] = NULL;
    if (rest != NULL)
        rest->link = &rest;
    while (rest != NULL) {
        struct mn_timer *t = rest;
        detach(t);
        if (t->due_ns == MN_NEVER)
            continue;
        if (tick_of(t->due_ns) > w->tick) {
            place(w, t);
            continue;
        }
        t->due_ns = MN_NEVER;
        fire(ctx, t, now_ns);
    }
}

void mn_wheel_advance(struct mn_wheel *w, uint64_t now_ns, mn_wheel_fire fire, void *ctx)
{
    uint64_t target = now_ns / MN_WHEEL_TICK_NS;
    for (uint64_t tick; (tick = next_tick(w)) <= target;) {
        if ((tick & NEAR_MASK) == 0) {
            w->tick = tick - 1;
            deal_out(w, tick >> NEAR_BITS);
        }
        w->tick = tick;
        run_slot(w, now_ns, fire, ctx);
    }
    if (target > w->tick)
        w->tick = target;
}
