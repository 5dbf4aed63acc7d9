/* Fixed packet buffers. See pool.h. */
#include "pool.h"

#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64 };

int mn_pool_init(struct mn_pool *p, size_t size, uint32_t count)
{
    memset(p, 0, sizeof *p);
    p->size = (size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    p->count = count;
    p->region = p->size * count;
    if (p->region == 0)
        return 0;
    void *base = mmap(NULL, p->region, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        p->region = 0;
        p->count = 0;
        return -1;
    }
    p->base = base;
    return 0;
}

void mn_pool_destroy(struct mn_pool *p)
{
    if (p->base != NULL)
        munmap(p->base, p->region);
    memset(p, 0, sizeof *p);
}

void *mn_pool_get(struct mn_pool *p)
{
    void *buf = p->free;
    if (buf != NULL) {
        memcpy(&p->free, buf, sizeof p->free);
    } else if (p->fresh < p->count) {
        buf = p->base + (size_t)p->fresh++ * p->size;
    } else {
        p->empty++;
        return NULL;
    }
    p->in_use++;
    return buf;
}

void mn_pool_put(struct mn_pool *p, void *buf)
{
    memcpy(buf, &p->free, sizeof p->free);
    p->free = buf;
    p->in_use--;
}
