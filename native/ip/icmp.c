/* ICMP and ICMPv6 messages. The two families differ in numbers and in the pseudo header; everything else is shared. */
#include "icmp.h"

static bool is6(const struct mn_packet *p)
{
    return p->version == 6;
}

static enum mn_icmp_kind kind4(uint8_t type, uint8_t code)
{
    switch (type) {
    case 0:
        return MN_ICMP_ECHO_REPLY;
    case 8:
        return MN_ICMP_ECHO_REQUEST;
    case 3:
        if (code == 2)
            return MN_ICMP_PROTO_UNREACHABLE;
        if (code == 3)
            return MN_ICMP_PORT_UNREACHABLE;
        return code == 4 ? MN_ICMP_TOO_BIG : MN_ICMP_HOST_UNREACHABLE;
    case 4:
    case 5:
    case 11:
    case 12:
        return MN_ICMP_OTHER_ERROR;
    default:
        return MN_ICMP_OTHER;
    }
}

static enum mn_icmp_kind kind6(uint8_t type, uint8_t code)
{
    switch (type) {
    case 129:
        return MN_ICMP_ECHO_REPLY;
    case 128:
        return MN_ICMP_ECHO_REQUEST;
    case 1:
        return code == 4 ? MN_ICMP_PORT_UNREACHABLE : MN_ICMP_HOST_UNREACHABLE;
    case 2:
        return MN_ICMP_TOO_BIG;
    case 4:
        return code == 1 ? MN_ICMP_PROTO_UNREACHABLE : MN_ICMP_OTHER_ERROR;
    default:
        return type < 128 ? MN_ICMP_OTHER_ERROR : MN_ICMP_OTHER;
    }
}

int mn_icmp_parse(struct mn_icmp *m, const struct mn_packet *p)
{
    const uint8_t *d = p->l4;
    if (p->l4_len < MN_ICMP_HEADER)
        return MN_PACKET_MALFORMED;
    uint64_t sum = is6(p) ? mn_csum_pseudo(&p->src, &p->dst, MN_PROTO_ICMP6, p->l4_len) : 0;
    if (!mn_csum_is_good(mn_csum_add(sum, d, p->l4_len)))
        return MN_PACKET_CHECKSUM;
    m->kind = is6(p) ? kind6(d[0], d[1]) : kind4(d[0], d[1]);
    m->is_error = m->kind >= MN_ICMP_PORT_UNREACHABLE;
    m->id = mn_load16(d + 4);
    m->seq = mn_load16(d + 6);
    m->mtu = is6(p) ? mn_load32(d + 4) : m->seq;
    m->body = d + MN_ICMP_HEADER;
    m->body_len = p->l4_len - MN_ICMP_HEADER;
    return 0;
}

int mn_icmp_parse_quote(struct mn_icmp_quote *q, const uint8_t *d, size_t len)
{
    size_t at;
    if (len == 0)
        return MN_PACKET_MALFORMED;
    if (d[0] >> 4 == 4) {
        at = (size_t)(d[0] & 15) * 4;
        if (at < MN_IP4_HEADER || len < at + 8 || (mn_load16(d + 6) & 0x1fff) != 0)
            return MN_PACKET_MALFORMED;
        q->proto = d[9];
        q->src = mn_ip_from4(d + 12);
        q->dst = mn_ip_from4(d + 16);
    } else if (d[0] >> 4 == 6) {
        at = MN_IP6_HEADER; /* we never send extension headers */
        if (len < at + 8)
            return MN_PACKET_MALFORMED;
        q->proto = d[6];
        q->src = mn_ip_from6(d + 8);
        q->dst = mn_ip_from6(d + 24);
    } else {
        return MN_PACKET_MALFORMED;
    }
    q->sport = mn_load16(d + at);
    q->dport = mn_load16(d + at + 2);
    q->seq = mn_load32(d + at + 4);
    return 0;
}

/* The sum of what only ICMPv6 covers. */
static uint64_t pseudo_for(const struct mn_ip *src, const struct mn_ip *dst, size_t n)
{
    return mn_ip_is4(src) ? 0 : mn_csum_pseudo(src, dst, MN_PROTO_ICMP6, n);
}

