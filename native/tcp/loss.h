/* Loss detection and recovery: which chunks are lost (RACK-TLP, RFC 8985; by duplicate ACKs where the peer knows no
 * SACK, RFC 6582), how much may be out while they are repaired (PRR, RFC 9937), and taking back what was no loss (RFC
 * 4015). */
#ifndef MN_TCP_LOSS_H
#define MN_TCP_LOSS_H

#include <stdbool.h>
#include <stdint.h>

#include "sent.h"

struct mn_segment;

struct mn_loss {
    uint32_t recover; /* recovery ends when this is acknowledged; drawn along with una outside of it */
    bool in_recovery; /* fast recovery */
    bool is_standing; /* with the window kept: what was lost is repaired, and says nothing of congestion */
    bool in_timeout;  /* repairing what was out when the timer ran out */
    bool is_forced;   /* one segment may leave whatever the windows say */
    /* RACK: the segment sent last among those that arrived */
    bool has_newest, has_reordering;
    uint32_t newest_end, farthest; /* farthest: highest number known to have arrived */
    uint64_t newest_at, newest_rtt;
    uint8_t reorder_factor, reorder_rounds; /* of the reordering window; recoveries until it is 1 again */
    bool in_dsack_round;
    uint32_t dsack_round, dsacks;
    /* without SACK */
    uint32_t dupacks, dup_bytes; /* bytes that duplicate ACKs say have left the network */
    /* PRR */
    uint32_t window; /* in fast recovery */
    uint32_t prr_delivered, prr_out, prr_from;
    /* undo */
    bool may_undo, has_resent;
    uint32_t undo_from, undo_to, undo_bytes, undo_stamp;
    /* ECN (RFC 3168 6.1.2) */
    bool owes_cwr, is_marked; /* is_marked: the window was reduced for a mark since mark_edge was nxt */
    uint32_t mark_edge;
    /* TLP */
    bool probe_out, probe_is_copy;
    uint32_t probe_end;
    /* rate samples */
    uint64_t delivered, delivered_at;
    uint64_t app_limited_until; /* in terms of delivered; 0: not */
    uint64_t rate;              /* bytes per second, the last sample */
};

/* What take_ack has found out before loss.c judges it. */
struct mn_ack_news {
    struct mn_delivery arrived;
    uint32_t before, flight; /* una, and bytes in the network, before this ACK */
    bool is_duplicate;       /* in the sense of RFC 5681 2 */
    bool has_dsack;
    uint32_t dsack_first, dsack_end;
    uint64_t rtt_ns; /* 0: no sample came with it */
};

void mn_loss_start(struct mn_conn *c);
/* una has moved and the chunks are marked. */
void mn_loss_on_ack(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g, struct mn_ack_news *n);
/* The peer echoes congestion that our segments have met. */
void mn_loss_on_mark(struct mn_stack *s, struct mn_conn *c);
void mn_loss_on_timeout(struct mn_stack *s, struct mn_conn *c);
void mn_loss_on_reorder_timer(struct mn_stack *s, struct mn_conn *c);
/* The path takes only smaller segments from now on: all that is out was too big. No sign of congestion. */
void mn_loss_on_path_shrunk(struct mn_stack *s, struct mn_conn *c);
void mn_loss_on_sent(struct mn_conn *c, uint32_t bytes);
void mn_loss_on_resent(struct mn_stack *s, struct mn_conn *c, uint32_t bytes);
uint32_t mn_loss_flight(const struct mn_conn *c); /* bytes believed to be in the network */
uint32_t mn_loss_window(const struct mn_conn *c); /* bytes that may be */
/* A tail loss probe is worth a timer now. */
bool mn_loss_wants_probe(const struct mn_conn *c);
uint64_t mn_loss_probe_delay(const struct mn_conn *c);
void mn_loss_on_probe(struct mn_conn *c, bool is_copy);

#endif
