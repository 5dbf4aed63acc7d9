/* Receiver indices: 32 bits that name one live handshake or session and tell nothing about how many there are.
 *
 * The wire index is a keyed permutation of (generation, slot). Looking up is the inverse permutation, a bound check
 * and a compare. Freed slots queue up at the back and change generation, so a late packet meets no newer session. */
#ifndef MN_WG_INDEX_H
#define MN_WG_INDEX_H

#include <stdint.h>

enum { MN_INDEX_SLOT_BITS = 19, MN_INDEX_FEISTEL_KEYS = 4 };

enum mn_index_kind { MN_INDEX_FREE = 0, MN_INDEX_HANDSHAKE, MN_INDEX_SESSION };

struct mn_index_slot {
    void *what;
    uint32_t generation;
    uint32_t peer;
    uint32_t next; /* while free: the slot behind it in the queue */
    enum mn_index_kind kind;
};

struct mn_indices {
    struct mn_index_slot *slots;
    uint32_t count, capacity, head, tail;
    uint32_t keys[MN_INDEX_FEISTEL_KEYS];
};

int mn_indices_init(struct mn_indices *t, const uint8_t keys[16]); /* 0, or -1: no memory */
void mn_indices_destroy(struct mn_indices *t);
/* Make room for at least n live indices; returns 0, or -1. Afterwards n allocs cannot fail. */
int mn_indices_reserve(struct mn_indices *t, uint32_t n);

/* 0 and the wire index, or -1: all in use. */
int mn_index_alloc(struct mn_indices *t, enum mn_index_kind kind, uint32_t peer, void *what, uint32_t *index);
void mn_index_free(struct mn_indices *t, uint32_t index);
/* NULL: names nothing live. */
struct mn_index_slot *mn_index_find(const struct mn_indices *t, uint32_t index);
/* The handshake became a session: the same index names it now. */
void mn_index_move(struct mn_indices *t, uint32_t index, enum mn_index_kind kind, void *what);

#endif
