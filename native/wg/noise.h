/* Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard speaks it: the two messages, made and consumed.
 *
 * Knows nothing of peers tables, time, macs or indices: who may speak and when is its caller's business.
 * Everything works on copies: a message that fails leaves the state it was tried against as it was. Locals are wiped.
 * Every function returns 0, or -1: not authentic (or libcrypto out of memory, which is treated the same).
 * Source: WireGuard paper 5.4; docs/protocol/dataplane.md 1.3. */
#ifndef MN_WG_NOISE_H
#define MN_WG_NOISE_H

#include <stddef.h>
#include <stdint.h>

#include "../crypto/aead.h"
#include "../crypto/blake2s.h"
#include "../crypto/x25519.h"

enum {
    MN_INITIATION_LEN = 148,
    MN_RESPONSE_LEN = 92,
    MN_COOKIE_LEN = 64,
    MN_DATA_MIN = 32,
    MN_MACS_LEN = 32, /* mac1 and mac2, at the end of the first two */
};

/* Tools of one device and who it is. */
struct mn_noise {
    const struct mn_provider *provider;
    struct mn_hasher hasher;
    struct mn_aead aead; /* rekeyed for each use */
    EVP_PKEY *key;       /* NULL: not set */
    uint8_t pub[32];
};

/* The far side. Secret. */
struct mn_noise_remote {
    uint8_t pub[32], ss[32], psk[32];
};

/* What an initiator remembers until the response. Secret. */
struct mn_noise_initiator {
    uint8_t ck[32], h[32], ephemeral[32];
};

/* What a responder holds between the two messages. Secret; lives on the stack. */
struct mn_noise_responder {
    uint8_t ck[32], h[32], ephemeral[32] /* theirs */, pub[32], timestamp[12];
    uint32_t sender;
};

struct mn_noise_keys {
    uint8_t send[32], receive[32];
};

int mn_noise_init(struct mn_noise *n);
void mn_noise_wipe(struct mn_noise *n);
int mn_noise_set_key(struct mn_noise *n, const uint8_t private_key[32]); /* -1: nothing changed */
int mn_noise_shared(struct mn_noise *n, struct mn_noise_remote *remote); /* ss; -1: a point of small order */

/* ephemeral: 32 random bytes. msg: all but the macs. */
int mn_noise_create_initiation(struct mn_noise *n, const struct mn_noise_remote *remote, const uint8_t ephemeral[32],
                               const uint8_t timestamp[12], uint32_t sender, struct mn_noise_initiator *state,
                               uint8_t msg[MN_INITIATION_LEN]);
/* First whom it claims to be from (r->pub), then, with that peer's record, whether it is and when it was made. */
int mn_noise_read_static(struct mn_noise *n, const uint8_t msg[MN_INITIATION_LEN], struct mn_noise_responder *r);
int mn_noise_read_timestamp(struct mn_noise *n, const struct mn_noise_remote *remote,
                            const uint8_t msg[MN_INITIATION_LEN], struct mn_noise_responder *r);
int mn_noise_create_response(struct mn_noise *n, const struct mn_noise_remote *remote,
                             const struct mn_noise_responder *r, const uint8_t ephemeral[32], uint32_t sender,
                             struct mn_noise_keys *keys, uint8_t msg[MN_RESPONSE_LEN]);
int mn_noise_consume_response(struct mn_noise *n, const struct mn_noise_remote *remote,
                              const struct mn_noise_initiator *state, const uint8_t msg[MN_RESPONSE_LEN],
                              struct mn_noise_keys *keys);

static inline uint32_t mn_le32_get(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void mn_le32_put(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

#endif
