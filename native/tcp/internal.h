/* What the files of tcp/ share: the connection block, the half-open and TIME-WAIT records, and the stack that owns
 * them.
 *
 * Who may touch what: a file changes the fields under its own name and calls the others for theirs.
 * A connection is freed only when the outermost call into the stack ends (mn_turn_leave), so a pointer to one stays
 * good across upcalls; is_dead says that it must not be used for anything more.
 */
#ifndef MN_TCP_INTERNAL_H
#define MN_TCP_INTERNAL_H

#include <openssl/types.h>

#include "../filter/flows.h"
#include "../filter/rules.h"
#include "../ip/fragments.h"
#include "../ip/icmp.h"
#include "../ip/packet.h"
#include "../ip/ports.h"
#include "../ip/udp.h"
#include "cc.h"
#include "early.h"
#include "loss.h"
#include "rtt.h"
#include "segment.h"
#include "stack.h"
#include "timers.h"

#define MN_MS 1000000ULL
#define MN_SECOND 1000000000ULL

/* ---- bounds, each with its reason ---- */
enum {
    MN_MAX_CONNS = 1 << 17,       /* what a handle can name */
    MN_RUNS = 64,                 /* flows gathered at once in a batch; one more flushes all */
    MN_RUN_PIECES = 64,           /* packets of one run: one writev */
    MN_RING_FIRST = 16 << 10,     /* receive ring at first need */
    MN_RING_LEAST = 4 << 10,      /* any ring when memory is tight */
    MN_RCVBUF_TIGHT = 16 << 10,   /* what windows shrink to then */
    MN_SND_RING_FIRST = 16 << 10, /* thousands of small writers fit the budget */
    MN_UNSENT_MOST = 128 << 10,   /* or a congestion window, if that is more */
    MN_SND_RING_FREE = 64 << 10,  /* grown to without a window that asks for it */
    MN_RCVBUF_FIRST = 256 << 10,
    MN_QUANTUM = 128, /* segments a connection sends before the next one's turn */
    MN_LOOPBACK_SLOTS = 256,
    MN_LOOPBACK_ROUNDS = 8,   /* per flush: a turn must end */
    MN_MAX_DUP_ACKS = 64,     /* duplicate ACKs owed per batch */
    MN_MIN_MSS = 88,          /* below, headers outweigh data: an amplifier */
    MN_CHALLENGES_PER_S = 10, /* RFC 5961 7: per connection, so that none learns of another */
    MN_ECHO_PER_S = 1000,
    MN_ERRORS_PER_S = 100,
    MN_PEER_ERRORS_PER_S = 10,
    MN_BUCKETS = 64,    /* peers share them by slot: a bound, not an account */
    MN_HALF_SHARE = 16, /* half-open records a peer may have whatever the backlog */
    MN_HALF_LOOK = 16,  /* records looked at to find one that gives way */
    MN_SYN_RETRIES = 6,
    MN_SYN_ACK_RETRIES = 5,
    MN_KEEP_PROBES = 4,
    MN_QUICK_ACKS = 16,
    MN_PAWS_LATE = 200, /* ticks of the peer's clock, 1 ms or more: the numbers do not come round so fast */
};

#define MN_KEEP_IDLE (120 * MN_SECOND)
#define MN_KEEP_INTERVAL (30 * MN_SECOND)
#define MN_GIVE_UP (900 * MN_SECOND) /* R2 of RFC 9293 3.8.3 */
#define MN_GIVE_UP_ORPHAN (300 * MN_SECOND)
#define MN_FIN_WAIT_2_NS (60 * MN_SECOND)
#define MN_TIME_WAIT_NS (60 * MN_SECOND)
#define MN_IDLE_RING (1 * MN_SECOND)
#define MN_RISING_RTT (2 * MN_MS) /* where a window that opens a round trip late is felt */
#define MN_ACK_BULK (5 * MN_MS)   /* one full segment, more expected */
#define MN_ACK_REPLY (1 * MN_MS)  /* the application usually answers at once and carries the ACK */
#define MN_RENEGE_NS (10 * MN_MS)
#define MN_RETRY_NS (1 * MN_MS) /* no packet buffer: try again */
#define MN_RTT_SPAN (5 * MN_SECOND)
#define MN_PAWS_IDLE (24ULL * 24 * 3600 * MN_SECOND)

