/* Any bytes as an IP packet, and what lies in it as TCP, UDP, ICMP and a quoted packet: every view stays inside. */
#include "../ip/icmp.h"
#include "../ip/udp.h"
#include "../tcp/segment.h"

#include <stdlib.h>

static void must(bool claim)
{
    if (!claim)
        abort();
}

static bool lies_in(const uint8_t *p, size_t n, const uint8_t *whole, size_t size)
{
    return p >= whole && n <= size && p - whole <= (ptrdiff_t)(size - n);
}

/* Give the layer-4 checksum the value it should have, so that parsing goes on behind it. */
static void repair(uint8_t *data, const struct mn_packet *p, size_t at, bool has_pseudo)
{
    uint8_t *l4 = data + (p->l4 - p->ip);
    if (p->l4_len < at + 2)
        return;
    memset(l4 + at, 0, 2);
    uint64_t sum = has_pseudo ? mn_csum_pseudo(&p->src, &p->dst, p->proto, p->l4_len) : 0;
    mn_csum_store(l4 + at, mn_csum_add(sum, l4, p->l4_len));
}

static void look_inside(uint8_t *data, const struct mn_packet *p)
{
    struct mn_segment g;
    struct mn_udp u;
    struct mn_icmp m;
    struct mn_icmp_quote q;
    repair(data, p, 16, true);
    if (mn_segment_parse(&g, p) == 0)
        must(lies_in(g.data, g.len, p->l4, p->l4_len) && g.wscale <= MN_TCP_MAX_SHIFT);
    repair(data, p, 6, true);
    if (mn_udp_parse(&u, p) == 0)
        must(lies_in(u.data, u.len, p->l4, p->l4_len));
    repair(data, p, 2, p->version == 6);
    if (mn_icmp_parse(&m, p) == 0) {
        must(lies_in(m.body, m.body_len, p->l4, p->l4_len));
        mn_icmp_parse_quote(&q, m.body, m.body_len);
    }
    uint8_t error[1280];
    must(mn_icmp_write_error(error, sizeof error, MN_ICMP_PORT_UNREACHABLE, p) <= sizeof error);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t len)
{
    struct mn_packet p;
    struct mn_icmp_quote q;
    mn_icmp_parse_quote(&q, input, len);
    if (len == 0)
        return 0;
    uint8_t *data = malloc(len);
    if (data == NULL)
        return 0;
    memcpy(data, input, len);
    size_t header = (size_t)(data[0] & 15) * 4;
    if (data[0] >> 4 == 4 && header >= 20 && header <= len) {
        memset(data + 10, 0, 2);
        mn_csum_store(data + 10, mn_csum_add(0, data, header));
    }
    if (mn_packet_parse(&p, data, len) == 0) {
        must(p.ip == data && p.ip_len <= len && lies_in(p.l4, p.l4_len, data, p.ip_len));
        must(mn_ip_is4(&p.src) == (p.version == 4) && mn_ip_is4(&p.dst) == (p.version == 4));
        look_inside(data, &p);
    }
    free(data);
    return 0;
}
