/* Explicit congestion notification across a tunnel: what the outer header says of a packet is kept in the inner one.
 *
 * Into the tunnel the inner bits are copied outside. Out of it: congestion met on the way marks a packet whose ends
 * speak ECN and loses one whose ends do not, as the router would have lost it. Source: RFC 6040 4.1 and 4.2. */
#ifndef MN_IP_ECN_H
#define MN_IP_ECN_H

#include <stdbool.h>
#include <stdint.h>

enum { MN_ECN_NONE = 0, MN_ECN_ECT1 = 1, MN_ECN_ECT0 = 2, MN_ECN_CE = 3 };

/* The bits of an IPv4 or IPv6 packet; its first two bytes are read. */
static inline uint8_t mn_ecn_get(const uint8_t *packet)
{
    return packet[0] >> 4 == 4 ? packet[1] & 3 : packet[1] >> 4 & 3;
}

/* Write them, with IPv4's checksum; a whole fixed header is there. */
void mn_ecn_set(uint8_t *packet, uint8_t ecn);

/* The inner packet came under outer bits other than MN_ECN_NONE: brought up to date. False: drop it. */
bool mn_ecn_decapsulate(uint8_t *inner, uint8_t outer);

#endif
