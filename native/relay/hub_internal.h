/* What the files of the hub know of each other: keys, routes, who met whom. Not for anyone outside it. */
#ifndef MN_RELAY_HUB_INTERNAL_H
#define MN_RELAY_HUB_INTERNAL_H

#include "hub.h"

enum { MN_HUB_FIRST_BUCKETS = 256 };

struct mn_hub_route {
    struct mn_hub_client *via;
    struct mn_hub_route *next;
};

struct mn_hub_key {
    struct mn_hub_key *next;
    uint64_t hash;
    uint8_t key[MN_RELAY_KEY];
    struct mn_hub_client *live; /* first of its connections here */
    uint32_t conns;
    struct mn_hub_route *routes; /* neighbours that have it */
    struct mn_hub_met *receivers;
    uint32_t changes; /* of the live connection by speaking, since there were two */
    bool is_fighting;
};

/* source → receiver: a packet was delivered, so the receiver is told when the source goes. */
struct mn_hub_met {
    struct mn_hub_met *next; /* in its bucket, or free */
    struct mn_hub_key *source;
    struct mn_hub_client *receiver;
    struct mn_hub_met *prev_of_source, *next_of_source;
    struct mn_hub_met *prev_of_receiver, *next_of_receiver;
};

/* keys.c */
bool mn_hub_keys_init(struct mn_hub *h);
void mn_hub_keys_destroy(struct mn_hub *h);
struct mn_hub_key *mn_hub_key_find(const struct mn_hub *h, const uint8_t key[MN_RELAY_KEY]);
/* The same, made if it is new; NULL: no memory. */
struct mn_hub_key *mn_hub_key_need(struct mn_hub *h, const uint8_t key[MN_RELAY_KEY]);
/* Nobody here and no neighbour has it: those who heard from it are told, once. */
void mn_hub_key_drop(struct mn_hub *h, struct mn_hub_key *k, uint32_t now_ms);
/* Its share of the statistics: -1 before it changes, 1 after. */
void mn_hub_key_count(struct mn_hub *h, const struct mn_hub_key *k, int step);

/* met.c */
bool mn_hub_met_init(struct mn_hub *h);
void mn_hub_met_destroy(struct mn_hub *h);
void mn_hub_met_add(struct mn_hub *h, struct mn_hub_key *source, struct mn_hub_client *receiver);
void mn_hub_met_remove(struct mn_hub *h, struct mn_hub_met *m);

/* outbox.c */
void mn_hub_tell_gone(struct mn_hub *h, struct mn_hub_client *c, const uint8_t key[MN_RELAY_KEY],
                      enum mn_gone_reason why, uint32_t now_ms);
void mn_hub_tell_present(struct mn_hub *h, struct mn_hub_client *watcher, const struct mn_hub_client *c,
                         uint32_t now_ms);
/* A packet into the lanes of c. */
void mn_hub_put_packet(struct mn_hub *h, struct mn_hub_client *c, const uint8_t source[MN_RELAY_KEY],
                       const uint8_t *packet, size_t len, uint32_t now_ms);
/* A packet for a key that a neighbour has, into the lanes of the connection to it. */
void mn_hub_put_forward(struct mn_hub *h, struct mn_hub_client *via, const uint8_t source[MN_RELAY_KEY],
                        const uint8_t target[MN_RELAY_KEY], const uint8_t *packet, size_t len, uint32_t now_ms);
void mn_hub_undirty(struct mn_hub *h, struct mn_hub_client *c);

/* neighbours.c */
void mn_hub_unwatch(struct mn_hub *h, struct mn_hub_client *c);
/* Every route by a neighbour that is gone. */
void mn_hub_drop_routes(struct mn_hub *h, struct mn_hub_client *via, uint32_t now_ms);

#endif
