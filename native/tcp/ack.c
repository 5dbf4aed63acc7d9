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

/* What is owed now; with_data: segments of this turn have carried it already. */
void mn_ack_send(struct mn_stack *s, struct mn_conn *c, bool with_data)
{
    struct mn_acking *a = &c->ack;
    if (with_data)
        ack_is_sent(s, c, true);
    else if (a->duplicates == 0 && ack_is_due(s, c))
        a->duplicates = 1;
    /* One per early segment: without SACK the peer counts them. */
    while (a->duplicates > 0) {
        int err = mn_tcp_send_bare(s, c, c->snd.nxt);
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
