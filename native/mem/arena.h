/* Memory for secrets: fixed chunks in regions the kernel keeps out of core dumps and swap where it may, and wipes in a
 * forked child (all three best effort but for `forked`, which is exact where MADV_WIPEONFORK exists: Linux 4.14).
 *
 * Chunks come zeroed and are wiped when returned. Regions are made as needed, never at packet time: callers allocate
 * a peer's chunk with the peer. */
#ifndef MN_MEM_ARENA_H
#define MN_MEM_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mn_arena_region;

struct mn_arena {
    struct mn_arena_region *regions;
    void *free;
    size_t chunk;
    const volatile uint64_t *alive; /* zero in a forked child */
};

int mn_arena_init(struct mn_arena *a, size_t chunk); /* 0, or -1: no memory */
void mn_arena_destroy(struct mn_arena *a);           /* wipes everything */
void *mn_arena_get(struct mn_arena *a);              /* zeroed; NULL: no memory */
void mn_arena_put(struct mn_arena *a, void *chunk);

static inline bool mn_arena_forked(const struct mn_arena *a)
{
    return *a->alive == 0;
}

#endif
