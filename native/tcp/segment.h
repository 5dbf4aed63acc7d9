/* TCP segments as values: header and options in, header and options out. */
#ifndef MN_TCP_SEGMENT_H
#define MN_TCP_SEGMENT_H

#include "../ip/packet.h"

enum {
    MN_TCP_FIN = 1,
    MN_TCP_SYN = 2,
    MN_TCP_RST = 4,
    MN_TCP_PSH = 8,
    MN_TCP_ACK = 16,
    MN_TCP_URG = 32,
    MN_TCP_ECE = 64,
    MN_TCP_CWR = 128,
};

/* The two ECN bits of the IP header (RFC 3168 5). */
enum mn_ecn {
    MN_ECN_NONE = 0,
    MN_ECN_ECT1 = 1,
    MN_ECN_ECT0 = 2,
    MN_ECN_CE = 3,
};

enum {
    MN_TCP_HEADER = 20,
    MN_TCP_TS_OPTION = 12, /* two NOPs in front */
    MN_TCP_MAX_HEADER = 60,
    MN_TCP_MAX_SHIFT = 14,
    MN_TCP_SACK_MAX = 4, /* blocks one header can hold; beside a timestamp three */
};

/* Bytes [first, end) as an option names them. */
struct mn_block {
    uint32_t first, end;
};

struct mn_segment {
    uint32_t seq, ack;
    uint16_t sport, dport;
    uint16_t wnd; /* as on the wire */
    uint8_t flags;
    const uint8_t *data;
    uint32_t len;
    uint16_t mss;  /* 0: absent */
    int8_t wscale; /* -1: absent */
    bool has_ts;
    uint32_t tsval, tsecr;
    bool may_sack;      /* SACK-permitted, on a SYN (RFC 2018) */
    uint8_t ecn;        /* enum mn_ecn of the packet's IP header */
    uint8_t sack_count; /* as received: order and bounds are not checked */
    struct mn_block sack[MN_TCP_SACK_MAX];
};

/* Sequence numbers compare within half the space (RFC 9293 3.4). */
static inline bool mn_seq_lt(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static inline bool mn_seq_le(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) <= 0;
}

static inline uint32_t mn_seq_max(uint32_t a, uint32_t b)
{
    return mn_seq_lt(a, b) ? b : a;
}

/* Sequence space a segment takes: data, SYN and FIN. */
static inline uint32_t mn_segment_space(const struct mn_segment *g)
{
    return g->len + ((g->flags & MN_TCP_SYN) != 0) + ((g->flags & MN_TCP_FIN) != 0);
}

/* Checks header length and checksum. Options after a malformed one are ignored. 0 or a negative mn_packet_error. */
int mn_segment_parse(struct mn_segment *g, const struct mn_packet *p);

/* What goes on a segment without data. Options are written when their field is present as in struct mn_segment. */
size_t mn_segment_write(uint8_t *out, const struct mn_ep *from, const struct mn_ep *to, const struct mn_segment *g);

/* The RST that answers g, which came to no connection (RFC 9293 3.10.7.1). False: g is none to be answered. */
bool mn_segment_make_reset(struct mn_segment *out, const struct mn_segment *g);

#endif
