/* NewReno (RFC 6582) with limited transmit (RFC 3042), and go-back-N after a timeout. */
#include "internal.h"

void mn_loss_start(struct mn_conn *c)
{
    c->loss = (struct mn_loss){.recover = c->snd.iss, .rtx_at = c->snd.iss, .rtx_end = c->snd.iss};
}

static void enter_recovery(struct mn_conn *c, uint64_t now_ns)
{
    struct mn_loss *l = &c->loss;
    c->cc.ops->on_loss(&c->cc, c->snd.nxt - c->snd.una, now_ns);
    l->in_recovery = true;
    l->recover = c->snd.nxt;
    l->inflate = 3 * c->snd.mss;
    l->rtx_at = c->snd.una;
    l->rtx_end = c->snd.una + c->snd.mss;
}

static void on_partial_ack(struct mn_conn *c, uint32_t bytes)
{
    struct mn_loss *l = &c->loss;
    l->inflate = l->inflate > bytes ? l->inflate - bytes : 0;
    if (bytes >= c->snd.mss)
        l->inflate += c->snd.mss;
    l->rtx_at = c->snd.una;
    l->rtx_end = c->snd.una + c->snd.mss;
}

void mn_loss_on_ack(struct mn_conn *c, uint32_t bytes, uint64_t rtt_ns, uint64_t now_ns)
{
    struct mn_loss *l = &c->loss;
    bool is_past = mn_seq_le(l->recover, c->snd.una);
    l->dupacks = 0;
    if (l->in_recovery) {
        if (!is_past) {
            on_partial_ack(c, bytes);
            return;
        }
        l->in_recovery = false;
        l->inflate = 0;
        l->rtx_at = l->rtx_end = c->snd.una;
        c->cc.ops->on_recovered(&c->cc, now_ns);
        return;
    }
    l->rtx_at = mn_seq_max(l->rtx_at, c->snd.una);
    if (is_past) {
        /* Drawn along, or it would seem to lie ahead once the numbers have gone half way round. */
        l->in_timeout = false;
        l->recover = l->rtx_at = l->rtx_end = c->snd.una;
    }
    struct mn_cc_ack ack = {
        .bytes = bytes,
        .flight = mn_loss_flight(c) + bytes,
        .una = c->snd.una,
        .nxt = c->snd.nxt,
        .rtt_ns = rtt_ns,
        .min_rtt_ns = c->rtt.min_ns,
        .srtt_ns = c->rtt.srtt_ns,
        .now_ns = now_ns,
        .is_limited = c->snd.is_limited || l->in_timeout,
    };
    c->cc.ops->on_ack(&c->cc, &ack);
}

bool mn_loss_on_dupack(struct mn_conn *c, uint64_t now_ns)
{
    struct mn_loss *l = &c->loss;
    if (l->in_recovery) {
        if (l->inflate < c->snd.nxt - c->snd.una)
            l->inflate += c->snd.mss;
        return false;
    }
    /* Below recover they are echoes of our own retransmissions. */
    if (l->in_timeout || mn_seq_lt(c->snd.una, l->recover) || ++l->dupacks < 3)
        return false;
    enter_recovery(c, now_ns);
    return true;
}

void mn_loss_on_timeout(struct mn_conn *c, bool is_first, uint64_t now_ns)
{
    struct mn_loss *l = &c->loss;
    c->cc.ops->on_timeout(&c->cc, c->snd.nxt - c->snd.una, is_first, now_ns);
    *l = (struct mn_loss){.recover = c->snd.nxt, .rtx_at = c->snd.una, .rtx_end = c->snd.nxt, .in_timeout = true};
}

void mn_loss_on_path_shrunk(struct mn_conn *c)
{
    c->loss = (struct mn_loss){.recover = c->snd.nxt, .rtx_at = c->snd.una, .rtx_end = c->snd.nxt, .in_timeout = true};
}

bool mn_loss_next(const struct mn_conn *c, uint32_t *seq, uint32_t *len, bool *is_forced)
{
    const struct mn_loss *l = &c->loss;
    uint32_t at = mn_seq_max(l->rtx_at, c->snd.una);
    uint32_t end = mn_seq_lt(c->snd.nxt, l->rtx_end) ? c->snd.nxt : l->rtx_end;
    if (!mn_seq_lt(at, end))
        return false;
    *seq = at;
    *len = end - at;
    *is_forced = l->in_recovery || at == c->snd.una;
    return true;
}

void mn_loss_on_retransmitted(struct mn_conn *c, uint32_t seq, uint32_t len)
{
    c->loss.rtx_at = seq + len;
}

uint32_t mn_loss_flight(const struct mn_conn *c)
{
    const struct mn_loss *l = &c->loss;
    uint32_t out = c->snd.nxt - c->snd.una;
    if (!l->in_timeout)
        return out;
    uint32_t at = mn_seq_max(l->rtx_at, c->snd.una);
    uint32_t lost = mn_seq_lt(at, l->rtx_end) ? l->rtx_end - at : 0;
    return out > lost ? out - lost : 0;
}

uint32_t mn_loss_window(const struct mn_conn *c)
{
    const struct mn_loss *l = &c->loss;
    if (l->in_recovery)
        return c->cc.cwnd + l->inflate;
    return c->cc.cwnd + (l->dupacks < 2 ? l->dupacks : 2) * c->snd.mss;
}
