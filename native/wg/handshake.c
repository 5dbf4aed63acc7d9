/* Handshakes as the device has them: who may be answered, what is remembered, what comes of it.
 *
 * An initiation is answered and made into a session at once, so only our own initiation has a state that waits
 * (struct mn_outstanding). Nothing changes before a message proved authentic. */
#include "device.h"

#include <string.h>

#include <openssl/crypto.h>

#define TAI64_BASE 0x400000000000000aULL
#define WHITEN 0xffffffU /* low bits of the nanoseconds: steps of 16.8 ms tell nobody our clock */
#define NANOS 1000000000U
#define INITIATION_GAP_NS (20 * MN_MS_NS)
#define RESEND_GAP_NS (100 * MN_MS_NS)
#define RENEW_GAP_NS (500 * MN_MS_NS)
#define YOUNG_NS MN_SECOND_NS
/* A response to an initiation that is not being repeated any more: its session would be news to the peer. */
#define RESPONSE_WAIT_NS (2 * MN_REKEY_TIMEOUT_NS)

static void timestamp_put(const struct mn_clock *c, uint8_t out[MN_WG_TIMESTAMP])
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(c->seconds >> (56 - 8 * i));
    for (int i = 0; i < 4; i++)
        out[8 + i] = (uint8_t)(c->nanos >> (24 - 8 * i));
}

static bool later(const struct mn_clock *a, const struct mn_clock *b)
{
    return a->seconds != b->seconds ? a->seconds > b->seconds : a->nanos > b->nanos;
}

void mn_wg_set_timestamp_floor(struct mn_wg *wg, const uint8_t timestamp[12])
{
    struct mn_clock floor = {0};
    for (int i = 0; i < 8; i++)
        floor.seconds = floor.seconds << 8 | timestamp[i];
    for (int i = 8; i < 12; i++)
        floor.nanos = floor.nanos << 8 | timestamp[i];
    if (floor.nanos < NANOS && floor.seconds >> 63 == 0 && later(&floor, &wg->sent)) {
        wg->sent.seconds = floor.seconds;
        wg->sent.nanos = floor.nanos;
    }
}

void mn_wg_get_last_timestamp(const struct mn_wg *wg, uint8_t timestamp[12])
{
    timestamp_put(&wg->sent, timestamp);
}

/* Always later than the last, whatever the wall clock does. */
static void next_timestamp(struct mn_wg *wg, uint32_t peer, uint8_t out[MN_WG_TIMESTAMP])
{
    uint64_t wall = wg->ops.wall_ns(wg->ops.ctx);
    struct mn_clock now = {.seconds = TAI64_BASE + wall / NANOS, .nanos = (uint32_t)(wall % NANOS) & ~WHITEN};
    bool is_behind = wg->sent.seconds > now.seconds + 1;
    if (!later(&now, &wg->sent)) {
        now = wg->sent;
        now.nanos = (now.nanos & ~WHITEN) + WHITEN + 1;
        if (now.nanos >= NANOS) {
            now.nanos = 0;
            now.seconds++;
        }
    }
    bool is_news = is_behind && !wg->sent.is_behind;
    wg->sent = now;
    wg->sent.is_behind = is_behind;
    timestamp_put(&now, out);
    if (is_news)
        wg->ops.event(wg->ops.ctx, peer, MN_WG_CLOCK_BEHIND);
}

void mn_handshake_clear(struct mn_wg *wg, struct mn_wg_peer *p)
{
    if (p->out.is_live)
        mn_index_free(&wg->indices, p->out.index);
    p->out.is_live = false;
    OPENSSL_cleanse(&p->secret->initiator, sizeof p->secret->initiator);
}

static void send_initiation(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    mn_timers_traversal(wg, p, now_ns);
    mn_timers_authentic_sent(p);
    wg->stats.tx_initiation++;
    p->stats.initiations_sent++;
    wg->ops.send(wg->ops.ctx, p->id, NULL, MN_WG_INITIATION, p->initiations++, p->out.msg, MN_INITIATION_LEN);
}

