/* Life of a connection block: handles, creation, timers, the list of those to serve, ending, burial. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

enum {
    INDEX_BITS = 17,
};

/* ---- handles: 17 bits of slot, 15 of generation, never 0 ---- */

static bool grow_slots(struct mn_stack *s)
{
    uint32_t room = s->slot_room == 0 ? 64 : s->slot_room * 2;
    if (room > s->cfg.max_conns)
        room = s->cfg.max_conns;
    if (room == s->slot_room)
        return false;
    struct mn_slot *slots = realloc(s->slots, room * sizeof *slots);
    if (slots == NULL)
        return false;
    s->slots = slots;
    s->slot_room = room;
    return true;
}

static bool take_slot(struct mn_stack *s, struct mn_conn *c)
{
    uint32_t i;
    if (s->slot_used < s->slot_room || (s->free_first == MN_NO_SLOT && grow_slots(s))) {
        i = s->slot_used++;
        s->slots[i] = (struct mn_slot){.generation = 0};
    } else if (s->free_first != MN_NO_SLOT) {
        i = s->free_first;
        s->free_first = s->slots[i].next_free;
        if (s->free_first == MN_NO_SLOT)
            s->free_last = MN_NO_SLOT;
    } else {
        return false;
    }
    struct mn_slot *slot = &s->slots[i];
    slot->generation = slot->generation % 0x7fff + 1;
    slot->conn = c;
    c->id = slot->generation << INDEX_BITS | i;
    return true;
}

/* Freed slots are reused oldest first: the longest possible time until a handle comes again. */
static void give_slot(struct mn_stack *s, uint32_t id)
{
    uint32_t i = id & (MN_MAX_CONNS - 1);
    s->slots[i].conn = NULL;
    s->slots[i].next_free = MN_NO_SLOT;
    if (s->free_last == MN_NO_SLOT)
        s->free_first = i;
    else
        s->slots[s->free_last].next_free = i;
    s->free_last = i;
}

struct mn_conn *mn_conn_get(const struct mn_stack *s, uint32_t id)
{
    uint32_t i = id & (MN_MAX_CONNS - 1);
    if (i >= s->slot_used || s->slots[i].conn == NULL || s->slots[i].conn->id != id)
        return NULL;
    return s->slots[i].conn;
}

/* ---- creation ---- */

static struct mn_conn *refuse(struct mn_stack *s, struct mn_conn *c, int *err, int why)
{
    if (c != NULL && c->id != 0)
        give_slot(s, c->id);
    free(c);
    if (why == ENFILE)
        s->stats.tcp_conns_full++;
    else
        s->stats.tcp_no_memory++;
    *err = why;
    return NULL;
}

struct mn_conn *mn_conn_new(struct mn_stack *s, const struct mn_tuple *t, int *err)
{
    struct mn_conn *c = calloc(1, sizeof *c);
    if (c == NULL)
        return refuse(s, c, err, ENOMEM);
    if (!take_slot(s, c))
        return refuse(s, c, err, ENFILE);
    c->node = (struct mn_node){.tuple = *t, .kind = MN_NODE_CONN};
    if (!mn_timers_reserve(&s->timers, s->stats.tcp_conns + s->stats.tcp_half_open + 2) ||
        !mn_demux_add(&s->demux, &c->node))
        return refuse(s, c, err, ENOMEM);
    c->is_linked = true;
    c->timer.kind = MN_DEADLINE_CONN;
    c->peer = MN_PEER_NONE;
    for (int i = 0; i < MN_T_COUNT; i++)
        c->due[i] = MN_DEADLINE_NONE;
    c->heard_at = s->now;
    c->rcv.shift = mn_conn_shift(s);
    uint32_t first = mn_budget_is_tight(s) ? MN_RCVBUF_TIGHT : MN_RCVBUF_FIRST;
    c->rcv.size = s->cfg.rcvbuf_max < first ? s->cfg.rcvbuf_max : first;
    c->rcv.size -= 1U << c->rcv.shift; /* so that rounding never takes the ring beyond its power of two */
    c->ack.quick = MN_QUICK_ACKS;
    c->ack.patience = 3;
    c->ack.is_conversation = true;
    mn_rtt_start(&c->rtt);
    s->stats.tcp_conns++;
    return c;
}

void mn_conn_start_sequence(struct mn_stack *s, struct mn_conn *c, uint32_t iss)
{
    c->snd.iss = c->snd.una = c->snd.nxt = iss;
    c->snd.end = iss + 1; /* the SYN takes one */
    (void)s;
    mn_loss_start(c);
}

/* The smallest shift with which the largest window can be told. */
uint8_t mn_conn_shift(const struct mn_stack *s)
{
    uint8_t shift = 0;
    while (shift < MN_TCP_MAX_SHIFT && (65535U << shift) < s->cfg.rcvbuf_max)
        shift++;
    return shift;
}

uint16_t mn_conn_advertised_mss(const struct mn_stack *s, const struct mn_tuple *t)
{
    size_t mss = mn_path_mtu(s, &t->remote) - mn_packet_header_len(&t->remote) - MN_TCP_HEADER;
    return (uint16_t)(mss > 65535 ? 65535 : mss);
}

/* peer_mss 0: the SYN named none (RFC 9293 3.7.1). Call after c->ts.on is known. */
void mn_conn_set_mss(struct mn_stack *s, struct mn_conn *c, uint16_t peer_mss)
{
    uint16_t ours = mn_conn_advertised_mss(s, &c->node.tuple);
    if (peer_mss == 0)
        peer_mss = mn_ip_is4(&c->node.tuple.remote) ? 536 : 1220;
    if (peer_mss < MN_MIN_MSS)
        peer_mss = MN_MIN_MSS;
    c->snd.peer_mss = peer_mss < ours ? peer_mss : ours;
    c->snd.mss = c->snd.peer_mss - (c->ts.on ? (uint32_t)MN_TCP_TS_OPTION : 0U);
    c->cc.mss = c->snd.mss;
}

