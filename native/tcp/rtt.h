/* Round-trip time and retransmission timeout of one connection (RFC 6298). */
#ifndef MN_TCP_RTT_H
#define MN_TCP_RTT_H

#include <stdbool.h>
#include <stdint.h>

#define MN_RTO_INITIAL_NS 1000000000ULL
#define MN_RTO_MIN_NS 200000000ULL
#define MN_RTO_MAX_NS 120000000000ULL

struct mn_rtt {
    uint64_t srtt_ns, rttvar_ns; /* srtt 0: no sample yet */
    uint64_t rto_ns;
    uint64_t min_ns;    /* shortest sample; 0: none */
    uint64_t resent_at; /* last retransmission */
    uint64_t timed_at;  /* when the segment that ends at timed_seq left */
    uint32_t timed_seq;
    bool is_timing;
    uint8_t backoff; /* times the timer ran out in a row */
};

static inline void mn_rtt_start(struct mn_rtt *r)
{
    *r = (struct mn_rtt){.rto_ns = MN_RTO_INITIAL_NS};
}

/* One of n samples of a round trip. */
static inline void mn_rtt_take_one_of(struct mn_rtt *r, uint64_t sample_ns, uint32_t n)
{
    if (sample_ns == 0)
        sample_ns = 1;
    if (r->min_ns == 0 || sample_ns < r->min_ns)
        r->min_ns = sample_ns;
    if (r->srtt_ns == 0) {
        r->srtt_ns = sample_ns;
        r->rttvar_ns = sample_ns / 2;
    } else {
        uint64_t off = sample_ns > r->srtt_ns ? sample_ns - r->srtt_ns : r->srtt_ns - sample_ns;
        if (sample_ns + r->rttvar_ns < r->srtt_ns)
            off /= 8; /* a path that became shorter is no reason to wait longer */
        r->rttvar_ns = ((4 * (uint64_t)n - 1) * r->rttvar_ns + off) / (4 * (uint64_t)n);
        r->srtt_ns = ((8 * (uint64_t)n - 1) * r->srtt_ns + sample_ns) / (8 * (uint64_t)n);
    }
    uint64_t rto = r->srtt_ns + 4 * r->rttvar_ns;
    r->rto_ns = rto < MN_RTO_MIN_NS ? MN_RTO_MIN_NS : rto > MN_RTO_MAX_NS ? MN_RTO_MAX_NS : rto;
}

static inline void mn_rtt_take(struct mn_rtt *r, uint64_t sample_ns)
{
    mn_rtt_take_one_of(r, sample_ns, 1);
}

/* The timeout as it stands, backoff included. */
static inline uint64_t mn_rtt_timeout(const struct mn_rtt *r)
{
    uint64_t rto = r->rto_ns;
    for (uint8_t i = 0; i < r->backoff && rto < MN_RTO_MAX_NS; i++)
        rto *= 2;
    return rto > MN_RTO_MAX_NS ? MN_RTO_MAX_NS : rto;
}

#endif
