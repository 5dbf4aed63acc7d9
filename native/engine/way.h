/* Which ways one message takes: by the peer's mode, its length, and what copies may still cost.
 *
 * A message longer than the direct path carries goes by the relay alone, if there is one. Copies are paid out of an
 * allowance per peer, which small messages do not touch: a path in doubt must not double what a relay carries.
 * Source: docs/protocol/paths.md 8.4, 8.6. */
#ifndef MN_ENGINE_WAY_H
#define MN_ENGINE_WAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tunnel.h"

enum {
    MN_WAY_DIRECT = 1,
    MN_WAY_RELAY = 2,
    MN_COPY_BURST = 512 << 10, /* bytes */
    MN_COPY_PER_S = 1 << 20,
    MN_COPY_SMALL = 256, /* below it copies are free */
    MN_COPY_EVERY = 8,   /* of the packets beyond the allowance, by a path in doubt */
};

bool mn_way_has_direct(const struct mn_peer *p);
bool mn_way_has_relay(const struct mn_peer *p);

/* MN_WAY_ bits for a data message of len bytes; 0: there is no way. Spends of the allowance. */
unsigned mn_way_of_data(struct mn_peer *p, size_t len, uint64_t now_ns);

/* Is every data message sure to go to the direct endpoint and to no other? */
bool mn_way_is_plain(const struct mn_peer *p);

/* The largest inner packet whose message is no longer than the peer's limit; at most mtu. */
size_t mn_way_inner_mtu(const struct mn_peer *p, size_t mtu);

#endif
