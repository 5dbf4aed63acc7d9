/* UDP datagrams: parse and build, checksums included. */
#include "udp.h"

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
