/* ChaCha20-Poly1305 with a counter nonce, one libcrypto context per key and direction, kept as long as the key.
 *
 * Per packet only the IV is set: no fetch, no key schedule, no allocation. Everything works in place.
 * Nonce: four zero bytes, then the counter little-endian. The caller never repeats a counter. */
#ifndef MN_CRYPTO_AEAD_H
#define MN_CRYPTO_AEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "provider.h"

enum { MN_AEAD_KEY = 32, MN_AEAD_TAG = 16, MN_XAEAD_NONCE = 24 };

struct mn_aead {
    EVP_CIPHER_CTX *ctx;
};

/* seals: for sealing, else for opening. 0, or -1. The key may be wiped by the caller afterwards. */
int mn_aead_init(struct mn_aead *a, const struct mn_provider *p, const uint8_t key[32], bool seals);
int mn_aead_rekey(struct mn_aead *a, const uint8_t key[32], bool seals); /* also turns its direction */
void mn_aead_wipe(struct mn_aead *a);

/* buf holds len bytes and room for the tag behind them. 0, or -1. */
int mn_aead_seal(struct mn_aead *a, uint64_t counter, uint8_t *buf, size_t len);
/* len includes the tag. The plaintext length, or -1: forged, and buf holds garbage. */
int mn_aead_open(struct mn_aead *a, uint64_t counter, uint8_t *buf, size_t len);

/* For handshakes: any nonce, with additional data, from in to out (which may be the same). out of a seal has room for
 * the tag; in of an open includes it. 0, or -1. */
int mn_aead_seal_ad(struct mn_aead *a, const uint8_t key[32], const uint8_t nonce[12], const uint8_t *ad, size_t ad_len,
                    const uint8_t *in, size_t len, uint8_t *out);
int mn_aead_open_ad(struct mn_aead *a, const uint8_t key[32], const uint8_t nonce[12], const uint8_t *ad, size_t ad_len,
                    const uint8_t *in, size_t len, uint8_t *out);

/* HChaCha20 out of libcrypto's ChaCha20 block: the block less the words that were added to it at the end.
 * Source: draft-irtf-cfrg-xchacha 2.2. */
int mn_hchacha20(const struct mn_provider *p, const uint8_t key[32], const uint8_t nonce[16], uint8_t out[32]);
/* XChaCha20-Poly1305; arguments as above. */
int mn_xaead_seal(struct mn_aead *a, const struct mn_provider *p, const uint8_t key[32], const uint8_t nonce[24],
                  const uint8_t *ad, size_t ad_len, const uint8_t *in, size_t len, uint8_t *out);
int mn_xaead_open(struct mn_aead *a, const struct mn_provider *p, const uint8_t key[32], const uint8_t nonce[24],
                  const uint8_t *ad, size_t ad_len, const uint8_t *in, size_t len, uint8_t *out);

#endif
