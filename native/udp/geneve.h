/* Geneve, as far as peer relays use it: eight bytes before a datagram that name the leg of a relay it takes (RFC 8926).
 *
 * version and length of options 0 · flags (0x80: between a relay and its client) · u16 protocol · u24 VNI · 0.
 * A leg is the relay's address and the VNI; to everything above the sockets it is an endpoint like any other.
 * Source: docs/protocol/paths.md 6.9. */
#ifndef MN_UDP_GENEVE_H
#define MN_UDP_GENEVE_H

#include <stddef.h>
#include <stdint.h>

enum { MN_GENEVE_LEN = 8, MN_GENEVE_VNI_MAX = 0xffffff };
enum mn_geneve_protocol { MN_GENEVE_DISCO = 0x7a11, MN_GENEVE_WIREGUARD = 0x7a12 };

/* The header of WireGuard by this leg; 0 < vni <= MN_GENEVE_VNI_MAX. */
static inline void mn_geneve_put(uint8_t out[MN_GENEVE_LEN], uint32_t vni)
{
    out[0] = out[1] = 0;
    out[2] = MN_GENEVE_WIREGUARD >> 8;
    out[3] = MN_GENEVE_WIREGUARD & 0xff;
    out[4] = (uint8_t)(vni >> 16);
    out[5] = (uint8_t)(vni >> 8);
    out[6] = (uint8_t)vni;
    out[7] = 0;
}

/* Protocol of a header of ours; 0: it is none, or its VNI is 0. Reserved bits are zero: they tell it from the rest. */
static inline unsigned mn_geneve_protocol(const uint8_t *p, size_t len)
{
    if (len < MN_GENEVE_LEN || p[0] != 0 || (p[1] & 0x7f) != 0 || p[7] != 0 || (p[4] | p[5] | p[6]) == 0)
        return 0;
    return ((unsigned)p[2] << 8) | p[3];
}

static inline uint32_t mn_geneve_vni(const uint8_t p[MN_GENEVE_LEN])
{
    return ((uint32_t)p[4] << 16) | ((uint32_t)p[5] << 8) | p[6];
}

#endif
