/* What size of segments a path takes. Told: by ICMP, or by our own underlay, which knows what its way to a peer carries
 * and says so to the peer as well, since the segments that the peer sends take the same way. Not told: after two full
 * ones in a row sent again in vain smaller ones are tried, and now and then a full one again, since the path may only
 * have been away (RFC 4821 4, 7.7). */
#include "internal.h"

enum {
    LARGE = 1220, /* fits 1280, which most paths take */
    SMALL = 536,  /* fits 576, which all do */
    STEP = 100,   /* less is not worth a step */
    LEAST_MTU6 = 1280,
};

#define TRY_FIRST MN_SECOND
#define TRY_LAST (600 * MN_SECOND)

static void set_mss(struct mn_conn *c, uint32_t mss)
{
    c->snd.mss = mss;
    c->cc.mss = mss;
    if (c->cc.cwnd < mss)
        c->cc.cwnd = mss; /* or no full segment could ever leave */
}

/* Has a segment as long as these arrived of what lies behind the one that does not? It was sent after it. */
static bool has_taken_full(const struct mn_stack *s, const struct mn_conn *c)
{
    uint32_t end = c->sent.first + c->sent.count;
    for (uint32_t i = c->sent.first + 1; i < end && c->sent.sacked > 0; i++) {
        const struct mn_chunk *k = mn_sent_chunk(s, c->sent.order[i]);
        if (k->state == MN_CHUNK_SACKED && k->len >= c->snd.mss && (k->unit == 0 || k->unit >= c->snd.mss))
            return true;
    }
    return false;
}

size_t mn_path_mtu(const struct mn_stack *s, const struct mn_ip *dst)
{
    size_t mtu = s->ops.path_mtu != NULL ? s->ops.path_mtu(s->ops.ctx, dst) : s->cfg.mtu;
    return mtu < s->cfg.mtu ? mtu : s->cfg.mtu;
}

void mn_path_on_shrunk(struct mn_stack *s, struct mn_conn *c, size_t mtu)
{
    size_t mss = mtu - mn_packet_header_len(&c->node.tuple.remote) - MN_TCP_HEADER;
    if (c->state < MN_ESTABLISHED || mss >= c->snd.peer_mss)
        return;
    c->snd.peer_mss = (uint16_t)mss;
    c->snd.full_mss = 0;
    set_mss(c, (uint32_t)mss - (c->ts.on ? (uint32_t)MN_TCP_TS_OPTION : 0U));
    mn_loss_on_path_shrunk(s, c);
    mn_conn_mark(s, c);
}

/* The peer's own segments are as long as our SYN allowed, which nothing can take back but an error about one of them:
 * as much of it as its stack looks at. No path of IPv6 may say that it carries less than 1280. */
static void tell_peer(struct mn_stack *s, const struct mn_conn *c, size_t mtu)
{
    uint8_t quote[MN_IP6_HEADER + MN_TCP_HEADER] = {0};
    const struct mn_tuple *t = &c->node.tuple;
    bool v4 = mn_ip_is4(&t->remote);
    if (!v4 && mtu < LEAST_MTU6)
        return;
    size_t header = mn_packet_write_header(quote, &t->remote, &t->local, MN_PROTO_TCP, MN_TCP_HEADER);
    uint8_t *tcp = quote + header;
    mn_store16(tcp, t->rport);
    mn_store16(tcp + 2, t->lport);
    mn_store32(tcp + 4, c->rcv.nxt);
    tcp[12] = (MN_TCP_HEADER / 4) << 4;
    const struct mn_packet about = {
        .src = t->remote, .dst = t->local, .ip = quote, .ip_len = header + MN_TCP_HEADER, .version = v4 ? 4 : 6};
    mn_stack_send_too_big(s, c->peer, mtu, &about);
}

/* A timer that has backed off counts from the last send on the way that was; on another one it need not. */
static void hurry(struct mn_stack *s, struct mn_conn *c)
{
    if (c->rtt.backoff < 2 || c->snd.una == c->snd.nxt)
        return;
    uint64_t last = c->snd.sent_at > c->rtt.resent_at ? c->snd.sent_at : c->rtt.resent_at, at = last + c->rtt.rto_ns;
    c->rtt.backoff = 1; /* still no first loss: the window is reduced once */
    if (at < c->due[MN_T_RETX])
        mn_conn_set_timer(s, c, MN_T_RETX, at > s->now ? at : s->now);
}

void mn_stack_path_changed(struct mn_stack *s, uint32_t peer, uint64_t now_ns)
{
    mn_turn_enter(s, now_ns);
    for (uint32_t i = 0; i < s->slot_used; i++) {
        struct mn_conn *c = s->slots[i].conn;
        if (c != NULL && !c->is_dead && c->peer == peer && c->state >= MN_ESTABLISHED)
            hurry(s, c);
    }
    mn_turn_leave(s);
}

void mn_stack_path_shrunk(struct mn_stack *s, uint32_t peer, size_t mtu, uint64_t now_ns)
{
    mn_turn_enter(s, now_ns);
    for (uint32_t i = 0; i < s->slot_used; i++) {
        struct mn_conn *c = s->slots[i].conn;
        if (c == NULL || c->is_dead || c->peer != peer || c->state < MN_ESTABLISHED)
            continue;
        mn_path_on_shrunk(s, c, mtu);
        tell_peer(s, c, mtu);
    }
    mn_turn_leave(s);
}

void mn_path_on_timeout(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_send *d = &c->snd;
    uint32_t options = c->ts.on ? MN_TCP_TS_OPTION : 0;
    if (c->rtt.backoff < 2 || c->sent.count == 0)
        return; /* twice sent again in full may be chance, but not a third time */
    const struct mn_chunk *k = mn_sent_chunk(s, c->sent.order[c->sent.first]);
    uint32_t next = d->mss + options >= LARGE + STEP ? LARGE - options : SMALL - options;
    if (k->len < d->mss || d->mss <= next || has_taken_full(s, c))
        return;
    s->stats.tcp_black_holes++;
    if (d->full_mss == 0) {
        d->full_mss = d->mss;
        d->try_wait = TRY_FIRST;
    }
    d->try_at = s->now + d->try_wait;
    set_mss(c, next);
}

bool mn_path_is_to_try(const struct mn_stack *s, const struct mn_conn *c)
{
    return c->snd.full_mss != 0 && s->now >= c->snd.try_at && !c->loss.in_recovery && !c->loss.in_timeout;
}

void mn_path_on_try(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_send *d = &c->snd;
    d->try_wait = d->try_wait * 4 < TRY_LAST ? d->try_wait * 4 : TRY_LAST;
    d->try_at = s->now + d->try_wait;
}

void mn_path_on_arrival(struct mn_conn *c, uint32_t size)
{
    if (c->snd.full_mss == 0 || size <= c->snd.mss || size > c->snd.full_mss)
        return;
    set_mss(c, size);
    if (size == c->snd.full_mss)
        c->snd.full_mss = 0;
}
