/* Routing: a packet comes in, and goes into the lanes of whoever it is for. */
#include "hub_internal.h"

#include <string.h>

bool mn_hub_init(struct mn_hub *h, size_t memory_max, const uint64_t seed[4])
{
    *h = (struct mn_hub){0};
    memcpy(h->seed, seed, sizeof h->seed);
    size_t chunks = memory_max / sizeof(struct mn_chunk);
    mn_chunks_init(&h->chunks, chunks > UINT32_MAX ? UINT32_MAX : (uint32_t)chunks);
    if (mn_hub_keys_init(h) && mn_hub_met_init(h))
        return true;
    mn_hub_destroy(h);
    return false;
}

/* Clients have left by then; keys that only neighbours have may be left. */
void mn_hub_destroy(struct mn_hub *h)
{
    mn_hub_keys_destroy(h);
    mn_hub_met_destroy(h);
    mn_chunks_destroy(&h->chunks);
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
        mn_hub_tell_gone(h, from, to, MN_GONE_NOT_HERE, now_ms);
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
    struct mn_hub_key *k = mn_hub_key_find(h, to);
    if (k == NULL || (k->live == NULL && k->routes == NULL)) {
        refuse(h, from, to, packet, len, now_ms);
    } else if (k->live != NULL) {
        if (from->entry != NULL)
            mn_hub_met_add(h, from->entry, k->live);
        mn_hub_put_packet(h, k->live, from->key, packet, len, now_ms);
    } else {
        mn_hub_put_forward(h, k->routes->via, from->key, to, packet, len, now_ms);
    }
}

void mn_hub_forward(struct mn_hub *h, struct mn_hub_client *neighbour, const uint8_t from[MN_RELAY_KEY],
                    const uint8_t to[MN_RELAY_KEY], const uint8_t *packet, size_t len, uint32_t now_ms)
{
    count_in(h, neighbour, packet, len);
    h->stats.forwarded_in++;
    struct mn_hub_key *k = mn_hub_key_find(h, to);
    if (k == NULL || k->live == NULL) {
        h->stats.drop_unknown_dest_on_fwd++;
        if (may_tell_gone(neighbour, now_ms))
            mn_hub_tell_gone(h, neighbour, to, MN_GONE_NOT_HERE, now_ms);
        return;
    }
    struct mn_hub_key *source = mn_hub_key_find(h, from);
    if (source != NULL)
        mn_hub_met_add(h, source, k->live);
    mn_hub_put_packet(h, k->live, from, packet, len, now_ms);
}