/* The retransmit timer is armed even where making it failed, so that it is tried again. */
static void initiate(struct mn_wg *wg, struct mn_wg_peer *p, uint64_t now_ns)
{
    uint8_t ephemeral[32], timestamp[MN_WG_TIMESTAMP];
    struct mn_outstanding *out = &p->out;
    p->last_sent_handshake_ns = now_ns;
    mn_timers_initiation_sent(wg, p, now_ns);
    mn_handshake_clear(wg, p);
    if (mn_index_alloc(&wg->indices, MN_INDEX_HANDSHAKE, p->id, NULL, &out->index) != 0)
        return;
    out->is_live = true;
    out->sent_ns = out->resent_ns = now_ns;
    wg->ops.random(wg->ops.ctx, ephemeral, sizeof ephemeral);
    next_timestamp(wg, p->id, timestamp);
    int err = mn_noise_create_initiation(&wg->noise, &p->secret->remote, ephemeral, timestamp, out->index,
                                         &p->secret->initiator, out->msg);
    OPENSSL_cleanse(ephemeral, sizeof ephemeral);
    if (err != 0 || mn_cookie_add_macs(&p->secret->jar, &wg->noise, out->msg, MN_INITIATION_LEN, now_ns) != 0) {
        mn_handshake_clear(wg, p);
        return;
    }
    send_initiation(wg, p, now_ns);
}

void mn_handshake_request(struct mn_wg *wg, struct mn_wg_peer *p, bool is_retry, uint64_t now_ns)
{
    if (!is_retry)
        p->attempts = 0;
    if (!p->has_ss || mn_arena_forked(&wg->arena))
        return;
    if (p->last_sent_handshake_ns == MN_LONG_AGO || now_ns - p->last_sent_handshake_ns >= MN_REKEY_TIMEOUT_NS)
        initiate(wg, p, now_ns);
    else if (is_retry) /* a response of ours came between: the retry is put off, not lost */
        mn_timers_initiation_sent(wg, p, p->last_sent_handshake_ns);
}

/* A message on its way is sent again as it is: a peer that has seen it drops the copy, and its response to the first
 * still fits. Only after half a second is a new one worth more than that. */
int mn_wg_kick(struct mn_wg *wg, uint32_t peer, uint64_t now_ns)
{
    struct mn_wg_peer *p = mn_peer_get(wg, peer);
    if (p == NULL)
        return MN_WG_E_PEER;
    if (!p->has_ss || mn_arena_forked(&wg->arena))
        return MN_WG_E_KEY;
    bool waits = p->out.is_live && mn_timer_is_armed(&p->timers[MN_TIMER_RETRANSMIT]);
    if (waits && now_ns - p->out.resent_ns < RESEND_GAP_NS)
        return MN_WG_E_LATER;
    if (waits && now_ns - p->out.sent_ns < RENEW_GAP_NS) {
        p->out.resent_ns = now_ns;
        send_initiation(wg, p, now_ns);
        return 0;
    }
    struct mn_session *s = p->sessions.current;
    if (mn_session_can_send(s, now_ns) && now_ns - s->born_ns < YOUNG_NS)
        return MN_WG_E_LATER;
    p->attempts = 0;
    initiate(wg, p, now_ns);
    return 0;
}

static void heard(struct mn_wg *wg, struct mn_wg_peer *p, const struct mn_path *from, uint32_t *peer)
{
    *peer = p->id;
    if (wg->ops.heard != NULL)
        wg->ops.heard(wg->ops.ctx, p->id, from);
}

/* Is the initiation news? A drop reason if not. */
static enum mn_wg_drop refuse_initiation(const struct mn_wg_peer *p, const struct mn_noise_responder *r,
                                         uint64_t now_ns)
{
    if (memcmp(r->timestamp, p->last_timestamp, MN_WG_TIMESTAMP) <= 0)
        return MN_WG_DROP_TIMESTAMP;
    if (p->last_accepted_ns != MN_LONG_AGO && now_ns - p->last_accepted_ns < INITIATION_GAP_NS)
        return MN_WG_DROP_FLOOD;
    return MN_WG_DROP_NONE_;
}

