/* Congestion control behind one table of functions. An algorithm is a file with one struct mn_cc_ops; it sees bytes and
 * times, never segments: which of them are lost is decided in loss.c. */
#ifndef MN_TCP_CC_H
#define MN_TCP_CC_H

#include <stdbool.h>
#include <stdint.h>

enum {
    MN_CC_MAX_WINDOW = 1 << 28,
    MN_CC_INITIAL_SEGMENTS = 10, /* RFC 6928 */
};

struct mn_cc;

struct mn_cc_ack {
    uint32_t bytes;      /* newly delivered: acknowledged cumulatively, or selectively for the first time */
    uint32_t flight;     /* bytes believed to be in the network before this ACK */
    uint32_t una, nxt;   /* after it: what a round is told by (HyStart++) */
    uint64_t rtt_ns;     /* 0: no sample came with it */
    uint64_t min_rtt_ns; /* shortest of the connection; 0: none yet */
    uint64_t srtt_ns;
    uint64_t now_ns;
    bool is_limited; /* the window, not the application, held the sender back */
};

/* The window during fast recovery is loss.c's (proportional rate reduction): between on_loss and on_recovered an
 * algorithm names only ssthresh. Every reduction keeps what undo needs. */
struct mn_cc_ops {
    const char *name;
    void (*start)(struct mn_cc *cc);
    void (*on_ack)(struct mn_cc *cc, const struct mn_cc_ack *ack); /* outside fast recovery */
    void (*on_loss)(struct mn_cc *cc, uint32_t flight, uint64_t now_ns);
    void (*on_mark)(struct mn_cc *cc, uint32_t flight, uint64_t now_ns); /* ECN: at most once per round trip */
    void (*on_recovered)(struct mn_cc *cc, uint64_t now_ns);
    void (*on_timeout)(struct mn_cc *cc, uint32_t flight, bool is_first, uint64_t now_ns);
    void (*on_idle)(struct mn_cc *cc, uint64_t idle_ns, uint64_t now_ns); /* nothing was sent for longer than the RTO */
    void (*undo)(struct mn_cc *cc, uint64_t now_ns); /* the last on_loss, on_mark or on_timeout was no congestion */
    /* Bytes per second at which to let segments go; 0: as fast as the window allows. */
    uint64_t (*pacing_rate)(const struct mn_cc *cc, uint64_t srtt_ns);
};

struct mn_cc {
    const struct mn_cc_ops *ops;
    uint32_t mss, cwnd, ssthresh;          /* bytes */
    uint32_t before_cwnd, before_ssthresh; /* the last reduction's, for undo; 0: nothing to undo */
    uint64_t own[16];                      /* the algorithm's */
};

extern const struct mn_cc_ops mn_cc_newreno;

static inline void mn_cc_start(struct mn_cc *cc, const struct mn_cc_ops *ops, uint32_t mss)
{
    *cc = (struct mn_cc){.ops = ops, .mss = mss, .cwnd = MN_CC_INITIAL_SEGMENTS * mss, .ssthresh = MN_CC_MAX_WINDOW};
    ops->start(cc);
}

#endif
