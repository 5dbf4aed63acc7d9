/* HyStart++ (RFC 9406): leaves slow start when the round trips of a round are longer than those of the round before,
 * ahead of the first loss. */
#ifndef MN_TCP_HYSTART_H
#define MN_TCP_HYSTART_H

#include <stdbool.h>
#include <stdint.h>

struct mn_cc_ack;

struct mn_hystart {
    uint64_t last_min_ns, round_min_ns; /* shortest sample of the last round and of this one; 0: none */
    uint64_t baseline_ns;               /* 0: slow start; else conservative slow start, entered at this round trip */
    uint32_t round_end;                 /* sequence number whose ACK ends the round */
    uint8_t samples;                    /* of this round */
    uint8_t rounds;                     /* of conservative slow start */
    bool has_round;
};

enum mn_hystart_advice {
    MN_HYSTART_FAST, /* grow by what was acknowledged */
    MN_HYSTART_SLOW, /* by a quarter of it */
    MN_HYSTART_DONE, /* congestion avoidance from here */
};

enum {
    MN_HYSTART_DIVISOR = 4,
};

enum mn_hystart_advice mn_hystart_on_ack(struct mn_hystart *h, const struct mn_cc_ack *ack, uint32_t mss);

#endif
