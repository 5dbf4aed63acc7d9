/* UDP datagrams as values. */
#ifndef MN_IP_UDP_H
#define MN_IP_UDP_H

#include "packet.h"

enum {
    MN_UDP_HEADER = 8,
};

struct mn_udp {
    uint16_t sport, dport;
    const uint8_t *data;
    size_t len;
};

int mn_udp_parse(struct mn_udp *u, const struct mn_packet *p); /* 0 or a negative mn_packet_error */
/* Writes a whole IP packet; returns its length. */
size_t mn_udp_write(uint8_t *out, const struct mn_ep *from, const struct mn_ep *to, const uint8_t *data, size_t len);

#endif
