/* Windows over a bottleneck in virtual time, no TCP: flows send what their congestion control allows into one queue
 * that drops at its tail, ACKs come back a propagation delay after the queue. A loss is known when the next packet of
 * its flow is acknowledged; what was lost is counted, not sent again. */
#ifndef MN_TESTS_CC_LINK_H
#define MN_TESTS_CC_LINK_H

#include "../tcp/cc.h"
#include "check.h"

enum {
    LINK_FLOWS = 8,
    LINK_OUT = 1 << 14, /* packets of one flow in flight */
    LINK_SEGMENT = 1250,
};

struct link_packet {
    uint64_t acked_at, sent_at;
    bool is_lost;
};

struct link_flow {
    struct mn_cc cc;
    uint64_t starts_at, rtt_ns; /* propagation there and back */
    struct link_packet *out;
    uint32_t head, nxt, recover; /* in packets */
    bool in_recovery;
    uint64_t srtt_ns, min_rtt_ns, delivered, lost, timeouts, clock_ns; /* clock_ns: earliest next departure */
};

struct link {
    uint64_t now, free_at, packet_ns, queue_ns; /* time to send one packet; what the queue may hold */
    struct link_flow flow[LINK_FLOWS];
    int count;
    bool is_paced;
    uint64_t mark_above_ns; /* ECN: a deeper queue marks; 0: never */
};

static inline void link_start(struct link *l, uint64_t bits_per_s, uint64_t queue_bytes)
{
    memset(l, 0, sizeof *l);
    l->now = 1000000000;
    l->packet_ns = LINK_SEGMENT * 8 * 1000000000ULL / bits_per_s;
    l->queue_ns = queue_bytes / LINK_SEGMENT * l->packet_ns;
}

static inline struct link_flow *link_add(struct link *l, const struct mn_cc_ops *ops, uint64_t rtt_ns,
                                         uint64_t after_ns)
{
    CHECK(l->count < LINK_FLOWS);
    struct link_flow *f = &l->flow[l->count++];
    mn_cc_start(&f->cc, ops, LINK_SEGMENT);
    f->rtt_ns = rtt_ns;
    f->starts_at = l->now + after_ns;
    f->out = calloc(LINK_OUT, sizeof *f->out);
    CHECK(f->out != NULL);
    return f;
}

static inline void link_stop(struct link *l)
{
    for (int i = 0; i < l->count; i++)
        free(l->flow[i].out);
}

static inline void link_send(struct link *l, struct link_flow *f)
{
    while (f->nxt - f->head < LINK_OUT && (f->nxt - f->head + 1) * LINK_SEGMENT <= f->cc.cwnd) {
        uint64_t rate = l->is_paced ? f->cc.ops->pacing_rate(&f->cc, f->srtt_ns) : 0;
        uint64_t at = f->clock_ns > l->now ? f->clock_ns : l->now;
        if (rate != 0) {
            if (at > l->now)
                return;
            f->clock_ns = at + LINK_SEGMENT * 1000000000ULL / rate;
        }
        struct link_packet *p = &f->out[f->nxt++ % LINK_OUT];
        uint64_t wait = l->free_at > l->now ? l->free_at - l->now : 0;
        p->sent_at = l->now;
        p->is_lost = wait > l->queue_ns;
        if (!p->is_lost)
            l->free_at = l->now + wait + l->packet_ns;
        p->acked_at = l->now + wait + l->packet_ns + f->rtt_ns;
    }
}

static inline void link_ack(struct link *l, struct link_flow *f)
{
    uint32_t flight = f->nxt - f->head, lost = 0;
    while (f->out[f->head % LINK_OUT].is_lost && f->head != f->nxt) {
        f->head++;
        lost++;
    }
    f->lost += lost;
    if (f->head == f->nxt) { /* nothing behind it to tell by */
        f->timeouts++;
        f->in_recovery = false;
        f->cc.ops->on_timeout(&f->cc, flight * LINK_SEGMENT, true, l->now);
        return;
    }
    struct link_packet *p = &f->out[f->head++ % LINK_OUT];
    uint64_t rtt = l->now - p->sent_at;
    f->delivered++;
    f->min_rtt_ns = f->min_rtt_ns == 0 || rtt < f->min_rtt_ns ? rtt : f->min_rtt_ns;
    f->srtt_ns = f->srtt_ns == 0 ? rtt : (7 * f->srtt_ns + rtt) / 8;
    bool is_marked = l->mark_above_ns != 0 && rtt - f->rtt_ns > l->mark_above_ns;
    if (f->in_recovery && f->head - f->recover < 1U << 31) {
        f->in_recovery = false;
        f->cc.ops->on_recovered(&f->cc, l->now);
    }
    mn_cc_count(&f->cc, LINK_SEGMENT, lost * LINK_SEGMENT);
    bool stands = !is_marked && f->cc.ops->stands != NULL && f->cc.ops->stands(&f->cc);
    if (!f->in_recovery && ((lost > 0 && !stands) || is_marked)) {
        (lost > 0 ? f->cc.ops->on_loss : f->cc.ops->on_mark)(&f->cc, flight * LINK_SEGMENT, l->now);
        f->in_recovery = true;
        f->recover = f->nxt;
    } else if (!f->in_recovery) {
        struct mn_cc_ack ack = {
            .bytes = LINK_SEGMENT,
            .flight = flight * LINK_SEGMENT,
            .una = f->head * LINK_SEGMENT,
            .nxt = f->nxt * LINK_SEGMENT,
            .rtt_ns = rtt,
            .min_rtt_ns = f->min_rtt_ns,
            .srtt_ns = f->srtt_ns,
            .now_ns = l->now,
            .is_limited = true,
        };
        uint32_t before = f->cc.cwnd;
        f->cc.ops->on_ack(&f->cc, &ack);
        CHECK(f->cc.cwnd >= before);
    }
}

/* When the next ACK of a flow comes, or its timer runs out because all it sent was lost; UINT64_MAX: nothing is out. */
static inline uint64_t link_ack_due(const struct link_flow *f)
{
    uint64_t at = UINT64_MAX;
    for (uint32_t i = f->head; i != f->nxt; i++) {
        if (!f->out[i % LINK_OUT].is_lost)
            return f->out[i % LINK_OUT].acked_at;
        at = f->out[i % LINK_OUT].acked_at + 200000000;
    }
    return at;
}

static inline uint64_t link_due(const struct link *l, const struct link_flow *f)
{
    uint64_t at = link_ack_due(f), send = f->starts_at > f->clock_ns ? f->starts_at : f->clock_ns;
    if (send < at && (f->head == f->nxt || (send > l->now && (f->nxt - f->head + 1) * LINK_SEGMENT <= f->cc.cwnd)))
        at = send;
    return at > l->now ? at : l->now;
}

static inline void link_run(struct link *l, uint64_t ns)
{
    for (uint64_t until = l->now + ns;;) {
        struct link_flow *f = NULL;
        uint64_t at = until;
        for (int i = 0; i < l->count; i++)
            if (link_due(l, &l->flow[i]) < at) {
                f = &l->flow[i];
                at = link_due(l, f);
            }
        l->now = at;
        if (f == NULL)
            return;
        if (link_ack_due(f) <= l->now)
            link_ack(l, f);
        link_send(l, f);
    }
}

/* Delivered since a count was taken, in bits per second. */
static inline double link_rate(const struct link_flow *f, uint64_t since, uint64_t ns)
{
    return (double)(f->delivered - since) * LINK_SEGMENT * 8e9 / (double)ns;
}

#endif
