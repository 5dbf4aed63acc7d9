/* Pieces of datagrams, side by side in one buffer each until there is no gap. */
#include "fragments.h"

#include <stdlib.h>

enum {
    ROOM = MN_IP6_HEADER, /* in front, for the header that is written at the end */
    STEP = 2048,
    LEAST_AT = 80, /* RFC 1858: what lies nearer could still be header */
    LARGEST = 65535,
    SHARE = 4,
    NEXT_FRAGMENT = 44,
    FRAGMENT_HEADER6 = 8,
};

#define MORE4 0x2000U

#define LIFE4 30000000000ULL
#define LIFE6 60000000000ULL

struct piece {
    uint16_t first, end;
};

struct mn_datagram {
    struct mn_ip src, dst;
    uint64_t since;
    uint32_t id, peer;
    uint8_t *data;
    uint32_t room; /* bytes at data behind ROOM */
    uint32_t size, got;
    uint8_t proto, count, ecn;
    bool is_used, has_last, has_first;
    bool is_bad; /* remembered, so that its later pieces do not begin anew */
    struct piece pieces[MN_FRAGMENTS_PIECES];
};

static void drop_data(struct mn_fragments *f, struct mn_datagram *d)
{
    free(d->data);
    f->bytes -= d->room;
    d->data = NULL;
    d->room = 0;
}

static void forget(struct mn_fragments *f, struct mn_datagram *d)
{
    drop_data(f, d);
    d->is_used = false;
}

static bool is_same(const struct mn_datagram *d, uint32_t peer, const struct mn_packet *p)
{
    return d->is_used && d->peer == peer && d->id == p->fragment_id && mn_ip_equal(&d->src, &p->src) &&
           mn_ip_equal(&d->dst, &p->dst) && (p->version == 6 || d->proto == p->fragment_next);
}

static struct mn_datagram *find(const struct mn_fragments *f, uint32_t peer, const struct mn_packet *p)
{
    for (int i = 0; f->slots != NULL && i < MN_FRAGMENTS_DATAGRAMS; i++)
        if (is_same(&f->slots[i], peer, p))
            return &f->slots[i];
    return NULL;
}

static void expire(struct mn_fragments *f, uint64_t now)
{
    for (int i = 0; i < MN_FRAGMENTS_DATAGRAMS; i++) {
        struct mn_datagram *d = &f->slots[i];
        if (!d->is_used || now - d->since < (mn_ip_is4(&d->src) ? LIFE4 : LIFE6))
            continue;
        f->dropped++;
        forget(f, d);
    }
}

/* Give up the oldest (of one peer, or of all), but not `spare`. False: there is none. */
static bool evict(struct mn_fragments *f, bool is_of_peer, uint32_t peer, const struct mn_datagram *spare)
{
    struct mn_datagram *oldest = NULL;
    for (int i = 0; i < MN_FRAGMENTS_DATAGRAMS; i++) {
        struct mn_datagram *d = &f->slots[i];
        if (d->is_used && d != spare && (!is_of_peer || d->peer == peer) &&
            (oldest == NULL || d->since < oldest->since))
            oldest = d;
    }
    if (oldest == NULL)
        return false;
    f->dropped++;
    forget(f, oldest);
    return true;
}

static void count_peer(const struct mn_fragments *f, uint32_t peer, uint32_t *datagrams, uint32_t *bytes)
{
    *datagrams = *bytes = 0;
    for (int i = 0; i < MN_FRAGMENTS_DATAGRAMS; i++) {
        if (!f->slots[i].is_used || f->slots[i].peer != peer)
            continue;
        *datagrams += 1;
        *bytes += f->slots[i].room;
    }
}

static struct mn_datagram *begin(struct mn_fragments *f, uint32_t peer, const struct mn_packet *p, uint64_t now)
{
    uint32_t datagrams, bytes;
    count_peer(f, peer, &datagrams, &bytes);
    if (datagrams >= MN_FRAGMENTS_DATAGRAMS / SHARE)
        evict(f, true, peer, NULL);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < MN_FRAGMENTS_DATAGRAMS; i++) {
            struct mn_datagram *d = &f->slots[i];
            if (d->is_used)
                continue;
            *d = (struct mn_datagram){.src = p->src, .dst = p->dst, .since = now, .id = p->fragment_id, .peer = peer};
            d->proto = p->fragment_next;
            d->is_used = true;
            return d;
        }
        evict(f, false, 0, NULL);
    }
    return NULL;
}

/* Room for end bytes, within the quotas; others give way. */
static bool make_room(struct mn_fragments *f, struct mn_datagram *d, uint32_t end)
{
    if (end <= d->room)
        return true;
    uint32_t room = (end + STEP - 1) / STEP * STEP, more = room - d->room, datagrams, bytes;
    for (;;) {
        count_peer(f, d->peer, &datagrams, &bytes);
        if (bytes + more <= MN_FRAGMENTS_BYTES / SHARE)
            break;
        if (!evict(f, true, d->peer, d))
            return false;
    }
    while (f->bytes + more > MN_FRAGMENTS_BYTES)
        if (!evict(f, false, 0, d))
            return false;
    uint8_t *data = realloc(d->data, ROOM + room);
    if (data == NULL)
        return false;
    d->data = data;
    d->room = room;
    f->bytes += more;
    return true;
}

enum verdict {
    NEW,
    AGAIN,
    BAD,
};

