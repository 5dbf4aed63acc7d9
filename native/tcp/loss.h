/* Loss detection: which bytes in flight are lost, how many are still out, and how many may be. Today by duplicate ACKs
 * and the timer (NewReno, RFC 6582); a scoreboard replaces the insides, not this face. */
#ifndef MN_TCP_LOSS_H
#define MN_TCP_LOSS_H

#include <stdbool.h>
#include <stdint.h>

struct mn_conn;

struct mn_loss {
    uint32_t recover;         /* recovery ends when this is acknowledged */
    uint32_t rtx_at, rtx_end; /* known to be lost, to be sent again: [rtx_at, rtx_end) */
    uint32_t inflate;         /* bytes that duplicate ACKs say have left the network */
    uint32_t dupacks;
    bool in_recovery; /* fast recovery */
    bool in_timeout;  /* going back over what was out when the timer ran out */
};

void mn_loss_start(struct mn_conn *c);
/* snd_una has just moved up by bytes. */
void mn_loss_on_ack(struct mn_conn *c, uint32_t bytes, uint64_t rtt_ns, uint64_t now_ns);
/* True if this one began a fast retransmission. */
bool mn_loss_on_dupack(struct mn_conn *c, uint64_t now_ns);
void mn_loss_on_timeout(struct mn_conn *c, bool is_first, uint64_t now_ns);
/* The path takes only smaller segments from now on: all that is out was too big. No sign of congestion. */
void mn_loss_on_path_shrunk(struct mn_conn *c);
/* The next lost range, if it is time to send it: *is_forced: whatever the window says. */
bool mn_loss_next(const struct mn_conn *c, uint32_t *seq, uint32_t *len, bool *is_forced);
void mn_loss_on_retransmitted(struct mn_conn *c, uint32_t seq, uint32_t len);
uint32_t mn_loss_flight(const struct mn_conn *c); /* bytes believed to be in the network */
uint32_t mn_loss_window(const struct mn_conn *c); /* bytes that may be */

#endif
