/* Any bytes as what a kernel interface gives, cut; and as a batch of packets for it, merged and cut again: every piece
 * stays inside, parses, adds up, and is the packet it was made of. */
#include "../ip/cut.h"
#include "../ip/merge.h"

#include <stdlib.h>

enum { PACKETS_MAX = 96, FIELD_TCP = 16, FIELD_UDP = 6 };

static struct mn_merge merge;
static uint8_t *packets[PACKETS_MAX];
static uint8_t whole[1 << 17];

static void must(bool claim)
{
    if (!claim)
        abort();
}

static uint8_t *copy(const uint8_t *p, size_t n)
{
    uint8_t *out = malloc(n > 0 ? n : 1);
    must(out != NULL);
    if (n > 0)
        memcpy(out, p, n);
    return out;
}

static void repair_header(uint8_t *p, size_t n)
{
    size_t header = n > 0 ? (size_t)(p[0] & 15) * 4 : 0;
    if (n == 0 || p[0] >> 4 != 4 || header < MN_IP4_HEADER || header > n)
        return;
    p[10] = p[11] = 0;
    mn_csum_store(p + 10, mn_csum_add(0, p, header));
}

static void check_sum(const uint8_t *data, size_t n)
{
    struct mn_packet p;
    must(mn_packet_parse(&p, data, n) == 0 && p.ip_len == n);
    must(mn_csum_is_good(mn_csum_add(mn_csum_pseudo(&p.src, &p.dst, p.proto, p.l4_len), p.l4, p.l4_len)));
}

static void cut_one(const uint8_t *input, size_t len)
{
    struct mn_cut c;
    uint8_t *buf = copy(input, len);
    if (len > MN_VNET_SIZE)
        repair_header(buf + MN_VNET_SIZE, len - MN_VNET_SIZE);
    if (mn_cut_begin(&c, buf, len) == 0) {
        size_t n, payload = 0;
        while ((n = mn_cut_next(&c)) > 0) {
            uint8_t *out = malloc(n);
            must(out != NULL);
            payload += n - (c.is_whole ? 0 : c.head);
            bool is_piece = !c.is_whole;
            mn_cut_write(&c, out);
            if (is_piece)
                check_sum(out, n);
            free(out);
        }
        must(payload + (c.is_whole ? 0 : c.head) == c.packet.ip_len);
    }
    free(buf);
}

/* A whole and true packet where the bytes allow one. */
static void repair(uint8_t *data, size_t n)
{
    struct mn_packet p;
    repair_header(data, n);
    if (mn_packet_parse(&p, data, n) != 0 || p.is_fragment)
        return;
    size_t field = p.proto == MN_PROTO_TCP ? FIELD_TCP : FIELD_UDP;
    if ((p.proto != MN_PROTO_TCP && p.proto != MN_PROTO_UDP) || p.l4_len < field + 2)
        return;
    uint8_t *l4 = data + (p.l4 - p.ip);
    l4[field] = l4[field + 1] = 0;
    uint64_t sum = mn_csum_pseudo(&p.src, &p.dst, p.proto, p.l4_len);
    mn_csum_store(l4 + field, mn_csum_add(sum, l4, p.l4_len));
    if (p.proto == MN_PROTO_UDP && mn_load16(l4 + field) == 0)
        mn_store16(l4 + field, 0xffff);
}

static void check_item(struct mn_merge_item *item)
{
    uint8_t head[MN_MERGE_HEAD];
    struct mn_cut c;
    int n;
    size_t at = 0;
    struct iovec *iov = mn_merge_build(item, head, &n);
    for (int i = 0; i < n; i++) {
        must(at + iov[i].iov_len <= sizeof whole);
        if (iov[i].iov_len > 0)
            memcpy(whole + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    must(mn_cut_begin(&c, whole, at) == 0);
    for (unsigned i = 0; i < item->count; i++) {
        size_t want_len, len = mn_cut_next(&c);
        const uint8_t *want = mn_merge_packet(item, i, &want_len);
        must(len == want_len);
        uint8_t *out = malloc(len);
        must(out != NULL);
        mn_cut_write(&c, out);
        if (out[0] >> 4 == 4 && item->count > 1) {
            memcpy(out + 4, want + 4, 2); /* identification, and with it the header's sum */
            memcpy(out + 10, want + 10, 2);
        }
        must(memcmp(out, want, len) == 0);
        free(out);
    }
    must(mn_cut_next(&c) == 0);
}

static void merge_all(const uint8_t *input, size_t len)
{
    unsigned n = 0;
    mn_merge_clear(&merge);
    merge.tcp = merge.udp = true;
    for (size_t at = 0; at + 2 <= len && n < PACKETS_MAX;) {
        size_t size = mn_load16(input + at) % 2048;
        struct mn_packet p;
        at += 2;
        if (size > len - at)
            size = len - at;
        packets[n] = copy(input + at, size);
        repair(packets[n], size);
        at += size;
        if (mn_packet_parse(&p, packets[n], size) == 0 && !mn_merge_add(&merge, &p))
            break;
        n++;
    }
    for (unsigned i = 0; i < merge.count; i++)
        check_item(&merge.items[i]);
    for (unsigned i = 0; i < n + (n < PACKETS_MAX && packets[n] != NULL); i++) {
        free(packets[i]);
        packets[i] = NULL;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t len)
{
    if (len == 0)
        return 0;
    if (input[0] % 2 == 0)
        cut_one(input + 1, len - 1);
    else
        merge_all(input + 1, len - 1);
    return 0;
}
