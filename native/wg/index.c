/* Receiver indices. See index.h. */
#include "index.h"

#include <stdlib.h>
#include <string.h>

#include "../mem/addr.h"

enum { FIRST = 1024, SLOT_MASK = (1 << MN_INDEX_SLOT_BITS) - 1, NONE = -1 };
#define GENERATION_MASK ((1U << (32 - MN_INDEX_SLOT_BITS)) - 1)

/* A round function needs no inverse, only to stir: multiply and fold. */
static uint32_t stir(uint32_t half, uint32_t key)
{
    uint32_t v = (half ^ key) * 0x9e3779b1U;
    v ^= v >> 15;
    v *= 0x85ebca77U;
    return (v ^ key >> 16) >> 16;
}

static uint32_t permute(const struct mn_indices *t, uint32_t v)
{
    uint32_t l = v >> 16, r = v & 0xffff;
    for (int i = 0; i < MN_INDEX_FEISTEL_KEYS; i++) {
        uint32_t next = l ^ stir(r, t->keys[i]);
        l = r;
        r = next & 0xffff;
    }
    return l << 16 | r;
}

static uint32_t unpermute(const struct mn_indices *t, uint32_t v)
{
    uint32_t l = v >> 16, r = v & 0xffff;
    for (int i = MN_INDEX_FEISTEL_KEYS - 1; i >= 0; i--) {
        uint32_t before = r ^ stir(l, t->keys[i]);
        r = l;
        l = before & 0xffff;
    }
    return l << 16 | r;
}

int mn_indices_init(struct mn_indices *t, const uint8_t keys[16])
{
    memset(t, 0, sizeof *t);
    memcpy(t->keys, keys, sizeof t->keys);
    t->head = t->tail = UINT32_MAX;
    return mn_indices_reserve(t, 1);
}

void mn_indices_destroy(struct mn_indices *t)
{
    free(t->slots);
    memset(t, 0, sizeof *t);
}

static void push_free(struct mn_indices *t, uint32_t slot)
{
    t->slots[slot].next = UINT32_MAX;
    if (t->tail == UINT32_MAX)
        t->head = slot;
    else
        t->slots[t->tail].next = slot;
    t->tail = slot;
}

/* Twice what is asked for, so that a freed slot always has a queue to stand in. */
int mn_indices_reserve(struct mn_indices *t, uint32_t n)
{
    uint32_t capacity = t->capacity == 0 ? FIRST : t->capacity;
    while (capacity < 2 * n)
        capacity *= 2;
    if (capacity == t->capacity)
        return 0;
    if (capacity - 1 > SLOT_MASK)
        return -1;
    struct mn_index_slot *slots = realloc(t->slots, capacity * sizeof *slots);
    if (slots == NULL)
        return -1;
    t->slots = slots;
    for (uint32_t i = t->capacity; i < capacity; i++) {
        slots[i] = (struct mn_index_slot){.kind = MN_INDEX_FREE, .peer = MN_PEER_NONE};
        push_free(t, i);
    }
    t->capacity = capacity;
    return 0;
}

int mn_index_alloc(struct mn_indices *t, enum mn_index_kind kind, uint32_t peer, void *what, uint32_t *index)
{
    uint32_t slot = t->head;
    if (slot == UINT32_MAX)
        return -1;
    struct mn_index_slot *s = &t->slots[slot];
    t->head = s->next;
    if (t->head == UINT32_MAX)
        t->tail = UINT32_MAX;
    t->count++;
    s->kind = kind;
    s->peer = peer;
    s->what = what;
    *index = permute(t, s->generation << MN_INDEX_SLOT_BITS | slot);
    return 0;
}

struct mn_index_slot *mn_index_find(const struct mn_indices *t, uint32_t index)
{
    uint32_t v = unpermute(t, index), slot = v & SLOT_MASK;
    if (slot >= t->capacity)
        return NULL;
    struct mn_index_slot *s = &t->slots[slot];
    return s->kind != MN_INDEX_FREE && s->generation == v >> MN_INDEX_SLOT_BITS ? s : NULL;
}

void mn_index_free(struct mn_indices *t, uint32_t index)
{
    struct mn_index_slot *s = mn_index_find(t, index);
    if (s == NULL)
        return;
    s->kind = MN_INDEX_FREE;
    s->what = NULL;
    s->peer = MN_PEER_NONE;
    s->generation = (s->generation + 1) & GENERATION_MASK;
    t->count--;
    push_free(t, (uint32_t)(s - t->slots));
}

void mn_index_move(struct mn_indices *t, uint32_t index, enum mn_index_kind kind, void *what)
{
    struct mn_index_slot *s = mn_index_find(t, index);
    if (s == NULL)
        return;
    s->kind = kind;
    s->what = what;
}