/* Fill in the checksum of a message of n bytes at icmp. */
static void close_message(uint8_t *icmp, size_t n, const struct mn_ip *src, const struct mn_ip *dst)
{
    icmp[2] = icmp[3] = 0;
    mn_csum_store(icmp + 2, mn_csum_add(pseudo_for(src, dst, n), icmp, n));
}

static uint8_t proto_for(const struct mn_ip *a)
{
    return mn_ip_is4(a) ? MN_PROTO_ICMP : MN_PROTO_ICMP6;
}

void mn_icmp_write_echo_header(uint8_t *out, const struct mn_ip *src, const struct mn_ip *dst, bool is_reply,
                               uint16_t id, uint16_t seq, const uint8_t *payload, size_t len)
{
    memset(out, 0, MN_ICMP_HEADER);
    if (mn_ip_is4(dst))
        out[0] = is_reply ? 0 : 8;
    else
        out[0] = is_reply ? 129 : 128;
    mn_store16(out + 4, id);
    mn_store16(out + 6, seq);
    uint64_t sum = mn_csum_add(pseudo_for(src, dst, MN_ICMP_HEADER + len), out, MN_ICMP_HEADER);
    mn_csum_store(out + 2, len > 0 ? mn_csum_add(sum, payload, len) : sum);
}

size_t mn_icmp_write_echo(uint8_t *out, const struct mn_ip *src, const struct mn_ip *dst, bool is_reply, uint16_t id,
                          uint16_t seq, const uint8_t *payload, size_t len)
{
    size_t n = MN_ICMP_HEADER + len;
    size_t header = mn_packet_write_header(out, src, dst, proto_for(dst), n);
    mn_icmp_write_echo_header(out + header, src, dst, is_reply, id, seq, payload, len);
    if (len > 0)
        memcpy(out + header + MN_ICMP_HEADER, payload, len);
    return header + n;
}

/* An error about a packet: `detail` is the second word of its header. */
static size_t write_error(uint8_t *out, size_t max, uint8_t type, uint8_t code, uint32_t detail,
                          const struct mn_packet *about)
{
    bool v6 = is6(about);
    size_t header = v6 ? MN_IP6_HEADER : MN_IP4_HEADER;
    size_t quote = v6 ? MN_ICMP_QUOTE6 : MN_ICMP_QUOTE4;
    if (quote > max - header - MN_ICMP_HEADER)
        quote = max - header - MN_ICMP_HEADER;
    if (quote > about->ip_len)
        quote = about->ip_len;
    size_t n = MN_ICMP_HEADER + quote;
    mn_packet_write_header(out, &about->dst, &about->src, proto_for(&about->src), n);
    uint8_t *icmp = out + header;
    icmp[0] = type;
    icmp[1] = code;
    mn_store32(icmp + 4, detail);
    memcpy(icmp + MN_ICMP_HEADER, about->ip, quote);
    close_message(icmp, n, &about->dst, &about->src);
    return header + n;
}

size_t mn_icmp_write_error(uint8_t *out, size_t max, enum mn_icmp_kind kind, const struct mn_packet *about)
{
    bool is_proto = kind == MN_ICMP_PROTO_UNREACHABLE, is_host = kind == MN_ICMP_HOST_UNREACHABLE;
    if (!is6(about))
        return write_error(out, max, 3, is_proto ? 2 : is_host ? 1 : 3, 0, about);
    if (is_proto)
        return write_error(out, max, 4, 1, 6, about); /* points at the next-header field */
    return write_error(out, max, 1, is_host ? 3 : 4, 0, about);
}

size_t mn_icmp_write_too_big(uint8_t *out, size_t max, size_t mtu, const struct mn_packet *about)
{
    return is6(about) ? write_error(out, max, 2, 0, (uint32_t)mtu, about)
                      : write_error(out, max, 3, 4, (uint32_t)mtu & 0xffff, about);
}
