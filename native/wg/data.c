/* Transport data: sealed, opened, confirmed, checked. The hot path: one index lookup, one AEAD call, no allocation.
 * Source: docs/protocol/dataplane.md 1.8. */
#include "device.h"

#include <string.h>

/* On receive an initiator renews this long before the session ends, with time for a handshake and a keepalive. */
#define RENEW_ON_RECEIVE_NS (MN_REJECT_AFTER_NS - MN_KEEPALIVE_NS - MN_REKEY_TIMEOUT_NS)

static size_t padded(const struct mn_wg *wg, size_t len)
{
    size_t up = (len + MN_WG_PADDING - 1) & ~(size_t)(MN_WG_PADDING - 1);
    if (len <= wg->config.mtu && up > wg->config.mtu)
        return wg->config.mtu;
    return up;
}

/* Seal under the current session and do what sending does to timers and keys. len 0: a keepalive. */
static int seal_current(struct mn_wg *wg, struct mn_wg_peer *p, uint8_t *msg, size_t len, uint64_t now_ns)
{
    struct mn_session *s = p->sessions.current;
    size_t text = padded(wg, len);
    memset(msg + MN_WG_HEADER + len, 0, text - len);
    int n = mn_session_seal(s, msg, text);
    if (n < 0)
        return mn_drop(wg, MN_WG_DROP_AUTH);
    p->stats.tx_packets++;
    p->stats.tx_bytes += (uint64_t)n;
    mn_timers_traversal(wg, p, now_ns);
    mn_timers_authentic_sent(p);
    if (len > 0) {
        wg->stats.tx_data++;
        mn_timers_data_sent(wg, p, now_ns);
    } else {
        wg->stats.tx_keepalive++;
    }
    if (s->send_counter > MN_REKEY_AFTER_MESSAGES || (s->is_initiator && now_ns - s->born_ns >= MN_REKEY_AFTER_NS))
        mn_handshake_request(wg, p, false, now_ns);
    return n;
}

int mn_wg_seal(struct mn_wg *wg, uint32_t peer, uint8_t *msg, size_t len, uint64_t now_ns)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return mn_drop(wg, MN_WG_DROP_NO_PEER);
    if (mn_arena_forked(&wg->arena))
        return mn_drop(wg, MN_WG_DROP_FORKED);
    if (len == 0)
        return mn_drop(wg, MN_WG_DROP_INNER);
    if (mn_session_can_send(p->sessions.current, now_ns))
        return seal_current(wg, p, msg, len, now_ns);
    if (!p->has_ss)
        return mn_drop(wg, MN_WG_DROP_NO_KEY);
    int err = mn_peer_stage(wg, p, msg + MN_WG_HEADER, len);
    if (err == 0)
        mn_handshake_request(wg, p, false, now_ns);
    return err;
}

void mn_data_send_keepalive(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    uint8_t msg[MN_WG_OVERHEAD];
    if (mn_arena_forked(&wg->arena))
        return;
    if (!mn_session_can_send(p->sessions.current, now_ns)) {
        mn_handshake_request(wg, p, false, now_ns);
        return;
    }
    int n = seal_current(wg, p, msg, 0, now_ns);
    if (n > 0)
        wg->ops.send(wg->ops.ctx, p->id, NULL, MN_WG_KEEPALIVE, 0, msg, (size_t)n);
}

void mn_data_send_staged(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    while (p->staged_count > 0 && mn_session_can_send(p->sessions.current, now_ns)) {
        struct mn_staged *s = mn_peer_unstage(wg, p);
        int n = seal_current(wg, p, s->msg, s->len, now_ns);
        if (n > 0)
            wg->ops.send(wg->ops.ctx, p->id, NULL, MN_WG_DATA, 0, s->msg, (size_t)n);
        mn_pool_put(&wg->staging, s);
    }
}

/* An authentic packet came under s: timers (before anything is sent because of it), rotation, freshness. */
static void received(struct mn_wg *wg, struct mn_wg_peer *p, struct mn_session *s, uint64_t now_ns)
{
    struct mn_session_dropped dropped = {.count = 0};
    mn_timers_authentic_received(p);
    mn_timers_traversal(wg, p, now_ns);
    if (s == p->sessions.next && mn_sessions_confirm(&p->sessions, s, &dropped)) {
        mn_peer_free_dropped(wg, &dropped);
        wg->stats.sessions++;
        mn_timers_handshake_complete(p, now_ns);
        mn_data_send_staged(wg, p, now_ns);
        wg->ops.event(wg->ops.ctx, p->id, MN_WG_SESSION_UP);
    } else if (s->is_crossed &&
               mn_sessions_converge(&p->sessions, s, memcmp(p->pub, wg->noise.pub, sizeof p->pub) < 0)) {
        wg->stats.converged++;
    }
    struct mn_session *current = p->sessions.current;
    if (!p->sent_lastminute && current != NULL && current->is_initiator &&
        now_ns - current->born_ns >= RENEW_ON_RECEIVE_NS && mn_session_can_send(current, now_ns)) {
        p->sent_lastminute = true;
        mn_handshake_request(wg, p, false, now_ns);
    }
}

