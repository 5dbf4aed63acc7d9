/* BLAKE2s as WireGuard uses it: hash, keyed 16-byte MAC, HMAC and the KDF on it. Contexts are kept and reused.
 *
 * Every function returns 0, or -1 when libcrypto failed, which happens only without memory: drop the message. */
#ifndef MN_CRYPTO_BLAKE2S_H
#define MN_CRYPTO_BLAKE2S_H

#include <stddef.h>
#include <stdint.h>

#include "provider.h"

enum { MN_HASH = 32, MN_MAC = 16 };

struct mn_hasher {
    EVP_MD_CTX *md;
    EVP_MAC_CTX *mac;
};

int mn_hasher_init(struct mn_hasher *h, const struct mn_provider *p);
void mn_hasher_wipe(struct mn_hasher *h);

/* out = BLAKE2s-256(a || b). out may be one of them. */
int mn_hash(struct mn_hasher *h, uint8_t out[32], const void *a, size_t a_len, const void *b, size_t b_len);
/* Keyed BLAKE2s with a 16-byte digest. key_len is 1 to 32. */
int mn_mac(struct mn_hasher *h, uint8_t out[16], const uint8_t *key, size_t key_len, const void *in, size_t len);
/* HMAC over BLAKE2s-256 of a || b; key at most 64 bytes. */
int mn_hmac(struct mn_hasher *h, uint8_t out[32], const uint8_t *key, size_t key_len, const void *a, size_t a_len,
            const void *b, size_t b_len);
/* The first n of KDF's up to three outputs; unused ones are NULL from the back. Outputs may alias key, not in. */
int mn_kdf(struct mn_hasher *h, uint8_t *t1, uint8_t *t2, uint8_t *t3, const uint8_t *key, size_t key_len,
           const void *in, size_t len);

#endif
