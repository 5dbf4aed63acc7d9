/* Which protocol a datagram on the WireGuard port belongs to, by its first bytes and its length.
 *
 * Exact: what is none of them is UNKNOWN and dropped, counted. They never overlap: WireGuard
 * has zeros in bytes 1..3, STUN has 1 in byte 1, DISCO starts with a magic of its own, and Geneve of a peer relay has
 * 7a11 or 7a12 at byte 2, in front of what must be DISCO or WireGuard in its turn.
 * Source: docs/protocol/dataplane.md 1.2 and 1.13, paths.md 6.9, RFC 5389 6. */
#ifndef MN_UDP_CLASSIFY_H
#define MN_UDP_CLASSIFY_H

#include <stddef.h>
#include <stdint.h>

enum mn_class {
    MN_CLASS_UNKNOWN,
    MN_CLASS_WG_HANDSHAKE, /* initiation, response, cookie reply: right type and exact length */
    MN_CLASS_WG_DATA,
    MN_CLASS_DISCO,
    MN_CLASS_STUN,
    MN_CLASS_RELAYED_WG,    /* WireGuard of either kind behind a Geneve header */
    MN_CLASS_RELAYED_DISCO, /* DISCO behind one, from a relay itself or through it */
};

enum mn_class mn_classify(const uint8_t *p, size_t len);

#endif
