/* mac1, mac2, cookies, limiter. See cookie.h. */
#include "cookie.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>

enum { LABEL = 8, SOURCE = 20, REPLY_NONCE = 8, REPLY_COOKIE = 32 };

#define TOKEN_NS 50000000ULL
#define BURST_NS (5 * TOKEN_NS)
#define FORGET_NS 1000000000ULL

int mn_cookie_checker_init(struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t own_pub[32])
{
    c->secret_at = 0;
    if (mn_hash(&n->hasher, c->mac1_key, "mac1----", LABEL, own_pub, 32) != 0)
        return -1;
    return mn_hash(&n->hasher, c->cookie_key, "cookie--", LABEL, own_pub, 32);
}

int mn_cookie_jar_init(struct mn_cookie_jar *j, struct mn_noise *n, const uint8_t peer_pub[32])
{
    if (mn_hash(&n->hasher, j->mac1_key, "mac1----", LABEL, peer_pub, 32) != 0)
        return -1;
    return mn_hash(&n->hasher, j->cookie_key, "cookie--", LABEL, peer_pub, 32);
}

/* The receiver's private notion of an address: region, address (or the relayed sender's key), port. */
static void source_bytes(const struct mn_path *from, uint8_t out[SOURCE])
{
    out[0] = (uint8_t)(from->region >> 8);
    out[1] = (uint8_t)from->region;
    memcpy(out + 2, from->ep.ip.b, 16);
    out[18] = from->region != 0 ? 0 : (uint8_t)(from->ep.port >> 8);
    out[19] = from->region != 0 ? 0 : (uint8_t)from->ep.port;
}

bool mn_cookie_check_mac1(const struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t *msg, size_t len)
{
    uint8_t want[MN_MAC];
    if (mn_mac(&n->hasher, want, c->mac1_key, 32, msg, len - MN_MACS_LEN) != 0)
        return false;
    return CRYPTO_memcmp(want, msg + len - MN_MACS_LEN, MN_MAC) == 0;
}

static int cookie_for(const struct mn_cookie_checker *c, struct mn_noise *n, const struct mn_path *from,
                      uint8_t cookie[MN_MAC])
{
    uint8_t source[SOURCE];
    source_bytes(from, source);
    return mn_mac(&n->hasher, cookie, c->secret, 32, source, sizeof source);
}

bool mn_cookie_check_mac2(struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t *msg, size_t len,
                          const struct mn_path *from, uint64_t now_ns)
{
    uint8_t cookie[MN_MAC], want[MN_MAC];
    if (c->secret_at == 0 || now_ns - c->secret_at >= MN_COOKIE_MAX_AGE_NS)
        return false;
    if (cookie_for(c, n, from, cookie) != 0 || mn_mac(&n->hasher, want, cookie, MN_MAC, msg, len - MN_MAC) != 0)
        return false;
    return CRYPTO_memcmp(want, msg + len - MN_MAC, MN_MAC) == 0;
}

int mn_cookie_add_macs(struct mn_cookie_jar *j, struct mn_noise *n, uint8_t *msg, size_t len, uint64_t now_ns)
{
    uint8_t *mac1 = msg + len - MN_MACS_LEN, *mac2 = msg + len - MN_MAC;
    if (mn_mac(&n->hasher, mac1, j->mac1_key, 32, msg, len - MN_MACS_LEN) != 0)
        return -1;
    memcpy(j->last_mac1, mac1, MN_MAC);
    j->awaits_reply = true;
    memset(mac2, 0, MN_MAC);
    if (!j->has_cookie || now_ns - j->cookie_at >= MN_COOKIE_USE_NS)
        return 0;
    return mn_mac(&n->hasher, mac2, j->cookie, MN_MAC, msg, len - MN_MAC);
}

