/* BLAKE2s by libcrypto. See blake2s.h. Source: WireGuard paper 5.4; RFC 2104. */
#include "blake2s.h"

#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>

enum { BLOCK = 64 };

int mn_hasher_init(struct mn_hasher *h, const struct mn_provider *p)
{
    size_t size = MN_MAC;
    OSSL_PARAM params[2] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size), OSSL_PARAM_construct_end()};
    h->md = EVP_MD_CTX_new();
    h->mac = EVP_MAC_CTX_new(p->blake2s_mac);
    if (h->md != NULL && h->mac != NULL && EVP_DigestInit_ex2(h->md, p->blake2s, NULL) == 1 &&
        EVP_MAC_CTX_set_params(h->mac, params) == 1)
        return 0;
    mn_hasher_wipe(h);
    return -1;
}

void mn_hasher_wipe(struct mn_hasher *h)
{
    EVP_MD_CTX_free(h->md);
    EVP_MAC_CTX_free(h->mac);
    h->md = NULL;
    h->mac = NULL;
}

static int update(EVP_MD_CTX *md, const void *in, size_t len)
{
    return len == 0 || EVP_DigestUpdate(md, in, len) == 1;
}

int mn_hash(struct mn_hasher *h, uint8_t out[32], const void *a, size_t a_len, const void *b, size_t b_len)
{
    int ok = EVP_DigestInit_ex2(h->md, NULL, NULL) == 1 && update(h->md, a, a_len) && update(h->md, b, b_len) &&
             EVP_DigestFinal_ex(h->md, out, NULL) == 1;
    return ok ? 0 : -1;
}

int mn_mac(struct mn_hasher *h, uint8_t out[16], const uint8_t *key, size_t key_len, const void *in, size_t len)
{
    size_t n = 0;
    int ok = EVP_MAC_init(h->mac, key, key_len, NULL) == 1 && EVP_MAC_update(h->mac, in, len) == 1 &&
             EVP_MAC_final(h->mac, out, &n, MN_MAC) == 1 && n == MN_MAC;
    return ok ? 0 : -1;
}

static int keyed_pass(struct mn_hasher *h, uint8_t out[32], const uint8_t pad[BLOCK], const void *a, size_t a_len,
                      const void *b, size_t b_len)
{
    return EVP_DigestInit_ex2(h->md, NULL, NULL) == 1 && update(h->md, pad, BLOCK) && update(h->md, a, a_len) &&
           update(h->md, b, b_len) && EVP_DigestFinal_ex(h->md, out, NULL) == 1;
}

int mn_hmac(struct mn_hasher *h, uint8_t out[32], const uint8_t *key, size_t key_len, const void *a, size_t a_len,
            const void *b, size_t b_len)
{
    uint8_t inner[BLOCK] = {0}, outer[BLOCK], digest[MN_HASH];
    memcpy(inner, key, key_len);
    for (int i = 0; i < BLOCK; i++) {
        outer[i] = inner[i] ^ 0x5c;
        inner[i] ^= 0x36;
    }
    int ok = keyed_pass(h, digest, inner, a, a_len, b, b_len) && keyed_pass(h, out, outer, digest, MN_HASH, NULL, 0);
    OPENSSL_cleanse(inner, sizeof inner);
    OPENSSL_cleanse(outer, sizeof outer);
    OPENSSL_cleanse(digest, sizeof digest);
    return ok ? 0 : -1;
}

int mn_kdf(struct mn_hasher *h, uint8_t *t1, uint8_t *t2, uint8_t *t3, const uint8_t *key, size_t key_len,
           const void *in, size_t len)
{
    static const uint8_t one = 1, two = 2, three = 3;
    uint8_t secret[MN_HASH], out[MN_HASH];
    int err = mn_hmac(h, secret, key, key_len, in, len, NULL, 0);
    err = err != 0 ? err : mn_hmac(h, out, secret, sizeof secret, &one, 1, NULL, 0);
    if (err == 0)
        memcpy(t1, out, MN_HASH);
    if (err == 0 && t2 != NULL) {
        err = mn_hmac(h, out, secret, sizeof secret, out, MN_HASH, &two, 1);
        memcpy(t2, out, MN_HASH);
    }
    if (err == 0 && t3 != NULL) {
        err = mn_hmac(h, out, secret, sizeof secret, out, MN_HASH, &three, 1);
        memcpy(t3, out, MN_HASH);
    }
    OPENSSL_cleanse(secret, sizeof secret);
    OPENSSL_cleanse(out, sizeof out);
    return err;
}
