/* Lanes of whole records in circular byte buffers. See event.h.
 *
 * A record may wrap around the end of its lane: it is copied in and out in two pieces, which keeps the
 * bookkeeping to a head and a length. */
#include "event.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { SURE_FIRST_CAP = 64 * sizeof(struct mn_event) };

int mn_events_init(struct mn_events *q)
{
    memset(q, 0, sizeof *q);
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->fd < 0)
        return -errno;
    pthread_mutex_init(&q->lock, NULL);
    return 0;
}

static void lane_copy_out(const struct mn_lane *l, size_t offset, void *out, size_t n)
{
    size_t at = (l->head + offset) % l->cap;
    size_t first = l->cap - at < n ? l->cap - at : n;
    memcpy(out, l->buf + at, first);
    memcpy((uint8_t *)out + first, l->buf, n - first);
}

static void lane_copy_in(struct mn_lane *l, size_t offset, const void *in, size_t n)
{
    size_t at = (l->head + offset) % l->cap;
    size_t first = l->cap - at < n ? l->cap - at : n;
    memcpy(l->buf + at, in, first);
    memcpy(l->buf, (const uint8_t *)in + first, n - first);
}

static void lane_skip(struct mn_lane *l, size_t n)
{
    l->head = (l->head + n) % l->cap;
    l->used -= n;
    l->count--;
}

static bool lane_grow(struct mn_lane *l, size_t cap)
{
    uint8_t *bigger = malloc(cap);
    if (bigger == NULL)
        return false;
    if (l->cap > 0 && l->used > 0)
        lane_copy_out(l, 0, bigger, l->used);
    free(l->buf);
    l->buf = bigger;
    l->cap = cap;
    l->head = 0;
    return true;
}

static void lane_append(struct mn_lane *l, const struct mn_event *ev, const uint8_t *data, size_t len)
{
    lane_copy_in(l, l->used, ev, sizeof *ev);
    if (len > 0)
        lane_copy_in(l, l->used + sizeof *ev, data, len);
    l->used += mn_event_size(ev);
    l->count++;
}

void mn_events_destroy(struct mn_events *q)
{
    struct mn_lane *sure = &q->lanes[MN_LANE_SURE];
    while (sure->count > 0) {
        struct mn_event ev;
        lane_copy_out(sure, 0, &ev, sizeof ev);
        if (ev.kind == MN_EV_ACCEPTED || ev.kind == MN_EV_CONNECTED)
            close(ev.fd);
        lane_skip(sure, mn_event_size(&ev));
    }
    for (int i = 0; i < MN_LANES; i++)
        free(q->lanes[i].buf);
    close(q->fd);
    pthread_mutex_destroy(&q->lock);
}

static bool post_sure(struct mn_events *q, const struct mn_event *ev, size_t limit)
{
    struct mn_lane *l = &q->lanes[MN_LANE_SURE];
    struct mn_event record = *ev;
    record.len = 0;
    pthread_mutex_lock(&q->lock);
    bool ok = l->count < limit;
    if (ok && l->used + sizeof record > l->cap)
        ok = lane_grow(l, l->cap == 0 ? SURE_FIRST_CAP : l->cap * 2);
    if (ok) {
        lane_append(l, &record, NULL, 0);
        q->is_dirty = true;
    } else {
        q->lost++;
        q->lost_total++;
    }
    pthread_mutex_unlock(&q->lock);
    return ok;
}

bool mn_events_post(struct mn_events *q, const struct mn_event *ev)
{
    return post_sure(q, ev, SIZE_MAX);
}

bool mn_events_post_hint(struct mn_events *q, const struct mn_event *ev)
{
    return post_sure(q, ev, MN_EVENT_HINT_MAX);
}

static void drop_oldest(struct mn_events *q, struct mn_lane *l)
{
    struct mn_event oldest;
    lane_copy_out(l, 0, &oldest, sizeof oldest);
    lane_skip(l, mn_event_size(&oldest));
    q->lost++;
    q->lost_total++;
}

void mn_events_post_data(struct mn_events *q, enum mn_event_lane lane, struct mn_event *ev, const uint8_t *data,
                         size_t len)
{
    struct mn_lane *l = &q->lanes[lane];
    size_t cap = lane == MN_LANE_RELAY ? MN_EVENT_RELAY_BYTES : MN_EVENT_DATAGRAM_BYTES;
    ev->len = (uint32_t)len;
    pthread_mutex_lock(&q->lock);
    if (len > 65536 || (l->cap == 0 && !lane_grow(l, cap))) {
        q->lost++;
        q->lost_total++;
    } else {
        while (l->used + mn_event_size(ev) > l->cap)
            drop_oldest(q, l);
        lane_append(l, ev, data, len);
        q->is_dirty = true;
    }
    pthread_mutex_unlock(&q->lock);
}

bool mn_events_has_room(struct mn_events *q)
{
    pthread_mutex_lock(&q->lock);
    bool room = q->lanes[MN_LANE_SURE].count < MN_EVENT_SURE_MAX;
    pthread_mutex_unlock(&q->lock);
    return room;
}

void mn_events_signal(struct mn_events *q)
{
    if (!q->is_dirty)
        return;
    q->is_dirty = false;
    pthread_mutex_lock(&q->lock);
    bool wake = !q->is_signalled;
    q->is_signalled = true;
    pthread_mutex_unlock(&q->lock);
    if (wake)
        (void)eventfd_write(q->fd, 1);
}

static bool take_one(struct mn_lane *l, uint8_t *out, size_t cap, size_t *used)
{
    struct mn_event ev;
    if (l->count == 0)
        return false;
    lane_copy_out(l, 0, &ev, sizeof ev);
    size_t size = mn_event_size(&ev);
    if (*used + size > cap)
        return false;
    lane_copy_out(l, 0, out + *used, size);
    lane_skip(l, size);
    *used += size;
    return true;
}

static void take_lost(struct mn_events *q, uint8_t *out, size_t cap, size_t *used, size_t *count)
{
    struct mn_event ev = {.kind = MN_EV_LOST, .value = q->lost};
    if (q->lost == 0 || *used + sizeof ev > cap)
        return;
    memcpy(out + *used, &ev, sizeof ev);
    *used += mn_event_size(&ev);
    (*count)++;
    q->lost = 0;
}

size_t mn_events_take(struct mn_events *q, uint8_t *out, size_t cap, size_t max, size_t *count)
{
    size_t used = 0, waiting = 0;
    *count = 0;
    pthread_mutex_lock(&q->lock);
    for (int i = 0; i < MN_LANES; i++) {
        while (*count < max && take_one(&q->lanes[i], out, cap, &used))
            (*count)++;
        waiting += q->lanes[i].count;
    }
    if (*count < max)
        take_lost(q, out, cap, &used, count);
    if (waiting == 0 && q->is_signalled) {
        eventfd_t ignored;
        (void)eventfd_read(q->fd, &ignored);
        q->is_signalled = false;
    }
    pthread_mutex_unlock(&q->lock);
    return used;
}
