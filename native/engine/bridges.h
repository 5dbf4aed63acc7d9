/* Every tunnel TCP connection of an engine and its socketpair: a fixed table, never moved, so that a
 * forked child can walk it.
 *
 * States: connecting (no socketpair yet) → open → gone. A flow is found by its id (slot and a counter:
 * never reused) or by the stack's connection handle. Flows with something to read stand in a queue and
 * are served in turn, MN_FLOW_BUDGET bytes each. */
#ifndef MN_ENGINE_BRIDGES_H
#define MN_ENGINE_BRIDGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../bridge/stream.h"

struct mn_stack_ops;
struct mn_engine;

enum { MN_FLOW_BUDGET = 256 << 10, MN_FLOW_SLOT_BITS = 14, MN_FLOW_NONE = 0xffff };

struct mn_bridge {
    uint64_t id;  /* 0: free */
    uint64_t req; /* of the connect */
    uint32_t conn;
    struct mn_stream stream;
    uint16_t next;                 /* in the queue or the free list */
    uint16_t prev_wait, next_wait; /* among the connecting ones */
    bool is_connecting, is_queued;
    bool is_readable; /* the application's bytes may wait in the pair */
    bool is_blocked;  /* the pair is full: deliver nothing until it drains */
    bool is_ending;   /* the application shut down writing: read on until its end of stream */
    bool is_hung_up;  /* it closed; its last bytes may still wait */
    bool has_ended;   /* its end of stream was passed on as FIN */
    bool is_deaf;     /* it shut down reading: bytes are taken and dropped */
};

struct mn_bridges {
    struct mn_bridge *table;
    uint16_t *by_conn; /* open addressing: slot + 1 */
    uint64_t counter;
    uint32_t count, high, queue_count;
    uint16_t free_head, queue_head, queue_tail, wait_head;
};

/* 0 or -ENOMEM. */
int mn_bridges_init(struct mn_bridges *f);
void mn_bridges_destroy(struct mn_bridges *f);

/* The upcalls of the stack that concern TCP. */
void mn_bridges_set_ops(struct mn_stack_ops *ops);

void mn_bridge_connect(struct mn_engine *e, uint64_t req, const struct mn_ep *to);
void mn_bridge_abort_connect(struct mn_engine *e, uint64_t req);
/* epoll said so. */
void mn_bridge_ready(struct mn_engine *e, uint64_t id, uint32_t epoll_events);
/* Read from the queued flows; true if some have more. */
bool mn_bridges_serve(struct mn_engine *e);
/* The engine stops: reset every connection. */
void mn_bridges_stop(struct mn_engine *e);

#endif
