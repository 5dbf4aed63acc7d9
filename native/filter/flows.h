/* UDP flow memory: what we sent, so that answers may enter, and what peers began by a rule, so that rules are asked
 * once.
 *
 * Two bounded tables with least-recently-used eviction: a peer that scans allowed ports can only evict entries of the
 * second kind, never the memory of what we started. An entry lives 30 s unanswered, 180 s once both sides have spoken.
 */
#ifndef MN_FILTER_FLOWS_H
#define MN_FILTER_FLOWS_H

#include <stdbool.h>
#include <stdint.h>

#include "../mem/addr.h"

enum {
    MN_FLOWS_PER_ORIGIN = 8192,
    MN_FLOWS_BUCKETS = 4096,
};

#define MN_FLOW_UNREPLIED_NS (30ULL * 1000000000ULL)
#define MN_FLOW_REPLIED_NS (180ULL * 1000000000ULL)

enum mn_flow_origin {
    MN_FLOW_OURS,
    MN_FLOW_PEERS,
};

struct mn_flow_key {
    struct mn_ip local, remote;
    uint16_t local_port, remote_port;
};

struct mn_flow {
    struct mn_flow_key key;
    uint64_t expires_at;
    uint32_t generation;         /* of the rules that allowed a peer's flow */
    uint16_t next, newer, older; /* index + 1 */
    bool in_use, sent, received;
};

struct mn_flow_lru {
    struct mn_flow *flows;
    uint16_t buckets[MN_FLOWS_BUCKETS];
    uint16_t newest, oldest, free;
    uint32_t count;
    uint64_t evicted;
};

struct mn_flows {
    struct mn_flow_lru by[2]; /* enum mn_flow_origin */
    uint64_t seed;
};

void mn_flows_init(struct mn_flows *f, uint64_t seed);
void mn_flows_free(struct mn_flows *f);

/* We sent a datagram: remember it, unless a live entry of the peer's covers it. False: no memory. */
bool mn_flows_on_sent(struct mn_flows *f, const struct mn_flow_key *k, uint64_t now_ns);
/* A datagram came in. True if memory lets it pass: ours, or a peer's allowed under rules of this generation. */
bool mn_flows_on_received(struct mn_flows *f, const struct mn_flow_key *k, uint32_t generation, uint64_t now_ns);
/* The rules let it in: remember that for this generation. */
void mn_flows_on_allowed(struct mn_flows *f, const struct mn_flow_key *k, uint32_t generation, uint64_t now_ns);
/* Do we have a live flow to this remote? (Is an ICMP error about it to be believed?) */
bool mn_flows_is_live(const struct mn_flows *f, const struct mn_flow_key *k, uint64_t now_ns);

#endif
