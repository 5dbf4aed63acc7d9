/* Memory for secrets. See arena.h. */
#include "arena.h"

#include <string.h>
#include <sys/mman.h>

#include <openssl/crypto.h>

enum { REGION = 65536, ALIGN = 64, ALIVE = 1 };

/* At the start of each region, chunks behind it. */
struct mn_arena_region {
    uint64_t alive;
    struct mn_arena_region *next;
    size_t size;
};

static size_t round_up(size_t n)
{
    return (n + ALIGN - 1) & ~(size_t)(ALIGN - 1);
}

/* The free chain lives in the chunks; a wiped child finds it empty, and every other link in zeroed memory too. */
static int add_region(struct mn_arena *a)
{
    size_t head = round_up(sizeof(struct mn_arena_region));
    size_t size = head + a->chunk > REGION ? head + a->chunk : REGION;
    uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return -1;
    (void)madvise(base, size, MADV_DONTDUMP);
    (void)madvise(base, size, MADV_WIPEONFORK);
    (void)mlock(base, size);
    struct mn_arena_region *r = (struct mn_arena_region *)(void *)base;
    *r = (struct mn_arena_region){.alive = ALIVE, .next = a->regions, .size = size};
    a->regions = r;
    a->alive = &r->alive;
    for (size_t at = head; at + a->chunk <= size; at += a->chunk) {
        memcpy(base + at, &a->free, sizeof a->free);
        a->free = base + at;
    }
    return 0;
}

int mn_arena_init(struct mn_arena *a, size_t chunk)
{
    memset(a, 0, sizeof *a);
    a->chunk = round_up(chunk);
    return add_region(a);
}

void mn_arena_destroy(struct mn_arena *a)
{
    while (a->regions != NULL) {
        struct mn_arena_region *r = a->regions;
        size_t size = r->size;
        a->regions = r->next;
        if (r->alive == 0)
            break; /* a forked child: the list itself is gone, and so are the secrets */
        OPENSSL_cleanse(r, size);
        munmap(r, size);
    }
    memset(a, 0, sizeof *a);
}

void *mn_arena_get(struct mn_arena *a)
{
    if (mn_arena_forked(a) || (a->free == NULL && add_region(a) != 0))
        return NULL;
    void *chunk = a->free;
    memcpy(&a->free, chunk, sizeof a->free);
    memset(chunk, 0, a->chunk);
    return chunk;
}

void mn_arena_put(struct mn_arena *a, void *chunk)
{
    OPENSSL_cleanse(chunk, a->chunk);
    memcpy(chunk, &a->free, sizeof a->free);
    a->free = chunk;
}
