/* Other relays of the region: those that watch who is here, and those through which others are reached. */
#include "hub_internal.h"

#include <stdlib.h>

/* ---- they watch ---- */

void mn_hub_watch(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    if (c->is_watcher)
        return;
    for (uint32_t i = 0; i < h->size; i++)
        for (struct mn_hub_key *k = h->buckets[i]; k != NULL; k = k->next)
            if (k->live != NULL)
                mn_hub_tell_present(h, c, k->live, now_ms);
    c->is_watcher = true;
    c->prev_watcher = NULL;
    c->next_watcher = h->watchers;
    if (h->watchers != NULL)
        h->watchers->prev_watcher = c;
    h->watchers = c;
    h->stats.watchers++;
}

void mn_hub_unwatch(struct mn_hub *h, struct mn_hub_client *c)
{
    if (!c->is_watcher)
        return;
    if (c->prev_watcher != NULL)
        c->prev_watcher->next_watcher = c->next_watcher;
    else
        h->watchers = c->next_watcher;
    if (c->next_watcher != NULL)
        c->next_watcher->prev_watcher = c->prev_watcher;
    c->is_watcher = false;
    h->stats.watchers--;
}

/* ---- they carry ---- */

void mn_hub_route_add(struct mn_hub *h, struct mn_hub_client *via, const uint8_t key[MN_RELAY_KEY])
{
    struct mn_hub_key *k = mn_hub_key_find(h, key);
    uint32_t n = 0;
    for (struct mn_hub_route *r = k != NULL ? k->routes : NULL; r != NULL; r = r->next, n++)
        if (r->via == via)
            return;
    struct mn_hub_route *r = n < MN_HUB_ROUTES_MAX ? malloc(sizeof *r) : NULL;
    if (r == NULL) {
        h->stats.no_memory++;
        return;
    }
    k = k != NULL ? k : mn_hub_key_need(h, key);
    if (k == NULL) {
        free(r);
        return;
    }
    mn_hub_key_count(h, k, -1);
    *r = (struct mn_hub_route){via, k->routes};
    k->routes = r;
    mn_hub_key_count(h, k, 1);
}

void mn_hub_route_remove(struct mn_hub *h, struct mn_hub_client *via, const uint8_t key[MN_RELAY_KEY], uint32_t now_ms)
{
    struct mn_hub_key *k = mn_hub_key_find(h, key);
    if (k == NULL)
        return;
    struct mn_hub_route **at = &k->routes;
    while (*at != NULL && (*at)->via != via)
        at = &(*at)->next;
    struct mn_hub_route *r = *at;
    if (r == NULL)
        return;
    mn_hub_key_count(h, k, -1);
    *at = r->next;
    free(r);
    mn_hub_key_count(h, k, 1);
    if (k->conns == 0 && k->routes == NULL)
        mn_hub_key_drop(h, k, now_ms);
}

/* Rare, so all keys are looked through. */
void mn_hub_drop_routes(struct mn_hub *h, struct mn_hub_client *via, uint32_t now_ms)
{
    for (uint32_t i = 0; i < h->size; i++) {
        for (struct mn_hub_key *k = h->buckets[i], *next; k != NULL; k = next) {
            next = k->next;
            mn_hub_route_remove(h, via, k->key, now_ms);
        }
    }
}
