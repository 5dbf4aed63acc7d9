/* Sealed packets that nothing leads to their peer just now: kept for the moment in which a path is found.
 *
 * Without it the answer to a first packet that came before our side knows a way back is lost, and its TCP waits a
 * second. One list for all peers, the oldest first; bounded per peer, in all, and in age. */
#ifndef MN_ENGINE_WAITING_H
#define MN_ENGINE_WAITING_H

#include <stddef.h>
#include <stdint.h>

enum {
    MN_WAITING_OF_PEER = 16,
    MN_WAITING_PEER_BYTES = 64 << 10,
    MN_WAITING_MAX = 1024,
};
#define MN_WAITING_NS 3000000000ULL

struct mn_waiting_packet {
    struct mn_waiting_packet *next;
    uint32_t peer;
    size_t len;
    uint64_t at;
    uint8_t pkt[];
};

struct mn_waiting {
    struct mn_waiting_packet *first, **end;
    uint32_t count;
    uint64_t lost; /* given up: too old, too many, or their peer is gone */
};

void mn_waiting_init(struct mn_waiting *w);
void mn_waiting_destroy(struct mn_waiting *w);
void mn_waiting_put(struct mn_waiting *w, uint32_t peer, const uint8_t *pkt, size_t len, uint64_t now_ns);
/* The oldest of this peer, for the caller to free; NULL: none that is fresh. */
struct mn_waiting_packet *mn_waiting_take(struct mn_waiting *w, uint32_t peer, uint64_t now_ns);
void mn_waiting_forget(struct mn_waiting *w, uint32_t peer);

#endif
