/* Packets for the tests of cutting and merging: headers as asked for, payload that knows its place, right checksums. */
#ifndef MN_TESTS_OFFLOAD_H
#define MN_TESTS_OFFLOAD_H

#include "../ip/cut.h"
#include "../ip/merge.h"
#include "../ip/udp.h"

struct shape {
    bool is6, is_udp, no_df;
    uint8_t tos, ttl, flags; /* 0: 64, ACK */
    uint8_t options;         /* bytes of TCP options, a multiple of 4 */
    uint8_t option;          /* what they are filled with; 0: 1 (no operation) */
    uint16_t port, id, window;
    uint32_t seq, ack, at; /* at: which payload bytes */
};

static inline void offload_seal(uint8_t *p, size_t len, size_t l4_at, uint8_t proto)
{
    struct mn_packet view;
    uint8_t *l4 = p + l4_at, *field = l4 + (proto == MN_PROTO_UDP ? 6 : 16);
    if (p[0] >> 4 == 4) {
        p[10] = p[11] = 0;
        mn_csum_store(p + 10, mn_csum_add(0, p, l4_at));
    }
    if (mn_packet_parse(&view, p, len) != 0)
        abort();
    field[0] = field[1] = 0;
    uint64_t sum = mn_csum_pseudo(&view.src, &view.dst, proto, len - l4_at);
    mn_csum_store(field, mn_csum_add(sum, l4, len - l4_at));
    if (proto == MN_PROTO_UDP && mn_load16(field) == 0)
        mn_store16(field, 0xffff);
}

/* Writes a whole packet with n bytes of payload; returns its length. */
static inline size_t offload_make(uint8_t *p, const struct shape *s, size_t n)
{
    static const uint8_t a4[] = {100, 64, 0, 1}, b4[] = {100, 64, 0, 2};
    struct mn_ip src = mn_ip_from4(a4), dst = mn_ip_from4(b4);
    if (s->is6) {
        uint8_t raw[16] = {0xfd, 0x7a};
        raw[15] = 1;
        src = mn_ip_from6(raw);
        raw[15] = 2;
        dst = mn_ip_from6(raw);
    }
    size_t l4_head = s->is_udp ? 8 : 20U + s->options;
    uint8_t proto = s->is_udp ? MN_PROTO_UDP : MN_PROTO_TCP;
    size_t l4_at = mn_packet_write_header(p, &src, &dst, proto, l4_head + n), len = l4_at + l4_head + n;
    uint8_t *l4 = p + l4_at;
    if (s->is6) {
        p[0] = (uint8_t)(0x60 | s->tos >> 4);
        p[1] = (uint8_t)(s->tos << 4);
        p[7] = s->ttl != 0 ? s->ttl : 64;
    } else {
        p[1] = s->tos;
        mn_store16(p + 4, s->id);
        p[6] = s->no_df ? 0 : 0x40;
        p[8] = s->ttl != 0 ? s->ttl : 64;
    }
    memset(l4, 0, l4_head);
    mn_store16(l4, 1000);
    mn_store16(l4 + 2, s->port != 0 ? s->port : 80);
    if (s->is_udp) {
        mn_store16(l4 + 4, (uint32_t)(8 + n));
    } else {
        mn_store32(l4 + 4, s->seq);
        mn_store32(l4 + 8, s->ack);
        l4[12] = (uint8_t)(l4_head / 4 << 4);
        l4[13] = s->flags != 0 ? s->flags : 16;
        mn_store16(l4 + 14, s->window);
        memset(l4 + 20, s->option != 0 ? s->option : 1, s->options);
    }
    for (size_t i = 0; i < n; i++)
        l4[l4_head + i] = (uint8_t)((s->at + i) * 131 >> 3);
    offload_seal(p, len, l4_at, proto);
    return len;
}

/* The virtio header and the bytes that a kernel would read from an item. */
static inline size_t offload_gather(struct mn_merge_item *item, uint8_t *out)
{
    uint8_t head[MN_MERGE_HEAD];
    int n;
    size_t at = 0;
    struct iovec *iov = mn_merge_build(item, head, &n);
    for (int i = 0; i < n; i++) {
        memcpy(out + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    return at;
}

#endif
