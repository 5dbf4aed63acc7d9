/* The handshake. See noise.h. */
#include "noise.h"

#include <stdbool.h>
#include <string.h>

#include <openssl/crypto.h>

/* HASH(construction) and HASH(that || identifier); test_crypto derives both. */
static const uint8_t initial_ck[32] = {0x60, 0xe2, 0x6d, 0xae, 0xf3, 0x27, 0xef, 0xc0, 0x2e, 0xc3, 0x35,
                                       0xe2, 0xa0, 0x25, 0xd2, 0xd0, 0x16, 0xeb, 0x42, 0x06, 0xf8, 0x72,
                                       0x77, 0xf5, 0x2d, 0x38, 0xd1, 0x98, 0x8b, 0x78, 0xcd, 0x36};
static const uint8_t initial_h[32] = {0x22, 0x11, 0xb3, 0x61, 0x08, 0x1a, 0xc5, 0x66, 0x69, 0x12, 0x43,
                                      0xdb, 0x45, 0x8a, 0xd5, 0x32, 0x2d, 0x9c, 0x6c, 0x66, 0x22, 0x93,
                                      0xe8, 0xb7, 0x0e, 0xe1, 0x9c, 0x65, 0xba, 0x07, 0x9e, 0xf3};
static const uint8_t zero_nonce[12];

/* Offsets in the messages. */
enum {
    SENDER = 4,
    INIT_EPHEMERAL = 8,
    INIT_STATIC = 40,
    INIT_TIMESTAMP = 88,
    RESP_RECEIVER = 8,
    RESP_EPHEMERAL = 12,
    RESP_NOTHING = 44,
    SEALED_STATIC = 32 + 16,
    SEALED_TIMESTAMP = 12 + 16,
    SEALED_NOTHING = 16,
};

/* A handshake in progress; `ok` gathers failures, so that the steps read as the paper has them. */
struct run {
    struct mn_noise *n;
    uint8_t ck[32], h[32], k[32];
    bool ok;
};

static void begin(struct run *s, struct mn_noise *n, const uint8_t responder_pub[32])
{
    s->n = n;
    memcpy(s->ck, initial_ck, 32);
    s->ok = mn_hash(&n->hasher, s->h, initial_h, 32, responder_pub, 32) == 0;
}

static void resume(struct run *s, struct mn_noise *n, const uint8_t ck[32], const uint8_t h[32])
{
    s->n = n;
    memcpy(s->ck, ck, 32);
    memcpy(s->h, h, 32);
    s->ok = true;
}

static void mix_hash(struct run *s, const uint8_t *data, size_t len)
{
    s->ok = s->ok && mn_hash(&s->n->hasher, s->h, s->h, 32, data, len) == 0;
}

static void mix_ephemeral(struct run *s, const uint8_t pub[32])
{
    mix_hash(s, pub, 32);
    s->ok = s->ok && mn_kdf(&s->n->hasher, s->ck, NULL, NULL, s->ck, 32, pub, 32) == 0;
}

static void mix_secret(struct run *s, const uint8_t secret[32])
{
    s->ok = s->ok && mn_kdf(&s->n->hasher, s->ck, s->k, NULL, s->ck, 32, secret, 32) == 0;
}

static void mix_dh(struct run *s, EVP_PKEY *key, const uint8_t point[32])
{
    uint8_t secret[32];
    s->ok = s->ok && mn_x25519(key, point, secret) == 0;
    mix_secret(s, secret);
    OPENSSL_cleanse(secret, sizeof secret);
}

static void mix_psk(struct run *s, const uint8_t psk[32])
{
    uint8_t t[32];
    s->ok = s->ok && mn_kdf(&s->n->hasher, s->ck, t, s->k, s->ck, 32, psk, 32) == 0;
    if (s->ok)
        mix_hash(s, t, 32);
    OPENSSL_cleanse(t, sizeof t);
}

static void seal_and_mix(struct run *s, const uint8_t *in, size_t len, uint8_t *out)
{
    s->ok = s->ok && mn_aead_seal_ad(&s->n->aead, s->k, zero_nonce, s->h, 32, in, len, out) == 0;
    mix_hash(s, out, len + MN_AEAD_TAG);
}

static void open_and_mix(struct run *s, const uint8_t *in, size_t len, uint8_t *out)
{
    s->ok = s->ok && mn_aead_open_ad(&s->n->aead, s->k, zero_nonce, s->h, 32, in, len, out) == 0;
    mix_hash(s, in, len);
}

/* The initiator sends with the first. */
static void split(struct run *s, uint8_t first[32], uint8_t second[32])
{
    s->ok = s->ok && mn_kdf(&s->n->hasher, first, second, NULL, s->ck, 32, NULL, 0) == 0;
}

static int finish(struct run *s)
{
    bool ok = s->ok;
    OPENSSL_cleanse(s, sizeof *s);
    return ok ? 0 : -1;
}

int mn_noise_init(struct mn_noise *n)
{
    static const uint8_t key[32];
    memset(n, 0, sizeof *n);
    n->provider = mn_provider_get();
    if (n->provider == NULL)
        return -1;
    if (mn_hasher_init(&n->hasher, n->provider) == 0 && mn_aead_init(&n->aead, n->provider, key, true) == 0)
        return 0;
    mn_noise_wipe(n);
    return -1;
}

