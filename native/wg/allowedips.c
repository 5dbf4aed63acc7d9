/* Prefix → peer. See allowedips.h. */
#include "allowedips.h"

#include <stdlib.h>
#include <string.h>

#define NIL UINT32_MAX
enum { FULL = 128, V4_BITS = 96, FIRST_HOSTS = 64, FIRST_NODES = 32, FIRST_ITEMS = 4 };

/* A host route; peer MN_PEER_NONE: the place is free. */
struct mn_host_route {
    struct mn_ip ip;
    uint32_t peer;
};

/* A prefix: its own (peer set) or where two part. child[b] continues with bit `bits` equal to b. */
struct mn_trie_node {
    struct mn_ip ip;
    uint32_t child[2]; /* child[0] chains free nodes */
    uint32_t peer;
    uint8_t bits;
};

void mn_allowedips_init(struct mn_allowedips *a, uint64_t seed)
{
    memset(a, 0, sizeof *a);
    a->seed = seed | 1;
    a->node_free = a->root4 = a->root6 = NIL;
}

void mn_allowedips_destroy(struct mn_allowedips *a)
{
    for (uint32_t i = 0; i < a->list_count; i++)
        free(a->lists[i].items);
    free(a->lists);
    free(a->hosts);
    free(a->nodes);
    mn_allowedips_init(a, a->seed);
}

/* Host routes: open addressing, linear probing, backward shift on removal. */

static uint32_t home_of(const struct mn_allowedips *a, const struct mn_ip *ip)
{
    uint64_t hi, lo;
    memcpy(&hi, ip->b, 8);
    memcpy(&lo, ip->b + 8, 8);
    uint64_t v = (hi ^ a->seed) * 0x9e3779b97f4a7c15U;
    v = (v ^ v >> 32 ^ lo) * 0xbf58476d1ce4e5b9U;
    v = (v ^ v >> 29) * a->seed;
    return (uint32_t)(v >> 32) & (a->host_capacity - 1);
}

/* Where ip is, or the free place where it would go. */
static uint32_t host_place(const struct mn_allowedips *a, const struct mn_ip *ip)
{
    uint32_t at = home_of(a, ip);
    while (a->hosts[at].peer != MN_PEER_NONE && !mn_ip_equal(&a->hosts[at].ip, ip))
        at = (at + 1) & (a->host_capacity - 1);
    return at;
}

static int hosts_grow(struct mn_allowedips *a)
{
    if (a->hosts != NULL && a->host_count * 2 < a->host_capacity)
        return 0;
    uint32_t old_capacity = a->host_capacity, capacity = old_capacity == 0 ? FIRST_HOSTS : old_capacity * 2;
    struct mn_host_route *old = a->hosts, *hosts = malloc(capacity * sizeof *hosts);
    if (hosts == NULL)
        return -1;
    for (uint32_t i = 0; i < capacity; i++)
        hosts[i].peer = MN_PEER_NONE;
    a->hosts = hosts;
    a->host_capacity = capacity;
    for (uint32_t i = 0; i < old_capacity; i++)
        if (old[i].peer != MN_PEER_NONE)
            hosts[host_place(a, &old[i].ip)] = old[i];
    free(old);
    return 0;
}

static void host_remove(struct mn_allowedips *a, const struct mn_ip *ip)
{
    uint32_t mask = a->host_capacity - 1, hole = host_place(a, ip);
    if (a->hosts[hole].peer == MN_PEER_NONE)
        return;
    a->host_count--;
    for (uint32_t at = (hole + 1) & mask; a->hosts[at].peer != MN_PEER_NONE; at = (at + 1) & mask) {
        uint32_t home = home_of(a, &a->hosts[at].ip);
        if (((at - home) & mask) < ((at - hole) & mask))
            continue; /* it would come before its home */
        a->hosts[hole] = a->hosts[at];
        hole = at;
    }
    a->hosts[hole].peer = MN_PEER_NONE;
}

/* The trie. */

static unsigned bit_at(const struct mn_ip *ip, unsigned bit)
{
    return (unsigned)(ip->b[bit / 8] >> (7 - bit % 8)) & 1U;
}

