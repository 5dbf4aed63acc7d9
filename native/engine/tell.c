/* Events about traffic and their throttles. See tell.h. */
#include "tell.h"

#include <errno.h>
#include <string.h>

#include "internal.h"

#define THROTTLE_NS (100 * MN_NS_PER_MS)
#define ERROR_THROTTLE_NS MN_NS_PER_S

/* Refusals that pass by themselves are news only when there are many within a second. */
enum { PASSING_MANY = 10 };

void mn_tell_relay_send(struct mn_engine *e, const uint8_t key[32], uint16_t region, const uint8_t *pkt, size_t len)
{
    struct mn_event ev = {.kind = MN_EV_RELAY_SEND, .region = region};
    memcpy(ev.key, key, sizeof ev.key);
    mn_events_post_data(&e->events, MN_LANE_RELAY, &ev, pkt, len);
}

void mn_tell_datagram(struct mn_engine *e, enum mn_event_kind kind, const struct mn_ep *from, const uint8_t *data,
                      size_t len)
{
    struct mn_event ev = {.kind = (uint8_t)kind, .remote = *from};
    mn_events_post_data(&e->events, MN_LANE_DATAGRAM, &ev, data, len);
}

void mn_tell_handshake(struct mn_engine *e, const struct mn_peer *p, bool ok)
{
    struct mn_event ev = {.kind = MN_EV_HANDSHAKE, .what = ok};
    memcpy(ev.key, p->key, sizeof ev.key);
    (void)mn_events_post_hint(&e->events, &ev);
}

void mn_tell_keys(struct mn_engine *e, const struct mn_peer *p, enum mn_keys_notice what)
{
    struct mn_event ev = {.kind = MN_EV_KEYS, .what = (uint8_t)what};
    memcpy(ev.key, p->key, sizeof ev.key);
    (void)mn_events_post_hint(&e->events, &ev);
}

void mn_tell_disco_key(struct mn_engine *e, const struct mn_peer *p, const uint8_t key[32])
{
    struct mn_event ev = {.kind = MN_EV_DISCO_KEY};
    memcpy(ev.key, p->key, sizeof ev.key);
    mn_events_post_data(&e->events, MN_LANE_DATAGRAM, &ev, key, 32);
}

void mn_tell_peer_send(struct mn_engine *e, struct mn_peer *p, bool wanted)
{
    bool is_news = p->send_told_at == 0 || wanted != p->was_wanted;
    if (!is_news && e->now_ns - p->send_told_at < THROTTLE_NS)
        return;
    p->send_told_at = e->now_ns;
    p->was_wanted = wanted;
    struct mn_event ev = {.kind = MN_EV_PEER_SEND, .what = wanted};
    memcpy(ev.key, p->key, sizeof ev.key);
    (void)mn_events_post_hint(&e->events, &ev);
}

/* The memory of what was told about this path; a new path takes the place of the one first in line. */
static struct mn_told *told_of(struct mn_peer *p, const struct mn_path *from)
{
    if (mn_path_equal(&p->told[p->last_told].path, from))
        return &p->told[p->last_told];
    for (unsigned i = 0; i < MN_TOLD_PATHS; i++) {
        if (mn_path_equal(&p->told[i].path, from)) {
            p->last_told = (uint8_t)i;
            return &p->told[i];
        }
    }
    p->last_told = p->next_told;
    p->next_told = (uint8_t)((p->next_told + 1) % MN_TOLD_PATHS);
    struct mn_told *fresh = &p->told[p->last_told];
    memset(fresh, 0, sizeof *fresh);
    fresh->path = *from;
    return fresh;
}

bool mn_tell_wants_recv(const struct mn_engine *e, const struct mn_peer *p, const struct mn_path *from, uint8_t what)
{
    for (unsigned i = 0; i < MN_TOLD_PATHS; i++)
        if (mn_path_equal(&p->told[i].path, from))
            return p->told[i].at[what] == 0 || e->now_ns - p->told[i].at[what] >= THROTTLE_NS;
    return true;
}

void mn_tell_peer_recv(struct mn_engine *e, struct mn_peer *p, const struct mn_path *from, uint8_t what)
{
    struct mn_told *told = told_of(p, from);
    if (told->at[what] != 0 && e->now_ns - told->at[what] < THROTTLE_NS)
        return;
    told->at[what] = e->now_ns;
    struct mn_event ev = {.kind = MN_EV_PEER_RECV, .what = what, .region = from->region};
    if (from->region == 0)
        ev.remote = from->ep;
    memcpy(ev.key, p->key, sizeof ev.key);
    (void)mn_events_post_hint(&e->events, &ev);
}

/* Told as a refusal, whatever it says but "too big": it is a reason to ask the path, and none to believe that it is
 * gone. */
void mn_tell_path_hint(void *ctx, const struct mn_ep *to, int err)
{
    mn_tell_send_error(ctx, to, err == EMSGSIZE ? EMSGSIZE : ECONNREFUSED);
}

void mn_tell_rebound(struct mn_engine *e, int err)
{
    struct mn_event ev = {.kind = MN_EV_REBOUND, .err = err};
    (void)mn_events_post(&e->events, &ev);
}

static bool is_passing(int err)
{
    return err == EAGAIN || err == ENOBUFS || err == EPERM;
}

/* The memory of this error; a new one takes the place of the one seen least lately. */
static struct mn_error_told *error_of(struct mn_engine *e, const struct mn_ep *to, int err)
{
    struct mn_error_told *slot = &e->tunnel.errors[0];
    for (int i = 0; i < MN_ERRORS_TOLD; i++) {
        struct mn_error_told *t = &e->tunnel.errors[i];
        if (t->at != 0 && t->err == err && mn_ep_equal(&t->to, to))
            return t;
        if (t->at < slot->at)
            slot = t;
    }
    *slot = (struct mn_error_told){.to = *to, .err = err, .since = e->now_ns};
    return slot;
}

void mn_tell_send_error(void *ctx, const struct mn_ep *to, int err)
{
    struct mn_engine *e = ctx;
    struct mn_error_told *t = error_of(e, to, err);
    t->at = e->now_ns;
    if (e->now_ns - t->since >= MN_NS_PER_S) {
        t->since = e->now_ns;
        t->count = 0;
    }
    t->count++;
    if (is_passing(err) && t->count < PASSING_MANY)
        return;
    if (t->told_at != 0 && e->now_ns - t->told_at < ERROR_THROTTLE_NS)
        return;
    t->told_at = e->now_ns;
    struct mn_event ev = {.kind = MN_EV_SEND_ERROR, .remote = *to, .err = err};
    (void)mn_events_post_hint(&e->events, &ev);
}
