/* The heap behind timers.h: heap[0] is the earliest; each timer knows its place, so moving one costs O(log n). */
#include "timers.h"

#include <stdlib.h>

static void put(struct mn_timers *t, uint32_t i, struct mn_deadline *d)
{
    t->heap[i] = d;
    d->place = i + 1;
}

static void sift_up(struct mn_timers *t, uint32_t i, struct mn_deadline *d)
{
    while (i > 0 && t->heap[(i - 1) / 2]->at > d->at) {
        put(t, i, t->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    put(t, i, d);
}

static void sift_down(struct mn_timers *t, uint32_t i, struct mn_deadline *d)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= t->count)
            break;
        if (child + 1 < t->count && t->heap[child + 1]->at < t->heap[child]->at)
            child++;
        if (t->heap[child]->at >= d->at)
            break;
        put(t, i, t->heap[child]);
        i = child;
    }
    put(t, i, d);
}

bool mn_timers_reserve(struct mn_timers *t, uint32_t n)
{
    if (n <= t->room)
        return true;
    uint32_t room = t->room < 64 ? 64 : t->room;
    while (room < n)
        room *= 2;
    struct mn_deadline **heap = realloc(t->heap, room * sizeof *heap);
    if (heap == NULL)
        return false;
    t->heap = heap;
    t->room = room;
    return true;
}

void mn_timers_arm(struct mn_timers *t, struct mn_deadline *d, uint64_t at)
{
    uint64_t before = d->at;
    d->at = at;
    if (d->place == 0) {
        if (t->count == t->room)
            return; /* excluded by mn_timers_reserve */
        sift_up(t, t->count++, d);
    } else if (at < before) {
        sift_up(t, d->place - 1, d);
    } else {
        sift_down(t, d->place - 1, d);
    }
}

void mn_timers_cancel(struct mn_timers *t, struct mn_deadline *d)
{
    if (d->place == 0)
        return;
    uint32_t i = d->place - 1;
    struct mn_deadline *last = t->heap[--t->count];
    d->place = 0;
    if (last == d)
        return;
    if (i > 0 && t->heap[(i - 1) / 2]->at > last->at)
        sift_up(t, i, last);
    else
        sift_down(t, i, last);
}

struct mn_deadline *mn_timers_pop(struct mn_timers *t, uint64_t now_ns)
{
    if (t->count == 0 || t->heap[0]->at > now_ns)
        return NULL;
    struct mn_deadline *d = t->heap[0];
    mn_timers_cancel(t, d);
    return d;
}

void mn_timers_free(struct mn_timers *t)
{
    free(t->heap);
    *t = (struct mn_timers){0};
}
