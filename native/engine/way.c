/* Ways of messages. See way.h. */
#include "way.h"

#include "../udp/geneve.h"
#include "../wg/wg.h"
#include "engine.h"
#include "internal.h"

enum { IP4_UDP = 28, IP6_UDP = 48, INNER_MIN = 576 };

bool mn_way_has_direct(const struct mn_peer *p)
{
    return (p->mode & MN_MODE_DIRECT) != 0 && p->direct.port != 0;
}

bool mn_way_has_relay(const struct mn_peer *p)
{
    return (p->mode & MN_MODE_RELAY) != 0 && p->region != 0;
}
_Static_assert((MN_MODE_DIRECT | MN_MODE_RELAY) == MN_MODE_BOTH, "modes are bits");
_Static_assert((MN_MODE_BOTH | MN_MODE_RELAY_FIRST) == MN_MODE_DOUBTED, "modes are bits");

static size_t headers(const struct mn_peer *p)
{
    return (mn_ip_is4(&p->direct.ip) ? IP4_UDP : IP6_UDP) + (p->direct.vni != 0 ? (size_t)MN_GENEVE_LEN : 0U);
}

/* May a copy of len bytes be made? The allowance is full again at `copies_full_at`. */
static bool take_copy(struct mn_peer *p, size_t len, uint64_t now_ns)
{
    uint64_t step = (uint64_t)len * MN_NS_PER_S / MN_COPY_PER_S;
    uint64_t burst = (uint64_t)MN_COPY_BURST * MN_NS_PER_S / MN_COPY_PER_S;
    uint64_t at = p->copies_full_at < now_ns ? now_ns : p->copies_full_at;
    if (len < MN_COPY_SMALL)
        return true;
    if (at + step > now_ns + burst)
        return false;
    p->copies_full_at = at + step;
    return true;
}

unsigned mn_way_of_data(struct mn_peer *p, size_t len, uint64_t now_ns)
{
    bool direct = mn_way_has_direct(p), relay = mn_way_has_relay(p);
    if (direct && p->limit != 0 && p->region != 0 && len + headers(p) > p->limit)
        return MN_WAY_RELAY;
    if (!direct || !relay)
        return (direct ? (unsigned)MN_WAY_DIRECT : 0U) | (relay ? (unsigned)MN_WAY_RELAY : 0U);
    if (take_copy(p, len, now_ns))
        return MN_WAY_DIRECT | MN_WAY_RELAY;
    if ((p->mode & MN_MODE_RELAY_FIRST) == 0)
        return MN_WAY_DIRECT;
    p->beyond = (uint8_t)((p->beyond + 1) % MN_COPY_EVERY);
    return p->beyond == 0 ? MN_WAY_DIRECT | MN_WAY_RELAY : MN_WAY_RELAY;
}

bool mn_way_is_plain(const struct mn_peer *p)
{
    return mn_way_has_direct(p) && p->limit == 0 && p->n_others == 0 && (p->mode & MN_MODE_RELAY_FIRST) == 0;
}

size_t mn_way_inner_mtu(const struct mn_peer *p, size_t mtu)
{
    size_t around = headers(p) + MN_WG_OVERHEAD;
    if (p->limit == 0 || p->limit < around + INNER_MIN)
        return mtu;
    size_t inner = (p->limit - around) & ~(size_t)(MN_WG_PADDING - 1); /* messages are padded to a multiple */
    return inner < mtu ? inner : mtu;
}
