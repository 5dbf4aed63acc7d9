/* Keys, their connections and routes, and who met whom. */
#include "hub.h"

#include <stdlib.h>
#include <string.h>

#include "../ip/packet.h"

struct mn_hub_route {
    struct mn_hub_client *via;
    struct mn_hub_route *next;
};

struct mn_hub_key {
    struct mn_hub_key *next;
    uint64_t hash;
    uint8_t key[MN_RELAY_KEY];
    struct mn_hub_client *live; /* first of its connections here */
    uint32_t conns;
    struct mn_hub_route *routes; /* neighbours that have it */
    struct mn_hub_met *receivers;
    uint32_t flips[MN_HUB_FLIPS], flip_count;
    bool is_fighting;
};

/* source → receiver: a packet was delivered, so the receiver is told when the source goes. */
struct mn_hub_met {
    struct mn_hub_met *next; /* in its bucket, or free */
    struct mn_hub_key *source;
    struct mn_hub_client *receiver;
    struct mn_hub_met *prev_of_source, *next_of_source;
    struct mn_hub_met *prev_of_receiver, *next_of_receiver;
};

static const char FIGHT_TEXT[] = "another connection uses this node's key; was its state directory copied?";

/* ---- making ---- */

enum { FIRST_BUCKETS = 256 };

bool mn_hub_init(struct mn_hub *h, size_t memory_max, const uint64_t seed[4])
{
    *h = (struct mn_hub){0};
    memcpy(h->seed, seed, sizeof h->seed);
    size_t chunks = memory_max / sizeof(struct mn_chunk);
    mn_chunks_init(&h->chunks, chunks > UINT32_MAX ? UINT32_MAX : (uint32_t)chunks);
    h->buckets = calloc(FIRST_BUCKETS, sizeof(struct mn_hub_key *));
    h->pairs = calloc(FIRST_BUCKETS, sizeof(struct mn_hub_met *));
    h->size = h->pairs_size = FIRST_BUCKETS;
    if (h->buckets != NULL && h->pairs != NULL)
        return true;
    mn_hub_destroy(h);
    return false;
}

static void free_routes(struct mn_hub_key *k)
{
    while (k->routes != NULL) {
        struct mn_hub_route *next = k->routes->next;
        free(k->routes);
        k->routes = next;
    }
}

/* Clients have left by then; keys that only neighbours have may be left. */
void mn_hub_destroy(struct mn_hub *h)
{
    for (uint32_t i = 0; h->buckets != NULL && i < h->size; i++) {
        for (struct mn_hub_key *k = h->buckets[i], *next; k != NULL; k = next) {
            next = k->next;
            free_routes(k);
            free(k);
        }
    }
    while (h->free_met != NULL) {
        struct mn_hub_met *next = h->free_met->next;
        free(h->free_met);
        h->free_met = next;
    }
    free(h->buckets);
    free(h->pairs);
    mn_chunks_destroy(&h->chunks);
    h->buckets = NULL;
    h->pairs = NULL;
}

/* ---- keys ---- */

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

static struct mn_hub_key *find_key(const struct mn_hub *h, const uint8_t key[MN_RELAY_KEY])
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

