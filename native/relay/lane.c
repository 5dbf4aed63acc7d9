/* Records of (length, time, frame) in a chain of chunks. */
#include "lane.h"

#include <stdlib.h>
#include <string.h>

enum { ROOM = sizeof(((struct mn_chunk *)0)->bytes), HEAD = 8 };

struct head {
    uint32_t len, at_ms;
};
_Static_assert(sizeof(struct head) == HEAD, "a record's head has no holes");

/* ---- chunks ---- */

void mn_chunks_init(struct mn_chunks *c, uint32_t max)
{
    *c = (struct mn_chunks){.max = max};
}

void mn_chunks_destroy(struct mn_chunks *c)
{
    while (c->free != NULL) {
        struct mn_chunk *next = c->free->next;
        free(c->free);
        c->free = next;
    }
    c->kept = 0;
}

static struct mn_chunk *take_chunk(struct mn_chunks *c)
{
    struct mn_chunk *k = c->free;
    if (c->used >= c->max)
        return NULL;
    if (k != NULL) {
        c->free = k->next;
        c->kept--;
    } else if ((k = malloc(sizeof *k)) == NULL) {
        return NULL;
    }
    c->used++;
    k->next = NULL;
    return k;
}

static void give_chunk(struct mn_chunks *c, struct mn_chunk *k)
{
    c->used--;
    if (c->kept == MN_CHUNKS_KEPT) {
        free(k);
        return;
    }
    k->next = c->free;
    c->free = k;
    c->kept++;
}

/* ---- bytes ---- */

/* Chunks enough for n bytes more; none is linked in if one cannot be had. */
static bool make_room(struct mn_relay_lane *l, struct mn_chunks *c, size_t n)
{
    size_t room = l->last != NULL ? ROOM - l->last_at : 0;
    struct mn_chunk *first = NULL, **end = &first;
    while (room < n) {
        struct mn_chunk *k = take_chunk(c);
        if (k == NULL) {
            while (first != NULL) {
                struct mn_chunk *next = first->next;
                give_chunk(c, first);
                first = next;
            }
            return false;
        }
        *end = k;
        end = &k->next;
        room += ROOM;
    }
    if (first == NULL)
        return true;
    if (l->last == NULL) {
        l->first = l->last = first;
        l->first_at = l->last_at = 0;
    } else {
        l->last->next = first;
    }
    return true;
}

static void append(struct mn_relay_lane *l, const void *from, size_t n)
{
    const uint8_t *p = from;
    struct mn_chunk *k = l->last; /* make_room has linked in what is needed behind it */
    while (n > 0 && k != NULL) {
        size_t room = ROOM - l->last_at, part = n < room ? n : room;
        memcpy(k->bytes + l->last_at, p, part);
        l->last_at += (uint32_t)part;
        p += part;
        n -= part;
        if (n == 0)
            break;
        k = l->last = k->next;
        l->last_at = 0;
    }
}

/* Copy n bytes from the front, or only pass over them (out NULL). Chunks that are done go back. */
static void consume(struct mn_relay_lane *l, struct mn_chunks *c, uint8_t *out, size_t n)
{
    while (n > 0) {
        if (l->first_at == ROOM) {
            struct mn_chunk *next = l->first->next;
            give_chunk(c, l->first);
            l->first = next;
            l->first_at = 0;
        }
        size_t here = ROOM - l->first_at, k = n < here ? n : here;
        if (out != NULL) {
            memcpy(out, l->first->bytes + l->first_at, k);
            out += k;
        }
        l->first_at += (uint32_t)k;
        n -= k;
    }
}

static struct head peek(const struct mn_relay_lane *l)
{
    struct head h;
    uint8_t bytes[HEAD];
    const struct mn_chunk *k = l->first;
    uint32_t at = l->first_at;
    for (int i = 0; i < HEAD; i++) {
        if (at == ROOM) {
            k = k->next;
            at = 0;
        }
        bytes[i] = k->bytes[at++];
    }
    memcpy(&h, bytes, sizeof h);
    return h;
}

static void note_taken(struct mn_relay_lane *l, struct mn_chunks *c, uint32_t len)
{
    l->bytes -= len;
    if (--l->count > 0)
        return;
    mn_lane_clear(l, c);
}

static void drop_oldest(struct mn_relay_lane *l, struct mn_chunks *c, uint64_t *dropped)
{
    struct head h = peek(l);
    consume(l, c, NULL, HEAD + (size_t)h.len);
    note_taken(l, c, h.len);
    (*dropped)++;
}

/* ---- the face ---- */

bool mn_lane_put(struct mn_relay_lane *l, struct mn_chunks *c, const struct iovec *parts, int n, uint32_t now_ms,
                 uint32_t max_bytes, uint64_t *dropped)
{
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += parts[i].iov_len;
    while (l->count > 0 && l->bytes + len > max_bytes)
        drop_oldest(l, c, dropped);
    while (!make_room(l, c, HEAD + len)) {
        if (l->count == 0) {
            (*dropped)++;
            return false;
        }
        drop_oldest(l, c, dropped);
    }
    struct head h = {(uint32_t)len, now_ms};
    append(l, &h, sizeof h);
    for (int i = 0; i < n; i++)
        append(l, parts[i].iov_base, parts[i].iov_len);
    l->bytes += (uint32_t)len;
    l->count++;
    return true;
}

size_t mn_lane_take(struct mn_relay_lane *l, struct mn_chunks *c, uint8_t *out, size_t cap, uint32_t now_ms,
                    uint32_t max_age_ms, uint64_t *dropped)
{
    size_t at = 0;
    while (l->count > 0) {
        struct head h = peek(l);
        if (max_age_ms != MN_LANE_NO_AGE && now_ms - h.at_ms > max_age_ms) {
            drop_oldest(l, c, dropped);
            continue;
        }
        if (h.len > cap - at)
            break;
        consume(l, c, NULL, HEAD);
        consume(l, c, out + at, h.len);
        at += h.len;
        note_taken(l, c, h.len);
    }
    return at;
}

uint32_t mn_lane_age(const struct mn_relay_lane *l, uint32_t now_ms)
{
    return l->count > 0 ? now_ms - peek(l).at_ms : 0;
}

void mn_lane_clear(struct mn_relay_lane *l, struct mn_chunks *c)
{
    while (l->first != NULL) {
        struct mn_chunk *next = l->first->next;
        give_chunk(c, l->first);
        l->first = next;
    }
    *l = (struct mn_relay_lane){0};
}