enum mn_tcp_state {
    MN_CLOSED, /* only waits for the application to take what arrived */
    MN_SYN_SENT,
    MN_SYN_RCVD, /* simultaneous open; passive ones are half-open records */
    MN_ESTABLISHED,
    MN_FIN_WAIT_1,
    MN_FIN_WAIT_2,
    MN_CLOSE_WAIT,
    MN_CLOSING,
    MN_LAST_ACK,
    MN_TIME_WAIT, /* a record of its own, never a connection */
};

#define MN_NO_SLOT 0xffffffffU

/* ---- demultiplexing ---- */

struct mn_tuple {
    struct mn_ip local, remote;
    uint16_t lport, rport;
};

enum mn_node_kind {
    MN_NODE_CONN,
    MN_NODE_HALF,
    MN_NODE_WAIT,
};

struct mn_node {
    struct mn_node *next;
    struct mn_tuple tuple;
    uint32_t hash;
    uint8_t kind;
};

struct mn_demux {
    struct mn_node **buckets;
    uint32_t size, count;
    uint64_t seed;
};

/* ---- receive and send memory ---- */

/* Bytes by sequence number: byte seq lies at data[seq % cap], cap a power of two. */
struct mn_ring {
    uint8_t *data;
    uint32_t cap;
    uint8_t owner; /* whose share of the budget it counts to; set before the first byte */
};

enum mn_conn_timer {
    MN_T_RETX,    /* retransmission, or persist when nothing is out */
    MN_T_REORDER, /* what is missing is late enough to be lost */
    MN_T_PROBE,   /* the tail has not been acknowledged */
    MN_T_PACE,    /* the next burst may leave */
    MN_T_ACK,
    MN_T_KEEP,
    MN_T_LIFE, /* FIN-WAIT-2 of an orphan */
    MN_T_IDLE, /* give empty rings back */
    MN_T_COUNT,
};

struct mn_send {
    uint32_t iss, una, nxt;
    uint32_t end; /* behind the last byte the application wrote; a FIN has this number */
    uint32_t wnd, max_wnd, wl1, wl2;
    uint32_t most_out; /* the largest flight since the ring has its size */
    uint8_t shift;
    bool has_scale; /* the peer offered to scale windows */
    bool fin_queued, fin_sent;
    bool wants_room;       /* the application met a full ring */
    bool is_limited;       /* the congestion window held us back within the last round trip */
    uint32_t limited_edge; /* that ends when this is acknowledged */
    uint64_t pace_at;      /* the next burst leaves no sooner */
    uint32_t mss;          /* payload bytes per segment, options taken off */
    uint16_t peer_mss;
    uint32_t full_mss;         /* before a black hole was suspected; 0: none was */
    uint64_t try_at, try_wait; /* when a full segment is tried again */
    uint8_t limit;             /* enum mn_tcp_limit: why no more was sent last time */
    uint64_t sent_at;          /* last data */
    uint64_t stuck_at;         /* last progress while bytes wait for an ACK or a window; 0: none do */
    struct mn_ring ring;
};

struct mn_receive {
    uint32_t irs, nxt;
    uint32_t read; /* first byte the application has not taken */
    uint32_t edge; /* right edge of the window as advertised: never moves left */
    uint32_t size; /* window aimed at */
    uint8_t shift;
    bool fin_known, fin_taken, fin_told; /* seen somewhere; in order; the application knows */
    bool is_blocked;                     /* the application did not take all: wait for resume */
    uint32_t fin_seq;
    struct mn_ring ring;
    struct mn_early early;
    uint32_t copied, copied_before; /* taken by the application since tuned_at, and in the round trip before that */
    uint32_t largest;               /* segment seen */
    uint64_t tuned_at;
    /* Shortest of the last one or two spans of MN_RTT_SPAN, from the handshake and from timestamps; 0: unknown. A path
     * that became longer must show, or the window would be measured against trips that no longer happen. */
    uint64_t rtt_ns, rtt_next_ns, rtt_since;
};