/* ---- timers: one deadline in the heap per connection, the earliest of its own; late ones are corrected on firing ----
 */

void mn_conn_set_timer(struct mn_stack *s, struct mn_conn *c, enum mn_conn_timer which, uint64_t at)
{
    c->due[which] = at;
    if (!c->is_dead && (c->timer.place == 0 || at < c->timer.at))
        mn_timers_arm(&s->timers, &c->timer, at);
}

static uint64_t earliest(const struct mn_conn *c)
{
    uint64_t at = MN_DEADLINE_NONE;
    for (int i = 0; i < MN_T_COUNT; i++)
        if (c->due[i] < at)
            at = c->due[i];
    return at;
}

static void rearm(struct mn_stack *s, struct mn_conn *c)
{
    uint64_t at = earliest(c);
    if (at == MN_DEADLINE_NONE || c->is_dead)
        mn_timers_cancel(&s->timers, &c->timer);
    else
        mn_timers_arm(&s->timers, &c->timer, at);
}

void mn_conn_stop_timer(struct mn_stack *s, struct mn_conn *c, enum mn_conn_timer which)
{
    uint64_t was = c->due[which];
    c->due[which] = MN_DEADLINE_NONE;
    /* Short ones are worth taking out: a wake-up for nothing costs more than moving in the heap. */
    if (which == MN_T_ACK && was != MN_DEADLINE_NONE && c->timer.place != 0 && was <= c->timer.at)
        rearm(s, c);
}

void mn_conn_on_deadline(struct mn_stack *s, struct mn_conn *c)
{
    for (int i = 0; i < MN_T_COUNT && !c->is_dead; i++) {
        if (c->due[i] > s->now)
            continue;
        c->due[i] = MN_DEADLINE_NONE;
        mn_conn_fire(s, c, (enum mn_conn_timer)i);
    }
    if (!c->is_dead)
        rearm(s, c);
}

/* ---- to be served ---- */

void mn_conn_mark(struct mn_stack *s, struct mn_conn *c)
{
    if (c->is_dirty || c->is_dead)
        return;
    c->is_dirty = true;
    c->next_dirty = NULL;
    if (s->dirty_last != NULL)
        s->dirty_last->next_dirty = c;
    else
        s->dirty_first = c;
    s->dirty_last = c;
}

/* ---- ending ---- */

void mn_conn_unlink(struct mn_stack *s, struct mn_conn *c)
{
    if (c->is_linked)
        mn_demux_remove(&s->demux, &c->node);
    c->is_linked = false;
}

static void free_memory(struct mn_stack *s, struct mn_conn *c)
{
    mn_ring_free(s, &c->snd.ring);
    mn_ring_free(s, &c->rcv.ring);
    mn_sent_free(s, c);
    mn_receive_forget_early(s, c);
}

void mn_conn_kill(struct mn_stack *s, struct mn_conn *c)
{
    if (c->is_dead)
        return;
    c->is_dead = true;
    c->state = MN_CLOSED;
    mn_run_forget(s, c);
    mn_conn_unlink(s, c);
    mn_budget_forget(s, c);
    mn_timers_cancel(&s->timers, &c->timer);
    give_slot(s, c->id);
    s->stats.tcp_conns--;
    c->next_dead = s->dead;
    s->dead = c;
}

void mn_conn_end(struct mn_stack *s, struct mn_conn *c, int err)
{
    if (c->is_dead)
        return;
    bool was_connecting = !c->is_passive && (c->state == MN_SYN_SENT || c->state == MN_SYN_RCVD);
    bool tell = !c->is_orphan;
    uint32_t id = c->id;
    mn_conn_kill(s, c);
    if (tell && was_connecting)
        s->ops.tcp_failed(s->ops.ctx, id, err);
    else if (tell)
        s->ops.tcp_closed(s->ops.ctx, id, err);
}

void mn_conn_finish(struct mn_stack *s, struct mn_conn *c)
{
    c->state = MN_CLOSED;
    mn_conn_unlink(s, c);
    for (int i = 0; i < MN_T_COUNT; i++)
        c->due[i] = MN_DEADLINE_NONE;
    mn_timers_cancel(&s->timers, &c->timer);
    if (!c->is_orphan && (mn_conn_unread(c) > 0 || (c->rcv.fin_taken && !c->rcv.fin_told)))
        return; /* mn_receive_offer ends it */
    mn_conn_end(s, c, 0);
}

void mn_conn_bury(struct mn_stack *s)
{
    struct mn_conn **link = &s->dead;
    while (*link != NULL) {
        struct mn_conn *c = *link;
        if (c->is_dirty || c->is_blocked) {
            link = &c->next_dead; /* still in a list that is walked later */
            continue;
        }
        *link = c->next_dead;
        free_memory(s, c);
        free(c);
    }
}

void mn_conn_free_all(struct mn_stack *s)
{
    for (uint32_t i = 0; i < s->slot_used; i++) {
        struct mn_conn *c = s->slots[i].conn;
        if (c == NULL)
            continue;
        free_memory(s, c);
        free(c);
    }
    while (s->dead != NULL) {
        struct mn_conn *c = s->dead;
        s->dead = c->next_dead;
        free_memory(s, c);
        free(c);
    }
    free(s->slots);
}
