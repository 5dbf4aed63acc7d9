/* Merging neighbours of a flow. See merge.h. */
#include "merge.h"

enum {
    TCP_MIN = 20,
    TCP_SEQ = 4,
    TCP_ACK_NO = 8,
    TCP_FLAGS = 13,
    TCP_WINDOW = 14,
    TCP_CSUM = 16,
    UDP_SIZE = 8,
    UDP_LEN = 4,
    UDP_CSUM = 6,
    FLAG_PSH = 8,
    FLAG_ACK = 16,
    FLAG_ECE = 64,
};

static uint32_t hash_flow(const struct mn_packet *p)
{
    uint64_t w[4], h = p->proto;
    memcpy(w, p->src.b, 16);
    memcpy(w + 2, p->dst.b, 16);
    for (int i = 0; i < 4; i++)
        h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL, h ^= h >> 29;
    h = (h ^ mn_load32(p->l4)) * 0x9e3779b97f4a7c15ULL; /* both ports */
    return (uint32_t)(h >> 32) | 1;
}

/* Bytes of the transport header if this packet may be merged with others, else 0. */
static size_t mergeable_head(const struct mn_merge *m, const struct mn_packet *p)
{
    size_t l4_at = (size_t)(p->l4 - p->ip);
    if (p->is_fragment || l4_at != (p->version == 4 ? MN_IP4_HEADER : MN_IP6_HEADER))
        return 0;
    if (p->proto == MN_PROTO_TCP && m->tcp && p->l4_len > TCP_MIN) {
        size_t head = (size_t)(p->l4[12] >> 4) * 4;
        bool is_plain = (p->l4[TCP_FLAGS] & ~(FLAG_PSH | FLAG_ECE)) == FLAG_ACK && (p->l4[12] & 15) == 0;
        return is_plain && head >= TCP_MIN && head < p->l4_len ? head : 0;
    }
    if (p->proto == MN_PROTO_UDP && m->udp && p->l4_len > UDP_SIZE)
        return mn_load16(p->l4 + UDP_LEN) == p->l4_len && mn_load16(p->l4 + UDP_CSUM) != 0 ? UDP_SIZE : 0;
    return 0;
}

static bool checksum_is_good(const struct mn_packet *p)
{
    return mn_csum_is_good(mn_csum_add(mn_csum_pseudo(&p->src, &p->dst, p->proto, p->l4_len), p->l4, p->l4_len));
}

/* Everything the two IP headers must share. */
static bool same_ip(const uint8_t *a, const uint8_t *b, uint8_t version)
{
    if (version == 6)
        return memcmp(a, b, 4) == 0 && memcmp(a + 6, b + 6, MN_IP6_HEADER - 6) == 0;
    return a[1] == b[1] && memcmp(a + 6, b + 6, 4) == 0 && memcmp(a + 12, b + 12, 8) == 0;
}

static bool same_l4(const uint8_t *a, const uint8_t *b, uint8_t proto, size_t head)
{
    if (memcmp(a, b, 4) != 0)
        return false;
    if (proto == MN_PROTO_UDP)
        return true;
    return memcmp(a + TCP_ACK_NO, b + TCP_ACK_NO, 5) == 0 && ((a[TCP_FLAGS] ^ b[TCP_FLAGS]) & ~FLAG_PSH) == 0 &&
           memcmp(a + TCP_WINDOW, b + TCP_WINDOW, 2) == 0 &&
           memcmp(a + TCP_CSUM + 2, b + TCP_CSUM + 2, head - TCP_CSUM - 2) == 0;
}

/* The first packet of an item, in full. */
static const uint8_t *first_of(const struct mn_merge_item *it)
{
    const uint8_t *payload = it->iov[1].iov_base;
    return payload - it->head;
}

static bool first_is_good(struct mn_merge_item *it)
{
    struct mn_packet p;
    if (!it->is_checked) {
        it->is_checked = true;
        it->is_closed = mn_packet_parse(&p, first_of(it), it->head + it->iov[1].iov_len) != 0 || !checksum_is_good(&p);
    }
    return !it->is_closed;
}

static bool append(struct mn_merge_item *it, const struct mn_packet *p, size_t head)
{
    const uint8_t *first = first_of(it);
    size_t n = p->ip_len - head;
    if (it->is_closed || it->count == MN_MERGE_PIECES || it->head != head || it->proto != p->proto ||
        it->version != p->version || n > it->seg || it->len + n > MN_MERGE_BYTES_MAX)
        return false;
    if (!same_ip(first, p->ip, p->version) || !same_l4(first + it->l4_at, p->l4, p->proto, head - it->l4_at))
        return false;
    if (p->proto == MN_PROTO_TCP && mn_load32(p->l4 + TCP_SEQ) != it->next_seq)
        return false;
    if (!first_is_good(it) || !checksum_is_good(p))
        return false;
    it->count++;
    memcpy(&it->iov[it->count].iov_base, &(const uint8_t *){p->ip + head}, sizeof(void *));
    it->iov[it->count].iov_len = n;
    it->len += (uint32_t)n;
    it->next_seq += (uint32_t)n;
    it->has_psh = p->proto == MN_PROTO_TCP && (p->l4[TCP_FLAGS] & FLAG_PSH) != 0;
    it->is_closed = it->has_psh || n < it->seg;
    return true;
}

