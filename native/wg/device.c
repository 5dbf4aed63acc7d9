/* The device: made, configured, asked. See wg.h, and device.h for who does the rest. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>

enum { DEFAULT_MTU = 1280, DEFAULT_BUFFERS = 1024, DEFAULT_PACKETS = 128, DEFAULT_BYTES = 131072 };

const char *mn_wg_drop_name(int drop)
{
    static const char *const names[] = {"none",
#define X(name) #name,
                                        MN_WG_DROPS(X)
#undef X
    };
    int i = drop < 0 ? -drop : drop;
    return i < (int)(sizeof names / sizeof *names) ? names[i] : "unknown";
}

static void fill_defaults(struct mn_wg_config *c)
{
    if (c->mtu == 0)
        c->mtu = DEFAULT_MTU;
    if (c->max_peers == 0 || c->max_peers > MN_WG_PEERS_MAX)
        c->max_peers = MN_WG_PEERS_MAX;
    if (c->staged_buffers == 0)
        c->staged_buffers = DEFAULT_BUFFERS;
    if (c->staged_packets == 0)
        c->staged_packets = DEFAULT_PACKETS;
    if (c->staged_bytes == 0)
        c->staged_bytes = DEFAULT_BYTES;
}

/* Everything random the device starts from. */
static int seed(struct mn_wg *wg)
{
    uint8_t keys[16];
    uint64_t prefixes;
    wg->ops.random(wg->ops.ctx, keys, sizeof keys);
    wg->ops.random(wg->ops.ctx, (uint8_t *)&prefixes, sizeof prefixes);
    wg->ops.random(wg->ops.ctx, (uint8_t *)&wg->hash_seed, sizeof wg->hash_seed);
    wg->ops.random(wg->ops.ctx, (uint8_t *)&wg->jitter_state, sizeof wg->jitter_state);
    wg->ops.random(wg->ops.ctx, wg->limiter.key, sizeof wg->limiter.key);
    wg->jitter_state |= 1;
    mn_allowedips_init(&wg->allowedips, prefixes);
    wg->allowedips.generation = 1; /* 0 means no cached source */
    return mn_indices_init(&wg->indices, keys);
}

static int build(struct mn_wg *wg)
{
    size_t buffer = sizeof(struct mn_staged) + wg->config.mtu + MN_WG_PADDING + MN_WG_OVERHEAD;
    if (mn_noise_init(&wg->noise) != 0 || mn_arena_init(&wg->arena, sizeof(union mn_secret_chunk)) != 0)
        return -1;
    wg->checker = mn_arena_get(&wg->arena);
    if (wg->checker == NULL || seed(wg) != 0 || mn_peers_init(wg) != 0)
        return -1;
    return mn_pool_init(&wg->staging, buffer, wg->config.staged_buffers);
}

struct mn_wg *mn_wg_create(const struct mn_wg_ops *ops, const struct mn_wg_config *config_or_null,
                           const uint8_t private_key_or_null[32], uint64_t now_ns)
{
    struct mn_wg *wg = calloc(1, sizeof *wg);
    if (wg == NULL)
        return NULL;
    wg->ops = *ops;
    if (config_or_null != NULL)
        wg->config = *config_or_null;
    fill_defaults(&wg->config);
    mn_wheel_init(&wg->wheel, now_ns);
    if (build(wg) == 0 && (private_key_or_null == NULL || mn_wg_set_private_key(wg, private_key_or_null, now_ns) == 0))
        return wg;
    mn_wg_destroy(wg);
    return NULL;
}

void mn_wg_destroy(struct mn_wg *wg)
{
    if (wg == NULL)
        return;
    mn_peers_destroy(wg);
    mn_indices_destroy(&wg->indices);
    mn_allowedips_destroy(&wg->allowedips);
    mn_limiter_destroy(&wg->limiter);
    mn_pool_destroy(&wg->staging);
    mn_noise_wipe(&wg->noise);
    mn_arena_destroy(&wg->arena);
    OPENSSL_cleanse(wg, sizeof *wg);
    free(wg);
}

int mn_wg_set_private_key(struct mn_wg *wg, const uint8_t private_key[32], uint64_t now_ns)
{
    uint8_t before[32];
    bool had_key = wg->noise.key != NULL;
    memcpy(before, wg->noise.pub, 32);
    if (mn_noise_set_key(&wg->noise, private_key) != 0)
        return MN_WG_E_CRYPTO;
    if (had_key && memcmp(before, wg->noise.pub, 32) == 0)
        return 0;
    for (uint32_t id = 0; id < wg->peer_fresh; id++) {
        struct mn_wg_peer *p = wg->peers[id];
        if (p == NULL)
            continue;
        if (memcmp(p->pub, wg->noise.pub, 32) == 0) {
            (void)mn_wg_peer_remove(wg, id);
            continue;
        }
        mn_peer_forget(wg, p);
        p->has_ss = mn_noise_shared(&wg->noise, &p->secret->remote) == 0;
    }
    if (mn_cookie_checker_init(wg->checker, &wg->noise, wg->noise.pub) != 0)
        return MN_WG_E_CRYPTO;
    for (uint32_t id = 0; id < wg->peer_fresh; id++)
        if (wg->peers[id] != NULL && wg->peers[id]->keepalive_s > 0)
            mn_data_send_keepalive(wg, wg->peers[id], now_ns);
    return 0;
}