static struct mn_hub_key *need_key(struct mn_hub *h, const uint8_t key[MN_RELAY_KEY])
{
    struct mn_hub_key *k = find_key(h, key);
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

struct mn_hub_client *mn_hub_find(const struct mn_hub *h, const uint8_t key[MN_RELAY_KEY])
{
    const struct mn_hub_key *k = find_key(h, key);
    return k != NULL ? k->live : NULL;
}

/* ---- who met whom ---- */

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

static void remember(struct mn_hub *h, struct mn_hub_key *source, struct mn_hub_client *receiver)
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

static void forget(struct mn_hub *h, struct mn_hub_met *m)
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

/* ---- lanes ---- */

void mn_hub_mark_dirty(struct mn_hub *h, struct mn_hub_client *c)
{
    if (c->is_dirty)
        return;
    c->is_dirty = true;
    c->next_dirty = NULL;
    if (h->dirty_last != NULL)
        h->dirty_last->next_dirty = c;
    else
        h->dirty_first = c;
    h->dirty_last = c;
}

struct mn_hub_client *mn_hub_next_dirty(struct mn_hub *h)
{
    struct mn_hub_client *c = h->dirty_first;
    if (c == NULL)
        return NULL;
    h->dirty_first = c->next_dirty;
    if (h->dirty_first == NULL)
        h->dirty_last = NULL;
    c->is_dirty = false;
    return c;
}

static void undirty(struct mn_hub *h, struct mn_hub_client *c)
{
    if (!c->is_dirty)
        return;
    struct mn_hub_client *before = NULL;
    for (struct mn_hub_client *at = h->dirty_first; at != c; at = at->next_dirty)
        before = at;
    if (before != NULL)
        before->next_dirty = c->next_dirty;
    else
        h->dirty_first = c->next_dirty;
    if (h->dirty_last == c)
        h->dirty_last = before;
    c->is_dirty = false;
}

static struct iovec piece(const uint8_t *p, size_t n)
{
    struct iovec v = {.iov_len = n};
    memcpy(&v.iov_base, &p, sizeof p);
    return v;
}

void mn_hub_tell(struct mn_hub *h, struct mn_hub_client *c, uint8_t kind, const uint8_t *payload, size_t len,
                 uint32_t now_ms)
{
    uint8_t head[MN_FRAME_HEADER];
    mn_frame_write_header(head, kind, (uint32_t)len);
    struct iovec parts[] = {piece(head, sizeof head), piece(payload, len)};
    uint32_t max = c->may_mesh ? MN_HUB_MESH_BYTES : MN_HUB_URGENT_BYTES; /* a watcher may hear of thousands at once */
    mn_lane_put(&c->urgent, &h->chunks, parts, 2, now_ms, max, &h->stats.drop_disco_queue_head);
    mn_hub_mark_dirty(h, c);
}

static void tell_gone(struct mn_hub *h, struct mn_hub_client *c, const uint8_t key[MN_RELAY_KEY],
                      enum mn_gone_reason why, uint32_t now_ms)
{
    uint8_t payload[MN_RELAY_KEY + 1];
    memcpy(payload, key, MN_RELAY_KEY);
    payload[MN_RELAY_KEY] = (uint8_t)why;
    if (why == MN_GONE_DISCONNECTED)
        h->stats.gone_disconnected_frames++;
    else
        h->stats.gone_not_here_frames++;
    mn_hub_tell(h, c, MN_FRAME_PEER_GONE, payload, sizeof payload, now_ms);
}

static void tell_present(struct mn_hub *h, struct mn_hub_client *watcher, const struct mn_hub_client *c,
                         uint32_t now_ms)
{
    uint8_t payload[MN_RELAY_KEY + 16 + 2 + 1];
    memcpy(payload, c->key, MN_RELAY_KEY);
    memcpy(payload + MN_RELAY_KEY, c->source.ip.b, 16);
    mn_store16(payload + MN_RELAY_KEY + 16, c->source.port);
    payload[MN_RELAY_KEY + 18] = c->flags;
    mn_hub_tell(h, watcher, MN_FRAME_PEER_PRESENT, payload, sizeof payload, now_ms);
}

/* A packet into the lanes of c. */
static void deliver(struct mn_hub *h, struct mn_hub_client *c, const uint8_t source[MN_RELAY_KEY],
                    const uint8_t *packet, size_t len, uint32_t now_ms)
{
    uint8_t head[MN_FRAME_HEADER];
    bool is_disco = mn_frame_is_disco(packet, len);
    mn_frame_write_header(head, MN_FRAME_RECV_PACKET, (uint32_t)(MN_RELAY_KEY + len));
    struct iovec parts[] = {piece(head, sizeof head), piece(source, MN_RELAY_KEY), piece(packet, len)};
    uint64_t *dropped = is_disco ? &h->stats.drop_disco_queue_head : &h->stats.drop_queue_head, before = *dropped;
    mn_lane_put(is_disco ? &c->urgent : &c->data, &h->chunks, parts, 3, now_ms,
                is_disco ? MN_HUB_URGENT_BYTES : MN_HUB_DATA_BYTES, dropped);
    c->dropped += *dropped - before;
    mn_hub_mark_dirty(h, c);
}

static void forward(struct mn_hub *h, struct mn_hub_client *via, const uint8_t source[MN_RELAY_KEY],
                    const uint8_t target[MN_RELAY_KEY], const uint8_t *packet, size_t len, uint32_t now_ms)
{
    uint8_t head[MN_FRAME_HEADER];
    mn_frame_write_header(head, MN_FRAME_FORWARD_PACKET, MN_RELAY_KEY + MN_RELAY_KEY + (uint32_t)len);
    struct iovec parts[] = {piece(head, sizeof head), piece(source, MN_RELAY_KEY), piece(target, MN_RELAY_KEY),
                            piece(packet, len)};
    bool is_disco = mn_frame_is_disco(packet, len);
    mn_lane_put(is_disco ? &via->urgent : &via->data, &h->chunks, parts, 4, now_ms, MN_HUB_MESH_BYTES,
                is_disco ? &h->stats.drop_disco_queue_head : &h->stats.drop_queue_head);
    h->stats.forwarded_out++;
    mn_hub_mark_dirty(h, via);
}

size_t mn_hub_take(struct mn_hub *h, struct mn_hub_client *c, uint8_t *out, size_t cap, uint32_t now_ms)
{
    uint32_t before = c->urgent.count + c->data.count;
    size_t n = mn_lane_take(&c->urgent, &h->chunks, out, cap, now_ms, MN_LANE_NO_AGE, &h->stats.drop_age);
    if (c->urgent.count == 0)
        n += mn_lane_take(&c->data, &h->chunks, out + n, cap - n, now_ms, MN_HUB_DATA_AGE_MS, &h->stats.drop_age);
    uint32_t taken = before - c->urgent.count - c->data.count;
    c->tx_bytes += n;
    c->tx_packets += taken;
    h->stats.packets_sent += taken;
    h->stats.bytes_sent += n;
    return n;
}

/* ---- coming and going ---- */

static void count_key(struct mn_hub *h, const struct mn_hub_key *k, int step)
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

static void link_live(struct mn_hub_key *k, struct mn_hub_client *c)
{
    c->prev = NULL;
    c->next = k->live;
    if (k->live != NULL)
        k->live->prev = c;
    k->live = c;
}

static void unlink_conn(struct mn_hub_key *k, struct mn_hub_client *c)
{
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        k->live = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    c->prev = c->next = NULL;
}

static bool is_regular(const struct mn_hub_client *c)
{
    return !c->is_neighbour;
}

bool mn_hub_join(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    c->gone_left = MN_HUB_GONE_BURST;
    c->gone_at_ms = now_ms;
    c->is_joined = true;
    h->stats.clients++;
    if (!is_regular(c))
        return true; /* reached by its routes alone, not by a key */
    struct mn_hub_key *k = need_key(h, c->key);
    if (k == NULL) {
        c->is_joined = false;
        h->stats.clients--;
        return false;
    }
    count_key(h, k, -1);
    c->entry = k;
    link_live(k, c);
    if (++k->conns > 1)
        h->stats.dup_conns_total++;
    count_key(h, k, 1);
    if ((c->flags & MN_PRESENT_NOT_IDEAL) != 0)
        h->stats.not_ideal++;
    for (struct mn_hub_client *w = h->watchers; w != NULL; w = w->next_watcher)
        tell_present(h, w, c, now_ms);
    return true;
}

/* Nobody here and no neighbour has the key: those who heard from it are told, once. */
static void drop_key(struct mn_hub *h, struct mn_hub_key *k, uint32_t now_ms)
{
    while (k->receivers != NULL) {
        struct mn_hub_client *receiver = k->receivers->receiver;
        forget(h, k->receivers);
        tell_gone(h, receiver, k->key, MN_GONE_DISCONNECTED, now_ms);
    }
    struct mn_hub_key **at = &h->buckets[k->hash & (h->size - 1)];
    while (*at != k)
        at = &(*at)->next;
    *at = k->next;
    h->count--;
    free(k);
}

static void end_fight(struct mn_hub *h, struct mn_hub_key *k, uint32_t now_ms)
{
    if (!k->is_fighting)
        return;
    k->is_fighting = false;
    k->flip_count = 0;
    mn_hub_tell(h, k->live, MN_FRAME_HEALTH, NULL, 0, now_ms);
}

static void leave_key(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    struct mn_hub_key *k = c->entry;
    count_key(h, k, -1);
    unlink_conn(k, c);
    k->conns--;
    c->entry = NULL;
    count_key(h, k, 1);
    for (struct mn_hub_client *w = h->watchers; w != NULL && k->conns == 0; w = w->next_watcher)
        if (w != c)
            tell_gone(h, w, k->key, MN_GONE_DISCONNECTED, now_ms);
    if (k->conns == 1)
        end_fight(h, k, now_ms);
    if (k->conns == 0 && k->routes == NULL)
        drop_key(h, k, now_ms);
}

static void unwatch(struct mn_hub *h, struct mn_hub_client *c)
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

/* Every route by a neighbour that is gone. Rare, so all keys are looked through. */
static void drop_routes(struct mn_hub *h, struct mn_hub_client *via, uint32_t now_ms)
{
    for (uint32_t i = 0; i < h->size; i++) {
        for (struct mn_hub_key *k = h->buckets[i], *next; k != NULL; k = next) {
            next = k->next;
            mn_hub_route_remove(h, via, k->key, now_ms);
        }
    }
}

void mn_hub_leave(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    if (!c->is_joined)
        return;
    c->is_joined = false;
    h->stats.clients--;
    mn_hub_set_home(h, c, false);
    unwatch(h, c);
    while (c->met != NULL)
        forget(h, c->met);
    h->stats.drop_gone_disconnected += c->data.count;
    if (is_regular(c)) {
        if ((c->flags & MN_PRESENT_NOT_IDEAL) != 0)
            h->stats.not_ideal--;
        leave_key(h, c, now_ms);
    } else {
        drop_routes(h, c, now_ms);
    }
    mn_lane_clear(&c->urgent, &h->chunks);
    mn_lane_clear(&c->data, &h->chunks);
    undirty(h, c);
}

void mn_hub_note_activity(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    struct mn_hub_key *k = c->entry;
    if (k == NULL || k->live == c)
        return;
    unlink_conn(k, c);
    link_live(k, c);
    if (k->flip_count == MN_HUB_FLIPS) {
        memmove(k->flips, k->flips + 1, sizeof k->flips - sizeof k->flips[0]);
        k->flip_count--;
    }
    k->flips[k->flip_count++] = now_ms;
    if (k->is_fighting || k->flip_count < MN_HUB_FLIPS || now_ms - k->flips[0] > MN_HUB_FIGHT_MS)
        return;
    k->is_fighting = true;
    h->stats.fights++;
    for (struct mn_hub_client *each = k->live; each != NULL; each = each->next)
        mn_hub_tell(h, each, MN_FRAME_HEALTH, (const uint8_t *)FIGHT_TEXT, sizeof FIGHT_TEXT - 1, now_ms);
}

void mn_hub_set_home(struct mn_hub *h, struct mn_hub_client *c, bool is_home)
{
    if (c->is_home == is_home)
        return;
    c->is_home = is_home;
    if (is_home) {
        h->stats.homes++;
        h->stats.home_moves_in++;
    } else {
        h->stats.homes--;
        h->stats.home_moves_out++;
    }
}

void mn_hub_watch(struct mn_hub *h, struct mn_hub_client *c, uint32_t now_ms)
{
    if (c->is_watcher)
        return;
    for (uint32_t i = 0; i < h->size; i++)
        for (struct mn_hub_key *k = h->buckets[i]; k != NULL; k = k->next)
            if (k->live != NULL)
                tell_present(h, c, k->live, now_ms);
    c->is_watcher = true;
    c->prev_watcher = NULL;
    c->next_watcher = h->watchers;
    if (h->watchers != NULL)
        h->watchers->prev_watcher = c;
    h->watchers = c;
    h->stats.watchers++;
}

/* ---- neighbours ---- */

void mn_hub_route_add(struct mn_hub *h, struct mn_hub_client *via, const uint8_t key[MN_RELAY_KEY])
{
    struct mn_hub_key *k = need_key(h, key);
    uint32_t n = 0;
    if (k == NULL)
        return;
    for (struct mn_hub_route *r = k->routes; r != NULL; r = r->next, n++)
        if (r->via == via)
            return;
    struct mn_hub_route *r = n < MN_HUB_ROUTES_MAX ? malloc(sizeof *r) : NULL;
    if (r == NULL) {
        h->stats.no_memory++;
        return;
    }
    count_key(h, k, -1);
    *r = (struct mn_hub_route){via, k->routes};
    k->routes = r;
    count_key(h, k, 1);
}

void mn_hub_route_remove(struct mn_hub *h, struct mn_hub_client *via, const uint8_t key[MN_RELAY_KEY], uint32_t now_ms)
{
    struct mn_hub_key *k = find_key(h, key);
    if (k == NULL)
        return;
    struct mn_hub_route **at = &k->routes;
    while (*at != NULL && (*at)->via != via)
        at = &(*at)->next;
    struct mn_hub_route *r = *at;
    if (r == NULL)
        return;
    count_key(h, k, -1);
    *at = r->next;
    free(r);
    count_key(h, k, 1);
    if (k->conns == 0 && k->routes == NULL)
        drop_key(h, k, now_ms);
}

/* ---- packets ---- */

static bool may_tell_gone(struct mn_hub_client *c, uint32_t now_ms)
{
    uint32_t earned = (now_ms - c->gone_at_ms) / MN_HUB_GONE_EVERY_MS;
    if (earned > 0) {
        c->gone_left = earned >= MN_HUB_GONE_BURST - c->gone_left ? MN_HUB_GONE_BURST : c->gone_left + earned;
        c->gone_at_ms += earned * MN_HUB_GONE_EVERY_MS;
    }
    if (c->gone_left == 0)
        return false;
    c->gone_left--;
    return true;
}

/* Nobody has it. Only DISCO is answered: who sends it asks for a path, and may choose another. */
static void refuse(struct mn_hub *h, struct mn_hub_client *from, const uint8_t to[MN_RELAY_KEY], const uint8_t *packet,
                   size_t len, uint32_t now_ms)
{
    h->stats.drop_unknown_dest++;
    if (mn_frame_is_disco(packet, len) && may_tell_gone(from, now_ms))
        tell_gone(h, from, to, MN_GONE_NOT_HERE, now_ms);
}

static void count_in(struct mn_hub *h, struct mn_hub_client *from, const uint8_t *packet, size_t len)
{
    h->stats.packets_received++;
    h->stats.bytes_received += len;
    h->stats.disco_received += mn_frame_is_disco(packet, len);
    from->rx_packets++;
    from->rx_bytes += len;
}

void mn_hub_send(struct mn_hub *h, struct mn_hub_client *from, const uint8_t to[MN_RELAY_KEY], const uint8_t *packet,
                 size_t len, uint32_t now_ms)
{
    count_in(h, from, packet, len);
    struct mn_hub_key *k = find_key(h, to);
    if (k == NULL || (k->live == NULL && k->routes == NULL)) {
        refuse(h, from, to, packet, len, now_ms);
    } else if (k->live != NULL) {
        if (from->entry != NULL)
            remember(h, from->entry, k->live);
        deliver(h, k->live, from->key, packet, len, now_ms);
    } else {
        forward(h, k->routes->via, from->key, to, packet, len, now_ms);
    }
}

void mn_hub_forward(struct mn_hub *h, struct mn_hub_client *neighbour, const uint8_t from[MN_RELAY_KEY],
                    const uint8_t to[MN_RELAY_KEY], const uint8_t *packet, size_t len, uint32_t now_ms)
{
    count_in(h, neighbour, packet, len);
    h->stats.forwarded_in++;
    struct mn_hub_key *k = find_key(h, to);
    if (k == NULL || k->live == NULL) {
        h->stats.drop_unknown_dest_on_fwd++;
        if (may_tell_gone(neighbour, now_ms))
            tell_gone(h, neighbour, to, MN_GONE_NOT_HERE, now_ms);
        return;
    }
    struct mn_hub_key *source = find_key(h, from);
    if (source != NULL)
        remember(h, source, k->live);
    deliver(h, k->live, from, packet, len, now_ms);
}
