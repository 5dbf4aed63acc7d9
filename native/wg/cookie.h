/* mac1, mac2 and cookies, both roles, and the limiter that is asked under load.
 *
 * mac1 proves that the sender knows our public key; mac2 proves that it receives at the address it sends from.
 * Source: WireGuard paper 5.4.4, 5.4.7; docs/protocol/dataplane.md 1.4, 1.11. */
#ifndef MN_WG_COOKIE_H
#define MN_WG_COOKIE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/addr.h"
#include "noise.h"

#define MN_COOKIE_MAX_AGE_NS 120000000000ULL
#define MN_COOKIE_USE_NS 115000000000ULL /* a sender stops here, so that its last message is still in time */

typedef void (*mn_random_fn)(void *ctx, uint8_t *p, size_t n);

/* As receiver of handshake messages. Secret. */
struct mn_cookie_checker {
    uint8_t mac1_key[32], cookie_key[32], secret[32];
    uint64_t secret_at; /* 0: none yet */
};

/* As sender of handshake messages to one peer. Secret. */
struct mn_cookie_jar {
    uint8_t mac1_key[32], cookie_key[32], cookie[16], last_mac1[16];
    uint64_t cookie_at;
    bool has_cookie, awaits_reply;
};

int mn_cookie_checker_init(struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t own_pub[32]);
int mn_cookie_jar_init(struct mn_cookie_jar *j, struct mn_noise *n, const uint8_t peer_pub[32]);

/* msg of len bytes ends with its macs. */
bool mn_cookie_check_mac1(const struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t *msg, size_t len);
bool mn_cookie_check_mac2(struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t *msg, size_t len,
                          const struct mn_path *from, uint64_t now_ns);
int mn_cookie_add_macs(struct mn_cookie_jar *j, struct mn_noise *n, uint8_t *msg, size_t len, uint64_t now_ns);

/* The reply to msg, whose sender is at `from`. */
int mn_cookie_create_reply(struct mn_cookie_checker *c, struct mn_noise *n, const uint8_t *msg, size_t len,
                           const struct mn_path *from, uint64_t now_ns, mn_random_fn random, void *ctx,
                           uint8_t reply[MN_COOKIE_LEN]);
/* -1: nobody asked, or not authentic. */
int mn_cookie_consume_reply(struct mn_cookie_jar *j, struct mn_noise *n, const uint8_t reply[MN_COOKIE_LEN],
                            uint64_t now_ns);

/* 20 messages a second and source, 5 at once; IPv6 sources are /64s, relayed ones are senders. A full table refuses. */
enum { MN_LIMITER_ENTRIES = 4096, MN_LIMITER_PROBES = 16 };

struct mn_limiter_entry {
    uint8_t source[20];
    uint64_t used_at, tokens_ns; /* used_at 0: free */
};

struct mn_limiter {
    uint8_t key[32];
    struct mn_limiter_entry *entries; /* made at the first question */
};

bool mn_limiter_allow(struct mn_limiter *l, struct mn_noise *n, const struct mn_path *from, uint64_t now_ns);
void mn_limiter_destroy(struct mn_limiter *l);

#endif
