/* Cutting super-packets. See cut.h. The kernel's hdr_len is not believed: it is wrong on forwarded packets. */
#include "cut.h"

enum {
    TCP_MIN = 20,
    TCP_SEQ = 4,
    TCP_FLAGS = 13,
    TCP_CSUM = 16,
    TCP_FIN_PSH = 1 | 8,
    TCP_CWR = 0x80,
    UDP_SIZE = 8,
    UDP_LEN = 4,
    UDP_CSUM = 6,
};

/* Sum from csum_start to the end goes to csum_offset behind it; the field already holds the pseudo header's. */
static int complete_checksum(const struct mn_vnet *v, uint8_t *pkt, size_t len)
{
    size_t start = v->csum_start, field = start + v->csum_offset;
    if (start > len || field + 2 > len)
        return MN_PACKET_MALFORMED;
    mn_csum_store(pkt + field, mn_csum_add(0, pkt + start, len - start));
    if (v->csum_offset == UDP_CSUM && mn_load16(pkt + field) == 0)
        mn_store16(pkt + field, 0xffff); /* 0 would say that there is none */
    return 0;
}

static int begin_whole(struct mn_cut *c, const struct mn_vnet *v, uint8_t *pkt)
{
    c->head = c->packet.ip_len;
    c->is_whole = true;
    return (v->flags & MN_VNET_NEEDS_CSUM) != 0 ? complete_checksum(v, pkt, c->packet.ip_len) : 0;
}

static int begin_super(struct mn_cut *c, const struct mn_vnet *v)
{
    const struct mn_packet *p = &c->packet;
    uint8_t type = v->gso_type & (uint8_t)~MN_VNET_GSO_ECN;
    size_t l4_head = UDP_SIZE;
    if (type == MN_VNET_GSO_TCP4 || type == MN_VNET_GSO_TCP6) {
        if (p->proto != MN_PROTO_TCP || p->version != (type == MN_VNET_GSO_TCP4 ? 4 : 6) || p->l4_len < TCP_MIN)
            return MN_PACKET_MALFORMED;
        l4_head = (size_t)(p->l4[12] >> 4) * 4;
        if (l4_head < TCP_MIN)
            return MN_PACKET_MALFORMED;
    } else if (type != MN_VNET_GSO_UDP || p->proto != MN_PROTO_UDP) {
        return MN_PACKET_MALFORMED;
    }
    if (p->is_fragment || v->gso_size == 0 || l4_head >= p->l4_len)
        return MN_PACKET_MALFORMED;
    c->head = c->l4_at + l4_head;
    c->step = v->gso_size;
    return 0;
}

int mn_cut_begin(struct mn_cut *c, uint8_t *buf, size_t len)
{
    *c = (struct mn_cut){.is_done = true};
    if (len <= MN_VNET_SIZE)
        return MN_PACKET_MALFORMED;
    struct mn_vnet v = mn_vnet_load(buf);
    uint8_t *pkt = buf + MN_VNET_SIZE;
    int err = mn_packet_parse(&c->packet, pkt, len - MN_VNET_SIZE);
    if (err != 0)
        return err;
    c->l4_at = (size_t)(c->packet.l4 - c->packet.ip);
    err = v.gso_type == MN_VNET_GSO_NONE ? begin_whole(c, &v, pkt) : begin_super(c, &v);
    c->is_done = err != 0;
    return err;
}

static size_t payload_of(const struct mn_cut *c)
{
    size_t left = c->packet.ip_len - c->head - c->at;
    return left < c->step ? left : c->step;
}

size_t mn_cut_next(const struct mn_cut *c)
{
    if (c->is_done)
        return 0;
    return c->is_whole ? c->head : c->head + payload_of(c);
}

static void advance(struct mn_cut *c)
{
    c->at += c->is_whole ? 0 : payload_of(c);
    c->count++;
    c->is_done = c->is_whole || c->head + c->at == c->packet.ip_len;
}

void mn_cut_skip(struct mn_cut *c)
{
    if (!c->is_done)
        advance(c);
}

static void patch_ip(const struct mn_cut *c, uint8_t *out, size_t len)
{
    if (c->packet.version == 6) {
        mn_store16(out + 4, (uint32_t)(len - MN_IP6_HEADER));
        return;
    }
    mn_store16(out + 2, (uint32_t)len);
    mn_store16(out + 4, mn_load16(out + 4) + c->count);
    out[10] = out[11] = 0;
    mn_csum_store(out + 10, mn_csum_add(0, out, c->l4_at));
}

static void patch_l4(const struct mn_cut *c, uint8_t *l4, size_t len, bool is_last)
{
    if (c->packet.proto == MN_PROTO_UDP) {
        mn_store16(l4 + UDP_LEN, (uint32_t)len);
        l4[UDP_CSUM] = l4[UDP_CSUM + 1] = 0;
        return;
    }
    mn_store32(l4 + TCP_SEQ, mn_load32(l4 + TCP_SEQ) + (uint32_t)c->at);
    if (!is_last)
        l4[TCP_FLAGS] &= (uint8_t)~TCP_FIN_PSH;
    if (c->count > 0)
        l4[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
    l4[TCP_CSUM] = l4[TCP_CSUM + 1] = 0;
}

void mn_cut_write(struct mn_cut *c, uint8_t *out)
{
    if (c->is_done)
        return;
    memcpy(out, c->packet.ip, c->head);
    if (!c->is_whole) {
        size_t n = payload_of(c), len = c->head + n, l4_len = len - c->l4_at, l4_head = c->head - c->l4_at;
        uint8_t *l4 = out + c->l4_at;
        uint64_t sum = mn_csum_pseudo(&c->packet.src, &c->packet.dst, c->packet.proto, l4_len);
        sum = mn_csum_copy(sum, out + c->head, c->packet.ip + c->head + c->at, n);
        patch_ip(c, out, len);
        patch_l4(c, l4, l4_len, c->head + c->at + n == c->packet.ip_len);
        bool is_udp = c->packet.proto == MN_PROTO_UDP;
        uint8_t *field = l4 + (is_udp ? UDP_CSUM : TCP_CSUM);
        mn_csum_store(field, mn_csum_add(sum, l4, l4_head));
        if (is_udp && mn_load16(field) == 0)
            mn_store16(field, 0xffff);
    }
    advance(c);
}
