/* One address form for both families: 16 bytes, IPv4 as ::ffff:a.b.c.d. Ports are in host order. */
#ifndef MN_MEM_ADDR_H
#define MN_MEM_ADDR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define MN_PEER_NONE 0xffffffffU

struct mn_ip {
    uint8_t b[16];
};

/* Port 0: none. sock: which of our extra sockets speaks with it (udp/sockets.h); 0: the usual one of its family.
 * vni: the leg of a peer relay at that address (udp/geneve.h); 0: the address itself. */
struct mn_ep {
    struct mn_ip ip;
    uint16_t port;
    uint16_t sock;
    uint32_t vni;
};

/* Where a WireGuard message goes or came from: region != 0 is the relay of that region (ep unused), else UDP at ep. */
struct mn_path {
    struct mn_ep ep;
    uint16_t region;
};

static const uint8_t mn_ip4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static inline bool mn_ip_is4(const struct mn_ip *a)
{
    return memcmp(a->b, mn_ip4_prefix, sizeof mn_ip4_prefix) == 0;
}

static inline struct mn_ip mn_ip_from4(const uint8_t v4[4])
{
    struct mn_ip a;
    memcpy(a.b, mn_ip4_prefix, sizeof mn_ip4_prefix);
    memcpy(a.b + 12, v4, 4);
    return a;
}

static inline struct mn_ip mn_ip_from6(const uint8_t v6[16])
{
    struct mn_ip a;
    memcpy(a.b, v6, sizeof a.b);
    return a;
}

static inline bool mn_ip_equal(const struct mn_ip *a, const struct mn_ip *b)
{
    return memcmp(a->b, b->b, sizeof a->b) == 0;
}

static inline bool mn_ip_is_zero(const struct mn_ip *a)
{
    static const uint8_t zero[16];
    return memcmp(a->b, zero, sizeof zero) == 0;
}

/* Does a lie within prefix/bits? bits counts the 128-bit form (IPv4 /n is 96 + n) and must be <= 128. */
static inline bool mn_ip_in_prefix(const struct mn_ip *a, const struct mn_ip *prefix, unsigned bits)
{
    unsigned whole = bits / 8, rest = bits % 8;
    if (memcmp(a->b, prefix->b, whole) != 0)
        return false;
    return rest == 0 || ((a->b[whole] ^ prefix->b[whole]) >> (8 - rest)) == 0;
}

static inline bool mn_ep_equal(const struct mn_ep *a, const struct mn_ep *b)
{
    return a->port == b->port && a->sock == b->sock && a->vni == b->vni && mn_ip_equal(&a->ip, &b->ip);
}

static inline bool mn_path_equal(const struct mn_path *a, const struct mn_path *b)
{
    return a->region == b->region && (a->region != 0 || mn_ep_equal(&a->ep, &b->ep));
}

#endif