struct mn_acking {
    uint32_t pending; /* bytes not acknowledged yet */
    uint16_t duplicates;
    uint8_t quick; /* ACKs to send at once while the connection is young */
    bool now;
    bool last_was_full;         /* the newest segment was as long as any and carried no PSH */
    bool is_conversation;       /* data is usually answered by data */
    uint8_t patience, answered; /* answers to see before we rely on them; seen */
};

struct mn_stamps {
    bool on;
    uint32_t recent, offset;
    uint32_t last_ack; /* highest ACK we sent (RFC 7323 Last.ACK.sent) */
    uint64_t recent_at;
};

struct mn_conn {
    struct mn_node node;
    struct mn_deadline timer;
    uint32_t id, peer;
    uint8_t state;
    bool is_unsent; /* the SYN found no packet buffer yet */
    bool is_passive, is_orphan, is_dead, is_dirty, is_blocked, is_linked;
    bool may_sack;  /* both sides' SYNs permitted selective acknowledgements */
    bool is_hungry; /* waits for memory for what the application writes */
    uint8_t owner;  /* mn_budget_owner */
    bool ecn_on;    /* both sides' SYNs agreed to (RFC 3168 6.1.1) */
    bool ecn_asked; /* our SYN asked for it */
    bool ecn_echo;  /* congestion was met on the way here: ECE until the peer says CWR */
    uint8_t run;    /* index + 1 into the stack's runs */
    uint8_t keep_probes, syn_tries, challenges;
    int soft_error;
    struct mn_send snd;
    struct mn_receive rcv;
    struct mn_acking ack;
    struct mn_stamps ts;
    struct mn_rtt rtt;
    struct mn_sent sent;
    struct mn_loss loss;
    struct mn_cc cc;
    uint64_t due[MN_T_COUNT];
    uint64_t heard_at, challenge_at;
    uint64_t retransmits, timeouts, bytes_in, bytes_out;
    struct mn_conn *next_dirty, *next_blocked, *next_dead, *next_hungry, *prev_hungry;
};

/* ---- records without buffers ---- */

struct mn_half {
    struct mn_node node;
    struct mn_deadline timer;
    struct mn_half *prev, *next; /* all of them, oldest first */
    uint32_t listener, peer;
    uint32_t iss, irs, ts_recent, ts_offset, wnd;
    uint16_t mss;
    int8_t wscale;
    bool has_ts, may_sack, ecn_on;
    uint8_t tries;
    uint8_t owner; /* place in half_by_peer */
    uint64_t sent_at;
};

struct mn_wait {
    struct mn_node node;
    struct mn_wait *prev, *next; /* in order of expiry */
    uint64_t expires_at;
    uint32_t peer, snd_nxt, rcv_nxt, ts_recent, ts_offset;
    uint16_t wnd;
    bool has_ts;
};

enum mn_deadline_kind {
    MN_DEADLINE_CONN,
    MN_DEADLINE_HALF,
};

/* In-order segments of one connection within a batch. */
struct mn_run {
    struct mn_conn *conn;
    struct iovec pieces[MN_RUN_PIECES];
    int count;
    uint32_t seq, len, largest;
    uint32_t tsval, tsecr; /* of the first */
    struct mn_segment last;
};

struct mn_slot {
    struct mn_conn *conn;
    uint32_t generation, next_free;
};

struct mn_listener {
    uint32_t backlog, half_open;
    uint64_t cookies_until; /* when the last cookie of this listener is too old; 0: none was sent */
};

struct mn_loopback {
    uint8_t *slots;
    uint16_t lens[MN_LOOPBACK_SLOTS];
    uint32_t head, count;
};

struct mn_stack {
    struct mn_stack_ops ops;
    struct mn_stack_config cfg;
    const struct mn_cc_ops *cc; /* of new connections */
    uint64_t now;
    int depth;
    struct mn_stack_stats stats;

