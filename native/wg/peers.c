/* The peer table: ids, the hash by public key, what a peer holds, and packets staged until there is a session. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>

#define NIL UINT32_MAX
enum { FIRST_PEERS = 16, FIRST_BUCKETS = 64, INDICES_PER_PEER = 4 };

int mn_peers_init(struct mn_wg *wg)
{
    wg->buckets = malloc(FIRST_BUCKETS * sizeof *wg->buckets);
    if (wg->buckets == NULL)
        return -1;
    wg->bucket_count = FIRST_BUCKETS;
    memset(wg->buckets, 0xff, FIRST_BUCKETS * sizeof *wg->buckets);
    return 0;
}

static uint32_t bucket_of(const struct mn_wg *wg, const uint8_t pub[32])
{
    uint64_t a, b;
    memcpy(&a, pub, 8);
    memcpy(&b, pub + 8, 8);
    uint64_t v = (a ^ wg->hash_seed) * 0x9e3779b97f4a7c15U;
    v = (v ^ v >> 31 ^ b) * 0xbf58476d1ce4e5b9U;
    return (uint32_t)(v >> 32) & (wg->bucket_count - 1);
}

struct mn_wg_peer *mn_peer_by_key(const struct mn_wg *wg, const uint8_t pub[32])
{
    for (uint32_t id = wg->buckets[bucket_of(wg, pub)]; id != NIL; id = wg->peers[id]->hash_next)
        if (memcmp(wg->peers[id]->pub, pub, 32) == 0)
            return wg->peers[id];
    return NULL;
}

static int buckets_grow(struct mn_wg *wg)
{
    if (wg->stats.peers < wg->bucket_count)
        return 0;
    uint32_t count = wg->bucket_count * 2;
    uint32_t *buckets = malloc(count * sizeof *buckets);
    if (buckets == NULL)
        return -1;
    memset(buckets, 0xff, count * sizeof *buckets);
    free(wg->buckets);
    wg->buckets = buckets;
    wg->bucket_count = count;
    for (uint32_t id = 0; id < wg->peer_fresh; id++) {
        struct mn_wg_peer *p = wg->peers[id];
        if (p == NULL)
            continue;
        uint32_t at = bucket_of(wg, p->pub);
        p->hash_next = buckets[at];
        buckets[at] = id;
    }
    return 0;
}

/* The ring of free ids starts anew at 0 of the larger one. */
static int table_grow(struct mn_wg *wg)
{
    uint32_t capacity = wg->peer_capacity == 0 ? FIRST_PEERS : wg->peer_capacity * 2;
    uint32_t *ids = malloc(capacity * sizeof *ids);
    struct mn_wg_peer **peers = ids == NULL ? NULL : realloc(wg->peers, capacity * sizeof *peers);
    if (peers == NULL) {
        free(ids);
        return -1;
    }
    for (uint32_t i = 0; wg->peer_capacity > 0 && i < wg->free_count; i++)
        ids[i] = wg->free_ids[(wg->free_head + i) % wg->peer_capacity];
    free(wg->free_ids);
    wg->free_ids = ids;
    wg->free_head = 0;
    wg->peers = peers;
    wg->peer_capacity = capacity;
    return 0;
}

static int id_take(struct mn_wg *wg, uint32_t *id)
{
    bool may_grow = wg->peer_fresh < wg->config.max_peers + MN_PEERS_FREE_MIN;
    if (wg->free_count > 0 && (wg->free_count >= MN_PEERS_FREE_MIN || !may_grow)) {
        *id = wg->free_ids[wg->free_head];
        wg->free_head = (wg->free_head + 1) % wg->peer_capacity;
        wg->free_count--;
        return 0;
    }
    if (wg->peer_fresh == wg->peer_capacity && table_grow(wg) != 0)
        return -1;
    *id = wg->peer_fresh++;
    wg->peers[*id] = NULL;
    return 0;
}

static void id_put(struct mn_wg *wg, uint32_t id)
{
    wg->peers[id] = NULL;
    wg->free_ids[(wg->free_head + wg->free_count++) % wg->peer_capacity] = id;
}

static int peer_init(struct mn_wg *wg, struct mn_wg_peer *p, const uint8_t pub[32])
{
    p->secret = mn_arena_get(&wg->arena);
    if (p->secret == NULL)
        return MN_WG_E_MEMORY;
    memcpy(p->pub, pub, 32);
    memcpy(p->secret->remote.pub, pub, 32);
    p->last_sent_handshake_ns = p->last_accepted_ns = MN_LONG_AGO;
    p->staged_tail = &p->staged_head;
    if (wg->noise.key != NULL) {
        p->has_ss = mn_noise_shared(&wg->noise, &p->secret->remote) == 0;
        if (!p->has_ss)
            return MN_WG_E_KEY;
    }
    return mn_cookie_jar_init(&p->secret->jar, &wg->noise, pub) == 0 ? 0 : MN_WG_E_CRYPTO;
}

static void peer_destroy(struct mn_wg *wg, struct mn_wg_peer *p)
{
    if (p->secret != NULL)
        mn_arena_put(&wg->arena, p->secret);
    free(p);
}