static struct mn_ip masked(const struct mn_ip *ip, unsigned bits)
{
    struct mn_ip out = {{0}};
    memcpy(out.b, ip->b, bits / 8);
    if (bits % 8 != 0)
        out.b[bits / 8] = (uint8_t)(ip->b[bits / 8] & (0xff00U >> bits % 8));
    return out;
}

static unsigned common_bits(const struct mn_ip *x, const struct mn_ip *y, unsigned max)
{
    for (unsigned i = 0; i < 16 && i * 8 < max; i++) {
        unsigned diff = x->b[i] ^ (unsigned)y->b[i];
        if (diff != 0) {
            unsigned n = i * 8 + (unsigned)__builtin_clz(diff) - 24;
            return n < max ? n : max;
        }
    }
    return max;
}

static uint32_t *root_of(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits)
{
    return mn_ip_is4(ip) && bits >= V4_BITS ? &a->root4 : &a->root6;
}

/* Two nodes are the most one insertion needs. */
static int nodes_reserve(struct mn_allowedips *a)
{
    uint32_t spare = a->node_capacity - a->node_count;
    for (uint32_t n = a->node_free; n != NIL && spare < 2; n = a->nodes[n].child[0])
        spare++;
    if (spare >= 2)
        return 0;
    uint32_t capacity = a->node_capacity == 0 ? FIRST_NODES : a->node_capacity * 2;
    struct mn_trie_node *nodes = realloc(a->nodes, capacity * sizeof *nodes);
    if (nodes == NULL)
        return -1;
    a->nodes = nodes;
    a->node_capacity = capacity;
    return 0;
}

static uint32_t node_new(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits, uint32_t peer)
{
    uint32_t n = a->node_free;
    if (n != NIL)
        a->node_free = a->nodes[n].child[0];
    else
        n = a->node_count++;
    a->nodes[n] =
        (struct mn_trie_node){.ip = masked(ip, bits), .bits = (uint8_t)bits, .peer = peer, .child = {NIL, NIL}};
    return n;
}

static void node_put(struct mn_allowedips *a, uint32_t n)
{
    a->nodes[n].child[0] = a->node_free;
    a->node_free = n;
}

/* Nodes were reserved, so pointers into the array hold. */
static void trie_insert(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits, uint32_t peer)
{
    uint32_t *link = root_of(a, ip, bits);
    for (;;) {
        if (*link == NIL) {
            *link = node_new(a, ip, bits, peer);
            return;
        }
        struct mn_trie_node *node = &a->nodes[*link];
        unsigned common = common_bits(&node->ip, ip, node->bits < bits ? node->bits : bits);
        if (common == node->bits && common == bits) {
            node->peer = peer;
            return;
        }
        if (common < node->bits) {
            uint32_t above = node_new(a, ip, common, common == bits ? peer : MN_PEER_NONE), below = *link;
            a->nodes[above].child[bit_at(&a->nodes[below].ip, common)] = below;
            if (common < bits)
                a->nodes[above].child[bit_at(ip, common)] = node_new(a, ip, bits, peer);
            *link = above;
            return;
        }
        link = &node->child[bit_at(ip, node->bits)];
    }
}

/* The node of exactly this prefix, with the links that lead to it and to its parent. */
static uint32_t trie_exact(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits, uint32_t **link,
                           uint32_t **above)
{
    *above = NULL;
    *link = root_of(a, ip, bits);
    while (**link != NIL) {
        struct mn_trie_node *node = &a->nodes[**link];
        if (node->bits > bits || common_bits(&node->ip, ip, node->bits) < node->bits)
            return NIL;
        if (node->bits == bits)
            return **link;
        *above = *link;
        *link = &node->child[bit_at(ip, node->bits)];
    }
    return NIL;
}

/* A node that owns nothing and parts nothing is no node. */
static void trie_fold(struct mn_allowedips *a, uint32_t *link)
{
    if (link == NULL || *link == NIL)
        return;
    uint32_t n = *link;
    struct mn_trie_node *node = &a->nodes[n];
    if (node->peer != MN_PEER_NONE || (node->child[0] != NIL && node->child[1] != NIL))
        return;
    *link = node->child[0] != NIL ? node->child[0] : node->child[1];
    node_put(a, n);
}

