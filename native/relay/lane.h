/* What waits for one relay connection: whole frames in a chain of chunks, bounded in bytes and in age.
 *
 * Fresh packets are worth more than old ones, so the oldest gives way when there is too much, and what goes is counted.
 * A lane with nothing in it owns no memory: an idle connection costs none. A frame may lie across two chunks. */
#ifndef MN_RELAY_LANE_H
#define MN_RELAY_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    MN_CHUNK_BYTES = 16 << 10,
    MN_CHUNKS_KEPT = 256, /* free ones kept at hand, 4 MiB */
    MN_LANE_NO_AGE = 0,
};

struct mn_chunk {
    struct mn_chunk *next;
    uint8_t bytes[MN_CHUNK_BYTES - sizeof(struct mn_chunk *)];
};

/* Chunks of all lanes of a relay: what the bound on its memory counts. */
struct mn_chunks {
    struct mn_chunk *free;
    uint32_t kept, used, max;
};

/* max: chunks in all lanes together. */
void mn_chunks_init(struct mn_chunks *c, uint32_t max);
void mn_chunks_destroy(struct mn_chunks *c);

struct mn_relay_lane {
    struct mn_chunk *first, *last;
    uint32_t first_at, last_at; /* offsets of the next byte to take, and to put */
    uint32_t bytes, count;      /* of frames, records' heads not counted */
};

/* The frame head ‖ key ‖ body goes to the end (key and body may be empty). max_bytes: what the lane may hold; the
 * oldest go for the newest, *dropped is raised by as many. False: dropped itself, no memory. */
bool mn_lane_put(struct mn_relay_lane *l, struct mn_chunks *c, const struct iovec *parts, int n, uint32_t now_ms,
                 uint32_t max_bytes, uint64_t *dropped);
/* Whole frames to out, as many as fit; frames older than max_age_ms (0: any age will do) are dropped and counted.
 * Returns bytes. A frame longer than cap is begun by nobody: cap is at least the longest frame. */
size_t mn_lane_take(struct mn_relay_lane *l, struct mn_chunks *c, uint8_t *out, size_t cap, uint32_t now_ms,
                    uint32_t max_age_ms, uint64_t *dropped);
/* How long the oldest has waited, 0 if there is none. */
uint32_t mn_lane_age(const struct mn_relay_lane *l, uint32_t now_ms);
void mn_lane_clear(struct mn_relay_lane *l, struct mn_chunks *c);

#endif