/* Remember where it lies. */
static enum verdict place(struct mn_datagram *d, uint32_t first, uint32_t end, bool more)
{
    uint8_t at = 0;
    if (d->has_last && (end > d->size || (!more && end != d->size)))
        return BAD;
    while (at < d->count && d->pieces[at].first < first)
        at++;
    if (at < d->count && d->pieces[at].first == first && d->pieces[at].end == end)
        return more || (d->has_last && d->size == end) ? AGAIN : BAD;
    if ((at > 0 && d->pieces[at - 1].end > first) || (at < d->count && d->pieces[at].first < end))
        return BAD;
    if (d->count == MN_FRAGMENTS_PIECES || (!more && at != d->count))
        return BAD; /* the last lies before another */
    memmove(d->pieces + at + 1, d->pieces + at, (size_t)(d->count - at) * sizeof *d->pieces);
    d->pieces[at] = (struct piece){(uint16_t)first, (uint16_t)end};
    d->count++;
    d->got += end - first;
    if (!more) {
        d->has_last = true;
        d->size = end;
    }
    return NEW;
}

static uint32_t least_header(uint8_t proto)
{
    return proto == MN_PROTO_TCP ? 20 : 8;
}

static bool is_sane(const struct mn_packet *p, uint32_t first, uint32_t len)
{
    uint32_t end = first + len, header = p->version == 4 ? MN_IP4_HEADER : 0;
    if (len == 0 || (p->fragment_more && len % 8 != 0) || end + header > LARGEST)
        return false;
    return first == 0 ? p->l4_len >= least_header(p->proto) : first >= LEAST_AT;
}

static bool finish(struct mn_fragments *f, struct mn_datagram *d, const uint8_t **packet, size_t *len)
{
    if (f->whole_count == MN_FRAGMENTS_WHOLE) {
        f->dropped++;
        forget(f, d);
        return false;
    }
    size_t header = mn_packet_header_len(&d->src);
    uint8_t *out = d->data + ROOM - header;
    mn_packet_write_header(out, &d->src, &d->dst, d->proto, d->size);
    if (d->ecn != 0)
        mn_packet_set_ecn(out, d->ecn);
    *packet = out;
    *len = header + d->size;
    f->whole[f->whole_count++] = d->data;
    f->bytes -= d->room;
    d->data = NULL;
    d->room = 0;
    d->is_used = false;
    return true;
}

bool mn_fragments_take(struct mn_fragments *f, uint32_t peer, const struct mn_packet *p, uint64_t now_ns,
                       const uint8_t **packet, size_t *len)
{
    if (f->slots == NULL)
        f->slots = calloc(MN_FRAGMENTS_DATAGRAMS, sizeof *f->slots);
    uint32_t first = p->fragment_at, n = (uint32_t)(p->ip_len - (size_t)(p->fragment - p->ip)), end = first + n;
    if (f->slots == NULL || !is_sane(p, first, n)) {
        f->dropped++;
        return false;
    }
    expire(f, now_ns);
    struct mn_datagram *d = find(f, peer, p);
    if (d == NULL)
        d = begin(f, peer, p, now_ns);
    if (d == NULL || d->is_bad) {
        f->dropped++;
        return false;
    }
    enum verdict v = place(d, first, end, p->fragment_more);
    if (v == AGAIN)
        return false;
    if (v == BAD || !make_room(f, d, end)) {
        f->dropped++;
        drop_data(f, d);
        d->is_bad = true;
        return false;
    }
    memcpy(d->data + ROOM + first, p->fragment, n);
    if (first == 0)
        d->proto = p->fragment_next; /* RFC 8200 4.5: the first says what it is */
    if ((p->tos & 3) == 3 || d->count == 1)
        d->ecn = p->tos & 3; /* one mark is enough (RFC 3168 5.3) */
    return d->has_last && d->got == d->size && finish(f, d, packet, len);
}

bool mn_fragments_knows(const struct mn_fragments *f, uint32_t peer, const struct mn_packet *p)
{
    return find(f, peer, p) != NULL;
}

void mn_fragments_release(struct mn_fragments *f)
{
    while (f->whole_count > 0)
        free(f->whole[--f->whole_count]);
}

void mn_fragments_free(struct mn_fragments *f)
{
    mn_fragments_release(f);
    for (int i = 0; f->slots != NULL && i < MN_FRAGMENTS_DATAGRAMS; i++)
        free(f->slots[i].data);
    free(f->slots);
    *f = (struct mn_fragments){0};
}

/* ---- sending ---- */

size_t mn_piece_share(const struct mn_ip *dst, size_t mtu)
{
    return (mtu - mn_packet_header_len(dst) - (mn_ip_is4(dst) ? 0 : (size_t)FRAGMENT_HEADER6)) & ~(size_t)7;
}

size_t mn_piece_write_header(uint8_t *out, const struct mn_piece *k)
{
    if (mn_ip_is4(&k->dst)) {
        size_t n = mn_packet_write_header(out, &k->src, &k->dst, k->proto, k->len);
        mn_store16(out + 4, k->id);
        mn_store16(out + 6, k->at / 8 | (k->more ? MORE4 : 0));
        mn_store16(out + 10, 0);
        mn_csum_store(out + 10, mn_csum_add(0, out, n));
        return n;
    }
    size_t n = mn_packet_write_header(out, &k->src, &k->dst, NEXT_FRAGMENT, FRAGMENT_HEADER6 + k->len);
    out[n] = k->proto;
    out[n + 1] = 0;
    mn_store16(out + n + 2, k->at | (k->more ? 1 : 0));
    mn_store32(out + n + 4, k->id);
    return n + FRAGMENT_HEADER6;
}
