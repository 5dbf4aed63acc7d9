/* ChaCha20-Poly1305 over libcrypto. See aead.h. */
#include "aead.h"

#include <limits.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>

static void put_le64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static OSSL_PARAM tag_param(uint8_t *tag)
{
    return OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, MN_AEAD_TAG);
}

int mn_aead_init(struct mn_aead *a, const struct mn_provider *p, const uint8_t key[32], bool seals)
{
    a->ctx = EVP_CIPHER_CTX_new();
    if (a->ctx == NULL)
        return -1;
    if (EVP_CipherInit_ex2(a->ctx, p->chacha20_poly1305, key, NULL, seals, NULL) == 1)
        return 0;
    mn_aead_wipe(a);
    return -1;
}

int mn_aead_rekey(struct mn_aead *a, const uint8_t key[32], bool seals)
{
    return EVP_CipherInit_ex2(a->ctx, NULL, key, NULL, seals, NULL) == 1 ? 0 : -1;
}

void mn_aead_wipe(struct mn_aead *a)
{
    EVP_CIPHER_CTX_free(a->ctx); /* cleanses the key schedule */
    a->ctx = NULL;
}

int mn_aead_seal(struct mn_aead *a, uint64_t counter, uint8_t *buf, size_t len)
{
    uint8_t nonce[12] = {0};
    int n = 0;
    put_le64(nonce + 4, counter);
    OSSL_PARAM params[2] = {tag_param(buf + len), OSSL_PARAM_construct_end()};
    if (EVP_EncryptInit_ex2(a->ctx, NULL, NULL, nonce, NULL) != 1)
        return -1;
    if (len > 0 && EVP_EncryptUpdate(a->ctx, buf, &n, buf, (int)len) != 1)
        return -1;
    if (EVP_EncryptFinal_ex(a->ctx, buf + n, &n) != 1 || EVP_CIPHER_CTX_get_params(a->ctx, params) != 1)
        return -1;
    return 0;
}

int mn_aead_open(struct mn_aead *a, uint64_t counter, uint8_t *buf, size_t len)
{
    uint8_t nonce[12] = {0};
    int n = 0;
    if (len < MN_AEAD_TAG || len > INT_MAX)
        return -1;
    size_t text = len - MN_AEAD_TAG;
    put_le64(nonce + 4, counter);
    OSSL_PARAM params[2] = {tag_param(buf + text), OSSL_PARAM_construct_end()};
    if (EVP_DecryptInit_ex2(a->ctx, NULL, NULL, nonce, params) != 1)
        return -1;
    if (text > 0 && EVP_DecryptUpdate(a->ctx, buf, &n, buf, (int)text) != 1)
        return -1;
    if (EVP_DecryptFinal_ex(a->ctx, buf + n, &n) != 1)
        return -1;
    return (int)text;
}

int mn_aead_seal_ad(struct mn_aead *a, const uint8_t key[32], const uint8_t nonce[12], const uint8_t *ad, size_t ad_len,
                    const uint8_t *in, size_t len, uint8_t *out)
{
    int n = 0;
    OSSL_PARAM params[2] = {tag_param(out + len), OSSL_PARAM_construct_end()};
    if (EVP_EncryptInit_ex2(a->ctx, NULL, key, nonce, NULL) != 1)
        return -1;
    if (ad_len > 0 && EVP_EncryptUpdate(a->ctx, NULL, &n, ad, (int)ad_len) != 1)
        return -1;
    n = 0;
    if (len > 0 && EVP_EncryptUpdate(a->ctx, out, &n, in, (int)len) != 1)
        return -1;
    if (EVP_EncryptFinal_ex(a->ctx, out + n, &n) != 1 || EVP_CIPHER_CTX_get_params(a->ctx, params) != 1)
        return -1;
    return 0;
}

int mn_aead_open_ad(struct mn_aead *a, const uint8_t key[32], const uint8_t nonce[12], const uint8_t *ad, size_t ad_len,
                    const uint8_t *in, size_t len, uint8_t *out)
{
    uint8_t tag[MN_AEAD_TAG], last[MN_AEAD_TAG];
    int n = 0;
    if (len < MN_AEAD_TAG)
        return -1;
    size_t text = len - MN_AEAD_TAG;
    memcpy(tag, in + text, sizeof tag);
    OSSL_PARAM params[2] = {tag_param(tag), OSSL_PARAM_construct_end()};
    if (EVP_DecryptInit_ex2(a->ctx, NULL, key, nonce, params) != 1)
        return -1;
    if (ad_len > 0 && EVP_DecryptUpdate(a->ctx, NULL, &n, ad, (int)ad_len) != 1)
        return -1;
    n = 0;
    if (text > 0 && EVP_DecryptUpdate(a->ctx, out, &n, in, (int)text) != 1)
        return -1;
    return EVP_DecryptFinal_ex(a->ctx, last, &n) == 1 ? 0 : -1;
}

static uint32_t get_le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void subtract_words(uint8_t *out, const uint8_t *block, const uint8_t *initial)
{
    for (int i = 0; i < 16; i += 4) {
        uint32_t v = get_le32(block + i) - get_le32(initial + i);
        for (int b = 0; b < 4; b++)
            out[i + b] = (uint8_t)(v >> (8 * b));
    }
}

int mn_hchacha20(const struct mn_provider *p, const uint8_t key[32], const uint8_t nonce[16], uint8_t out[32])
{
    static const uint8_t constants[] = "expand 32-byte k";
    uint8_t block[64] = {0};
    int n = 0;
    /* libcrypto's 16-byte IV is block counter and nonce: words 12 to 15, just where HChaCha20 has its nonce. */
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int ok = ctx != NULL && EVP_EncryptInit_ex2(ctx, p->chacha20, key, nonce, NULL) == 1 &&
             EVP_EncryptUpdate(ctx, block, &n, block, sizeof block) == 1 && n == sizeof block;
    EVP_CIPHER_CTX_free(ctx);
    if (ok) {
        subtract_words(out, block, constants);
        subtract_words(out + 16, block + 48, nonce);
    }
    OPENSSL_cleanse(block, sizeof block);
    return ok ? 0 : -1;
}

int mn_xaead_seal(struct mn_aead *a, const struct mn_provider *p, const uint8_t key[32], const uint8_t nonce[24],
                  const uint8_t *ad, size_t ad_len, const uint8_t *in, size_t len, uint8_t *out)
{
    uint8_t subkey[32], rest[12] = {0};
    memcpy(rest + 4, nonce + 16, 8);
    int err = mn_hchacha20(p, key, nonce, subkey);
    if (err == 0)
        err = mn_aead_seal_ad(a, subkey, rest, ad, ad_len, in, len, out);
    OPENSSL_cleanse(subkey, sizeof subkey);
    return err;
}

int mn_xaead_open(struct mn_aead *a, const struct mn_provider *p, const uint8_t key[32], const uint8_t nonce[24],
                  const uint8_t *ad, size_t ad_len, const uint8_t *in, size_t len, uint8_t *out)
{
    uint8_t subkey[32], rest[12] = {0};
    memcpy(rest + 4, nonce + 16, 8);
    int err = mn_hchacha20(p, key, nonce, subkey);
    if (err == 0)
        err = mn_aead_open_ad(a, subkey, rest, ad, ad_len, in, len, out);
    OPENSSL_cleanse(subkey, sizeof subkey);
    return err;
}
