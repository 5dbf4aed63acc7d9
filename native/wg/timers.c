/* A peer's five timers. Armed and cancelled by what happens to the peer; on expiry they ask for a handshake, send a
 * keepalive or wipe keys. Source: docs/protocol/dataplane.md 1.10.
 *
 * retransmit     5 s + jitter after an initiation: again, or give up after 20
 * send_keepalive 10 s after data came and nothing went
 * new_handshake  15 s + jitter after data went and nothing came
 * zero_keys      540 s after the last session was made
 * persistent     the configured interval after anything authentic went either way */
#include "device.h"

#define JITTER_NS (MN_SECOND_NS / 3)

void mn_timers_init(struct mn_wg_peer *p)
{
    for (uint32_t kind = 0; kind < MN_TIMER_COUNT_; kind++)
        mn_timer_init(&p->timers[kind], p->id, kind);
}

void mn_timers_stop(struct mn_wg *wg, struct mn_wg_peer *p)
{
    for (uint32_t kind = 0; kind < MN_TIMER_COUNT_; kind++)
        mn_wheel_remove(&wg->wheel, &p->timers[kind]);
    p->attempts = p->initiations = 0;
    p->needs_another_keepalive = p->sent_lastminute = false;
}

/* Spreads retries of many peers; needs no secrecy, so a xorshift seeded once will do. */
static uint64_t jitter(struct mn_wg *wg)
{
    uint64_t x = wg->jitter_state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    wg->jitter_state = x;
    return (x >> 32) % JITTER_NS;
}

static void arm(struct mn_wg *wg, struct mn_wg_peer *p, enum mn_peer_timer kind, uint64_t due_ns)
{
    mn_wheel_arm(&wg->wheel, &p->timers[kind], due_ns);
}

void mn_timers_data_sent(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    if (!mn_timer_is_armed(&p->timers[MN_TIMER_NEW_HANDSHAKE]))
        arm(wg, p, MN_TIMER_NEW_HANDSHAKE, now_ns + MN_KEEPALIVE_NS + MN_REKEY_TIMEOUT_NS + jitter(wg));
}

void mn_timers_data_received(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    if (mn_timer_is_armed(&p->timers[MN_TIMER_SEND_KEEPALIVE]))
        p->needs_another_keepalive = true;
    else
        arm(wg, p, MN_TIMER_SEND_KEEPALIVE, now_ns + MN_KEEPALIVE_NS);
}

void mn_timers_authentic_sent(struct mn_wg_peer *p)
{
    mn_wheel_cancel(&p->timers[MN_TIMER_SEND_KEEPALIVE]);
}

void mn_timers_authentic_received(struct mn_wg_peer *p)
{
    mn_wheel_cancel(&p->timers[MN_TIMER_NEW_HANDSHAKE]);
}

void mn_timers_traversal(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    if (p->keepalive_s > 0)
        arm(wg, p, MN_TIMER_PERSISTENT, now_ns + p->keepalive_s * MN_SECOND_NS);
}

void mn_timers_initiation_sent(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    arm(wg, p, MN_TIMER_RETRANSMIT, now_ns + MN_REKEY_TIMEOUT_NS + jitter(wg));
}

void mn_timers_session_derived(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    arm(wg, p, MN_TIMER_ZERO_KEYS, now_ns + MN_ZERO_KEYS_NS);
}

void mn_timers_handshake_complete(struct mn_wg_peer *p, uint64_t now_ns)
{
    mn_wheel_cancel(&p->timers[MN_TIMER_RETRANSMIT]);
    p->attempts = p->initiations = 0;
    p->sent_lastminute = false;
    p->stats.last_handshake_ns = now_ns;
    p->stats.handshakes++;
}

static void give_up(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    mn_wheel_cancel(&p->timers[MN_TIMER_SEND_KEEPALIVE]);
    mn_peer_purge_staged(wg, p);
    if (!mn_timer_is_armed(&p->timers[MN_TIMER_ZERO_KEYS]))
        arm(wg, p, MN_TIMER_ZERO_KEYS, now_ns + MN_ZERO_KEYS_NS);
    p->initiations = 0;
    wg->stats.handshakes_failed++;
    wg->ops.event(wg->ops.ctx, p->id, MN_WG_HANDSHAKE_FAILED);
}

static void on_retransmit(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    if (p->attempts > MN_MAX_TIMER_HANDSHAKES) {
        give_up(wg, p, now_ns);
        return;
    }
    p->attempts++;
    mn_handshake_request(wg, p, true, now_ns);
}

static void on_send_keepalive(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    mn_data_send_keepalive(wg, p, now_ns);
    if (!p->needs_another_keepalive)
        return;
    p->needs_another_keepalive = false;
    arm(wg, p, MN_TIMER_SEND_KEEPALIVE, now_ns + MN_KEEPALIVE_NS);
}

static void on_zero_keys(struct mn_wg *wg, struct mn_wg_peer *p)
{
    bool had_session = p->sessions.current != NULL || p->sessions.previous != NULL || p->sessions.next != NULL;
    mn_peer_wipe_keys(wg, p);
    if (had_session)
        wg->ops.event(wg->ops.ctx, p->id, MN_WG_SESSION_GONE);
}

void mn_timers_fire(void *ctx, struct mn_timer *t, uint64_t now_ns)
{
    struct mn_wg *wg = ctx;
    struct mn_wg_peer *p = mn_peer_get(wg, t->owner);
    switch ((enum mn_peer_timer)t->kind) {
    case MN_TIMER_RETRANSMIT:
        on_retransmit(wg, p, now_ns);
        break;
    case MN_TIMER_SEND_KEEPALIVE:
        on_send_keepalive(wg, p, now_ns);
        break;
    case MN_TIMER_NEW_HANDSHAKE:
        wg->ops.event(wg->ops.ctx, p->id, MN_WG_SILENT);
        mn_handshake_request(wg, p, false, now_ns);
        break;
    case MN_TIMER_ZERO_KEYS:
        on_zero_keys(wg, p);
        break;
    case MN_TIMER_PERSISTENT:
        mn_data_send_keepalive(wg, p, now_ns);
        break;
    case MN_TIMER_COUNT_:
        break;
    }
}
