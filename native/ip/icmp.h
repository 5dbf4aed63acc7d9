/* ICMP of both families as values: echo, errors, the flow an error speaks of, and token buckets for what we send. */
#ifndef MN_IP_ICMP_H
#define MN_IP_ICMP_H

#include "packet.h"

enum {
    MN_ICMP_HEADER = 8,
    MN_ICMP_QUOTE4 = 548,  /* an error is at most 576 bytes (RFC 1812 4.3.2.3) */
    MN_ICMP_QUOTE6 = 1232, /* at most 1280 (RFC 4443 2.4) */
};

/* What a message means, whichever family it came in. */
enum mn_icmp_kind {
    MN_ICMP_OTHER,
    MN_ICMP_ECHO_REQUEST,
    MN_ICMP_ECHO_REPLY,
    MN_ICMP_PORT_UNREACHABLE,
    MN_ICMP_HOST_UNREACHABLE, /* net, host, no route, administratively */
    MN_ICMP_PROTO_UNREACHABLE,
    MN_ICMP_TOO_BIG,
    MN_ICMP_OTHER_ERROR, /* time exceeded, parameter problem, ... */
};

struct mn_icmp {
    enum mn_icmp_kind kind;
    bool is_error;
    uint16_t id, seq; /* echo */
    uint32_t mtu;     /* too big; 0: not said */
    const uint8_t *body;
    size_t body_len; /* echo payload, or the quoted packet of an error */
};

/* The head of a packet of ours, quoted in an error. */
struct mn_icmp_quote {
    struct mn_ip src, dst;
    uint8_t proto;
    uint16_t sport, dport;
    uint32_t seq; /* TCP */
};

/* p is an ICMP packet of its own family. Returns 0, MN_PACKET_MALFORMED or MN_PACKET_CHECKSUM. */
int mn_icmp_parse(struct mn_icmp *m, const struct mn_packet *p);
int mn_icmp_parse_quote(struct mn_icmp_quote *q, const uint8_t *data, size_t len);

/* The MN_ICMP_HEADER bytes of an echo with its checksum, to stand in front of the payload wherever that lies. */
void mn_icmp_write_echo_header(uint8_t *out, const struct mn_ip *src, const struct mn_ip *dst, bool is_reply,
                               uint16_t id, uint16_t seq, const uint8_t *payload, size_t len);

/* Each writes a whole IP packet and returns its length. */
size_t mn_icmp_write_echo(uint8_t *out, const struct mn_ip *src, const struct mn_ip *dst, bool is_reply, uint16_t id,
                          uint16_t seq, const uint8_t *payload, size_t len);
/* kind: PORT_, PROTO_ or HOST_UNREACHABLE, about a packet that came to about->dst, or was on its way there. */
size_t mn_icmp_write_error(uint8_t *out, size_t max, enum mn_icmp_kind kind, const struct mn_packet *about);

/* `about` was longer than the mtu of the way it would have taken. */
size_t mn_icmp_write_too_big(uint8_t *out, size_t max, size_t mtu, const struct mn_packet *about);

/* Token bucket: rate per second, burst of one second. */
struct mn_bucket {
    uint64_t full_at; /* the moment the bucket will be full again */
};

static inline bool mn_bucket_take_many(struct mn_bucket *b, uint32_t n, uint32_t per_s, uint64_t now_ns)
{
    uint64_t step = n * (1000000000ULL / per_s);
    uint64_t at = b->full_at < now_ns ? now_ns : b->full_at;
    if (at + step > now_ns + 1000000000ULL)
        return false;
    b->full_at = at + step;
    return true;
}

static inline bool mn_bucket_take(struct mn_bucket *b, uint32_t per_s, uint64_t now_ns)
{
    return mn_bucket_take_many(b, 1, per_s, now_ns);
}

#endif
