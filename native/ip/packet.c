/* Checked view of IP packets. Every length is proved against the bytes at hand before it is used. */
#include "packet.h"

enum {
    MAX_EXTENSIONS = 8,
    MAX_EXTENSION_BYTES = 256,
    NEXT_HOP_BY_HOP = 0,
    NEXT_ROUTING = 43,
    NEXT_FRAGMENT = 44,
    NEXT_DESTINATION = 60,
    OPTION_LSRR = 131,
    OPTION_SSRR = 137,
};

/* ---- checksums ---- */

static inline __attribute__((always_inline)) uint64_t add_tail(uint64_t sum, const uint8_t *p, size_t n)
{
    uint32_t last = 0;
    memcpy(&last, p, n);
    return sum + last;
}

static inline __attribute__((always_inline)) uint64_t add_words(uint64_t sum, const uint8_t *p, size_t n)
{
    size_t words = n / 4;
    for (size_t i = 0; i < words; i++) {
        uint32_t w;
        memcpy(&w, p + 4 * i, 4);
        sum += w;
    }
    return add_tail(sum, p + 4 * words, n % 4);
}

static inline __attribute__((always_inline)) uint64_t copy_words(uint64_t sum, uint8_t *restrict d,
                                                                 const uint8_t *restrict p, size_t n)
{
    size_t words = n / 4;
    for (size_t i = 0; i < words; i++) {
        uint32_t w;
        memcpy(&w, p + 4 * i, 4);
        memcpy(d + 4 * i, &w, 4);
        sum += w;
    }
    memcpy(d + 4 * words, p + 4 * words, n % 4);
    return add_tail(sum, p + 4 * words, n % 4);
}

#if defined(__x86_64__)
#define WIDE __attribute__((target("avx2"), noinline))
static WIDE uint64_t add_wide(uint64_t sum, const uint8_t *p, size_t n)
{
    return add_words(sum, p, n);
}

static WIDE uint64_t copy_wide(uint64_t sum, uint8_t *restrict d, const uint8_t *restrict p, size_t n)
{
    return copy_words(sum, d, p, n);
}
#define HAVE_WIDE (__builtin_cpu_supports("avx2"))
#else
#define add_wide add_words
#define copy_wide copy_words
#define HAVE_WIDE 0
#endif

uint64_t mn_csum_add(uint64_t sum, const uint8_t *p, size_t n)
{
    if (n >= 64 && HAVE_WIDE)
        return add_wide(sum, p, n);
    return add_words(sum, p, n);
}

uint64_t mn_csum_copy(uint64_t sum, uint8_t *restrict dst, const uint8_t *restrict src, size_t n)
{
    if (n >= 64 && HAVE_WIDE)
        return copy_wide(sum, dst, src, n);
    return copy_words(sum, dst, src, n);
}

uint64_t mn_csum_pseudo(const struct mn_ip *src, const struct mn_ip *dst, uint8_t proto, size_t l4_len)
{
    /* Both families come to the same words: addresses, length, protocol. */
    bool v4 = mn_ip_is4(src);
    uint8_t rest[8] = {0};
    mn_store32(rest, (uint32_t)l4_len);
    rest[7] = proto;
    uint64_t sum = add_words(0, rest, sizeof rest);
    sum = add_words(sum, v4 ? src->b + 12 : src->b, v4 ? 4 : 16);
    return add_words(sum, v4 ? dst->b + 12 : dst->b, v4 ? 4 : 16);
}

/* ---- parsing ---- */

static int check_options4(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint8_t kind = p[i];
        if (kind == 0)
            return 0;
        if (kind == 1) {
            i++;
            continue;
        }
        if (i + 1 >= n || p[i + 1] < 2 || i + p[i + 1] > n)
            return MN_PACKET_MALFORMED;
        if (kind == OPTION_LSRR || kind == OPTION_SSRR)
            return MN_PACKET_SOURCE_ROUTE;
        i += p[i + 1];
    }
    return 0;
}