/* The length an inner packet gives itself; 0: it is none, or longer than what there is. */
static size_t inner_length(const uint8_t *p, size_t len)
{
    size_t n = 0;
    if (len >= 20 && p[0] >> 4 == 4) {
        n = (size_t)p[2] << 8 | p[3];
        if (n < 20)
            return 0;
    } else if (len >= 40 && p[0] >> 4 == 6) {
        n = ((size_t)p[4] << 8 | p[5]) + 40;
    }
    return n <= len ? n : 0;
}

static bool source_is_theirs(struct mn_wg *wg, struct mn_wg_peer *p, const uint8_t *inner)
{
    bool is4 = inner[0] >> 4 == 4;
    struct mn_ip source = is4 ? mn_ip_from4(inner + 12) : mn_ip_from6(inner + 8);
    struct mn_source_cache *cache = is4 ? &p->source4 : &p->source6;
    if (cache->generation == wg->allowedips.generation && mn_ip_equal(&cache->ip, &source))
        return true;
    /* An IPv6 header must not pass for IPv4 by a mapped source. */
    if ((!is4 && mn_ip_is4(&source)) || mn_allowedips_find(&wg->allowedips, &source) != p->id)
        return false;
    *cache = (struct mn_source_cache){.ip = source, .generation = wg->allowedips.generation};
    return true;
}

static int deliver(struct mn_wg *wg, struct mn_wg_peer *p, uint8_t *text, size_t len, uint8_t **inner)
{
    size_t n = inner_length(text, len);
    if (n == 0) {
        p->stats.drop_inner++;
        return mn_drop(wg, MN_WG_DROP_INNER);
    }
    if (!source_is_theirs(wg, p, text)) {
        p->stats.drop_source++;
        return mn_drop(wg, MN_WG_DROP_SOURCE);
    }
    wg->stats.rx_data++;
    *inner = text;
    return (int)n;
}

static void take_copy(struct mn_wg *wg, struct mn_wg_peer *p, struct mn_session *s, uint8_t *msg, size_t len,
                      const struct mn_path *from)
{
    const struct mn_wg_ops *ops = &wg->ops;
    if (ops->copied != NULL && ops->wants_copy(ops->ctx, p->id, from) && mn_session_is_copy(s, msg, len))
        ops->copied(ops->ctx, p->id, from);
}

int mn_data_input(struct mn_wg *wg, uint8_t *msg, size_t len, const struct mn_path *from, uint64_t now_ns,
                  uint8_t **inner, uint32_t *peer)
{
    struct mn_index_slot *slot = mn_index_find(&wg->indices, mn_le32_get(msg + 4));
    if (slot == NULL || slot->kind != MN_INDEX_SESSION)
        return mn_drop(wg, MN_WG_DROP_INDEX);
    struct mn_wg_peer *p = wg->peers[slot->peer];
    struct mn_session *s = slot->what;
    if (!mn_session_can_receive(s, now_ns))
        return mn_drop(wg, MN_WG_DROP_EXPIRED);
    int text = mn_session_open(s, msg, len);
    if (text == -2) {
        p->stats.drop_replay++;
        take_copy(wg, p, s, msg, len, from);
        return mn_drop(wg, MN_WG_DROP_REPLAY);
    }
    if (text < 0)
        return mn_drop(wg, MN_WG_DROP_AUTH);
    *peer = p->id;
    p->stats.rx_packets++;
    p->stats.rx_bytes += len;
    mn_peer_came_from(wg, p, from);
    received(wg, p, s, now_ns);
    if (text == 0) {
        wg->stats.rx_keepalive++;
        return 0;
    }
    mn_timers_data_received(wg, p, now_ns);
    return deliver(wg, p, msg + MN_WG_HEADER, (size_t)text, inner);
}

void mn_wg_send_keepalive(struct mn_wg *wg, uint32_t peer, uint64_t now_ns)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p != NULL && mn_session_can_send(p->sessions.current, now_ns))
        mn_data_send_keepalive(wg, p, now_ns);
}