int mn_cookie_create_reply(struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t *msg, size_t len,
                           const struct mn_path *from, uint64_t now_ns, mn_random_fn random, void *ctx,
                           uint8_t reply[MN_COOKIE_LEN])
{
    uint8_t cookie[MN_MAC];
    if (c->secret_at == 0 || now_ns - c->secret_at >= MN_COOKIE_MAX_AGE_NS) {
        random(ctx, c->secret, sizeof c->secret);
        c->secret_at = now_ns == 0 ? 1 : now_ns;
    }
    memset(reply, 0, MN_COOKIE_LEN);
    reply[0] = 3;
    memcpy(reply + 4, msg + 4, 4); /* their sender index is our receiver index */
    random(ctx, reply + REPLY_NONCE, MN_XAEAD_NONCE);
    if (cookie_for(c, n, from, cookie) != 0)
        return -1;
    return mn_xaead_seal(&n->aead, n->provider, c->cookie_key, reply + REPLY_NONCE, msg + len - MN_MACS_LEN, MN_MAC,
                         cookie, MN_MAC, reply + REPLY_COOKIE);
}

int mn_cookie_consume_reply(struct mn_cookie_jar *j, struct mn_noise *n, const uint8_t reply[MN_COOKIE_LEN],
                            uint64_t now_ns)
{
    uint8_t cookie[MN_MAC];
    if (!j->awaits_reply)
        return -1;
    if (mn_xaead_open(&n->aead, n->provider, j->cookie_key, reply + REPLY_NONCE, j->last_mac1, MN_MAC,
                      reply + REPLY_COOKIE, MN_MAC + MN_AEAD_TAG, cookie) != 0)
        return -1;
    memcpy(j->cookie, cookie, MN_MAC);
    j->cookie_at = now_ns;
    j->has_cookie = true;
    j->awaits_reply = false;
    return 0;
}

/* Ports do not count, nor the lower half of an IPv6 address: whoever has one has them all. */
static void limiter_source(const struct mn_path *from, uint8_t out[SOURCE])
{
    source_bytes(from, out);
    out[18] = out[19] = 0;
    if (from->region == 0 && !mn_ip_is4(&from->ep.ip))
        memset(out + 10, 0, 8);
}

static struct mn_limiter_entry *limiter_find(struct mn_limiter *l, uint32_t home, const uint8_t source[SOURCE],
                                             uint64_t now_ns)
{
    struct mn_limiter_entry *spare = NULL;
    for (uint32_t i = 0; i < MN_LIMITER_PROBES; i++) {
        struct mn_limiter_entry *e = &l->entries[(home + i) % MN_LIMITER_ENTRIES];
        if (e->used_at != 0 && memcmp(e->source, source, SOURCE) == 0)
            return e;
        if (spare == NULL && (e->used_at == 0 || now_ns - e->used_at > FORGET_NS))
            spare = e;
    }
    if (spare != NULL) {
        memcpy(spare->source, source, SOURCE);
        spare->used_at = now_ns;
        spare->tokens_ns = BURST_NS;
    }
    return spare;
}

bool mn_limiter_allow(struct mn_limiter *l, struct mn_noise *n, const struct mn_path *from, uint64_t now_ns)
{
    uint8_t source[SOURCE], digest[MN_MAC];
    if (l->entries == NULL)
        l->entries = calloc(MN_LIMITER_ENTRIES, sizeof *l->entries);
    limiter_source(from, source);
    if (l->entries == NULL || mn_mac(&n->hasher, digest, l->key, sizeof l->key, source, sizeof source) != 0)
        return false;
    struct mn_limiter_entry *e = limiter_find(l, mn_le32_get(digest) % MN_LIMITER_ENTRIES, source, now_ns);
    if (e == NULL)
        return false;
    e->tokens_ns += now_ns - e->used_at;
    e->used_at = now_ns == 0 ? 1 : now_ns;
    if (e->tokens_ns > BURST_NS)
        e->tokens_ns = BURST_NS;
    if (e->tokens_ns < TOKEN_NS)
        return false;
    e->tokens_ns -= TOKEN_NS;
    return true;
}

void mn_limiter_destroy(struct mn_limiter *l)
{
    free(l->entries);
    l->entries = NULL;
}
