/* Which handshake messages are worked on now, later, only with a cookie, or not at all.
 *
 * Handshakes may take a fifth of the time: each one costs COST_NS of budget, BURST may be taken at once; then they
 * queue, up to 256, and are worked off as the budget refills. Under load means more than 40 messages in 100 ms, or a
 * queue, and lasts a second beyond either: then a message must carry a valid mac2 and its source stay within its rate.
 * mac1 is checked first of all and alone decides under a flood of garbage. Source: docs/protocol/dataplane.md 1.11. */
#include "device.h"

#include <string.h>

#define WINDOW_NS (100 * MN_MS_NS)
#define STICKY_NS MN_SECOND_NS
#define COST_NS 1350000ULL /* 0.27 ms of work at a fifth of the time */
#define BURST 16

enum { WINDOW_MAX = 40 };

static bool budget_allows(const struct mn_load *l, uint64_t now_ns)
{
    return l->budget_at <= now_ns + (BURST - 1) * COST_NS;
}

static void budget_take(struct mn_load *l, uint64_t now_ns)
{
    l->budget_at = (l->budget_at > now_ns ? l->budget_at : now_ns) + COST_NS;
}

static bool is_under_load(struct mn_wg *wg, uint64_t now_ns)
{
    struct mn_load *l = &wg->load;
    if (now_ns - l->window_at >= WINDOW_NS) {
        l->window_at = now_ns;
        l->window_count = 0;
    }
    if (++l->window_count > WINDOW_MAX || l->count > 0) {
        if (now_ns >= l->under_load_until)
            wg->stats.under_load++;
        l->under_load_until = now_ns + STICKY_NS;
    }
    return now_ns < l->under_load_until;
}

static int send_cookie(struct mn_wg *wg, const uint8_t *msg, size_t len, const struct mn_path *from, uint64_t now_ns)
{
    uint8_t reply[MN_COOKIE_LEN];
    if (mn_cookie_create_reply(wg->checker, &wg->noise, msg, len, from, now_ns, wg->ops.random, wg->ops.ctx, reply) ==
        0) {
        wg->stats.tx_cookie++;
        wg->ops.send(wg->ops.ctx, MN_PEER_NONE, from, MN_WG_COOKIE, 0, reply, sizeof reply);
    }
    return mn_drop(wg, MN_WG_DROP_COOKIE_SENT);
}

static int work_on(struct mn_wg *wg, const uint8_t *msg, size_t len, const struct mn_path *from, uint64_t now_ns,
                   uint32_t *peer)
{
    budget_take(&wg->load, now_ns);
    return len == MN_INITIATION_LEN ? mn_handshake_consume_initiation(wg, msg, from, now_ns, peer)
                                    : mn_handshake_consume_response(wg, msg, from, now_ns, peer);
}

static int put_off(struct mn_wg *wg, const uint8_t *msg, size_t len, const struct mn_path *from)
{
    struct mn_load *l = &wg->load;
    if (l->count == MN_LOAD_QUEUE)
        return mn_drop(wg, MN_WG_DROP_OVERLOAD);
    struct mn_load_item *item = &l->queue[(l->head + l->count++) % MN_LOAD_QUEUE];
    item->len = len;
    item->from = *from;
    memcpy(item->msg, msg, len);
    wg->stats.handshakes_queued++;
    return 0;
}

int mn_load_input(struct mn_wg *wg, const uint8_t *msg, size_t len, const struct mn_path *from, uint64_t now_ns,
                  uint32_t *peer)
{
    if (wg->noise.key == NULL)
        return mn_drop(wg, MN_WG_DROP_NO_KEY);
    if (len == MN_COOKIE_LEN)
        return mn_handshake_consume_cookie(wg, msg, from, now_ns, peer);
    if (!mn_cookie_check_mac1(wg->checker, &wg->noise, msg, len))
        return mn_drop(wg, MN_WG_DROP_MAC1);
    if (is_under_load(wg, now_ns)) {
        if (!mn_cookie_check_mac2(wg->checker, &wg->noise, msg, len, from, now_ns))
            return send_cookie(wg, msg, len, from, now_ns);
        if (!mn_limiter_allow(&wg->limiter, &wg->noise, from, now_ns))
            return mn_drop(wg, MN_WG_DROP_RATE);
    }
    if (wg->load.count > 0 || !budget_allows(&wg->load, now_ns))
        return put_off(wg, msg, len, from);
    return work_on(wg, msg, len, from, now_ns, peer);
}

uint64_t mn_load_next(const struct mn_wg *wg)
{
    const struct mn_load *l = &wg->load;
    if (l->count == 0)
        return MN_NEVER;
    return l->budget_at > (BURST - 1) * COST_NS ? l->budget_at - (BURST - 1) * COST_NS : 0;
}

void mn_load_run(struct mn_wg *wg, uint64_t now_ns)
{
    struct mn_load *l = &wg->load;
    while (l->count > 0 && budget_allows(l, now_ns)) {
        const struct mn_load_item *item = &l->queue[l->head];
        uint32_t peer;
        l->head = (l->head + 1) % MN_LOAD_QUEUE;
        l->count--;
        (void)work_on(wg, item->msg, item->len, &item->from, now_ns, &peer);
    }
}
