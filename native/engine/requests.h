/* What Python asked for and the engine keeps: listeners, UDP flows, pings; and the execution of every command. */
#ifndef MN_ENGINE_REQUESTS_H
#define MN_ENGINE_REQUESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mn_engine;
struct mn_stack_ops;

struct mn_handle {
    uint64_t req;     /* 0: free */
    uint32_t id;      /* of the stack */
    uint32_t backlog; /* listeners: connections announced that nobody has taken, at most; 0: any number */
    uint32_t untaken;
};

struct mn_ping {
    uint64_t req, sent_ns;
    uint16_t seq;
};

struct mn_requests {
    struct mn_handle *listeners, *datagrams;
    uint32_t n_listeners, n_datagrams; /* slots in use, holes included */
    struct mn_ping *pings;
    uint16_t ping_id, ping_seq;
};

int mn_requests_init(struct mn_engine *e);
void mn_requests_destroy(struct mn_engine *e);
void mn_requests_set_stack_ops(struct mn_stack_ops *ops);
/* Whether the application's backlog has a place. */
bool mn_requests_may_accept(const struct mn_engine *e, uint32_t listener);
/* The request behind a listener of the stack, 0: none. */
uint64_t mn_requests_listener(const struct mn_engine *e, uint32_t listener);
/* One more waits in its backlog. */
void mn_requests_announced(struct mn_engine *e, uint32_t listener);

/* Execute what waits, at most a turn's worth; true if something was done. */
bool mn_requests_run(struct mn_engine *e);

#endif