    struct mn_ip addresses[MN_STACK_MAX_ADDRESSES];
    size_t address_count;
    struct mn_rules *rules;
    uint32_t rules_generation;
    bool sweep_due;
    struct mn_flows flows;
    struct mn_ports udp;
    struct mn_bucket errors, echo_by_peer[MN_BUCKETS], errors_by_peer[MN_BUCKETS];
    uint32_t ids_by_peer[MN_BUCKETS]; /* of datagrams sent in pieces */
    uint16_t port_counter;

    EVP_MAC *mac;
    EVP_MAC_CTX *mac_ctx;
    uint8_t secret[16];

    struct mn_fragments fragments;
    struct mn_demux demux;
    struct mn_slot *slots;
    uint32_t slot_room, slot_used, free_first, free_last;
    struct mn_timers timers;
    struct mn_chunks chunks;
    struct mn_ports listeners;
    struct mn_listener *listener_data; /* beside the slots of listeners */
    struct mn_half *half_first, *half_last;
    uint32_t half_by_peer[MN_BUCKETS];
    struct mn_wait *wait_first, *wait_last;

    struct mn_conn *dirty_first, *dirty_last; /* to be served before the turn ends */
    struct mn_conn *blocked;                  /* met an empty packet pool */
    struct mn_conn *dead;
    uint64_t retry_at;
    struct mn_conn *hungry_first, *hungry_last; /* in the order they asked */
    uint64_t memory_by_peer[MN_BUCKETS + 1];
    uint32_t reclaim_at;
    bool is_memory_short; /* somebody was refused this turn */
    struct mn_run *runs;
    uint32_t run_count;
    struct mn_loopback loop;
    bool out_is_loop;
    bool is_shared; /* a kernel has our addresses too */
    bool in_input;  /* between the first input of a batch and its flush */
};

/* stack.c */
bool mn_stack_is_own(const struct mn_stack *s, const struct mn_ip *ip);
bool mn_stack_choose_source(const struct mn_stack *s, const struct mn_ip *dst, struct mn_ip *src);
uint8_t *mn_stack_begin(struct mn_stack *s, const struct mn_ip *dst, size_t max, int *err);
void mn_stack_commit(struct mn_stack *s, size_t len);
uint32_t mn_stack_route(struct mn_stack *s, const struct mn_ip *dst);
void mn_turn_enter(struct mn_stack *s, uint64_t now_ns);
void mn_turn_leave(struct mn_stack *s);

/* datagram.c */
void mn_stack_input_udp(struct mn_stack *s, uint32_t peer, const struct mn_packet *p);
void mn_stack_input_icmp(struct mn_stack *s, uint32_t peer, const struct mn_packet *p);
void mn_stack_input_tsmp(struct mn_stack *s, uint32_t peer, const struct mn_packet *p);
void mn_stack_send_error(struct mn_stack *s, uint32_t peer, enum mn_icmp_kind kind, const struct mn_packet *about);
void mn_stack_send_too_big(struct mn_stack *s, uint32_t peer, size_t mtu, const struct mn_packet *about);
void mn_stack_send_tsmp_reject(struct mn_stack *s, uint32_t peer, const struct mn_packet *about,
                               const struct mn_segment *g);

/* May this datagram enter? is_open: a flow here takes it, so that the answer is worth remembering. */
bool mn_stack_admit_udp(struct mn_stack *s, const struct mn_flow_key *k, bool is_open);

/* echo.c */
void mn_stack_answer_echo(struct mn_stack *s, uint32_t peer, const struct mn_packet *p, const struct mn_icmp *m);

/* kernel.c: true if the packet was the kernel's, handed over or dropped by the rules */
bool mn_kernel_input(struct mn_stack *s, uint32_t peer, const struct mn_packet *p);

/* secret.c: keyed numbers (RFC 6528, RFC 6056) */
enum mn_secret_purpose {
    MN_SECRET_ISN = 1,
    MN_SECRET_PORT,
    MN_SECRET_COOKIE,
    MN_SECRET_FRAGMENT,
};
bool mn_secret_start(struct mn_stack *s);
void mn_secret_stop(struct mn_stack *s);
uint64_t mn_secret_number(struct mn_stack *s, const struct mn_tuple *t, enum mn_secret_purpose purpose);
uint32_t mn_secret_isn(struct mn_stack *s, const struct mn_tuple *t, uint32_t *ts_offset);
/* What a SYN cookie proves: that we sent it, for this tuple, this first number of the peer and this time. */
uint32_t mn_secret_cookie(struct mn_stack *s, const struct mn_tuple *t, uint32_t irs, uint64_t detail);

