/* X25519 by libcrypto. See x25519.h. */
#include "x25519.h"

#include <openssl/crypto.h>

EVP_PKEY *mn_x25519_load(const uint8_t private_key[32])
{
    return EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, private_key, 32);
}

int mn_x25519_public(const EVP_PKEY *pkey, uint8_t out[32])
{
    size_t n = 32;
    return EVP_PKEY_get_raw_public_key(pkey, out, &n) == 1 && n == 32 ? 0 : -1;
}

int mn_x25519(EVP_PKEY *pkey, const uint8_t point[32], uint8_t out[32])
{
    size_t n = 32;
    uint8_t any = 0;
    EVP_PKEY *peer = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, point, 32);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(pkey, NULL);
    int ok = peer != NULL && ctx != NULL && EVP_PKEY_derive_init(ctx) == 1 &&
             EVP_PKEY_derive_set_peer_ex(ctx, peer, 0) == 1 && EVP_PKEY_derive(ctx, out, &n) == 1 && n == 32;
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(peer);
    for (int i = 0; ok && i < 32; i++)
        any |= out[i];
    if (ok && any != 0)
        return 0;
    OPENSSL_cleanse(out, 32);
    return -1;
}
