/* What is out: every byte from snd.una to snd.nxt, in chunks of bytes that left together and have met the same fate
 * since. A chunk is cut only where a selective acknowledgement or a retransmission ends within it, and only between
 * segments. Chunks lie sorted in an array per connection; those in the network are linked in the order they were last
 * sent, those lost in the order that was found out. Nodes come from one bounded pool per stack. */
#ifndef MN_TCP_SENT_H
#define MN_TCP_SENT_H

#include <stdbool.h>
#include <stdint.h>

struct mn_stack;
struct mn_conn;

enum {
    MN_SENT_MAX = 8192,          /* chunks of one connection: 4 MiB with a loss at every other segment */
    MN_SENT_POOL_MAX = 1 << 17,  /* chunks of a stack, beyond the first of each connection */
    MN_SENT_CHUNK_MAX = 1 << 17, /* bytes after which a chunk is not continued */
};

enum mn_chunk_state {
    MN_CHUNK_OUT, /* believed to be in the network */
    MN_CHUNK_LOST,
    MN_CHUNK_SACKED,
};

struct mn_chunk {
    uint32_t seq, len;
    uint32_t before, after;           /* neighbours in the list of its state */
    uint64_t sent_at;                 /* last time */
    uint64_t delivered, delivered_at; /* by the connection so far, and when, as it was sent: for a rate sample */
    uint16_t unit;                    /* segments begin every so many bytes; 0: it cannot be cut */
    uint8_t state;
    uint8_t resent; /* times, up to 255 */
    bool is_app_limited;
};

/* The pool. A node's number is its place; 0 is none. */
struct mn_chunks {
    struct mn_chunk **slabs;
    uint32_t slab_count, slab_room;
    uint32_t first_free, used;
};

struct mn_sent {
    uint32_t *order; /* nodes by sequence number: order[first .. first + count) */
    uint32_t first, count, room;
    uint32_t out_first, out_last, lost_first, lost_last;
    uint32_t out, lost, sacked; /* bytes; together snd.nxt - snd.una */
};

/* What one ACK says to have arrived. */
struct mn_delivery {
    bool has_echo; /* given: the stamp of the segment that caused it, to tell copies from originals (RFC 7323) */
    uint32_t echo;
    uint32_t bytes;  /* for the first time */
    uint32_t sacked; /* of these, selectively */
    bool has_newest; /* the four below: of the chunk that was sent last */
    bool newest_resent;
    uint32_t newest_end;
    uint64_t newest_at;
    uint64_t rate_delivered, rate_at; /* its marks */
    bool is_app_limited;
    uint64_t first_at, last_at; /* oldest and newest sending among chunks never sent again; 0: none */
    uint32_t largest;           /* segment that arrived and was sent once */
    bool has_resent;            /* one that was sent again is among them: what waited for it tells no round trip */
    bool has_original;          /* one that seemed lost and was not sent again has arrived after all */
    bool has_reordered;         /* one never sent again lies below what arrived before */
};

struct mn_chunk *mn_sent_chunk(const struct mn_stack *s, uint32_t id);
/* Room for one more chunk, or for the last to take what comes. False: no memory now. */
bool mn_sent_ready(struct mn_stack *s, struct mn_conn *c);
/* n bytes behind the last have left, in segments of snd.mss and a rest. Call mn_sent_ready before they do. */
void mn_sent_append(struct mn_stack *s, struct mn_conn *c, uint32_t n);
/* Everything before ack has arrived. */
void mn_sent_retire(struct mn_stack *s, struct mn_conn *c, uint32_t ack, struct mn_delivery *d);
/* [first, end), within una and nxt, has arrived; what does not cover whole segments is not believed. */
void mn_sent_sack(struct mn_stack *s, struct mn_conn *c, uint32_t first, uint32_t end, struct mn_delivery *d);
void mn_sent_lose(struct mn_stack *s, struct mn_conn *c, uint32_t id);
/* The first n bytes at una are lost, if they seemed to be out. */
void mn_sent_lose_head(struct mn_stack *s, struct mn_conn *c, uint32_t n);
/* Lost: what was lost, the first chunk, and what is out since sent_by or longer; in order of sequence numbers. */
void mn_sent_lose_old(struct mn_stack *s, struct mn_conn *c, uint64_t sent_by);
/* What was selectively acknowledged counts as lost: the peer has dropped it. */
void mn_sent_forget_sacks(struct mn_stack *s, struct mn_conn *c);
/* What seemed lost is out after all. */
void mn_sent_unlose(struct mn_stack *s, struct mn_conn *c);
/* The first n bytes of a chunk have left again. */
void mn_sent_resent(struct mn_stack *s, struct mn_conn *c, uint32_t id, uint32_t n);
/* The last segment, if it is out, as a chunk of its own; 0: it is not, or there is no room. */
uint32_t mn_sent_tail(struct mn_stack *s, struct mn_conn *c);
void mn_sent_free(struct mn_stack *s, struct mn_conn *c);
void mn_chunks_free(struct mn_stack *s);

#endif