/* syncookie.c: half-open connections that the peer remembers for us (RFC 4987 3.6) */
#define MN_COOKIE_PERIOD (60 * MN_SECOND)
uint32_t mn_syncookie_make(struct mn_stack *s, const struct mn_tuple *t, uint32_t irs, uint16_t mss);
/* iss as an ACK acknowledges it. False: no cookie of ours, or too old. */
bool mn_syncookie_check(struct mn_stack *s, const struct mn_tuple *t, uint32_t irs, uint32_t iss, uint16_t *mss);
/* A timestamp not after now that carries what the SYN offered. */
uint32_t mn_syncookie_stamp(uint32_t now, const struct mn_half *h);
void mn_syncookie_unstamp(uint32_t stamp, struct mn_half *h);

/* demux.c */
struct mn_node *mn_demux_find(const struct mn_demux *d, const struct mn_tuple *t);
bool mn_demux_add(struct mn_demux *d, struct mn_node *n);
void mn_demux_remove(struct mn_demux *d, struct mn_node *n);

/* conn.c: life of a connection block */
struct mn_conn *mn_conn_new(struct mn_stack *s, const struct mn_tuple *t, int *err);
struct mn_conn *mn_conn_get(const struct mn_stack *s, uint32_t id);
void mn_conn_start_sequence(struct mn_stack *s, struct mn_conn *c, uint32_t iss);
void mn_conn_set_mss(struct mn_stack *s, struct mn_conn *c, uint16_t peer_mss);
uint16_t mn_conn_advertised_mss(const struct mn_stack *s, const struct mn_tuple *t);
uint8_t mn_conn_shift(const struct mn_stack *s);
void mn_conn_mark(struct mn_stack *s, struct mn_conn *c); /* to be served before the turn ends */
void mn_conn_unlink(struct mn_stack *s, struct mn_conn *c);
void mn_conn_kill(struct mn_stack *s, struct mn_conn *c);         /* no upcall */
void mn_conn_end(struct mn_stack *s, struct mn_conn *c, int err); /* tells the application, kills */
void mn_conn_finish(struct mn_stack *s, struct mn_conn *c);       /* both sides done; lingers until all is taken */
void mn_conn_bury(struct mn_stack *s);
void mn_conn_set_timer(struct mn_stack *s, struct mn_conn *c, enum mn_conn_timer which, uint64_t at);
void mn_conn_stop_timer(struct mn_stack *s, struct mn_conn *c, enum mn_conn_timer which);
void mn_conn_on_deadline(struct mn_stack *s, struct mn_conn *c);
void mn_conn_free_all(struct mn_stack *s);

/* clock.c: what the timers of a connection do */
void mn_conn_fire(struct mn_stack *s, struct mn_conn *c, enum mn_conn_timer which);

/* Something arrived that only the peer can have sent: what a stranger may guess does not keep a connection alive. */
static inline void mn_conn_heard(const struct mn_stack *s, struct mn_conn *c)
{
    c->heard_at = s->now;
    c->keep_probes = 0;
}

/* In fast recovery for losses that the window answered. */
static inline bool mn_loss_is_reducing(const struct mn_conn *c)
{
    return c->loss.in_recovery && !c->loss.is_standing;
}

static inline uint32_t mn_conn_unread(const struct mn_conn *c)
{
    return c->rcv.nxt - c->rcv.read - (c->rcv.fin_taken ? 1 : 0);
}

static inline uint32_t mn_conn_used(const struct mn_conn *c)
{
    return mn_seq_lt(c->snd.una, c->snd.end) ? c->snd.end - c->snd.una : 0;
}

static inline uint32_t mn_conn_ts_now(const struct mn_stack *s, const struct mn_conn *c)
{
    return (uint32_t)(s->now / MN_MS) + c->ts.offset;
}

