/* Prefix → peer, longest match. Host routes in a hash, for there a hit is the longest match; the rest in one binary
 * trie with compressed paths per family.
 *
 * A prefix has one owner; giving it to another moves it. Bits beyond the prefix length are ignored. */
#ifndef MN_WG_ALLOWEDIPS_H
#define MN_WG_ALLOWEDIPS_H

#include <stdint.h>

#include "../mem/addr.h"

struct mn_prefix_entry {
    struct mn_ip ip;
    uint8_t bits;
};

struct mn_trie_node;
struct mn_host_route;

/* What one peer owns. */
struct mn_prefix_list {
    struct mn_prefix_entry *items;
    uint32_t count, capacity;
};

struct mn_allowedips {
    struct mn_host_route *hosts;
    uint32_t host_count, host_capacity; /* capacity: a power of two */
    struct mn_trie_node *nodes;
    uint32_t node_count, node_capacity, node_free;
    uint32_t root4, root6;
    struct mn_prefix_list *lists; /* by peer */
    uint32_t list_count;
    uint64_t seed, generation;
};

void mn_allowedips_init(struct mn_allowedips *a, uint64_t seed);
void mn_allowedips_destroy(struct mn_allowedips *a);
/* 0, or -1: no memory (nothing changed), or -2: bits make no prefix. */
int mn_allowedips_insert(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits, uint32_t peer);
void mn_allowedips_remove_peer(struct mn_allowedips *a, uint32_t peer);
uint32_t mn_allowedips_find(const struct mn_allowedips *a, const struct mn_ip *ip); /* MN_PEER_NONE */

#endif
