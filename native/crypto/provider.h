/* What libcrypto offers us, fetched once per process, and a self-test of all of it.
 *
 * The fetched handles are immutable and shared; every context that has state belongs to a caller. */
#ifndef MN_CRYPTO_PROVIDER_H
#define MN_CRYPTO_PROVIDER_H

#include <openssl/evp.h>

struct mn_provider {
    EVP_CIPHER *chacha20, *chacha20_poly1305;
    EVP_MD *blake2s;
    EVP_MAC *blake2s_mac;
};

/* NULL: libcrypto lacks something we need, or computes it wrongly. Thread-safe; does its work once. */
const struct mn_provider *mn_provider_get(void);

#endif
