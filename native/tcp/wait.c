/* TIME-WAIT as records of a hundred-odd bytes in order of expiry; the connection block and its buffers are gone by
 * then. RST is ignored (RFC 1337); a newer SYN takes the place over (RFC 6191). */
#include <stdlib.h>

#include "internal.h"

static void link_last(struct mn_stack *s, struct mn_wait *w)
{
    w->prev = s->wait_last;
    w->next = NULL;
    if (s->wait_last != NULL)
        s->wait_last->next = w;
    else
        s->wait_first = w;
    s->wait_last = w;
    w->expires_at = s->now + MN_TIME_WAIT_NS;
}

static void unlink_wait(struct mn_stack *s, struct mn_wait *w)
{
    if (w->prev != NULL)
        w->prev->next = w->next;
    else
        s->wait_first = w->next;
    if (w->next != NULL)
        w->next->prev = w->prev;
    else
        s->wait_last = w->prev;
}

void mn_wait_free(struct mn_stack *s, struct mn_wait *w)
{
    unlink_wait(s, w);
    mn_demux_remove(&s->demux, &w->node);
    s->stats.tcp_time_wait--;
    free(w);
}

static void make_record(struct mn_stack *s, const struct mn_conn *c)
{
    if (s->stats.tcp_time_wait >= s->cfg.max_time_wait) {
        s->stats.tcp_time_wait_full++;
        mn_wait_free(s, s->wait_first);
    }
    struct mn_wait *w = calloc(1, sizeof *w);
    if (w == NULL) {
        s->stats.tcp_no_memory++;
        return;
    }
    w->node = (struct mn_node){.tuple = c->node.tuple, .kind = MN_NODE_WAIT};
    w->peer = c->peer;
    w->snd_nxt = c->snd.nxt;
    w->rcv_nxt = c->rcv.nxt;
    w->has_ts = c->ts.on;
    w->ts_recent = c->ts.recent;
    w->ts_offset = c->ts.offset;
    w->wnd = (uint16_t)(c->rcv.size >> c->rcv.shift);
    if (!mn_demux_add(&s->demux, &w->node)) {
        free(w);
        return;
    }
    s->stats.tcp_time_wait++;
    link_last(s, w);
}

/* Both FINs are acknowledged, or the last ACK leaves now: the record stays, the connection ends. */
void mn_wait_enter(struct mn_stack *s, struct mn_conn *c)
{
    if (c->ack.now || c->ack.pending > 0) {
        mn_tcp_send_bare(s, c, c->snd.nxt);
        c->ack.now = false;
        c->ack.pending = 0;
    }
    mn_conn_unlink(s, c);
    make_record(s, c);
    mn_conn_finish(s, c);
    if (!c->is_dead)
        mn_receive_offer(s, c);
}

static void answer(struct mn_stack *s, const struct mn_wait *w)
{
    struct mn_segment g = {.seq = w->snd_nxt, .ack = w->rcv_nxt, .flags = MN_TCP_ACK, .wscale = -1, .wnd = w->wnd};
    g.has_ts = w->has_ts;
    g.tsval = (uint32_t)(s->now / MN_MS) + w->ts_offset;
    g.tsecr = w->ts_recent;
    mn_tcp_emit(s, &w->node.tuple, &g);
}

bool mn_wait_input(struct mn_stack *s, struct mn_wait *w, const struct mn_segment *g, uint32_t *min_iss)
{
    if ((g->flags & MN_TCP_RST) != 0)
        return false;
    if ((g->flags & (MN_TCP_SYN | MN_TCP_ACK)) == MN_TCP_SYN) {
        bool newer_stamp = w->has_ts && g->has_ts && mn_seq_lt(w->ts_recent, g->tsval);
        if (newer_stamp || mn_seq_lt(w->rcv_nxt, g->seq)) {
            *min_iss = w->snd_nxt + 65536;
            if (*min_iss == 0)
                *min_iss = 1;
            mn_wait_free(s, w);
            return true;
        }
    }
    if (mn_segment_space(g) == 0)
        return false;
    answer(s, w);
    if ((g->flags & MN_TCP_FIN) != 0 && g->seq + mn_segment_space(g) == w->rcv_nxt) {
        unlink_wait(s, w);
        link_last(s, w);
    }
    return false;
}

void mn_wait_expire(struct mn_stack *s)
{
    while (s->wait_first != NULL && s->wait_first->expires_at <= s->now)
        mn_wait_free(s, s->wait_first);
}
