/* Send and receive memory: a power of two of bytes, addressed by sequence number, so that growing keeps every address.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

/* Large rings by themselves: doubling leaves holes in the heap as large as what it left, which nothing else fills. */
enum {
    MAPPED_FROM = 128 << 10,
};

static uint8_t *get(uint32_t cap)
{
    if (cap < MAPPED_FROM)
        return malloc(cap);
    void *p = mmap(NULL, cap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void put(uint8_t *p, uint32_t cap)
{
    if (cap < MAPPED_FROM)
        free(p);
    else
        munmap(p, cap);
}

static void copy_span(uint8_t *to, uint32_t to_cap, const struct mn_ring *from, uint32_t first, uint32_t n)
{
    while (n > 0) {
        uint32_t a = first & (from->cap - 1), b = first & (to_cap - 1), k = n;
        if (k > from->cap - a)
            k = from->cap - a;
        if (k > to_cap - b)
            k = to_cap - b;
        memcpy(to + b, from->data + a, k);
        first += k;
        n -= k;
    }
}

/* Give the ring cap bytes, keeping [first, end), which must fit in both sizes. */
bool mn_ring_resize(struct mn_stack *s, struct mn_ring *r, uint32_t cap, uint32_t first, uint32_t end)
{
    if (cap > r->cap && !mn_budget_take(s, r->owner, cap - r->cap))
        return false;
    uint8_t *data = get(cap);
    if (data == NULL) {
        if (cap > r->cap)
            mn_budget_give(s, r->owner, cap - r->cap);
        s->stats.tcp_no_memory++;
        return false;
    }
    if (r->data != NULL)
        copy_span(data, cap, r, first, end - first);
    put(r->data, r->cap);
    if (cap < r->cap)
        mn_budget_give(s, r->owner, r->cap - cap);
    r->data = data;
    r->cap = cap;
    return true;
}

void mn_ring_free(struct mn_stack *s, struct mn_ring *r)
{
    mn_budget_give(s, r->owner, r->cap);
    put(r->data, r->cap);
    *r = (struct mn_ring){.owner = r->owner};
}

void mn_ring_write(struct mn_ring *r, uint32_t seq, const uint8_t *p, uint32_t n)
{
    if (n == 0)
        return;
    uint32_t at = seq & (r->cap - 1), k = n < r->cap - at ? n : r->cap - at;
    memcpy(r->data + at, p, k);
    memcpy(r->data, p + k, n - k);
}

int mn_ring_pieces(const struct mn_ring *r, uint32_t seq, uint32_t n, struct iovec out[2])
{
    if (n == 0)
        return 0;
    uint32_t at = seq & (r->cap - 1), k = n < r->cap - at ? n : r->cap - at;
    out[0] = (struct iovec){r->data + at, k};
    if (k == n)
        return 1;
    out[1] = (struct iovec){r->data, n - k};
    return 2;
}
