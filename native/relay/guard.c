/* Connections by address. */
#include "guard.h"

#include <string.h>

void mn_guard_init(struct mn_guard *g, uint32_t conns_max, uint32_t per_s, uint32_t burst, uint64_t seed,
                   uint32_t now_ms)
{
    memset(g, 0, sizeof *g);
    g->conns_max = conns_max;
    g->per_s = per_s;
    g->burst = burst;
    g->seed = seed;
    for (int i = 0; i < MN_GUARD_SLOTS; i++)
        g->slots[i] = (struct mn_guard_slot){.tokens_milli = burst * 1000, .at_ms = now_ms};
}

static struct mn_guard_slot *slot_of(struct mn_guard *g, const struct mn_ip *ip)
{
    uint64_t w[2];
    memcpy(w, ip->b, sizeof w);
    if (!mn_ip_is4(ip))
        w[1] = 0;
    uint64_t h = (w[0] ^ g->seed) * 0x9e3779b97f4a7c15ULL;
    h = ((h ^ h >> 32) ^ w[1]) * 0x9e3779b97f4a7c15ULL;
    h = (h ^ h >> 32 ^ g->seed) * 0x9e3779b97f4a7c15ULL;
    return &g->slots[h >> 32 & (MN_GUARD_SLOTS - 1)];
}

bool mn_guard_enter(struct mn_guard *g, const struct mn_ip *ip, uint32_t now_ms)
{
    struct mn_guard_slot *s = slot_of(g, ip);
    if (g->per_s != 0) {
        uint64_t tokens = s->tokens_milli + (uint64_t)(now_ms - s->at_ms) * g->per_s;
        uint64_t most = (uint64_t)g->burst * 1000;
        s->tokens_milli = (uint32_t)(tokens < most ? tokens : most);
        s->at_ms = now_ms;
    }
    bool is_full = g->conns_max != 0 && s->conns >= g->conns_max;
    bool is_fast = g->per_s != 0 && s->tokens_milli < 1000;
    if (is_full || is_fast) {
        g->refused++;
        return false;
    }
    if (g->per_s != 0)
        s->tokens_milli -= 1000;
    s->conns++;
    return true;
}

void mn_guard_leave(struct mn_guard *g, const struct mn_ip *ip)
{
    struct mn_guard_slot *s = slot_of(g, ip);
    if (s->conns > 0)
        s->conns--;
}
