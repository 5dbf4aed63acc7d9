/* UDP: datagrams as values, and the table of open UDP flows (local address and port → handle). */
#ifndef MN_IP_UDP_H
#define MN_IP_UDP_H

#include "packet.h"

enum {
    MN_UDP_HEADER = 8,
    MN_UDP_MAX_FLOWS = 1024,
    MN_UDP_BUCKETS = 256,
};

struct mn_udp {
    uint16_t sport, dport;
    const uint8_t *data;
    size_t len;
};

int mn_udp_parse(struct mn_udp *u, const struct mn_packet *p); /* 0 or a negative mn_packet_error */
/* Writes a whole IP packet; returns its length. */
size_t mn_udp_write(uint8_t *out, const struct mn_ep *from, const struct mn_ep *to, const uint8_t *data, size_t len);

struct mn_udp_flow {
    struct mn_ep local; /* ip all zero: every own address */
    uint32_t id;        /* 0: free */
    uint16_t next;      /* in its bucket, index + 1 */
    uint16_t generation;
};

struct mn_udp_table {
    struct mn_udp_flow *flows; /* MN_UDP_MAX_FLOWS, allocated by the first open */
    uint16_t buckets[MN_UDP_BUCKETS];
    uint32_t count;
};

/* -EADDRINUSE, -EMFILE or -ENOMEM; 0 with *id. local->port is not 0. */
int mn_udp_table_open(struct mn_udp_table *t, const struct mn_ep *local, uint32_t *id);
void mn_udp_table_close(struct mn_udp_table *t, uint32_t id);
const struct mn_udp_flow *mn_udp_table_get(const struct mn_udp_table *t, uint32_t id);
/* The flow that takes datagrams for ip:port: bound to that address first, to every address second. */
const struct mn_udp_flow *mn_udp_table_find(const struct mn_udp_table *t, const struct mn_ip *ip, uint16_t port);
void mn_udp_table_free(struct mn_udp_table *t);

#endif
