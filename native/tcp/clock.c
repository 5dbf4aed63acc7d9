/* What happens when a timer of a connection runs out. */
#include <errno.h>

#include "internal.h"

static void give_up(struct mn_stack *s, struct mn_conn *c, int err)
{
    if (c->state >= MN_ESTABLISHED)
        mn_tcp_send_reset(s, c);
    mn_conn_end(s, c, c->soft_error != 0 && c->state < MN_ESTABLISHED ? c->soft_error : err);
}

static void retry_syn(struct mn_stack *s, struct mn_conn *c)
{
    if (c->is_unsent && s->now - c->heard_at < MN_RTO_MAX_NS) {
        mn_tcp_send_syn(s, c); /* it never left: no try of the network's */
        return;
    }
    if (c->syn_tries >= MN_SYN_RETRIES || c->is_unsent) {
        give_up(s, c, ETIMEDOUT);
        return;
    }
    c->syn_tries++;
    c->rtt.backoff++;
    mn_tcp_send_syn(s, c);
}

static bool is_hopeless(const struct mn_stack *s, const struct mn_conn *c)
{
    uint64_t since = c->snd.stuck_at;
    /* A peer that answers may keep its window shut for ever, but not once the application is gone. With a window open
     * answers alone are no progress: the two may have lost each other's numbers. */
    if (!c->is_orphan && c->snd.wnd == 0 && c->heard_at > since)
        since = c->heard_at;
    return s->now - since >= (c->is_orphan ? MN_GIVE_UP_ORPHAN : MN_GIVE_UP);
}

static void retransmit(struct mn_stack *s, struct mn_conn *c)
{
    s->stats.tcp_timeouts++;
    c->timeouts++;
    mn_path_on_timeout(s, c);
    mn_loss_on_timeout(s, c);
    if (c->rtt.backoff < 16)
        c->rtt.backoff++;
    mn_conn_set_timer(s, c, MN_T_RETX, s->now + mn_rtt_timeout(&c->rtt));
    mn_conn_mark(s, c);
}

/* A number from before the window makes the peer answer with its window, and costs it nothing. */
static void probe_window(struct mn_stack *s, struct mn_conn *c)
{
    s->stats.tcp_probes++;
    mn_tcp_send_bare(s, c, c->snd.una - 1);
    if (c->rtt.backoff < 16)
        c->rtt.backoff++;
    mn_conn_set_timer(s, c, MN_T_RETX, s->now + mn_rtt_timeout(&c->rtt));
}

/* A window that will not open to a full segment but is not shut: send what fits (RFC 9293 3.8.6.2.1, override). */
static void send_small(struct mn_stack *s, struct mn_conn *c)
{
    uint32_t max = c->snd.max_wnd;
    c->snd.max_wnd = 0;
    mn_tcp_output(s, c);
    c->snd.max_wnd = max;
}

static void fire_retransmission(struct mn_stack *s, struct mn_conn *c)
{
    if (c->state == MN_SYN_SENT || c->state == MN_SYN_RCVD) {
        retry_syn(s, c);
        return;
    }
    bool is_out = c->snd.una != c->snd.nxt;
    if (!is_out && !mn_seq_lt(c->snd.nxt, c->snd.end))
        return;
    bool is_probe = is_out && c->due[MN_T_PROBE] <= s->now && mn_loss_wants_probe(c);
    c->due[MN_T_PROBE] = MN_DEADLINE_NONE;
    if (is_hopeless(s, c)) {
        give_up(s, c, ETIMEDOUT);
        return;
    }
    if (is_probe && mn_tcp_send_probe(s, c))
        return;
    if (is_out)
        retransmit(s, c);
    else if (c->snd.wnd > 0)
        send_small(s, c);
    else
        probe_window(s, c);
}

/* The answer that should have carried the ACK did not come: rely on it less. */
static void fire_ack(struct mn_stack *s, struct mn_conn *c)
{
    struct mn_acking *a = &c->ack;
    if (a->pending == 0)
        return;
    if (a->is_conversation && !a->last_was_full) {
        a->is_conversation = false;
        a->answered = 0;
        if (a->patience < 64)
            a->patience *= 2;
    }
    a->now = true;
    mn_conn_mark(s, c);
}

static void fire_keepalive(struct mn_stack *s, struct mn_conn *c)
{
    /* With data out or a window to probe, those ask already. */
    bool is_busy = c->snd.una != c->snd.nxt || mn_seq_lt(c->snd.nxt, c->snd.end);
    if (is_busy || (c->keep_probes == 0 && s->now - c->heard_at < MN_KEEP_IDLE)) {
        uint64_t at = c->heard_at + MN_KEEP_IDLE;
        mn_conn_set_timer(s, c, MN_T_KEEP, at > s->now ? at : s->now + MN_KEEP_INTERVAL);
        return;
    }
    if (c->keep_probes >= MN_KEEP_PROBES) {
        give_up(s, c, ETIMEDOUT);
        return;
    }
    c->keep_probes++;
    s->stats.tcp_keepalives++;
    mn_tcp_send_bare(s, c, c->snd.nxt - 1);
    mn_conn_set_timer(s, c, MN_T_KEEP, s->now + MN_KEEP_INTERVAL);
}

static void fire_idle(struct mn_stack *s, struct mn_conn *c)
{
    if (c->snd.ring.data != NULL && mn_conn_used(c) == 0 && s->now - c->snd.sent_at >= MN_IDLE_RING) {
        mn_ring_free(s, &c->snd.ring);
        if (c->snd.una == c->snd.nxt)
            mn_sent_free(s, c);
    }
    if (c->rcv.ring.data != NULL && c->rcv.early.count == 0 && mn_conn_unread(c) == 0) {
        mn_ring_free(s, &c->rcv.ring);
        mn_receive_forget_early(s, c);
    }
    if (c->snd.ring.data != NULL || c->rcv.ring.data != NULL)
        mn_conn_set_timer(s, c, MN_T_IDLE, s->now + MN_IDLE_RING);
}

void mn_conn_fire(struct mn_stack *s, struct mn_conn *c, enum mn_conn_timer which)
{
    switch (which) {
    case MN_T_RETX:
        fire_retransmission(s, c);
        break;
    case MN_T_REORDER:
        mn_loss_on_reorder_timer(s, c);
        break;
    case MN_T_PROBE:
        if (c->state >= MN_ESTABLISHED && mn_loss_wants_probe(c))
            (void)mn_tcp_send_probe(s, c);
        break;
    case MN_T_PACE:
        mn_conn_mark(s, c);
        break;
    case MN_T_ACK:
        fire_ack(s, c);
        break;
    case MN_T_KEEP:
        fire_keepalive(s, c);
        break;
    case MN_T_LIFE:
        mn_conn_kill(s, c); /* an orphan whose peer never closed */
        break;
    case MN_T_IDLE:
        fire_idle(s, c);
        break;
    default:
        break;
    }
}
