/* Echo: requests answered, in pieces where one packet does not hold the answer, and our own sent.
 *
 * An answer is as long as its request, so that one beyond the MTU has to leave in fragments: nothing else of ours does.
 * Each fragment counts against the peer's bound. Identifications follow one another, from a secret start for each pair
 * of addresses, within what a peer shares only with its bucket (RFC 6864, RFC 7739 5.3): fewer than 500 a second, so
 * that no 16-bit number comes again within the 30 s a receiver may hold pieces. */
#include <errno.h>

#include "internal.h"

static uint32_t next_id(struct mn_stack *s, uint32_t peer, const struct mn_ip *src, const struct mn_ip *dst)
{
    struct mn_tuple t = {.local = *src, .remote = *dst};
    return (uint32_t)mn_secret_number(s, &t, MN_SECRET_FRAGMENT) + s->ids_by_peer[peer % MN_BUCKETS]++;
}

static void answer_whole(struct mn_stack *s, const struct mn_packet *p, const struct mn_icmp *m)
{
    int err;
    size_t size = mn_packet_header_len(&p->src) + MN_ICMP_HEADER + m->body_len;
    uint8_t *out = mn_stack_begin(s, &p->src, size, &err);
    if (out != NULL)
        mn_stack_commit(s, mn_icmp_write_echo(out, &p->dst, &p->src, true, m->id, m->seq, m->body, m->body_len));
}

static void answer_in_pieces(struct mn_stack *s, uint32_t peer, const struct mn_packet *p, const struct mn_icmp *m,
                             size_t share)
{
    int err;
    uint8_t head[MN_ICMP_HEADER];
    size_t total = sizeof head + m->body_len;
    struct mn_piece k = {.src = p->dst, .dst = p->src, .proto = p->proto, .more = true};
    k.id = next_id(s, peer, &k.src, &k.dst);
    mn_icmp_write_echo_header(head, &k.src, &k.dst, true, m->id, m->seq, m->body, m->body_len);
    for (; k.more; k.at += (uint32_t)k.len) {
        k.more = total - k.at > share;
        k.len = k.more ? share : total - k.at;
        uint8_t *out = mn_stack_begin(s, &k.dst, s->cfg.mtu, &err);
        if (out == NULL)
            return; /* without this one the others are worth nothing */
        size_t n = mn_piece_write_header(out, &k), own = k.at == 0 ? sizeof head : 0;
        memcpy(out + n, head, own);
        memcpy(out + n + own, m->body + k.at + own - sizeof head, k.len - own);
        mn_stack_commit(s, n + k.len);
    }
}

void mn_stack_answer_echo(struct mn_stack *s, uint32_t peer, const struct mn_packet *p, const struct mn_icmp *m)
{
    size_t total = MN_ICMP_HEADER + m->body_len, mtu = mn_path_mtu(s, &p->src);
    size_t share = mn_piece_share(&p->src, mtu);
    bool is_whole = mn_packet_header_len(&p->src) + total <= mtu;
    uint32_t packets = is_whole ? 1 : (uint32_t)((total + share - 1) / share);
    s->stats.icmp_echo_in++;
    if (!mn_bucket_take_many(&s->echo_by_peer[peer % MN_BUCKETS], packets, MN_ECHO_PER_S, s->now))
        s->stats.icmp_echo_limited++;
    else if (is_whole)
        answer_whole(s, p, m);
    else
        answer_in_pieces(s, peer, p, m, share);
}

int mn_ping_send(struct mn_stack *s, const struct mn_ip *dst, uint16_t id, uint16_t seq, const uint8_t *payload,
                 size_t len, uint64_t now_ns)
{
    struct mn_ip src;
    int err = 0;
    size_t size = mn_packet_header_len(dst) + MN_ICMP_HEADER + len;
    if (mn_packet_destination_is_special(dst))
        return -EINVAL;
    if (!mn_stack_choose_source(s, dst, &src))
        return -EADDRNOTAVAIL;
    if (size > s->cfg.mtu)
        return -EMSGSIZE;
    mn_turn_enter(s, now_ns);
    uint8_t *out = mn_stack_begin(s, dst, size, &err);
    if (out != NULL)
        mn_stack_commit(s, mn_icmp_write_echo(out, &src, dst, false, id, seq, payload, len));
    mn_turn_leave(s);
    return out != NULL ? 0 : -err;
}
