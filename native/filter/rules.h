/* Compiled filter rules: what a peer may start with us. Immutable once loaded; replaced as a whole.
 *
 * Blob, little endian: u32 'MNF1', u32 rules; per rule u8 n_protos, u16 n_src, u16 n_dst, protos u8[],
 * src {u8 ip[16]; u8 bits}[], dst {u8 ip[16]; u8 bits; u16 first; u16 last}[]; then u32 n, jailed {u8 ip[16]; u8
 * bits}[n]. IPv4 is ::ffff:a.b.c.d with bits 96 + n. A prefix shorter than 96 bits speaks of IPv6 only.
 */
#ifndef MN_FILTER_RULES_H
#define MN_FILTER_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/addr.h"

enum {
    MN_FILTER_MAGIC = 0x31464e4d,
    MN_FILTER_MAX_BLOB = 16 << 20,
    MN_FILTER_MAX_RULES = 65536,
};

struct mn_rules;

/* NULL: malformed or out of memory. Every length in the blob is proved first; nothing may be left over. */
struct mn_rules *mn_rules_load(const uint8_t *blob, size_t len);
void mn_rules_free(struct mn_rules *r);

/* rules NULL: nothing is allowed. */
bool mn_rules_allow_port(const struct mn_rules *r, uint8_t proto, const struct mn_ip *src, const struct mn_ip *dst,
                         uint16_t port);
/* Echo requests and the like: any rule that names source and destination, whatever its protocols and ports. */
bool mn_rules_allow_host(const struct mn_rules *r, const struct mn_ip *src, const struct mn_ip *dst);
/* A protocol without ports: the rule must span all of them. */
bool mn_rules_allow_proto(const struct mn_rules *r, uint8_t proto, const struct mn_ip *src, const struct mn_ip *dst);

#endif
