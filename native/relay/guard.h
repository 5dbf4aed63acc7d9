/* How much one address may ask of a relay before it has logged in: connections at once, and new ones a second.
 *
 * A fixed table; addresses that fall into one slot share it: a bound, not an account. IPv6 counts by /64. */
#ifndef MN_RELAY_GUARD_H
#define MN_RELAY_GUARD_H

#include <stdbool.h>
#include <stdint.h>

#include "../mem/addr.h"

enum { MN_GUARD_SLOTS = 4096 };

struct mn_guard_slot {
    uint32_t conns, tokens_milli, at_ms;
};

struct mn_guard {
    uint32_t conns_max, per_s, burst; /* 0: no limit */
    uint64_t seed;
    uint64_t refused;
    struct mn_guard_slot slots[MN_GUARD_SLOTS];
};

void mn_guard_init(struct mn_guard *g, uint32_t conns_max, uint32_t per_s, uint32_t burst, uint64_t seed,
                   uint32_t now_ms);
/* May another connection come from ip? True counts it: mn_guard_leave when it ends. */
bool mn_guard_enter(struct mn_guard *g, const struct mn_ip *ip, uint32_t now_ms);
void mn_guard_leave(struct mn_guard *g, const struct mn_ip *ip);

#endif
