/* Known answers and edges of what Noise needs from libcrypto. WG-01. */
#include "check.h"
#include "crypto/aead.h"
#include "crypto/blake2s.h"
#include "crypto/provider.h"
#include "crypto/x25519.h"

static const struct mn_provider *provider;
static struct mn_hasher hasher;

static void check_hex(const uint8_t *got, const char *want)
{
    uint8_t bytes[512];
    size_t n = test_hex(want, bytes, sizeof bytes);
    CHECK(memcmp(got, bytes, n) == 0);
}

static void test_hash_vectors(void)
{
    uint8_t out[32];
    CHECK(mn_hash(&hasher, out, "", 0, NULL, 0) == 0);
    check_hex(out, "69217a3079908094e11121d042354a7c1f55b6482ca1a51e1b250dfd1ed0eef9");
    CHECK(mn_hash(&hasher, out, "a", 1, "bc", 2) == 0);
    check_hex(out, "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
}

/* The two constants of the handshake. */
static void test_noise_constants(void)
{
    static const char construction[] = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    static const char identifier[] = "WireGuard v1 zx2c4 Jason@zx2c4.com";
    uint8_t c[32], h[32];
    CHECK(mn_hash(&hasher, c, construction, sizeof construction - 1, NULL, 0) == 0);
    check_hex(c, "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36");
    CHECK(mn_hash(&hasher, h, c, 32, identifier, sizeof identifier - 1) == 0);
    check_hex(h, "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3");
}

/* BLAKE2 KAT, keyed with 00..1f, but for a 16-byte digest: values from Python's hashlib.blake2s(digest_size=16). */
static void test_mac_vectors(void)
{
    uint8_t key[32], in[64], out[16];
    for (int i = 0; i < 32; i++)
        key[i] = (uint8_t)i;
    for (int i = 0; i < 64; i++)
        in[i] = (uint8_t)i;
    CHECK(mn_mac(&hasher, out, key, 32, in, 64) == 0);
    check_hex(out, "f1efa90d2547036841ecd3627fafbc36");
    CHECK(mn_mac(&hasher, out, key, 16, in, 3) == 0);
    check_hex(out, "a63420ca605c6a6d122381a74bde7c9c");
    CHECK(mn_mac(&hasher, out, key, 32, in, 64) == 0); /* the context carries nothing over */
    check_hex(out, "f1efa90d2547036841ecd3627fafbc36");
}

/* wireguard-go device/kdf_test.go; the first case verified with hashlib. */
static void test_kdf_vectors(void)
{
    uint8_t t1[32], t2[32], t3[32];
    CHECK(mn_kdf(&hasher, t1, t2, t3, (const uint8_t *)"test-key", 8, "test-input", 10) == 0);
    check_hex(t1, "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633");
    check_hex(t2, "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a");
    check_hex(t3, "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24");
    CHECK(mn_kdf(&hasher, t1, t2, t3, (const uint8_t *)"wireguard", 9, "wireguard", 9) == 0);
    check_hex(t1, "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8");
    check_hex(t2, "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f");
    check_hex(t3, "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160");
    CHECK(mn_kdf(&hasher, t1, t2, t3, (const uint8_t *)"", 0, "", 0) == 0);
    check_hex(t1, "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0");
    check_hex(t2, "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e");
    check_hex(t3, "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e");
}

/* Outputs may overwrite the key, as the chaining key does. */
static void test_kdf_aliasing(void)
{
    uint8_t ck[32] = {9}, other[32] = {9}, a[32], b[32];
    CHECK(mn_kdf(&hasher, a, b, NULL, other, 32, "x", 1) == 0);
    uint8_t k[32];
    CHECK(mn_kdf(&hasher, ck, k, NULL, ck, 32, "x", 1) == 0);
    CHECK(memcmp(ck, a, 32) == 0 && memcmp(k, b, 32) == 0);
}

/* RFC 8439 appendix A.5, opened; and tampering with each part. */
static void test_aead_rfc8439(void)
{
    static const char key_hex[] = "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0";
    static const char cipher_hex[] =
        "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb24c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b01"
        "00d4f03b7f355894cf332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c8559797a06ef4f0ef61c186324e2b35"
        "06383606907b6a7c02b0f9f6157b53c867e4b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523eaf4534d7f8"
        "3fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a67276"
        "27097a1049e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29a6ad5cb4022b02709b"
        "eead9d67890cbb22392336fea1851f38";
    uint8_t key[32], nonce[12], ad[12], in[512], out[512];
    test_hex(key_hex, key, sizeof key);
    test_hex("000000000102030405060708", nonce, sizeof nonce);
    test_hex("f33388860000000000004e91", ad, sizeof ad);
    size_t len = test_hex(cipher_hex, in, sizeof in);
    CHECK_INT(len, 265 + 16);
    struct mn_aead a = {0};
    CHECK(mn_aead_init(&a, provider, key, false) == 0);
    CHECK(mn_aead_open_ad(&a, key, nonce, ad, sizeof ad, in, len, out) == 0);
    CHECK(memcmp(out, "Internet-Drafts are draft documents", 35) == 0);
    for (size_t bad = 0; bad < len; bad += 31) {
        in[bad] ^= 1;
        CHECK(mn_aead_open_ad(&a, key, nonce, ad, sizeof ad, in, len, out) != 0);
        in[bad] ^= 1;
    }
    ad[0] ^= 1;
    CHECK(mn_aead_open_ad(&a, key, nonce, ad, sizeof ad, in, len, out) != 0);
    ad[0] ^= 1;
    CHECK(mn_aead_open_ad(&a, key, nonce, ad, sizeof ad, in, len, out) == 0);
    mn_aead_wipe(&a);
}

/* Kept contexts, in place, every length and a few alignments, a forgery in between: nothing carries over. */
static void test_aead_in_place(void)
{
    uint8_t key[32] = {5}, room[2048 + 64], plain[2048];
    uint64_t seed = 1;
    struct mn_aead seal = {0}, open = {0};
    CHECK(mn_aead_init(&seal, provider, key, true) == 0 && mn_aead_init(&open, provider, key, false) == 0);
    test_random_bytes(&seed, plain, sizeof plain);
    for (size_t len = 0; len <= 2000; len += len < 300 ? 1 : 61) {
        uint8_t *buf = room + len % 16, nonce[12] = {0}, other[2048 + 16];
        uint64_t counter = len * 0x0101010101010101U;
        memcpy(buf, plain, len);
        CHECK(mn_aead_seal(&seal, counter, buf, len) == 0);
        for (int i = 0; i < 8; i++)
            nonce[4 + i] = (uint8_t)(counter >> (8 * i));
        struct mn_aead fresh = {0};
        CHECK(mn_aead_init(&fresh, provider, key, true) == 0);
        CHECK(mn_aead_seal_ad(&fresh, key, nonce, NULL, 0, plain, len, other) == 0);
        mn_aead_wipe(&fresh);
        CHECK(memcmp(buf, other, len + 16) == 0);
        other[len / 2] ^= 4;
        CHECK(mn_aead_open(&open, counter, other, len + 16) < 0);
        CHECK_INT(mn_aead_open(&open, counter, buf, len + 16), len);
        CHECK(memcmp(buf, plain, len) == 0);
    }
    uint8_t short_one[15] = {0};
    CHECK(mn_aead_open(&open, 0, short_one, sizeof short_one) < 0);
    mn_aead_wipe(&seal);
    mn_aead_wipe(&open);
}

/* draft-irtf-cfrg-xchacha-03, 2.2.1 and A.3.1. */
static void test_xchacha(void)
{
    static const char text[] = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
                               "future, sunscreen would be it.";
    enum { LEN = sizeof text - 1 };
    uint8_t key[32], nonce[24], ad[12], out[32], sealed[LEN + 16], opened[LEN];
    for (int i = 0; i < 32; i++)
        key[i] = (uint8_t)i;
    test_hex("000000090000004a0000000031415927", nonce, sizeof nonce);
    CHECK(mn_hchacha20(provider, key, nonce, out) == 0);
    check_hex(out, "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc");
    for (int i = 0; i < 32; i++)
        key[i] = (uint8_t)(0x80 + i);
    for (int i = 0; i < 24; i++)
        nonce[i] = (uint8_t)(0x40 + i);
    test_hex("50515253c0c1c2c3c4c5c6c7", ad, sizeof ad);
    struct mn_aead a = {0};
    CHECK(mn_aead_init(&a, provider, key, true) == 0);
    CHECK(mn_xaead_seal(&a, provider, key, nonce, ad, sizeof ad, (const uint8_t *)text, LEN, sealed) == 0);
    check_hex(sealed, "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb");
    check_hex(sealed + LEN, "c0875924c1c7987947deafd8780acf49");
    CHECK(mn_aead_rekey(&a, key, false) == 0);
    CHECK(mn_xaead_open(&a, provider, key, nonce, ad, sizeof ad, sealed, sizeof sealed, opened) == 0);
    CHECK(memcmp(opened, text, LEN) == 0);
    nonce[0] ^= 1;
    CHECK(mn_xaead_open(&a, provider, key, nonce, ad, sizeof ad, sealed, sizeof sealed, opened) != 0);
    mn_aead_wipe(&a);
}

/* RFC 7748 6.1, from Bob's side. */
static void test_x25519_rfc7748(void)
{
    uint8_t b[32], alice[32], out[32];
    test_hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb", b, sizeof b);
    test_hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a", alice, sizeof alice);
    EVP_PKEY *pkey = mn_x25519_load(b);
    CHECK(pkey != NULL && mn_x25519_public(pkey, out) == 0);
    check_hex(out, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    CHECK(mn_x25519(pkey, alice, out) == 0);
    check_hex(out, "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    EVP_PKEY_free(pkey);
}

/* Every point of small order, in each encoding, with and without the ignored top bit: refused, and nothing left. */
static void test_x25519_small_order(void)
{
    static const char *const points[] = {
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    };
    static const uint8_t zero[32];
    uint8_t key[32], point[32], out[32];
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        for (int top = 0; top < 2; top++) {
            test_random_bytes(&seed, key, sizeof key);
            EVP_PKEY *pkey = mn_x25519_load(key);
            test_hex(points[i], point, sizeof point);
            point[31] |= (uint8_t)(top << 7);
            memset(out, 0xa5, sizeof out);
            CHECK(pkey != NULL && mn_x25519(pkey, point, out) != 0);
            CHECK(memcmp(out, zero, sizeof out) == 0);
            EVP_PKEY_free(pkey);
        }
    }
}

int main(void)
{
    provider = mn_provider_get();
    CHECK(provider != NULL);
    CHECK(mn_hasher_init(&hasher, provider) == 0);
    RUN(test_hash_vectors);
    RUN(test_noise_constants);
    RUN(test_mac_vectors);
    RUN(test_kdf_vectors);
    RUN(test_kdf_aliasing);
    RUN(test_aead_rfc8439);
    RUN(test_aead_in_place);
    RUN(test_xchacha);
    RUN(test_x25519_rfc7748);
    RUN(test_x25519_small_order);
    mn_hasher_wipe(&hasher);
    return 0;
}