void mn_wg_public_key(const struct mn_wg *wg, uint8_t out[32])
{
    memcpy(out, wg->noise.pub, 32);
}

int mn_wg_peer_find(const struct mn_wg *wg, const uint8_t pub[32], uint32_t *peer)
{
    struct mn_wg_peer *p = mn_peer_by_key(wg, pub);
    *peer = p == NULL ? MN_PEER_NONE : p->id;
    return p == NULL ? MN_WG_E_PEER : 0;
}

int mn_wg_peer_key(const struct mn_wg *wg, uint32_t peer, uint8_t out[32])
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    memcpy(out, p->pub, 32);
    return 0;
}

int mn_wg_peer_set_psk(struct mn_wg *wg, uint32_t peer, const uint8_t psk[32])
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    memcpy(p->secret->remote.psk, psk, 32);
    return 0;
}

int mn_wg_peer_set_keepalive(struct mn_wg *wg, uint32_t peer, uint16_t interval_s, uint64_t now_ns)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    bool starts = p->keepalive_s == 0 && interval_s > 0;
    p->keepalive_s = interval_s;
    if (interval_s == 0)
        mn_wheel_cancel(&p->timers[MN_TIMER_PERSISTENT]);
    if (starts)
        mn_data_send_keepalive(wg, p, now_ns);
    return 0;
}

int mn_wg_peer_set_roaming(struct mn_wg *wg, uint32_t peer, bool roams)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    p->roams = roams;
    return 0;
}

int mn_wg_peer_expire(struct mn_wg *wg, uint32_t peer)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    mn_handshake_clear(wg, p);
    p->last_sent_handshake_ns = MN_LONG_AGO;
    if (p->sessions.current != NULL)
        p->sessions.current->can_send = false;
    if (p->sessions.next != NULL)
        p->sessions.next->can_send = false;
    return 0;
}

int mn_wg_allow(struct mn_wg *wg, const struct mn_ip *prefix, unsigned bits, uint32_t peer)
{
    if (mn_peer_get(wg, peer) == NULL)
        return MN_WG_E_PEER;
    int err = mn_allowedips_insert(&wg->allowedips, prefix, bits, peer);
    return err == 0 ? 0 : err == -2 ? MN_WG_E_PREFIX : MN_WG_E_MEMORY;
}

int mn_wg_disallow_all(struct mn_wg *wg, uint32_t peer)
{
    if (mn_peer_get(wg, peer) == NULL)
        return MN_WG_E_PEER;
    mn_allowedips_remove_peer(&wg->allowedips, peer);
    return 0;
}

uint32_t mn_wg_route(const struct mn_wg *wg, const struct mn_ip *dst)
{
    return mn_allowedips_find(&wg->allowedips, dst);
}

uint64_t mn_wg_route_generation(const struct mn_wg *wg)
{
    return wg->allowedips.generation;
}

/* The exact length of each kind; data has only a least one. */
static bool is_well_formed(uint32_t type, size_t len)
{
    switch (type) {
    case MN_WG_INITIATION:
        return len == MN_INITIATION_LEN;
    case MN_WG_RESPONSE:
        return len == MN_RESPONSE_LEN;
    case MN_WG_COOKIE:
        return len == MN_COOKIE_LEN;
    case MN_WG_DATA:
        return len >= MN_DATA_MIN && len <= UINT16_MAX;
    default:
        return false;
    }
}

int mn_wg_input(struct mn_wg *wg, uint8_t *buf, size_t len, const struct mn_path *from, uint64_t now_ns,
                uint8_t **inner, uint32_t *peer)
{
    *peer = MN_PEER_NONE;
    *inner = NULL;
    /* Type and reserved bytes in one: any of the latter set makes the type unknown. */
    if (len < 4 || !is_well_formed(mn_le32_get(buf), len))
        return mn_drop(wg, MN_WG_DROP_MALFORMED);
    if (mn_arena_forked(&wg->arena))
        return mn_drop(wg, MN_WG_DROP_FORKED);
    if (buf[0] == MN_WG_DATA)
        return mn_data_input(wg, buf, len, from, now_ns, inner, peer);
    return mn_load_input(wg, buf, len, from, now_ns, peer);
}

bool mn_wg_has_session(const struct mn_wg *wg, uint32_t peer, uint64_t now_ns)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    return p != NULL && mn_session_can_send(p->sessions.current, now_ns);
}

uint64_t mn_wg_next_deadline(const struct mn_wg *wg)
{
    uint64_t timers = mn_wheel_next(&wg->wheel), queued = mn_load_next(wg);
    return timers < queued ? timers : queued;
}

void mn_wg_on_deadline(struct mn_wg *wg, uint64_t now_ns)
{
    mn_load_run(wg, now_ns);
    mn_wheel_advance(&wg->wheel, now_ns, mn_timers_fire, wg);
}

int mn_wg_peer_stats(const struct mn_wg *wg, uint32_t peer, struct mn_wg_peer_stats *out)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    *out = p->stats;
    out->staged_now = p->staged_count;
    return 0;
}

const struct mn_wg_stats *mn_wg_stats(const struct mn_wg *wg)
{
    return &wg->stats;
}