static int parse4(struct mn_packet *p, const uint8_t *d, size_t len)
{
    if (len < MN_IP4_HEADER)
        return MN_PACKET_MALFORMED;
    size_t header = (size_t)(d[0] & 15) * 4, total = mn_load16(d + 2);
    if (header < MN_IP4_HEADER || header > total || total > len)
        return MN_PACKET_MALFORMED;
    if (!mn_csum_is_good(mn_csum_add(0, d, header)))
        return MN_PACKET_CHECKSUM;
    if (header > MN_IP4_HEADER) {
        int err = check_options4(d + MN_IP4_HEADER, header - MN_IP4_HEADER);
        if (err != 0)
            return err;
    }
    if (d[8] == 0)
        return MN_PACKET_MALFORMED;
    p->version = 4;
    p->tos = d[1];
    p->ttl = d[8];
    p->proto = d[9];
    p->src = mn_ip_from4(d + 12);
    p->dst = mn_ip_from4(d + 16);
    p->ip_len = total;
    p->l4 = d + header;
    p->l4_len = total - header;
    uint16_t fragment = mn_load16(d + 6);
    p->fragment_more = (fragment & 0x2000) != 0;
    p->fragment_at = (uint16_t)((fragment & 0x1fff) * 8);
    p->is_fragment = p->fragment_more || p->fragment_at != 0;
    p->fragment_id = mn_load16(d + 4);
    p->fragment = p->l4;
    p->fragment_next = p->proto;
    return 0;
}

/* Read one fragment header at d. */
static int note_fragment6(struct mn_packet *p, const uint8_t *d)
{
    uint16_t word = mn_load16(d + 2);
    if (p->is_fragment)
        return MN_PACKET_MALFORMED;
    p->fragment_at = word & 0xfff8;
    p->fragment_more = (word & 1) != 0;
    p->fragment_id = mn_load32(d + 4);
    p->fragment = d + 8;
    p->fragment_next = d[0];
    /* An atomic fragment is a whole datagram (RFC 6946). */
    p->is_fragment = p->fragment_more || p->fragment_at != 0;
    return 0;
}

static int walk_extensions(struct mn_packet *p, const uint8_t *d, size_t end)
{
    uint8_t next = d[6];
    size_t at = MN_IP6_HEADER;
    for (int i = 0;; i++) {
        bool is_extension =
            next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING || next == NEXT_FRAGMENT || next == NEXT_DESTINATION;
        /* Behind the first piece of a fragmented datagram there is only data. */
        if (!is_extension || (p->is_fragment && p->fragment_at != 0))
            break;
        if (i == MAX_EXTENSIONS || end - at < 8 || (next == NEXT_HOP_BY_HOP && i != 0))
            return MN_PACKET_MALFORMED;
        size_t size = next == NEXT_FRAGMENT ? 8 : ((size_t)d[at + 1] + 1) * 8;
        if (size > end - at || at + size - MN_IP6_HEADER > MAX_EXTENSION_BYTES)
            return MN_PACKET_MALFORMED;
        if (next == NEXT_ROUTING && d[at + 2] == 0)
            return MN_PACKET_SOURCE_ROUTE;
        if (next == NEXT_FRAGMENT && note_fragment6(p, d + at) != 0)
            return MN_PACKET_MALFORMED;
        next = d[at];
        at += size;
    }
    p->proto = next;
    p->l4 = d + at;
    p->l4_len = end - at;
    return 0;
}

