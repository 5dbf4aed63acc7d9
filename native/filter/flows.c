/* Flow memory: a chained hash over a fixed array, and a doubly linked list in order of use. Nothing is allocated after
 * the first flow of each origin; expiry is lazy. */
#include "flows.h"

#include <stdlib.h>

static uint32_t hash_key(const struct mn_flows *f, const struct mn_flow_key *k)
{
    uint64_t w[4], h = f->seed;
    memcpy(w, k->local.b, 16);
    memcpy(w + 2, k->remote.b, 16);
    for (int i = 0; i < 4; i++)
        h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL, h ^= h >> 32;
    h = (h ^ (((uint64_t)k->local_port << 16) | k->remote_port)) * 0x9e3779b97f4a7c15ULL;
    return (uint32_t)(h >> 40) % MN_FLOWS_BUCKETS;
}

static bool key_equal(const struct mn_flow_key *a, const struct mn_flow_key *b)
{
    return a->local_port == b->local_port && a->remote_port == b->remote_port && mn_ip_equal(&a->remote, &b->remote) &&
           mn_ip_equal(&a->local, &b->local);
}

void mn_flows_init(struct mn_flows *f, uint64_t seed)
{
    memset(f, 0, sizeof *f);
    f->seed = seed;
}

void mn_flows_free(struct mn_flows *f)
{
    free(f->by[0].flows);
    free(f->by[1].flows);
    memset(f, 0, sizeof *f);
}

static void unlink_use(struct mn_flow_lru *l, struct mn_flow *e)
{
    if (e->newer != 0)
        l->flows[e->newer - 1].older = e->older;
    else
        l->newest = e->older;
    if (e->older != 0)
        l->flows[e->older - 1].newer = e->newer;
    else
        l->oldest = e->newer;
}

static void link_newest(struct mn_flow_lru *l, struct mn_flow *e)
{
    uint16_t at = (uint16_t)(e - l->flows + 1);
    e->newer = 0;
    e->older = l->newest;
    if (l->newest != 0)
        l->flows[l->newest - 1].newer = at;
    else
        l->oldest = at;
    l->newest = at;
}

static void drop(struct mn_flow_lru *l, struct mn_flow *e, uint32_t bucket)
{
    uint16_t at = (uint16_t)(e - l->flows + 1);
    uint16_t *link = &l->buckets[bucket];
    while (*link != at)
        link = &l->flows[*link - 1].next;
    *link = e->next;
    unlink_use(l, e);
    e->in_use = false;
    e->next = l->free;
    l->free = at;
    l->count--;
}

static struct mn_flow *find(const struct mn_flow_lru *l, const struct mn_flow_key *k, uint32_t bucket, uint64_t now_ns)
{
    for (uint16_t i = l->buckets[bucket]; i != 0; i = l->flows[i - 1].next) {
        struct mn_flow *e = &l->flows[i - 1];
        if (key_equal(&e->key, k))
            return e->expires_at > now_ns ? e : NULL;
    }
    return NULL;
}

static bool allocate(struct mn_flow_lru *l)
{
    l->flows = calloc(MN_FLOWS_PER_ORIGIN, sizeof *l->flows);
    if (l->flows == NULL)
        return false;
    for (uint32_t i = 0; i + 1 < MN_FLOWS_PER_ORIGIN; i++)
        l->flows[i].next = (uint16_t)(i + 2);
    l->free = 1;
    return true;
}

/* The entry of k, made anew if it is absent or has expired. */
static struct mn_flow *obtain(struct mn_flows *f, enum mn_flow_origin origin, const struct mn_flow_key *k,
                              uint64_t now_ns)
{
    struct mn_flow_lru *l = &f->by[origin];
    uint32_t bucket = hash_key(f, k);
    if (l->flows == NULL && !allocate(l))
        return NULL;
    for (uint16_t i = l->buckets[bucket]; i != 0; i = l->flows[i - 1].next) {
        struct mn_flow *e = &l->flows[i - 1];
        if (!key_equal(&e->key, k))
            continue;
        if (e->expires_at > now_ns)
            return e;
        drop(l, e, bucket);
        break;
    }
    if (l->free == 0) {
        struct mn_flow *oldest = &l->flows[l->oldest - 1];
        drop(l, oldest, hash_key(f, &oldest->key));
        l->evicted++;
    }
    struct mn_flow *e = &l->flows[l->free - 1];
    uint16_t at = l->free;
    l->free = e->next;
    *e = (struct mn_flow){.key = *k, .in_use = true, .next = l->buckets[bucket]};
    l->buckets[bucket] = at;
    link_newest(l, e);
    l->count++;
    return e;
}

static void touch(struct mn_flow_lru *l, struct mn_flow *e, uint64_t now_ns)
{
    e->expires_at = now_ns + (e->sent && e->received ? MN_FLOW_REPLIED_NS : MN_FLOW_UNREPLIED_NS);
    unlink_use(l, e);
    link_newest(l, e);
}

bool mn_flows_on_sent(struct mn_flows *f, const struct mn_flow_key *k, uint64_t now_ns)
{
    struct mn_flow *e = find(&f->by[MN_FLOW_PEERS], k, hash_key(f, k), now_ns);
    enum mn_flow_origin origin = e != NULL ? MN_FLOW_PEERS : MN_FLOW_OURS;
    if (e == NULL)
        e = obtain(f, MN_FLOW_OURS, k, now_ns);
    if (e == NULL)
        return false;
    e->sent = true;
    touch(&f->by[origin], e, now_ns);
    return true;
}

bool mn_flows_on_received(struct mn_flows *f, const struct mn_flow_key *k, uint32_t generation, uint64_t now_ns)
{
    uint32_t bucket = hash_key(f, k);
    struct mn_flow *e = find(&f->by[MN_FLOW_OURS], k, bucket, now_ns);
    if (e != NULL) {
        e->received = true;
        touch(&f->by[MN_FLOW_OURS], e, now_ns);
        return true;
    }
    e = find(&f->by[MN_FLOW_PEERS], k, bucket, now_ns);
    if (e == NULL || e->generation != generation)
        return false;
    e->received = true;
    touch(&f->by[MN_FLOW_PEERS], e, now_ns);
    return true;
}

void mn_flows_on_allowed(struct mn_flows *f, const struct mn_flow_key *k, uint32_t generation, uint64_t now_ns)
{
    struct mn_flow *e = obtain(f, MN_FLOW_PEERS, k, now_ns);
    if (e == NULL)
        return;
    e->generation = generation;
    e->received = true;
    touch(&f->by[MN_FLOW_PEERS], e, now_ns);
}

bool mn_flows_is_live(const struct mn_flows *f, const struct mn_flow_key *k, uint64_t now_ns)
{
    uint32_t bucket = hash_key(f, k);
    return find(&f->by[MN_FLOW_OURS], k, bucket, now_ns) != NULL ||
           find(&f->by[MN_FLOW_PEERS], k, bucket, now_ns) != NULL;
}
