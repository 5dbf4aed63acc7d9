/* SYN cookies (RFC 4987 3.6): a first sequence number that proves a SYN and says how large its segments may be, and a
 * timestamp whose low bits say what else it offered. Nothing is remembered until the peer returns them. */
#include "internal.h"

enum {
    SIZES = 8,
    SIZE_BITS = 3,
    PROOF_BITS = 28, /* what a blind peer must guess, within two periods */
    STAMP_BITS = 6,
    STAMP_NO_SCALE = 15,
    STAMP_SCALE = 15,
    STAMP_SACK = 16,
    STAMP_ECN = 32,
};

/* Rounded down: the sizes of plain paths, of tunnels with 1280 and 1420 bytes in both families, and what lies below. */
static const uint16_t g_sizes[SIZES] = {MN_MIN_MSS, 536, 1160, 1220, 1240, 1360, 1380, 1440};

static uint32_t proof(struct mn_stack *s, const struct mn_tuple *t, uint32_t irs, uint64_t period, uint32_t size)
{
    return mn_secret_cookie(s, t, irs, period << SIZE_BITS | size) >> (32 - PROOF_BITS);
}

/* From the top: proof, size, and whether the period is odd. */
static uint32_t assemble(uint32_t proof_bits, uint32_t size, uint64_t period)
{
    return proof_bits << (SIZE_BITS + 1) | size << 1 | (uint32_t)(period & 1);
}

uint32_t mn_syncookie_make(struct mn_stack *s, const struct mn_tuple *t, uint32_t irs, uint16_t mss)
{
    uint64_t period = s->now / MN_COOKIE_PERIOD;
    uint32_t size = SIZES - 1, wanted = mss != 0 ? mss : mn_ip_is4(&t->remote) ? 536 : 1220;
    while (size > 0 && g_sizes[size] > wanted)
        size--;
    return assemble(proof(s, t, irs, period, size), size, period);
}

bool mn_syncookie_check(struct mn_stack *s, const struct mn_tuple *t, uint32_t irs, uint32_t iss, uint16_t *mss)
{
    uint64_t period = s->now / MN_COOKIE_PERIOD;
    uint32_t size = iss >> 1 & (SIZES - 1);
    if ((period & 1) != (iss & 1) && period-- == 0)
        return false;
    *mss = g_sizes[size];
    return assemble(proof(s, t, irs, period, size), size, period) == iss;
}

uint32_t mn_syncookie_stamp(uint32_t now, const struct mn_half *h)
{
    uint32_t bits = h->wscale < 0 ? STAMP_NO_SCALE : (uint32_t)h->wscale;
    uint32_t stamp;
    if (h->may_sack)
        bits |= STAMP_SACK;
    if (h->ecn_on)
        bits |= STAMP_ECN;
    stamp = (now >> STAMP_BITS << STAMP_BITS) | bits;
    return mn_seq_lt(now, stamp) ? stamp - (1U << STAMP_BITS) : stamp;
}

void mn_syncookie_unstamp(uint32_t stamp, struct mn_half *h)
{
    uint32_t scale = stamp & STAMP_SCALE;
    h->wscale = -1;
    if (scale != STAMP_NO_SCALE)
        h->wscale = (int8_t)scale;
    h->may_sack = (stamp & STAMP_SACK) != 0;
    h->ecn_on = (stamp & STAMP_ECN) != 0;
}
