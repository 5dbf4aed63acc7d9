/* What waits for each client, and the list of those who have something. */
#include "hub_internal.h"

#include <string.h>

#include "../ip/packet.h"

/* ---- who has something ---- */

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

void mn_hub_undirty(struct mn_hub *h, struct mn_hub_client *c)
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

/* ---- what waits ---- */

static struct iovec piece(const uint8_t *p, size_t n)
{
    struct iovec v = {.iov_len = n};
    memcpy(&v.iov_base, &p, sizeof p);
    return v;
}

/* A watcher may hear of thousands at once, and a neighbour carries the packets of many. */
static uint32_t urgent_max(const struct mn_hub_client *c)
{
    return c->may_mesh || c->is_neighbour ? MN_HUB_MESH_BYTES : MN_HUB_URGENT_BYTES;
}

void mn_hub_tell(struct mn_hub *h, struct mn_hub_client *c, uint8_t kind, const uint8_t *payload, size_t len,
                 uint32_t now_ms)
{
    uint8_t head[MN_FRAME_HEADER];
    mn_frame_write_header(head, kind, (uint32_t)len);
    struct iovec parts[] = {piece(head, sizeof head), piece(payload, len)};
    mn_lane_put(&c->urgent, &h->chunks, parts, 2, now_ms, urgent_max(c), &h->stats.drop_disco_queue_head);
    mn_hub_mark_dirty(h, c);
}

void mn_hub_tell_gone(struct mn_hub *h, struct mn_hub_client *c, const uint8_t key[MN_RELAY_KEY],
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

void mn_hub_tell_present(struct mn_hub *h, struct mn_hub_client *watcher, const struct mn_hub_client *c,
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
void mn_hub_put_packet(struct mn_hub *h, struct mn_hub_client *c, const uint8_t source[MN_RELAY_KEY],
                       const uint8_t *packet, size_t len, uint32_t now_ms)
{
    uint8_t head[MN_FRAME_HEADER];
    bool is_disco = mn_frame_is_disco(packet, len);
    mn_frame_write_header(head, MN_FRAME_RECV_PACKET, (uint32_t)(MN_RELAY_KEY + len));
    struct iovec parts[] = {piece(head, sizeof head), piece(source, MN_RELAY_KEY), piece(packet, len)};
    uint64_t *dropped = is_disco ? &h->stats.drop_disco_queue_head : &h->stats.drop_queue_head, before = *dropped;
    mn_lane_put(is_disco ? &c->urgent : &c->data, &h->chunks, parts, 3, now_ms,
                is_disco ? urgent_max(c) : MN_HUB_DATA_BYTES, dropped);
    c->dropped += *dropped - before;
    mn_hub_mark_dirty(h, c);
}

void mn_hub_put_forward(struct mn_hub *h, struct mn_hub_client *via, const uint8_t source[MN_RELAY_KEY],
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
    uint64_t aged = h->stats.drop_age;
    size_t n = mn_lane_take(&c->urgent, &h->chunks, out, cap, now_ms, MN_LANE_NO_AGE, &h->stats.drop_age);
    if (c->urgent.count == 0)
        n += mn_lane_take(&c->data, &h->chunks, out + n, cap - n, now_ms, MN_HUB_DATA_AGE_MS, &h->stats.drop_age);
    uint64_t taken = before - c->urgent.count - c->data.count - (h->stats.drop_age - aged);
    c->tx_bytes += n;
    c->tx_packets += taken;
    h->stats.packets_sent += taken;
    h->stats.bytes_sent += n;
    return n;
}