static int parse6(struct mn_packet *p, const uint8_t *d, size_t len)
{
    if (len < MN_IP6_HEADER)
        return MN_PACKET_MALFORMED;
    size_t total = (size_t)mn_load16(d + 4) + MN_IP6_HEADER;
    if (total > len)
        return MN_PACKET_MALFORMED;
    p->version = 6;
    p->tos = (uint8_t)((d[0] << 4) | (d[1] >> 4));
    p->ttl = d[7];
    p->src = mn_ip_from6(d + 8);
    p->dst = mn_ip_from6(d + 24);
    /* An IPv4-mapped address on the wire would pass for IPv4 everywhere further in. */
    if (mn_ip_is4(&p->src) || mn_ip_is4(&p->dst))
        return MN_PACKET_MALFORMED;
    p->ip_len = total;
    p->is_fragment = p->fragment_more = false;
    p->fragment_at = 0;
    p->fragment_id = 0;
    p->fragment = NULL;
    p->fragment_next = 0;
    return walk_extensions(p, d, total);
}

int mn_packet_parse(struct mn_packet *p, const uint8_t *data, size_t len)
{
    if (len == 0)
        return MN_PACKET_MALFORMED;
    p->ip = data;
    switch (data[0] >> 4) {
    case 4:
        return parse4(p, data, len);
    case 6:
        return parse6(p, data, len);
    default:
        return MN_PACKET_MALFORMED;
    }
}

bool mn_packet_source_is_sane(const struct mn_ip *src)
{
    const uint8_t *b = src->b;
    if (mn_ip_is4(src))
        return b[12] != 0 && b[12] != 127 && b[12] < 224;
    if (b[0] == 0xff)
        return false;
    static const uint8_t zero[15];
    return memcmp(b, zero, 15) != 0 || b[15] > 1;
}

bool mn_packet_destination_is_special(const struct mn_ip *dst)
{
    const uint8_t *b = dst->b;
    if (mn_ip_is4(dst))
        return b[12] >= 224 || (b[12] == 169 && b[13] == 254);
    return b[0] == 0xff || (b[0] == 0xfe && (b[1] & 0xc0) == 0x80);
}

/* ---- building ---- */

static size_t write_header4(uint8_t *out, const struct mn_ip *src, const struct mn_ip *dst, uint8_t proto, size_t n)
{
    memset(out, 0, MN_IP4_HEADER);
    out[0] = 0x45;
    mn_store16(out + 2, (uint32_t)(MN_IP4_HEADER + n));
    out[6] = 0x40; /* don't fragment: the identification is then free to be 0 (RFC 6864) */
    out[8] = MN_IP_TTL;
    out[9] = proto;
    memcpy(out + 12, src->b + 12, 4);
    memcpy(out + 16, dst->b + 12, 4);
    mn_csum_store(out + 10, mn_csum_add(0, out, MN_IP4_HEADER));
    return MN_IP4_HEADER;
}

size_t mn_packet_write_header(uint8_t *out, const struct mn_ip *src, const struct mn_ip *dst, uint8_t proto, size_t n)
{
    if (mn_ip_is4(dst))
        return write_header4(out, src, dst, proto, n);
    memset(out, 0, 8);
    out[0] = 0x60;
    mn_store16(out + 4, (uint32_t)n);
    out[6] = proto;
    out[7] = MN_IP_TTL;
    memcpy(out + 8, src->b, 16);
    memcpy(out + 24, dst->b, 16);
    return MN_IP6_HEADER;
}

uint8_t mn_packet_ecn(const uint8_t *ip)
{
    return ip[0] >> 4 == 4 ? ip[1] & 3 : ip[1] >> 4 & 3;
}

void mn_packet_set_ecn(uint8_t *ip, uint8_t ecn)
{
    if (ip[0] >> 4 != 4) {
        ip[1] = (uint8_t)((ip[1] & 0xcf) | (ecn & 3) << 4);
        return;
    }
    uint8_t before = ip[1], after = (uint8_t)((before & 0xfc) | (ecn & 3));
    ip[1] = after;
    /* RFC 1624: the sum changes by as much as its word did. */
    uint32_t sum = (uint16_t)~mn_load16(ip + 10) + (uint32_t)(uint16_t)~before + after;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    mn_store16(ip + 10, ~sum & 0xffff);
}