/* The session that answers r, with its response; NULL: no memory. */
static struct mn_session *answer(struct mn_wg *wg, struct mn_wg_peer *p, const struct mn_noise_responder *r,
                                 uint8_t response[MN_RESPONSE_LEN], uint64_t now_ns)
{
    struct mn_noise_keys keys;
    struct mn_session *s = NULL;
    uint8_t ephemeral[32];
    uint32_t index;
    if (mn_index_alloc(&wg->indices, MN_INDEX_SESSION, p->id, NULL, &index) != 0)
        return NULL;
    wg->ops.random(wg->ops.ctx, ephemeral, sizeof ephemeral);
    if (mn_noise_create_response(&wg->noise, &p->secret->remote, r, ephemeral, index, &keys, response) == 0 &&
        mn_cookie_add_macs(&p->secret->jar, &wg->noise, response, MN_RESPONSE_LEN, now_ns) == 0)
        s = mn_session_create(wg->noise.provider, &keys, false, index, r->sender, now_ns);
    OPENSSL_cleanse(ephemeral, sizeof ephemeral);
    OPENSSL_cleanse(&keys, sizeof keys);
    if (s == NULL)
        mn_index_free(&wg->indices, index);
    else
        mn_index_move(&wg->indices, index, MN_INDEX_SESSION, s);
    return s;
}

static int respond(struct mn_wg *wg, struct mn_wg_peer *p, const struct mn_noise_responder *r,
                   const struct mn_path *from, uint64_t now_ns)
{
    uint8_t response[MN_RESPONSE_LEN];
    struct mn_session_dropped dropped = {.count = 0};
    struct mn_session *s = answer(wg, p, r, response, now_ns);
    if (s == NULL)
        return mn_drop(wg, MN_WG_DROP_OVERLOAD);
    mn_sessions_responded(&p->sessions, s, &dropped);
    mn_peer_free_dropped(wg, &dropped);
    p->last_sent_handshake_ns = now_ns;
    mn_timers_session_derived(wg, p, now_ns);
    mn_timers_traversal(wg, p, now_ns);
    mn_timers_authentic_sent(p);
    wg->stats.tx_response++;
    wg->ops.send(wg->ops.ctx, p->id, from, MN_WG_RESPONSE, 0, response, sizeof response);
    return 0;
}

static int consume_initiation(struct mn_wg *wg, const uint8_t *msg, struct mn_noise_responder *r,
                              const struct mn_path *from, uint64_t now_ns, uint32_t *peer)
{
    if (mn_noise_read_static(&wg->noise, msg, r) != 0)
        return mn_drop(wg, MN_WG_DROP_AUTH);
    struct mn_wg_peer *p = mn_peer_by_key(wg, r->pub);
    if (p == NULL)
        return mn_drop(wg, MN_WG_DROP_UNKNOWN_PEER);
    if (!p->has_ss || mn_noise_read_timestamp(&wg->noise, &p->secret->remote, msg, r) != 0)
        return mn_drop(wg, MN_WG_DROP_AUTH);
    enum mn_wg_drop why = refuse_initiation(p, r, now_ns);
    if (why != MN_WG_DROP_NONE_)
        return mn_drop(wg, why);
    memcpy(p->last_timestamp, r->timestamp, MN_WG_TIMESTAMP);
    p->last_accepted_ns = now_ns;
    p->stats.initiations_received++;
    p->stats.rx_bytes += MN_INITIATION_LEN;
    wg->stats.rx_initiation++;
    mn_peer_came_from(wg, p, from);
    int err = respond(wg, p, r, from, now_ns);
    mn_timers_authentic_received(p);
    mn_timers_traversal(wg, p, now_ns);
    heard(wg, p, from, peer);
    return err;
}