/* A packet of its own; head 0: nothing may join it. */
static void start(struct mn_merge_item *it, const struct mn_packet *p, size_t head, uint32_t flow)
{
    it->flow = flow;
    it->len = (uint32_t)p->ip_len;
    it->head = (uint16_t)head;
    it->seg = (uint16_t)(p->ip_len - head);
    it->count = 1;
    it->l4_at = (uint8_t)(p->l4 - p->ip < 255 ? p->l4 - p->ip : 255);
    it->proto = p->proto;
    it->version = p->version;
    it->is_checked = it->has_psh = false;
    memcpy(&it->iov[1].iov_base, &(const uint8_t *){p->ip + head}, sizeof(void *));
    it->iov[1].iov_len = p->ip_len - head;
    it->is_closed = head == 0;
    if (head != 0 && p->proto == MN_PROTO_TCP) {
        it->next_seq = mn_load32(p->l4 + TCP_SEQ) + it->seg;
        it->has_psh = it->is_closed = (p->l4[TCP_FLAGS] & FLAG_PSH) != 0;
    }
}

bool mn_merge_add(struct mn_merge *m, const struct mn_packet *p)
{
    bool has_ports = (p->proto == MN_PROTO_TCP || p->proto == MN_PROTO_UDP) && p->l4_len >= UDP_SIZE && !p->is_fragment;
    uint32_t flow = has_ports ? hash_flow(p) : 0;
    size_t l4_head = has_ports ? mergeable_head(m, p) : 0;
    size_t head = l4_head != 0 ? l4_head + (size_t)(p->l4 - p->ip) : 0;
    if (head != 0) {
        unsigned i = m->count;
        while (i > 0 && m->items[i - 1].flow != flow)
            i--;
        if (i > 0 && append(&m->items[i - 1], p, head))
            return true;
    }
    if (m->count == MN_MERGE_ITEMS)
        return false;
    start(&m->items[m->count++], p, head, flow);
    return true;
}

static void build_head(const struct mn_merge_item *it, uint8_t *out)
{
    size_t l4_len = it->len - it->l4_at;
    bool is_tcp = it->proto == MN_PROTO_TCP;
    struct mn_packet p;
    struct mn_vnet v = {
        .flags = MN_VNET_NEEDS_CSUM,
        .gso_type = !is_tcp            ? MN_VNET_GSO_UDP
                    : it->version == 4 ? MN_VNET_GSO_TCP4
                                       : MN_VNET_GSO_TCP6,
        .hdr_len = it->head,
        .gso_size = it->seg,
        .csum_start = it->l4_at,
        .csum_offset = is_tcp ? TCP_CSUM : UDP_CSUM,
    };
    uint8_t *ip = out + MN_VNET_SIZE, *l4 = ip + it->l4_at;
    (void)mn_packet_parse(&p, first_of(it), it->head + it->iov[1].iov_len); /* it was good when it came */
    mn_vnet_store(out, &v);
    memcpy(ip, first_of(it), it->head);
    if (it->version == 4) {
        mn_store16(ip + 2, it->len);
        ip[10] = ip[11] = 0;
        mn_csum_store(ip + 10, mn_csum_add(0, ip, MN_IP4_HEADER));
    } else {
        mn_store16(ip + 4, it->len - MN_IP6_HEADER);
    }
    if (is_tcp && it->has_psh)
        l4[TCP_FLAGS] |= FLAG_PSH;
    if (!is_tcp)
        mn_store16(l4 + UDP_LEN, (uint32_t)l4_len);
    uint16_t pseudo = mn_csum_fold(mn_csum_pseudo(&p.src, &p.dst, it->proto, l4_len));
    memcpy(l4 + v.csum_offset, &pseudo, sizeof pseudo); /* not complemented: the kernel completes it */
}

struct iovec *mn_merge_build(struct mn_merge_item *it, uint8_t head[MN_MERGE_HEAD], int *count)
{
    it->iov[0].iov_base = head;
    *count = it->count + 1;
    if (it->count > 1) {
        build_head(it, head);
        it->iov[0].iov_len = MN_VNET_SIZE + (size_t)it->head;
        return it->iov;
    }
    memset(head, 0, MN_VNET_SIZE);
    memcpy(head + MN_VNET_SIZE, first_of(it), it->head);
    it->iov[0].iov_len = MN_VNET_SIZE + (size_t)it->head;
    return it->iov;
}

const uint8_t *mn_merge_packet(const struct mn_merge_item *it, unsigned i, size_t *len)
{
    const uint8_t *payload = it->iov[i + 1].iov_base;
    *len = it->head + it->iov[i + 1].iov_len;
    return payload - it->head;
}
