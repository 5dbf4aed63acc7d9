/* X25519 by libcrypto. */
#ifndef MN_CRYPTO_X25519_H
#define MN_CRYPTO_X25519_H

#include <stdint.h>

#include <openssl/evp.h>

/* NULL: no memory. Freed by EVP_PKEY_free, which cleanses it. */
EVP_PKEY *mn_x25519_load(const uint8_t private_key[32]);
int mn_x25519_public(const EVP_PKEY *pkey, uint8_t out[32]); /* 0, or -1 */
/* 0, or -1 and out wiped: among the reasons is an all-zero secret, which a point of small order gives. */
int mn_x25519(EVP_PKEY *pkey, const uint8_t point[32], uint8_t out[32]);

#endif
