/* UDP datagrams and the table of open flows. Handles carry a generation so that a closed one is never confused. */
#include "udp.h"

#include <errno.h>
#include <stdlib.h>

int mn_udp_parse(struct mn_udp *u, const struct mn_packet *p)
{
    const uint8_t *d = p->l4;
    if (p->l4_len < MN_UDP_HEADER)
        return MN_PACKET_MALFORMED;
    size_t len = mn_load16(d + 4);
    if (len < MN_UDP_HEADER || len > p->l4_len)
        return MN_PACKET_MALFORMED;
    if (mn_load16(d + 6) == 0) {
        if (p->version == 6)
            return MN_PACKET_CHECKSUM;
    } else if (!mn_csum_is_good(mn_csum_add(mn_csum_pseudo(&p->src, &p->dst, MN_PROTO_UDP, len), d, len))) {
        return MN_PACKET_CHECKSUM;
    }
    u->sport = mn_load16(d);
    u->dport = mn_load16(d + 2);
    u->data = d + MN_UDP_HEADER;
    u->len = len - MN_UDP_HEADER;
    return 0;
}

size_t mn_udp_write(uint8_t *out, const struct mn_ep *from, const struct mn_ep *to, const uint8_t *data, size_t len)
{
    size_t n = MN_UDP_HEADER + len;
    size_t header = mn_packet_write_header(out, &from->ip, &to->ip, MN_PROTO_UDP, n);
    uint8_t *d = out + header;
    mn_store16(d, from->port);
    mn_store16(d + 2, to->port);
    mn_store16(d + 4, (uint32_t)n);
    mn_store16(d + 6, 0);
    uint64_t sum = mn_csum_add(mn_csum_pseudo(&from->ip, &to->ip, MN_PROTO_UDP, n), d, MN_UDP_HEADER);
    if (len > 0)
        sum = mn_csum_copy(sum, d + MN_UDP_HEADER, data, len);
    mn_csum_store(d + 6, sum);
    if (mn_load16(d + 6) == 0)
        mn_store16(d + 6, 0xffff);
    return header + n;
}

static const struct mn_udp_flow *find_exact(const struct mn_udp_table *t, const struct mn_ep *local)
{
    for (uint16_t i = t->buckets[local->port % MN_UDP_BUCKETS]; i != 0; i = t->flows[i - 1].next)
        if (mn_ep_equal(&t->flows[i - 1].local, local))
            return &t->flows[i - 1];
    return NULL;
}

int mn_udp_table_open(struct mn_udp_table *t, const struct mn_ep *local, uint32_t *id)
{
    if (t->flows == NULL) {
        t->flows = calloc(MN_UDP_MAX_FLOWS, sizeof *t->flows);
        if (t->flows == NULL)
            return -ENOMEM;
    }
    if (find_exact(t, local) != NULL)
        return -EADDRINUSE;
    for (uint32_t i = 0; i < MN_UDP_MAX_FLOWS; i++) {
        struct mn_udp_flow *f = &t->flows[i];
        if (f->id != 0)
            continue;
        uint16_t *bucket = &t->buckets[local->port % MN_UDP_BUCKETS];
        f->local = *local;
        f->generation++;
        f->id = ((uint32_t)f->generation << 16) | (i + 1);
        f->next = *bucket;
        *bucket = (uint16_t)(i + 1);
        t->count++;
        *id = f->id;
        return 0;
    }
    return -EMFILE;
}

const struct mn_udp_flow *mn_udp_table_get(const struct mn_udp_table *t, uint32_t id)
{
    uint32_t at = id & 0xffff;
    if (t->flows == NULL || at == 0 || at > MN_UDP_MAX_FLOWS || t->flows[at - 1].id != id)
        return NULL;
    return &t->flows[at - 1];
}

void mn_udp_table_close(struct mn_udp_table *t, uint32_t id)
{
    if (mn_udp_table_get(t, id) == NULL)
        return;
    struct mn_udp_flow *f = &t->flows[(id & 0xffff) - 1];
    uint16_t *link = &t->buckets[f->local.port % MN_UDP_BUCKETS];
    while (*link != (uint16_t)(id & 0xffff))
        link = &t->flows[*link - 1].next;
    *link = f->next;
    f->id = 0;
    t->count--;
}

const struct mn_udp_flow *mn_udp_table_find(const struct mn_udp_table *t, const struct mn_ip *ip, uint16_t port)
{
    struct mn_ep exact = {*ip, port}, any = {.port = port};
    const struct mn_udp_flow *f = find_exact(t, &exact);
    return f != NULL ? f : find_exact(t, &any);
}

void mn_udp_table_free(struct mn_udp_table *t)
{
    free(t->flows);
    memset(t, 0, sizeof *t);
}
