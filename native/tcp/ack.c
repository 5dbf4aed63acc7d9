/* Acknowledgements: when one is owed, when it waits for an answer to carry it, and how it is sent. */
#include "internal.h"

static bool ack_is_due(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_acking *a = &c->ack;
    if (a->now)
        return true;
    if (a->pending == 0)
        return false;
    if (c->rcv.largest > 0 && a->pending >= 2 * c->rcv.largest)
        return true;
    if (a->last_was_full && a->quick == 0) {
        if (c->due[MN_T_ACK] == MN_DEADLINE_NONE)
            mn_conn_set_timer(s, c, MN_T_ACK, s->now + MN_ACK_BULK);
        return false;
    }
    if (!a->last_was_full && a->is_conversation) {
        if (c->due[MN_T_ACK] == MN_DEADLINE_NONE)
            mn_conn_set_timer(s, c, MN_T_ACK, s->now + MN_ACK_REPLY);
        return false;
    }
    return true;
}

void mn_ack_note_ecn(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g)
{
    bool was = c->ecn_echo;
    if ((g->flags & MN_TCP_CWR) != 0)
        c->ecn_echo = false;
    if (g->ecn == MN_ECN_CE) {
        s->stats.tcp_ecn_ce++;
        c->ecn_echo = true;
    }
    if (c->ecn_echo == was)
        return;
    c->ack.now = true; /* the sender should know within one round trip */
    mn_conn_mark(s, c);
}

/* ---- sending ---- */

/* An ACK that names the early ranges (RFC 2018 4). */
static int send_blocks(struct mn_stack *s, struct mn_conn *c)
{
    uint32_t edge;
    struct mn_segment g = {.seq = c->snd.nxt, .ack = c->rcv.nxt, .flags = mn_conn_ack_flags(c), .wscale = -1};
    g.wnd = (uint16_t)mn_receive_window(c, &edge);
    g.has_ts = c->ts.on;
    g.tsval = mn_conn_ts_now(s, c);
    g.tsecr = c->ts.recent;
    g.sack_count = mn_early_tell(&c->rcv.early, g.sack, c->ts.on ? MN_TCP_SACK_MAX - 1 : MN_TCP_SACK_MAX);
    int err = mn_tcp_emit(s, &c->node.tuple, &g);
    if (err != 0)
        return err;
    c->rcv.edge = edge;
    c->ts.last_ack = c->rcv.nxt;
    return 0;
}

static int send_one(struct mn_stack *s, struct mn_conn *c)
{
    const struct mn_early *e = &c->rcv.early;
    if (c->may_sack && (e->count > 0 || e->has_twice))
        return send_blocks(s, c);
    return mn_tcp_send_bare(s, c, c->snd.nxt);
}

/* An ACK left, alone or on data. */
static void ack_is_sent(struct mn_stack *s, struct mn_conn *c, bool with_data)
{
    struct mn_acking *a = &c->ack;
    if (with_data && a->pending > 0 && !a->is_conversation && ++a->answered >= a->patience) {
        a->is_conversation = true;
        a->answered = 0;
    }
    if (a->quick > 0 && a->pending > 0)
        a->quick--;
    a->pending = 0;
    a->now = false;
    if (c->due[MN_T_ACK] != MN_DEADLINE_NONE)
        mn_conn_stop_timer(s, c, MN_T_ACK);
}

/* Without selective acknowledgement the peer counts: one ACK per early segment. With it one says all that a batch
 * changed, unless more ranges changed than its blocks hold. */
void mn_ack_owe_duplicate(struct mn_stack *s, struct mn_conn *c)
{
    uint8_t blocks = c->ts.on ? MN_TCP_SACK_MAX - 1 : MN_TCP_SACK_MAX;
    mn_conn_mark(s, c);
    if (!c->may_sack) {
        if (c->ack.duplicates < MN_MAX_DUP_ACKS)
            c->ack.duplicates++;
        return;
    }
    c->ack.now = true;
    if (c->rcv.early.untold >= blocks && send_one(s, c) == 0)
        ack_is_sent(s, c, false);
}

void mn_ack_note_twice(struct mn_stack *s, struct mn_conn *c, uint32_t first, uint32_t end)
{
    if (!c->may_sack)
        return;
    if (!mn_early_note_twice(&c->rcv.early, first, end)) {
        send_one(s, c); /* two reports do not fit one ACK */
        mn_early_note_twice(&c->rcv.early, first, end);
    }
    c->ack.now = true;
    mn_conn_mark(s, c);
}

/* What is owed now; with_data: segments of this turn have carried it already. */
void mn_ack_send(struct mn_stack *s, struct mn_conn *c, bool with_data)
{
    struct mn_acking *a = &c->ack;
    if (with_data)
        ack_is_sent(s, c, true);
    /* Data carries no blocks. */
    bool has_news = c->may_sack && (c->rcv.early.has_twice || c->rcv.early.untold > 0);
    if (a->duplicates == 0 && (has_news || (!with_data && ack_is_due(s, c))))
        a->duplicates = 1;
    /* One per early segment: without SACK the peer counts them. */
    while (a->duplicates > 0) {
        int err = send_one(s, c);
        if (err != 0) {
            a->now = true;
            a->duplicates = 0;
            mn_tcp_wait_for_buffer(s, c, err);
            return;
        }
        a->duplicates--;
        ack_is_sent(s, c, false);
    }
}
