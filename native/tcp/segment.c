/* TCP header and options. */
#include "segment.h"

enum {
    OPTION_END = 0,
    OPTION_NOP = 1,
    OPTION_MSS = 2,
    OPTION_WSCALE = 3,
    OPTION_MAY_SACK = 4,
    OPTION_SACK = 5,
    OPTION_TS = 8,
};

static void take_option(struct mn_segment *g, uint8_t kind, const uint8_t *body, size_t n)
{
    switch (kind) {
    case OPTION_MSS:
        if (n == 2 && (g->flags & MN_TCP_SYN) != 0)
            g->mss = mn_load16(body);
        break;
    case OPTION_WSCALE:
        if (n == 1 && (g->flags & MN_TCP_SYN) != 0)
            g->wscale = (int8_t)(body[0] > MN_TCP_MAX_SHIFT ? MN_TCP_MAX_SHIFT : body[0]);
        break;
    case OPTION_TS:
        if (n == 8) {
            g->has_ts = true;
            g->tsval = mn_load32(body);
            g->tsecr = mn_load32(body + 4);
        }
        break;
    case OPTION_MAY_SACK:
        g->may_sack = n == 0 && (g->flags & MN_TCP_SYN) != 0;
        break;
    case OPTION_SACK:
        if (n % 8 != 0 || (g->flags & MN_TCP_SYN) != 0)
            break;
        g->sack_count = (uint8_t)(n / 8 < MN_TCP_SACK_MAX ? n / 8 : MN_TCP_SACK_MAX);
        for (uint8_t i = 0; i < g->sack_count; i++)
            g->sack[i] = (struct mn_block){mn_load32(body + (size_t)8 * i), mn_load32(body + (size_t)8 * i + 4)};
        break;
    default:
        break;
    }
}

static void parse_options(struct mn_segment *g, const uint8_t *o, size_t n)
{
    for (size_t i = 0; i < n;) {
        if (o[i] == OPTION_END)
            return;
        if (o[i] == OPTION_NOP) {
            i++;
            continue;
        }
        if (i + 1 >= n || o[i + 1] < 2 || i + o[i + 1] > n)
            return;
        take_option(g, o[i], o + i + 2, (size_t)o[i + 1] - 2);
        i += o[i + 1];
    }
}

int mn_segment_parse(struct mn_segment *g, const struct mn_packet *p)
{
    const uint8_t *d = p->l4;
    if (p->l4_len < MN_TCP_HEADER)
        return MN_PACKET_MALFORMED;
    size_t header = (size_t)(d[12] >> 4) * 4;
    if (header < MN_TCP_HEADER || header > p->l4_len)
        return MN_PACKET_MALFORMED;
    uint64_t sum = mn_csum_pseudo(&p->src, &p->dst, MN_PROTO_TCP, p->l4_len);
    if (!mn_csum_is_good(mn_csum_add(sum, d, p->l4_len)))
        return MN_PACKET_CHECKSUM;
    g->sport = mn_load16(d);
    g->dport = mn_load16(d + 2);
    g->seq = mn_load32(d + 4);
    g->ack = mn_load32(d + 8);
    g->flags = d[13];
    g->wnd = mn_load16(d + 14);
    g->data = d + header;
    g->len = (uint32_t)(p->l4_len - header);
    g->mss = 0;
    g->wscale = -1;
    g->has_ts = g->may_sack = false;
    g->tsval = g->tsecr = 0;
    g->sack_count = 0;
    g->ecn = p->tos & 3;
    /* The layout that nearly every segment has. */
    if (header == MN_TCP_HEADER + MN_TCP_TS_OPTION && mn_load32(d + 20) == 0x0101080a) {
        g->has_ts = true;
        g->tsval = mn_load32(d + 24);
        g->tsecr = mn_load32(d + 28);
    } else {
        parse_options(g, d + MN_TCP_HEADER, header - MN_TCP_HEADER);
    }
    return 0;
}

static size_t write_options(uint8_t *o, const struct mn_segment *g)
{
    size_t n = 0;
    if (g->mss != 0) {
        o[n] = OPTION_MSS;
        o[n + 1] = 4;
        mn_store16(o + n + 2, g->mss);
        n += 4;
    }
    if (g->may_sack) {
        mn_store32(o + n, 0x01010402);
        n += 4;
    }
    if (g->has_ts) {
        mn_store32(o + n, 0x0101080a);
        mn_store32(o + n + 4, g->tsval);
        mn_store32(o + n + 8, g->tsecr);
        n += MN_TCP_TS_OPTION;
    }
    if (g->wscale >= 0) {
        o[n] = OPTION_NOP;
        o[n + 1] = OPTION_WSCALE;
        o[n + 2] = 3;
        o[n + 3] = (uint8_t)g->wscale;
        n += 4;
    }
    if (g->sack_count > 0) {
        mn_store32(o + n, 0x01010500U + 2U + 8U * g->sack_count);
        n += 4;
        for (uint8_t i = 0; i < g->sack_count; i++, n += 8) {
            mn_store32(o + n, g->sack[i].first);
            mn_store32(o + n + 4, g->sack[i].end);
        }
    }
    return n;
}

size_t mn_segment_write(uint8_t *out, const struct mn_ep *from, const struct mn_ep *to, const struct mn_segment *g)
{
    uint8_t options[MN_TCP_MAX_HEADER - MN_TCP_HEADER];
    size_t n = write_options(options, g), size = MN_TCP_HEADER + n;
    size_t ip = mn_packet_write_header(out, &from->ip, &to->ip, MN_PROTO_TCP, size);
    if (g->ecn != MN_ECN_NONE)
        mn_packet_set_ecn(out, g->ecn);
    uint8_t *d = out + ip;
    mn_store16(d, from->port);
    mn_store16(d + 2, to->port);
    mn_store32(d + 4, g->seq);
    mn_store32(d + 8, g->ack);
    d[12] = (uint8_t)(size / 4 << 4);
    d[13] = g->flags;
    mn_store16(d + 14, g->wnd);
    mn_store32(d + 16, 0);
    memcpy(d + MN_TCP_HEADER, options, n);
    mn_csum_store(d + 16, mn_csum_add(mn_csum_pseudo(&from->ip, &to->ip, MN_PROTO_TCP, size), d, size));
    return ip + size;
}

bool mn_segment_make_reset(struct mn_segment *out, const struct mn_segment *g)
{
    if ((g->flags & MN_TCP_RST) != 0)
        return false;
    *out = (struct mn_segment){.wscale = -1, .flags = MN_TCP_RST};
    if ((g->flags & MN_TCP_ACK) != 0) {
        out->seq = g->ack;
    } else {
        out->flags |= MN_TCP_ACK;
        out->ack = g->seq + mn_segment_space(g);
    }
    return true;
}
