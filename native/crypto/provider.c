/* Fetch and self-test. See provider.h. Known answers: RFC 8439 2.8.2, RFC 7693 appendix B, RFC 7748 5.2. */
#include "provider.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "aead.h"
#include "blake2s.h"
#include "x25519.h"

static struct mn_provider provider;
static bool usable;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool test_aead(void)
{
    static const uint8_t text[] = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
                                  "future, sunscreen would be it.";
    static const uint8_t ad[12] = {0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7};
    static const uint8_t nonce[12] = {0x07, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47};
    static const uint8_t want[16] = {0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a,
                                     0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60, 0x06, 0x91};
    enum { LEN = sizeof text - 1 };
    uint8_t key[32], buf[LEN + MN_AEAD_TAG];
    for (int i = 0; i < 32; i++)
        key[i] = (uint8_t)(0x80 + i);
    struct mn_aead seal = {0}, open = {0};
    bool ok = mn_aead_init(&seal, &provider, key, true) == 0 && mn_aead_init(&open, &provider, key, false) == 0 &&
              mn_aead_seal_ad(&seal, key, nonce, ad, sizeof ad, text, LEN, buf) == 0 &&
              memcmp(buf + LEN, want, sizeof want) == 0 &&
              mn_aead_open_ad(&open, key, nonce, ad, sizeof ad, buf, sizeof buf, buf) == 0 &&
              memcmp(buf, text, LEN) == 0 && mn_aead_seal(&seal, 7, buf, LEN) == 0 &&
              mn_aead_open(&open, 7, buf, sizeof buf) == LEN && memcmp(buf, text, LEN) == 0;
    ok = ok && mn_aead_seal(&seal, 8, buf, LEN) == 0;
    buf[0] ^= 1;
    ok = ok && mn_aead_open(&open, 8, buf, sizeof buf) < 0;
    mn_aead_wipe(&seal);
    mn_aead_wipe(&open);
    return ok;
}

static bool test_hash(void)
{
    static const uint8_t want[32] = {0x50, 0x8c, 0x5e, 0x8c, 0x32, 0x7c, 0x14, 0xe2, 0xe1, 0xa7, 0x2b,
                                     0xa3, 0x4e, 0xeb, 0x45, 0x2f, 0x37, 0x45, 0x8b, 0x20, 0x9e, 0xd6,
                                     0x3a, 0x29, 0x4d, 0x99, 0x9b, 0x4c, 0x86, 0x67, 0x59, 0x82};
    struct mn_hasher h = {0};
    uint8_t got[32];
    bool ok = mn_hasher_init(&h, &provider) == 0 && mn_hash(&h, got, "abc", 3, NULL, 0) == 0 &&
              memcmp(got, want, sizeof want) == 0;
    mn_hasher_wipe(&h);
    return ok;
}

static bool test_x25519(void)
{
    static const uint8_t scalar[32] = {0xa5, 0x46, 0xe3, 0x6b, 0xf0, 0x52, 0x7c, 0x9d, 0x3b, 0x16, 0x15,
                                       0x4b, 0x82, 0x46, 0x5e, 0xdd, 0x62, 0x14, 0x4c, 0x0a, 0xc1, 0xfc,
                                       0x5a, 0x18, 0x50, 0x6a, 0x22, 0x44, 0xba, 0x44, 0x9a, 0xc4};
    static const uint8_t point[32] = {0xe6, 0xdb, 0x68, 0x67, 0x58, 0x30, 0x30, 0xdb, 0x35, 0x94, 0xc1,
                                      0xa4, 0x24, 0xb1, 0x5f, 0x7c, 0x72, 0x66, 0x24, 0xec, 0x26, 0xb3,
                                      0x35, 0x3b, 0x10, 0xa9, 0x03, 0xa6, 0xd0, 0xab, 0x1c, 0x4c};
    static const uint8_t want[32] = {0xc3, 0xda, 0x55, 0x37, 0x9d, 0xe9, 0xc6, 0x90, 0x8e, 0x94, 0xea,
                                     0x4d, 0xf2, 0x8d, 0x08, 0x4f, 0x32, 0xec, 0xcf, 0x03, 0x49, 0x1c,
                                     0x71, 0xf7, 0x54, 0xb4, 0x07, 0x55, 0x77, 0xa2, 0x85, 0x52};
    static const uint8_t zero[32];
    uint8_t got[32];
    EVP_PKEY *pkey = mn_x25519_load(scalar);
    bool ok = pkey != NULL && mn_x25519(pkey, point, got) == 0 && memcmp(got, want, sizeof want) == 0 &&
              mn_x25519(pkey, zero, got) != 0;
    EVP_PKEY_free(pkey);
    return ok;
}

static void load(void)
{
    provider.chacha20 = EVP_CIPHER_fetch(NULL, "ChaCha20", NULL);
    provider.chacha20_poly1305 = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", NULL);
    provider.blake2s = EVP_MD_fetch(NULL, "BLAKE2S-256", NULL);
    provider.blake2s_mac = EVP_MAC_fetch(NULL, "BLAKE2SMAC", NULL);
    usable = provider.chacha20 != NULL && provider.chacha20_poly1305 != NULL && provider.blake2s != NULL &&
             provider.blake2s_mac != NULL && test_aead() && test_hash() && test_x25519();
}

const struct mn_provider *mn_provider_get(void)
{
    pthread_once(&once, load);
    return usable ? &provider : NULL;
}
