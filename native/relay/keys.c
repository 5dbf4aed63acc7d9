/* The keys that the hub knows: one entry for each, found by hash. */
#include "hub_internal.h"

#include <stdlib.h>
#include <string.h>

bool mn_hub_keys_init(struct mn_hub *h)
{
    h->buckets = calloc(MN_HUB_FIRST_BUCKETS, sizeof(struct mn_hub_key *));
    h->size = MN_HUB_FIRST_BUCKETS;
    return h->buckets != NULL;
}

static void free_routes(struct mn_hub_key *k)
{
    while (k->routes != NULL) {
        struct mn_hub_route *next = k->routes->next;
        free(k->routes);
        k->routes = next;
    }
}

void mn_hub_keys_destroy(struct mn_hub *h)
{
    for (uint32_t i = 0; h->buckets != NULL && i < h->size; i++) {
        for (struct mn_hub_key *k = h->buckets[i], *next; k != NULL; k = next) {
            next = k->next;
            free_routes(k);
            free(k);
        }
    }
    free(h->buckets);
    h->buckets = NULL;
}

/* Products of halves keyed by the seed: who does not know it cannot choose keys that collide. */
static uint64_t hash_key(const struct mn_hub *h, const uint8_t key[MN_RELAY_KEY])
{
    uint64_t w[4];
    memcpy(w, key, sizeof w);
    unsigned __int128 a = (unsigned __int128)(w[0] ^ h->seed[0]) * (w[1] ^ h->seed[1]);
    unsigned __int128 b = (unsigned __int128)(w[2] ^ h->seed[2]) * (w[3] ^ h->seed[3]);
    unsigned __int128 c = (unsigned __int128)((uint64_t)a ^ (uint64_t)(a >> 64) ^ h->seed[2]) *
                          ((uint64_t)b ^ (uint64_t)(b >> 64) ^ h->seed[0]);
    return (uint64_t)c ^ (uint64_t)(c >> 64);
}

struct mn_hub_key *mn_hub_key_find(const struct mn_hub *h, const uint8_t key[MN_RELAY_KEY])
{
    uint64_t hash = hash_key(h, key);
    struct mn_hub_key *k = h->buckets[hash & (h->size - 1)];
    while (k != NULL && (k->hash != hash || memcmp(k->key, key, MN_RELAY_KEY) != 0))
        k = k->next;
    return k;
}

static void grow_keys(struct mn_hub *h)
{
    uint32_t size = h->size * 2;
    struct mn_hub_key **buckets = calloc(size, sizeof(struct mn_hub_key *));
    if (buckets == NULL)
        return; /* slower, not broken */
    for (uint32_t i = 0; i < h->size; i++) {
        for (struct mn_hub_key *k = h->buckets[i], *next; k != NULL; k = next) {
            next = k->next;
            k->next = buckets[k->hash & (size - 1)];
            buckets[k->hash & (size - 1)] = k;
        }
    }
    free(h->buckets);
    h->buckets = buckets;
    h->size = size;
}

struct mn_hub_key *mn_hub_key_need(struct mn_hub *h, const uint8_t key[MN_RELAY_KEY])
{
    struct mn_hub_key *k = mn_hub_key_find(h, key);
    if (k != NULL)
        return k;
    if (h->count >= h->size)
        grow_keys(h);
    k = calloc(1, sizeof *k);
    if (k == NULL) {
        h->stats.no_memory++;
        return NULL;
    }
    k->hash = hash_key(h, key);
    memcpy(k->key, key, MN_RELAY_KEY);
    k->next = h->buckets[k->hash & (h->size - 1)];
    h->buckets[k->hash & (h->size - 1)] = k;
    h->count++;
    return k;
}

void mn_hub_key_drop(struct mn_hub *h, struct mn_hub_key *k, uint32_t now_ms)
{
    while (k->receivers != NULL) {
        struct mn_hub_client *receiver = k->receivers->receiver;
        mn_hub_met_remove(h, k->receivers);
        mn_hub_tell_gone(h, receiver, k->key, MN_GONE_DISCONNECTED, now_ms);
    }
    struct mn_hub_key **at = &h->buckets[k->hash & (h->size - 1)];
    while (*at != k)
        at = &(*at)->next;
    *at = k->next;
    h->count--;
    free(k);
}

void mn_hub_key_count(struct mn_hub *h, const struct mn_hub_key *k, int step)
{
    uint32_t by = (uint32_t)step;
    if (k->conns > 0)
        h->stats.keys_local += by;
    else if (k->routes != NULL)
        h->stats.keys_remote += by;
    if (k->conns > 1) {
        h->stats.dup_keys += by;
        h->stats.dup_conns += by * k->conns;
    }
}

struct mn_hub_client *mn_hub_find(const struct mn_hub *h, const uint8_t key[MN_RELAY_KEY])
{
    const struct mn_hub_key *k = mn_hub_key_find(h, key);
    return k != NULL ? k->live : NULL;
}