/* budget.c: what connections may hold together, in bytes; stats.ring_bytes is what they hold */
/* False: not now. What was taken is given back under the same owner. */
bool mn_budget_has(struct mn_stack *s, uint8_t owner, uint64_t bytes); /* whether it could be taken; a no counts */
bool mn_budget_take(struct mn_stack *s, uint8_t owner, uint64_t bytes);
void mn_budget_give(struct mn_stack *s, uint8_t owner, uint64_t bytes);
uint8_t mn_budget_owner(struct mn_conn *c); /* call once its peer is known */
bool mn_budget_is_tight(const struct mn_stack *s);
void mn_budget_wait(struct mn_stack *s, struct mn_conn *c); /* serve c when there is memory again */
void mn_budget_forget(struct mn_stack *s, struct mn_conn *c);
void mn_budget_trim(struct mn_stack *s, struct mn_conn *c); /* give empty rings back */
void mn_budget_settle(struct mn_stack *s);                  /* at the end of a turn */

/* Bytes the application may write now. What has not left yet is bounded as well: it could only grow old here. */
static inline uint32_t mn_conn_room(const struct mn_conn *c)
{
    const struct mn_send *d = &c->snd;
    uint32_t used = mn_conn_used(c), unsent = mn_seq_lt(d->nxt, d->end) ? d->end - d->nxt : 0;
    uint32_t most = c->cc.cwnd > MN_UNSENT_MOST ? c->cc.cwnd : MN_UNSENT_MOST;
    if (used >= d->ring.cap || unsent >= most)
        return 0;
    return d->ring.cap - used < most - unsent ? d->ring.cap - used : most - unsent;
}

/* Enough of it to call the application. */
static inline bool mn_conn_has_room(const struct mn_conn *c)
{
    uint32_t least = c->snd.ring.cap / 3 < MN_UNSENT_MOST / 2 ? c->snd.ring.cap / 3 : MN_UNSENT_MOST / 2;
    return mn_conn_room(c) >= least && c->snd.ring.cap - mn_conn_used(c) >= c->snd.ring.cap / 3;
}

/* ring.c */
bool mn_ring_resize(struct mn_stack *s, struct mn_ring *r, uint32_t cap, uint32_t first, uint32_t end);
void mn_ring_free(struct mn_stack *s, struct mn_ring *r);
void mn_ring_write(struct mn_ring *r, uint32_t seq, const uint8_t *p, uint32_t n);
/* The bytes [seq, seq + n) as one or two pieces; returns how many. */
int mn_ring_pieces(const struct mn_ring *r, uint32_t seq, uint32_t n, struct iovec out[2]);

/* Bytes of a packet as a piece; nobody writes through it. */
static inline struct iovec mn_piece(const uint8_t *p, size_t n)
{
    struct iovec v = {.iov_len = n};
    memcpy(&v.iov_base, &p, sizeof p);
    return v;
}

/* receive.c: text and FIN */
/* In-order bytes at rcv.nxt; the pieces are not in the ring. */
void mn_receive_run(struct mn_stack *s, struct mn_conn *c, const struct iovec *pieces, int n, uint32_t len);
void mn_receive_text(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g);
void mn_receive_fin(struct mn_stack *s, struct mn_conn *c);          /* take the FIN if its turn has come */
void mn_receive_offer(struct mn_stack *s, struct mn_conn *c);        /* what is queued, to the application */
void mn_receive_forget_early(struct mn_stack *s, struct mn_conn *c); /* and give its memory back */
uint32_t mn_receive_window(const struct mn_conn *c,
                           uint32_t *edge); /* scaled window to advertise, and what it promises */

/* input.c */
void mn_tcp_arrive(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g);
void mn_tcp_note_stamp(struct mn_stack *s, struct mn_conn *c, uint32_t seq, uint32_t tsval, uint32_t tsecr);
bool mn_tcp_may_agree_on_ecn(const struct mn_stack *s, const struct mn_segment *syn);
void mn_tcp_peer_finished(struct mn_stack *s, struct mn_conn *c); /* its FIN is in order */
void mn_tcp_input(struct mn_stack *s, uint32_t peer, const struct mn_packet *p);
void mn_tcp_send_reset_for(struct mn_stack *s, const struct mn_tuple *t, const struct mn_segment *g);