int mn_wg_peer_add(struct mn_wg *wg, const uint8_t pub[32], uint32_t *peer)
{
    uint32_t id;
    struct mn_wg_peer *p = mn_peer_by_key(wg, pub);
    *peer = MN_PEER_NONE;
    if (p != NULL) {
        *peer = p->id;
        return 0;
    }
    if (wg->noise.key != NULL && memcmp(pub, wg->noise.pub, 32) == 0)
        return MN_WG_E_KEY;
    if (wg->stats.peers >= wg->config.max_peers)
        return MN_WG_E_FULL;
    if (buckets_grow(wg) != 0 || mn_indices_reserve(&wg->indices, INDICES_PER_PEER * (wg->stats.peers + 1)) != 0)
        return MN_WG_E_MEMORY;
    p = calloc(1, sizeof *p);
    int err = p == NULL ? MN_WG_E_MEMORY : peer_init(wg, p, pub);
    if (err == 0 && id_take(wg, &id) != 0)
        err = MN_WG_E_MEMORY;
    if (err != 0) {
        if (p != NULL)
            peer_destroy(wg, p);
        return err;
    }
    p->id = id;
    mn_timers_init(p);
    wg->peers[id] = p;
    uint32_t *bucket = &wg->buckets[bucket_of(wg, pub)];
    p->hash_next = *bucket;
    *bucket = id;
    wg->stats.peers++;
    *peer = id;
    return 0;
}

int mn_wg_peer_remove(struct mn_wg *wg, uint32_t peer)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    mn_peer_forget(wg, p);
    mn_allowedips_remove_peer(&wg->allowedips, peer);
    uint32_t *link = &wg->buckets[bucket_of(wg, p->pub)];
    while (*link != peer)
        link = &wg->peers[*link]->hash_next;
    *link = p->hash_next;
    wg->stats.peers--;
    id_put(wg, peer);
    peer_destroy(wg, p);
    return 0;
}

void mn_peers_destroy(struct mn_wg *wg)
{
    for (uint32_t id = 0; id < wg->peer_fresh; id++)
        if (wg->peers[id] != NULL)
            (void)mn_wg_peer_remove(wg, id);
    free(wg->peers);
    free(wg->free_ids);
    free(wg->buckets);
}

void mn_peer_free_dropped(struct mn_wg *wg, struct mn_session_dropped *dropped)
{
    for (unsigned i = 0; i < dropped->count; i++) {
        mn_index_free(&wg->indices, dropped->items[i]->local_index);
        mn_session_free(dropped->items[i]);
    }
    dropped->count = 0;
}

void mn_peer_wipe_keys(struct mn_wg *wg, struct mn_wg_peer *p)
{
    struct mn_session_dropped all = {.count = 0};
    struct mn_session *held[] = {p->sessions.previous, p->sessions.current, p->sessions.next};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        if (held[i] != NULL)
            all.items[all.count++] = held[i];
    p->sessions = (struct mn_sessions){0};
    mn_peer_free_dropped(wg, &all);
    mn_handshake_clear(wg, p);
}

void mn_peer_forget(struct mn_wg *wg, struct mn_wg_peer *p)
{
    mn_timers_stop(wg, p);
    mn_peer_wipe_keys(wg, p);
    mn_peer_purge_staged(wg, p);
    p->last_sent_handshake_ns = MN_LONG_AGO;
}

struct mn_staged *mn_peer_unstage(struct mn_wg *wg, struct mn_wg_peer *p)
{
    struct mn_staged *oldest = p->staged_head;
    (void)wg;
    if (oldest == NULL)
        return NULL;
    p->staged_head = oldest->next;
    if (p->staged_head == NULL)
        p->staged_tail = &p->staged_head;
    p->staged_count--;
    p->staged_bytes -= (uint32_t)oldest->len;
    return oldest;
}

static bool drop_oldest(struct mn_wg *wg, struct mn_wg_peer *p)
{
    struct mn_staged *oldest = mn_peer_unstage(wg, p);
    if (oldest == NULL)
        return false;
    mn_pool_put(&wg->staging, oldest);
    p->stats.staged_dropped++;
    wg->stats.staged_dropped++;
    return true;
}

void mn_peer_purge_staged(struct mn_wg *wg, struct mn_wg_peer *p)
{
    while (drop_oldest(wg, p))
        ;
}

int mn_peer_stage(struct mn_wg *wg, struct mn_wg_peer *p, const uint8_t *inner, size_t len)
{
    if (len > wg->config.mtu)
        return mn_drop(wg, MN_WG_DROP_TOO_LONG);
    while (p->staged_count >= wg->config.staged_packets ||
           (p->staged_count > 0 && p->staged_bytes + len > wg->config.staged_bytes))
        (void)drop_oldest(wg, p);
    struct mn_staged *s = mn_pool_get(&wg->staging);
    if (s == NULL && drop_oldest(wg, p))
        s = mn_pool_get(&wg->staging);
    if (s == NULL)
        return mn_drop(wg, MN_WG_DROP_STAGE_FULL);
    s->next = NULL;
    s->len = len;
    memcpy(s->msg + MN_WG_HEADER, inner, len);
    *p->staged_tail = s;
    p->staged_tail = &s->next;
    p->staged_count++;
    p->staged_bytes += (uint32_t)len;
    wg->stats.staged++;
    return 0;
}
