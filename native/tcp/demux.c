/* Four-tuple → connection, half-open record or TIME-WAIT record: one chained hash, seeded so that peers cannot aim. */
#include <stdlib.h>

#include "internal.h"

static uint32_t hash_tuple(const struct mn_demux *d, const struct mn_tuple *t)
{
    uint64_t w[4], h = d->seed;
    memcpy(w, t->local.b, 16);
    memcpy(w + 2, t->remote.b, 16);
    for (int i = 0; i < 4; i++) {
        h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL;
        h ^= h >> 32;
    }
    h = (h ^ (((uint64_t)t->lport << 16) | t->rport)) * 0x9e3779b97f4a7c15ULL;
    return (uint32_t)(h >> 32);
}

static bool tuple_equal(const struct mn_tuple *a, const struct mn_tuple *b)
{
    return a->lport == b->lport && a->rport == b->rport && mn_ip_equal(&a->remote, &b->remote) &&
           mn_ip_equal(&a->local, &b->local);
}

struct mn_node *mn_demux_find(const struct mn_demux *d, const struct mn_tuple *t)
{
    if (d->size == 0)
        return NULL;
    uint32_t h = hash_tuple(d, t);
    struct mn_node *n = d->buckets[h & (d->size - 1)];
    while (n != NULL && (n->hash != h || !tuple_equal(&n->tuple, t)))
        n = n->next;
    return n;
}

static bool grow(struct mn_demux *d)
{
    uint32_t size = d->size == 0 ? 256 : d->size * 2;
    struct mn_node **buckets = calloc(size, sizeof(struct mn_node *));
    if (buckets == NULL)
        return d->size != 0; /* slower, not broken */
    for (uint32_t i = 0; i < d->size; i++) {
        for (struct mn_node *n = d->buckets[i], *next; n != NULL; n = next) {
            next = n->next;
            n->next = buckets[n->hash & (size - 1)];
            buckets[n->hash & (size - 1)] = n;
        }
    }
    free(d->buckets);
    d->buckets = buckets;
    d->size = size;
    return true;
}

bool mn_demux_add(struct mn_demux *d, struct mn_node *n)
{
    if (d->count >= d->size && !grow(d))
        return false;
    n->hash = hash_tuple(d, &n->tuple);
    n->next = d->buckets[n->hash & (d->size - 1)];
    d->buckets[n->hash & (d->size - 1)] = n;
    d->count++;
    return true;
}

void mn_demux_remove(struct mn_demux *d, struct mn_node *n)
{
    struct mn_node **link = &d->buckets[n->hash & (d->size - 1)];
    while (*link != n)
        link = &(*link)->next;
    *link = n->next;
    d->count--;
}