/* run.c */
bool mn_run_take(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g);
void mn_run_flush(struct mn_stack *s, struct mn_conn *c);
void mn_run_flush_all(struct mn_stack *s);
void mn_run_forget(struct mn_stack *s, struct mn_conn *c);

/* output.c */
void mn_tcp_output(struct mn_stack *s, struct mn_conn *c);
bool mn_tcp_send_probe(struct mn_stack *s, struct mn_conn *c); /* a tail loss probe */
void mn_tcp_send_syn(struct mn_stack *s, struct mn_conn *c);
void mn_tcp_send_reset(struct mn_stack *s, struct mn_conn *c);
/* A segment without text; 0 or -errno. */
int mn_tcp_send_bare(struct mn_stack *s, struct mn_conn *c, uint32_t seq);
/* No packet buffer just now (err -ENOBUFS): serve c again soon. */
void mn_tcp_wait_for_buffer(struct mn_stack *s, struct mn_conn *c, int err);
int mn_tcp_emit(struct mn_stack *s, const struct mn_tuple *t, const struct mn_segment *g);
void mn_tcp_challenge(struct mn_stack *s, struct mn_conn *c);

/* path.c: segments too large for a path, whether it says so or not */
size_t mn_path_mtu(const struct mn_stack *s, const struct mn_ip *dst);
void mn_path_on_shrunk(struct mn_stack *s, struct mn_conn *c, size_t mtu);
void mn_path_on_timeout(struct mn_stack *s, struct mn_conn *c);            /* before the backoff is raised */
bool mn_path_is_to_try(const struct mn_stack *s, const struct mn_conn *c); /* one of full_mss */
void mn_path_on_try(struct mn_stack *s, struct mn_conn *c);
void mn_path_on_arrival(struct mn_conn *c, uint32_t size); /* a segment of this size, sent once, has arrived */

/* acked.c */
bool mn_tcp_take_ack(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g);

static inline uint8_t mn_conn_ack_flags(const struct mn_conn *c)
{
    return c->ecn_echo ? MN_TCP_ACK | MN_TCP_ECE : MN_TCP_ACK;
}

/* ack.c */
/* The ECN bits of an acceptable segment with data (RFC 3168 6.1.3). */
void mn_ack_note_ecn(struct mn_stack *s, struct mn_conn *c, const struct mn_segment *g);
/* [first, end) came although we had it (RFC 2883). */
void mn_ack_note_twice(struct mn_stack *s, struct mn_conn *c, uint32_t first, uint32_t end);
/* A segment came early or twice. */
void mn_ack_owe_duplicate(struct mn_stack *s, struct mn_conn *c);
void mn_ack_send(struct mn_stack *s, struct mn_conn *c, bool with_data);

/* listen.c */
void mn_listen_input(struct mn_stack *s, uint32_t peer, const struct mn_tuple *t, const struct mn_segment *g,
                     uint32_t listener, uint32_t min_iss);
/* The ACK of a handshake that was not remembered. False: it is none. */
bool mn_listen_cookie_input(struct mn_stack *s, uint32_t peer, const struct mn_tuple *t, const struct mn_segment *g);
void mn_half_input(struct mn_stack *s, struct mn_half *h, uint32_t peer, const struct mn_segment *g);
void mn_half_on_deadline(struct mn_stack *s, struct mn_half *h);
void mn_half_free(struct mn_stack *s, struct mn_half *h);
void mn_half_sweep(struct mn_stack *s); /* those the rules no longer allow */

/* wait.c */
void mn_wait_enter(struct mn_stack *s, struct mn_conn *c);
/* True if g may open a new connection in its place; *min_iss then says where its numbers must begin. */
bool mn_wait_input(struct mn_stack *s, struct mn_wait *w, const struct mn_segment *g, uint32_t *min_iss);
void mn_wait_expire(struct mn_stack *s);
void mn_wait_free(struct mn_stack *s, struct mn_wait *w);

#endif
