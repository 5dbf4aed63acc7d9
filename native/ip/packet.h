/* The one checked view of an IPv4 or IPv6 packet, header building, and Internet checksums. */
#ifndef MN_IP_PACKET_H
#define MN_IP_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../mem/addr.h"

enum mn_proto {
    MN_PROTO_ICMP = 1,
    MN_PROTO_TCP = 6,
    MN_PROTO_UDP = 17,
    MN_PROTO_ICMP6 = 58,
    MN_PROTO_TSMP = 99,
    MN_PROTO_SCTP = 132,
};

enum {
    MN_IP4_HEADER = 20,
    MN_IP6_HEADER = 40,
    MN_IP_TTL = 64,
};

enum mn_packet_error {
    MN_PACKET_MALFORMED = -1,
    MN_PACKET_CHECKSUM = -2,
    MN_PACKET_SOURCE_ROUTE = -3,
};

struct mn_packet {
    struct mn_ip src, dst;
    const uint8_t *ip; /* first byte of the IP header */
    size_t ip_len;     /* whole packet as the header says: padding behind it is cut off */
    const uint8_t *l4;
    size_t l4_len;
    uint8_t version, proto, ttl, tos;
    bool is_fragment; /* part of a larger datagram: l4 is not a whole one */
    uint16_t fragment_at;
    bool fragment_more;
    uint32_t fragment_id;
    const uint8_t *fragment; /* what this piece holds of the datagram, and what that begins with */
    uint8_t fragment_next;
};

/* Check and describe one packet. 0, or a negative mn_packet_error with *p undefined.
 * Extension headers are walked; an unknown next header ends up in proto. Layer-4 contents are not looked at. */
int mn_packet_parse(struct mn_packet *p, const uint8_t *data, size_t len);

/* Could this source address be that of a host? (Not multicast, unspecified, loopback, broadcast.) */
bool mn_packet_source_is_sane(const struct mn_ip *src);
/* Multicast, broadcast or link-local: never ours, whatever the netmap says. */
bool mn_packet_destination_is_special(const struct mn_ip *dst);

/* Header for a payload of payload_len bytes; returns its length. Both addresses are of one family. */
size_t mn_packet_write_header(uint8_t *out, const struct mn_ip *src, const struct mn_ip *dst, uint8_t proto,
                              size_t payload_len);
static inline size_t mn_packet_header_len(const struct mn_ip *a)
{
    return mn_ip_is4(a) ? MN_IP4_HEADER : MN_IP6_HEADER;
}

/* The two ECN bits of a header of either family: read, and set with the checksum kept right. */
uint8_t mn_packet_ecn(const uint8_t *ip);
void mn_packet_set_ecn(uint8_t *ip, uint8_t ecn);

/* Checksums: partial sums are kept in the order of memory and folded late. Only the last piece may be odd. */
uint64_t mn_csum_add(uint64_t sum, const uint8_t *p, size_t n);
uint64_t mn_csum_copy(uint64_t sum, uint8_t *restrict dst, const uint8_t *restrict src, size_t n);
/* Pseudo header of layer 4, for either family. */
uint64_t mn_csum_pseudo(const struct mn_ip *src, const struct mn_ip *dst, uint8_t proto, size_t l4_len);

static inline uint16_t mn_csum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffffU) + (sum >> 32);
    sum = (sum & 0xffffffffU) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* Does a piece of data with its checksum inside add up? */
static inline bool mn_csum_is_good(uint64_t sum)
{
    return mn_csum_fold(sum) == 0xffff;
}

/* A piece summed from an even offset, as if it had started at an odd one. */
static inline uint64_t mn_csum_shift(uint64_t sum)
{
    uint16_t f = mn_csum_fold(sum);
    return (uint16_t)((f << 8) | (f >> 8));
}

static inline uint16_t mn_load16(const uint8_t *p)
{
    return (uint16_t)((p[0] << 8) | p[1]);
}

static inline uint32_t mn_load32(const uint8_t *p)
{
    return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | p[3];
}

static inline void mn_store16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void mn_store32(uint8_t *p, uint32_t v)
{
    mn_store16(p, v >> 16);
    mn_store16(p + 2, v);
}

/* Store a folded and complemented sum as it lies in memory. */
static inline void mn_csum_store(uint8_t *p, uint64_t sum)
{
    uint16_t v = (uint16_t)~mn_csum_fold(sum);
    memcpy(p, &v, sizeof v);
}

#endif
