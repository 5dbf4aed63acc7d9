/* Fixed packet buffers in one region. An empty pool is the caller's counted drop, never an allocation.
 *
 * Memory is taken from the system when the pool is made but touched only as far as buffers were ever in use at once. */
#ifndef MN_MEM_POOL_H
#define MN_MEM_POOL_H

#include <stddef.h>
#include <stdint.h>

struct mn_pool {
    uint8_t *base;
    void *free; /* chain of returned buffers */
    size_t size, region;
    uint32_t count, fresh; /* buffers from `fresh` on were never handed out */
    uint32_t in_use;
    uint64_t empty; /* how often there was none */
};

/* 0, or -1: no memory. Buffers are at least size bytes and aligned to 64. */
int mn_pool_init(struct mn_pool *p, size_t size, uint32_t count);
void mn_pool_destroy(struct mn_pool *p);
void *mn_pool_get(struct mn_pool *p); /* NULL: empty */
void mn_pool_put(struct mn_pool *p, void *buf);

#endif
