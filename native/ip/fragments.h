/* Datagrams in pieces: those that arrive, put together for local delivery (RFC 791, RFC 8200 4.5) within hard bounds;
 * and the headers of pieces of our own.
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

/* One piece that we send: len bytes from `at` of a datagram's payload. */
struct mn_piece {
    struct mn_ip src, dst;
    uint32_t
        id; /* the same for all pieces of a datagram, another for the next between the two; 16 bits of it in IPv4 */
    uint32_t at;
    size_t len;
    uint8_t proto;
    bool more;
};

/* Bytes of a datagram that one packet of so many carries: a multiple of eight. */
size_t mn_piece_share(const struct mn_ip *dst, size_t mtu);
/* What goes in front of the piece's bytes; returns its length. */
size_t mn_piece_write_header(uint8_t *out, const struct mn_piece *k);

#endif
