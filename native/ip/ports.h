/* Table of bound local endpoints (address or any, port) → handle: UDP flows and TCP listeners each have one. */
#ifndef MN_IP_PORTS_H
#define MN_IP_PORTS_H

#include "../mem/addr.h"

enum {
    MN_PORTS_MAX = 1024,
    MN_PORTS_BUCKETS = 256,
};

struct mn_port {
    struct mn_ep local; /* ip all zero: every own address */
    uint32_t id;        /* 0: free */
    uint16_t next;      /* in its bucket, index + 1 */
    uint16_t generation;
};

struct mn_ports {
    struct mn_port *slots; /* MN_PORTS_MAX, allocated by the first open */
    uint16_t buckets[MN_PORTS_BUCKETS];
    uint32_t count;
};

/* 0 with *id, or -EADDRINUSE, -EMFILE, -ENOMEM. Port 0: the first free one from start on. */
int mn_ports_open(struct mn_ports *t, const struct mn_ip *ip, uint16_t port, uint16_t start, uint32_t *id);
void mn_ports_close(struct mn_ports *t, uint32_t id);
const struct mn_port *mn_ports_get(const struct mn_ports *t, uint32_t id);
/* Who takes what comes to ip:port: bound to that address first, to every address second. */
const struct mn_port *mn_ports_find(const struct mn_ports *t, const struct mn_ip *ip, uint16_t port);
void mn_ports_free(struct mn_ports *t);

/* Index of a handle's slot, below MN_PORTS_MAX. */
static inline uint32_t mn_ports_slot(uint32_t id)
{
    return (id & 0xffff) - 1;
}

#endif
