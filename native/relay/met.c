/* Who met whom: source → receiver, so that the receiver is told when the source goes. */
#include "hub_internal.h"

#include <stdlib.h>

bool mn_hub_met_init(struct mn_hub *h)
{
    h->pairs = calloc(MN_HUB_FIRST_BUCKETS, sizeof(struct mn_hub_met *));
    h->pairs_size = MN_HUB_FIRST_BUCKETS;
    return h->pairs != NULL;
}

void mn_hub_met_destroy(struct mn_hub *h)
{
    while (h->free_met != NULL) {
        struct mn_hub_met *next = h->free_met->next;
        free(h->free_met);
        h->free_met = next;
    }
    free(h->pairs);
    h->pairs = NULL;
}

static uint32_t pair_bucket(const struct mn_hub *h, const struct mn_hub_key *source, const struct mn_hub_client *r)
{
    uint64_t v = (source->hash ^ (uint64_t)(uintptr_t)r) * 0x9e3779b97f4a7c15ULL;
    return (uint32_t)(v >> 32) & (h->pairs_size - 1);
}

static void grow_pairs(struct mn_hub *h)
{
    uint32_t old_size = h->pairs_size;
    struct mn_hub_met **old = h->pairs, **pairs = calloc((size_t)old_size * 2, sizeof(struct mn_hub_met *));
    if (pairs == NULL)
        return;
    h->pairs = pairs;
    h->pairs_size = old_size * 2;
    for (uint32_t i = 0; i < old_size; i++) {
        for (struct mn_hub_met *m = old[i], *next; m != NULL; m = next) {
            next = m->next;
            uint32_t b = pair_bucket(h, m->source, m->receiver);
            m->next = pairs[b];
            pairs[b] = m;
        }
    }
    free(old);
}

void mn_hub_met_add(struct mn_hub *h, struct mn_hub_key *source, struct mn_hub_client *receiver)
{
    uint32_t b = pair_bucket(h, source, receiver);
    for (struct mn_hub_met *m = h->pairs[b]; m != NULL; m = m->next)
        if (m->source == source && m->receiver == receiver)
            return;
    if (h->stats.met >= MN_HUB_MET_MAX) {
        h->stats.met_full++;
        return;
    }
    struct mn_hub_met *m = h->free_met;
    if (m != NULL)
        h->free_met = m->next;
    else if ((m = malloc(sizeof *m)) == NULL) {
        h->stats.no_memory++;
        return;
    }
    if (h->stats.met >= h->pairs_size) {
        grow_pairs(h);
        b = pair_bucket(h, source, receiver);
    }
    *m = (struct mn_hub_met){.next = h->pairs[b],
                             .source = source,
                             .receiver = receiver,
                             .next_of_source = source->receivers,
                             .next_of_receiver = receiver->met};
    if (m->next_of_source != NULL)
        m->next_of_source->prev_of_source = m;
    if (m->next_of_receiver != NULL)
        m->next_of_receiver->prev_of_receiver = m;
    h->pairs[b] = source->receivers = receiver->met = m;
    h->stats.met++;
}

void mn_hub_met_remove(struct mn_hub *h, struct mn_hub_met *m)
{
    struct mn_hub_met **at = &h->pairs[pair_bucket(h, m->source, m->receiver)];
    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    if (m->prev_of_source != NULL)
        m->prev_of_source->next_of_source = m->next_of_source;
    else
        m->source->receivers = m->next_of_source;
    if (m->next_of_source != NULL)
        m->next_of_source->prev_of_source = m->prev_of_source;
    if (m->prev_of_receiver != NULL)
        m->prev_of_receiver->next_of_receiver = m->next_of_receiver;
    else
        m->receiver->met = m->next_of_receiver;
    if (m->next_of_receiver != NULL)
        m->next_of_receiver->prev_of_receiver = m->prev_of_receiver;
    m->next = h->free_met;
    h->free_met = m;
    h->stats.met--;
}
