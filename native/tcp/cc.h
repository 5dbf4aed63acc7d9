/* Congestion control behind one table of functions. An algorithm is a file with one struct mn_cc_ops; it sees bytes and
 * times, never segments: which of them are lost is decided in loss.c. */
#ifndef MN_TCP_CC_H
#define MN_TCP_CC_H

#include <stdbool.h>
#include <stdint.h>

#include "hystart.h"

enum {
    MN_CC_MAX_WINDOW = 1 << 28,
    MN_CC_INITIAL_SEGMENTS = 10, /* RFC 6928 */
};

struct mn_cc;

/* What one ACK, or a batch of them, says. Passed by pointer: an algorithm that works from delivery rates (BBR) finds
 * its samples in more fields here, and the others never notice. */
struct mn_cc_ack {
    uint32_t bytes;      /* newly delivered: acknowledged cumulatively, or selectively for the first time */
    uint32_t flight;     /* bytes believed to be in the network before this ACK */
    uint32_t una, nxt;   /* after it: what a round is told by (HyStart++) */
    uint64_t rtt_ns;     /* 0: no sample came with it */
    uint64_t min_rtt_ns; /* shortest of the connection; 0: none yet */
    uint64_t srtt_ns;
    uint64_t now_ns;
    bool is_limited; /* the window or the pacing gate held the sender back, not the application nor the peer's window */
};

/* The window during fast recovery is loss.c's (proportional rate reduction): between on_loss and on_recovered an
 * algorithm names only ssthresh. Every reduction keeps what undo needs. */
struct mn_cc_ops {
    const char *name;
    void (*start)(struct mn_cc *cc);
    void (*on_ack)(struct mn_cc *cc, const struct mn_cc_ack *ack); /* outside fast recovery */
    /* True: the losses so far say nothing of a full queue; the window is kept while they are repaired, on_ack goes on,
     * and on_loss is not called. Asked again at every further loss. NULL: never. */
    bool (*stands)(const struct mn_cc *cc);
    void (*on_loss)(struct mn_cc *cc, uint32_t flight, uint64_t now_ns);
    void (*on_mark)(struct mn_cc *cc, uint32_t flight, uint64_t now_ns); /* ECN: at most once per round trip */
    void (*on_recovered)(struct mn_cc *cc, uint64_t now_ns);
    void (*on_timeout)(struct mn_cc *cc, uint32_t flight, bool is_first, uint64_t now_ns);
    void (*on_idle)(struct mn_cc *cc, uint64_t idle_ns, uint64_t now_ns); /* nothing was sent for longer than the RTO */
    void (*undo)(struct mn_cc *cc, uint64_t now_ns); /* the last on_loss, on_mark or on_timeout was no congestion */
    /* Bytes per second at which to let segments go; 0: as fast as the window allows. */
    uint64_t (*pacing_rate)(const struct mn_cc *cc, uint64_t srtt_ns);
};

struct mn_reno {
    uint64_t acked; /* bytes towards the next step of congestion avoidance */
};

/* A stage of congestion avoidance: from its first ACK to the next reduction. */
struct mn_cubic_stage {
    uint64_t start_ns;      /* 0: begins with the next ACK; time the application wasted is taken off by moving it */
    uint32_t w_max, origin; /* plateau asked for by the last reduction, and the one of this stage; bytes */
    uint32_t k;             /* time to the plateau, in units of 2^-13 s */
    uint32_t w_est;         /* what Reno would have by now */
    uint32_t prior;         /* window before the last reduction */
    uint64_t est_rest;      /* of w_est, below one byte */
};

struct mn_cubic {
    struct mn_cubic_stage stage, before; /* before: for undo */
    struct mn_hystart hystart;
    uint64_t rest; /* of cwnd, below one byte */
    uint64_t acked_at;
};

/* The path as round trips tell it. */
struct mn_cc_path {
    uint64_t min_ns;               /* shortest of the connection; 0: none yet */
    uint64_t recent_ns, before_ns; /* shortest of this period and of the last; 0: none */
    uint64_t period_at;            /* when this period began */
    /* By rounds: one is over when what was sent at its beginning is acknowledged. */
    uint32_t round_min_us, last_min_us; /* shortest sample of this one and of the last; 0: none */
    uint32_t most, last_most;           /* largest flight */
    uint32_t round_end;
    uint16_t delivered, lost; /* lately, in units of 256 bytes: halved when there is enough of it */
};

struct mn_cc {
    const struct mn_cc_ops *ops;
    uint32_t mss, cwnd, ssthresh;          /* bytes */
    uint32_t before_cwnd, before_ssthresh; /* the last reduction's, for undo; 0: nothing to undo */
    struct mn_cc_path path;
    union { /* the algorithm's */
        struct mn_reno reno;
        struct mn_cubic cubic;
    } own;
};

extern const struct mn_cc_ops mn_cc_newreno, mn_cc_cubic, mn_cc_forbearing;

/* NULL: the default. Returns NULL for a name nobody has. */
const struct mn_cc_ops *mn_cc_find(const char *name);
void mn_cc_start(struct mn_cc *cc, const struct mn_cc_ops *ops, uint32_t mss);
/* For the algorithms: the path, at every ACK; the pacing rate that follows from the window; what every reduction begins
 * with; its end. */
void mn_cc_note_path(struct mn_cc *cc, const struct mn_cc_ack *ack);
bool mn_cc_is_short(const struct mn_cc *cc); /* so short that it is never paced */
/* True if half of the window was in use in this round or the last: one that was not says nothing of the path, whatever
 * held the sender back at a moment (RFC 7661 4.3). */
bool mn_cc_is_used(const struct mn_cc *cc);
/* True if what the ACK says of the path is that more in flight would only wait at its end. */
bool mn_cc_is_full(const struct mn_cc *cc, const struct mn_cc_ack *ack);
/* loss.c's: so many bytes more were delivered, or found lost. */
void mn_cc_count(struct mn_cc *cc, uint32_t delivered, uint32_t lost);
/* True if losses are few and no queue is there that could have dropped them: a radio's, not congestion's. */
bool mn_cc_is_sparse(const struct mn_cc *cc);
uint64_t mn_cc_pace_window(const struct mn_cc *cc, uint64_t srtt_ns);
void mn_cc_remember(struct mn_cc *cc);
bool mn_cc_restore(struct mn_cc *cc); /* false: there is nothing to undo */

static inline bool mn_cc_in_slow_start(const struct mn_cc *cc)
{
    return cc->cwnd < cc->ssthresh;
}

static inline uint32_t mn_cc_clamp(uint64_t window)
{
    return window > MN_CC_MAX_WINDOW ? MN_CC_MAX_WINDOW : (uint32_t)window;
}

/* Slow start: up to the threshold and no farther, however much one ACK stands for. */
static inline void mn_cc_grow(struct mn_cc *cc, uint32_t bytes)
{
    cc->cwnd = bytes < cc->ssthresh - cc->cwnd ? cc->cwnd + bytes : cc->ssthresh;
}

#endif
