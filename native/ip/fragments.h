/* Datagrams that arrive in pieces, put together for local delivery (RFC 791, RFC 8200 4.5) within hard bounds.
 *
 * What is whole passes the rules like any packet, so no piece is ever taken for what it is not: nothing is delivered by
 * its first piece alone. Pieces that overlap discredit their datagram (RFC 5722, for both families); a header may not
 * be spread over pieces (RFC 1858); pieces repeated exactly are ignored. Bounds: MN_FRAGMENTS_DATAGRAMS at once and
 * MN_FRAGMENTS_BYTES in all, a quarter of either for one peer, 30 s for IPv4 and 60 s for IPv6; the oldest give way.
 * There is no timer: what is overdue goes when the next piece comes. Source: docs/protocol/dataplane.md 4.2. */
#ifndef MN_IP_FRAGMENTS_H
#define MN_IP_FRAGMENTS_H

#include "packet.h"

enum {
    MN_FRAGMENTS_DATAGRAMS = 64,
    MN_FRAGMENTS_BYTES = 256 << 10,
    MN_FRAGMENTS_PIECES = 64, /* of one datagram: 64 KiB in pieces of a tunnel's size */
    MN_FRAGMENTS_WHOLE = 8,   /* put together and not released yet */
};

struct mn_datagram;

struct mn_fragments {
    struct mn_datagram *slots; /* NULL until the first piece */
    uint8_t *whole[MN_FRAGMENTS_WHOLE];
    uint32_t whole_count, bytes;
    uint64_t dropped; /* pieces and datagrams given up for any reason */
};

/* Take one piece. True: with it a datagram is whole; *packet (an IP packet of *len bytes) lives until
 * mn_fragments_release. At most MN_FRAGMENTS_WHOLE may be out at once: a further one is dropped. */
bool mn_fragments_take(struct mn_fragments *f, uint32_t peer, const struct mn_packet *p, uint64_t now_ns,
                       const uint8_t **packet, size_t *len);
/* Is a piece of the same datagram here? */
bool mn_fragments_knows(const struct mn_fragments *f, uint32_t peer, const struct mn_packet *p);
void mn_fragments_release(struct mn_fragments *f);
void mn_fragments_free(struct mn_fragments *f);

#endif