static void trie_remove(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits)
{
    uint32_t *link, *above, n = trie_exact(a, ip, bits, &link, &above);
    if (n == NIL)
        return;
    a->nodes[n].peer = MN_PEER_NONE;
    trie_fold(a, link);
    trie_fold(a, above);
}

static uint32_t trie_find(const struct mn_allowedips *a, const struct mn_ip *ip, uint32_t n)
{
    uint32_t best = MN_PEER_NONE;
    while (n != NIL) {
        const struct mn_trie_node *node = &a->nodes[n];
        if (!mn_ip_in_prefix(ip, &node->ip, node->bits))
            break;
        if (node->peer != MN_PEER_NONE)
            best = node->peer;
        n = node->child[bit_at(ip, node->bits)]; /* bits < 128: host routes are not in the trie */
    }
    return best;
}

/* Owners. */

static uint32_t owner_of(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits)
{
    if (bits == FULL)
        return a->hosts == NULL ? MN_PEER_NONE : a->hosts[host_place(a, ip)].peer;
    uint32_t *link, *above, n = trie_exact(a, ip, bits, &link, &above);
    return n == NIL ? MN_PEER_NONE : a->nodes[n].peer;
}

static int list_reserve(struct mn_allowedips *a, uint32_t peer)
{
    if (peer >= a->list_count) {
        uint32_t count = peer + 1 < a->list_count * 2 ? a->list_count * 2 : peer + 1;
        struct mn_prefix_list *lists = realloc(a->lists, count * sizeof *lists);
        if (lists == NULL)
            return -1;
        memset(lists + a->list_count, 0, (count - a->list_count) * sizeof *lists);
        a->lists = lists;
        a->list_count = count;
    }
    struct mn_prefix_list *list = &a->lists[peer];
    if (list->count < list->capacity)
        return 0;
    uint32_t capacity = list->capacity == 0 ? FIRST_ITEMS : list->capacity * 2;
    struct mn_prefix_entry *items = realloc(list->items, capacity * sizeof *items);
    if (items == NULL)
        return -1;
    list->items = items;
    list->capacity = capacity;
    return 0;
}

static void list_drop(struct mn_prefix_list *list, const struct mn_ip *ip, unsigned bits)
{
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->items[i].bits == bits && mn_ip_equal(&list->items[i].ip, ip)) {
            list->items[i] = list->items[--list->count];
            return;
        }
    }
}

int mn_allowedips_insert(struct mn_allowedips *a, const struct mn_ip *ip, unsigned bits, uint32_t peer)
{
    if (bits > FULL)
        return -2;
    struct mn_ip prefix = masked(ip, bits);
    uint32_t before = owner_of(a, &prefix, bits);
    if (before == peer)
        return 0;
    if (list_reserve(a, peer) != 0 || (bits == FULL ? hosts_grow(a) : nodes_reserve(a)) != 0)
        return -1;
    if (before != MN_PEER_NONE)
        list_drop(&a->lists[before], &prefix, bits);
    if (bits == FULL) {
        uint32_t at = host_place(a, &prefix);
        a->host_count += a->hosts[at].peer == MN_PEER_NONE;
        a->hosts[at] = (struct mn_host_route){.ip = prefix, .peer = peer};
    } else {
        trie_insert(a, &prefix, bits, peer);
    }
    struct mn_prefix_list *list = &a->lists[peer];
    list->items[list->count++] = (struct mn_prefix_entry){.ip = prefix, .bits = (uint8_t)bits};
    a->generation++;
    return 0;
}

void mn_allowedips_remove_peer(struct mn_allowedips *a, uint32_t peer)
{
    if (peer >= a->list_count)
        return;
    struct mn_prefix_list *list = &a->lists[peer];
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->items[i].bits == FULL)
            host_remove(a, &list->items[i].ip);
        else
            trie_remove(a, &list->items[i].ip, list->items[i].bits);
    }
    if (list->count > 0)
        a->generation++;
    free(list->items);
    *list = (struct mn_prefix_list){0};
}

uint32_t mn_allowedips_find(const struct mn_allowedips *a, const struct mn_ip *ip)
{
    if (a->hosts != NULL) {
        uint32_t peer = a->hosts[host_place(a, ip)].peer;
        if (peer != MN_PEER_NONE)
            return peer;
    }
    return trie_find(a, ip, mn_ip_is4(ip) ? a->root4 : a->root6);
}
