/* The ten bytes that stand before each packet of a kernel interface (virtio_net_hdr): what is left to do to it.
 *
 * Native byte order. A packet longer than the interface's MTU is several of one flow in one: gso_type says of which
 * kind, gso_size how much payload each takes. Source: docs/protocol/dataplane.md 8. */
#ifndef MN_IP_VNET_H
#define MN_IP_VNET_H

#include <stdint.h>
#include <string.h>

enum {
    MN_VNET_SIZE = 10,
    MN_VNET_NEEDS_CSUM = 1, /* the layer-4 checksum field holds the pseudo header's sum only */
    MN_VNET_GSO_NONE = 0,
    MN_VNET_GSO_TCP4 = 1,
    MN_VNET_GSO_TCP6 = 4,
    MN_VNET_GSO_UDP = 5, /* datagrams of equal size, either family */
    MN_VNET_GSO_ECN = 0x80,
};

struct mn_vnet {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset;
};

static inline struct mn_vnet mn_vnet_load(const uint8_t p[MN_VNET_SIZE])
{
    uint16_t w[4];
    memcpy(w, p + 2, sizeof w);
    return (struct mn_vnet){p[0], p[1], w[0], w[1], w[2], w[3]};
}

static inline void mn_vnet_store(uint8_t p[MN_VNET_SIZE], const struct mn_vnet *v)
{
    const uint16_t w[4] = {v->hdr_len, v->gso_size, v->csum_start, v->csum_offset};
    p[0] = v->flags;
    p[1] = v->gso_type;
    memcpy(p + 2, w, sizeof w);
}

#endif