int mn_handshake_consume_initiation(struct mn_wg *wg, const uint8_t *msg, const struct mn_path *from, uint64_t now_ns,
                                    uint32_t *peer)
{
    struct mn_noise_responder r;
    int result = consume_initiation(wg, msg, &r, from, now_ns, peer);
    OPENSSL_cleanse(&r, sizeof r);
    return result;
}

/* The index was the handshake's; it names the session from here on. */
static struct mn_session *establish(struct mn_wg *wg, struct mn_wg_peer *p, const uint8_t *msg, uint64_t now_ns)
{
    struct mn_noise_keys keys;
    struct mn_session *s = NULL;
    if (mn_noise_consume_response(&wg->noise, &p->secret->remote, &p->secret->initiator, msg, &keys) == 0)
        s = mn_session_create(wg->noise.provider, &keys, true, p->out.index, mn_le32_get(msg + 4), now_ns);
    OPENSSL_cleanse(&keys, sizeof keys);
    if (s == NULL)
        return NULL;
    mn_index_move(&wg->indices, p->out.index, MN_INDEX_SESSION, s);
    p->out.is_live = false;
    OPENSSL_cleanse(&p->secret->initiator, sizeof p->secret->initiator);
    return s;
}

int mn_handshake_consume_response(struct mn_wg *wg, const uint8_t *msg, const struct mn_path *from, uint64_t now_ns,
                                  uint32_t *peer)
{
    struct mn_index_slot *slot = mn_index_find(&wg->indices, mn_le32_get(msg + 8));
    if (slot == NULL)
        return mn_drop(wg, MN_WG_DROP_INDEX);
    if (slot->kind != MN_INDEX_HANDSHAKE)
        return mn_drop(wg, MN_WG_DROP_STATE);
    struct mn_wg_peer *p = mn_peer_get(wg, slot->peer);
    if (now_ns - p->out.sent_ns > RESPONSE_WAIT_NS)
        return mn_drop(wg, MN_WG_DROP_STATE);
    struct mn_session *s = establish(wg, p, msg, now_ns);
    if (s == NULL)
        return mn_drop(wg, MN_WG_DROP_AUTH);
    struct mn_session_dropped dropped = {.count = 0};
    mn_sessions_initiated(&p->sessions, s, p->out.sent_ns, &dropped);
    mn_peer_free_dropped(wg, &dropped);
    p->stats.rx_bytes += MN_RESPONSE_LEN;
    wg->stats.rx_response++;
    mn_peer_came_from(wg, p, from);
    wg->stats.sessions++;
    mn_timers_session_derived(wg, p, now_ns);
    mn_timers_handshake_complete(p, now_ns);
    mn_timers_authentic_received(p);
    mn_timers_traversal(wg, p, now_ns);
    heard(wg, p, from, peer);
    /* The responder may not send before it hears from us under the new keys. */
    if (p->staged_count > 0)
        mn_data_send_staged(wg, p, now_ns);
    else
        mn_data_send_keepalive(wg, p, now_ns);
    wg->ops.event(wg->ops.ctx, p->id, MN_WG_SESSION_UP);
    return 0;
}

int mn_handshake_consume_cookie(struct mn_wg *wg, const uint8_t *msg, const struct mn_path *from, uint64_t now_ns,
                                uint32_t *peer)
{
    struct mn_index_slot *slot = mn_index_find(&wg->indices, mn_le32_get(msg + 4));
    if (slot == NULL)
        return mn_drop(wg, MN_WG_DROP_INDEX);
    struct mn_wg_peer *p = mn_peer_get(wg, slot->peer);
    if (!p->secret->jar.awaits_reply)
        return mn_drop(wg, MN_WG_DROP_STATE);
    if (mn_cookie_consume_reply(&p->secret->jar, &wg->noise, msg, now_ns) != 0)
        return mn_drop(wg, MN_WG_DROP_AUTH);
    wg->stats.rx_cookie++;
    heard(wg, p, from, peer);
    return 0;
}