void mn_noise_wipe(struct mn_noise *n)
{
    mn_hasher_wipe(&n->hasher);
    mn_aead_wipe(&n->aead);
    EVP_PKEY_free(n->key);
    n->key = NULL;
}

int mn_noise_set_key(struct mn_noise *n, const uint8_t private_key[32])
{
    uint8_t pub[32];
    EVP_PKEY *key = mn_x25519_load(private_key);
    if (key == NULL || mn_x25519_public(key, pub) != 0) {
        EVP_PKEY_free(key);
        return -1;
    }
    EVP_PKEY_free(n->key);
    n->key = key;
    memcpy(n->pub, pub, sizeof pub);
    return 0;
}

int mn_noise_shared(struct mn_noise *n, struct mn_noise_remote *remote)
{
    return mn_x25519(n->key, remote->pub, remote->ss);
}

int mn_noise_create_initiation(struct mn_noise *n, const struct mn_noise_remote *remote, const uint8_t ephemeral[32],
                               const uint8_t timestamp[12], uint32_t sender, struct mn_noise_initiator *state,
                               uint8_t msg[MN_INITIATION_LEN])
{
    struct run s;
    EVP_PKEY *e = mn_x25519_load(ephemeral);
    memset(msg, 0, MN_INITIATION_LEN);
    msg[0] = 1;
    mn_le32_put(msg + SENDER, sender);
    begin(&s, n, remote->pub);
    s.ok = s.ok && e != NULL && mn_x25519_public(e, msg + INIT_EPHEMERAL) == 0;
    mix_ephemeral(&s, msg + INIT_EPHEMERAL);
    mix_dh(&s, e, remote->pub);
    seal_and_mix(&s, n->pub, 32, msg + INIT_STATIC);
    mix_secret(&s, remote->ss);
    seal_and_mix(&s, timestamp, 12, msg + INIT_TIMESTAMP);
    EVP_PKEY_free(e);
    if (s.ok) {
        memcpy(state->ck, s.ck, 32);
        memcpy(state->h, s.h, 32);
        memcpy(state->ephemeral, ephemeral, 32);
    }
    return finish(&s);
}

int mn_noise_read_static(struct mn_noise *n, const uint8_t msg[MN_INITIATION_LEN], struct mn_noise_responder *r)
{
    struct run s;
    begin(&s, n, n->pub);
    mix_ephemeral(&s, msg + INIT_EPHEMERAL);
    mix_dh(&s, n->key, msg + INIT_EPHEMERAL);
    open_and_mix(&s, msg + INIT_STATIC, SEALED_STATIC, r->pub);
    memcpy(r->ck, s.ck, 32);
    memcpy(r->h, s.h, 32);
    memcpy(r->ephemeral, msg + INIT_EPHEMERAL, 32);
    r->sender = mn_le32_get(msg + SENDER);
    return finish(&s);
}

int mn_noise_read_timestamp(struct mn_noise *n, const struct mn_noise_remote *remote,
                            const uint8_t msg[MN_INITIATION_LEN], struct mn_noise_responder *r)
{
    struct run s;
    resume(&s, n, r->ck, r->h);
    mix_secret(&s, remote->ss);
    open_and_mix(&s, msg + INIT_TIMESTAMP, SEALED_TIMESTAMP, r->timestamp);
    memcpy(r->ck, s.ck, 32);
    memcpy(r->h, s.h, 32);
    return finish(&s);
}

int mn_noise_create_response(struct mn_noise *n, const struct mn_noise_remote *remote,
                             const struct mn_noise_responder *r, const uint8_t ephemeral[32], uint32_t sender,
                             struct mn_noise_keys *keys, uint8_t msg[MN_RESPONSE_LEN])
{
    struct run s;
    EVP_PKEY *e = mn_x25519_load(ephemeral);
    memset(msg, 0, MN_RESPONSE_LEN);
    msg[0] = 2;
    mn_le32_put(msg + SENDER, sender);
    mn_le32_put(msg + RESP_RECEIVER, r->sender);
    resume(&s, n, r->ck, r->h);
    s.ok = s.ok && e != NULL && mn_x25519_public(e, msg + RESP_EPHEMERAL) == 0;
    mix_ephemeral(&s, msg + RESP_EPHEMERAL);
    mix_dh(&s, e, r->ephemeral);
    mix_dh(&s, e, r->pub);
    mix_psk(&s, remote->psk);
    seal_and_mix(&s, NULL, 0, msg + RESP_NOTHING);
    split(&s, keys->receive, keys->send);
    EVP_PKEY_free(e);
    return finish(&s);
}

int mn_noise_consume_response(struct mn_noise *n, const struct mn_noise_remote *remote,
                              const struct mn_noise_initiator *state, const uint8_t msg[MN_RESPONSE_LEN],
                              struct mn_noise_keys *keys)
{
    struct run s;
    uint8_t nothing[1];
    EVP_PKEY *e = mn_x25519_load(state->ephemeral);
    resume(&s, n, state->ck, state->h);
    s.ok = s.ok && e != NULL;
    mix_ephemeral(&s, msg + RESP_EPHEMERAL);
    mix_dh(&s, e, msg + RESP_EPHEMERAL);
    mix_dh(&s, n->key, msg + RESP_EPHEMERAL);
    mix_psk(&s, remote->psk);
    open_and_mix(&s, msg + RESP_NOTHING, SEALED_NOTHING, nothing);
    split(&s, keys->send, keys->receive);
    EVP_PKEY_free(e);
    return finish(&s);
}
