/* A session: the keypair of one handshake, both directions. A peer has up to three: previous, current, next.
 *
 * Sending uses current. `next` is one the peer initiated and has not used yet; its first packet makes it current.
 * Rotation is the table of docs/protocol/dataplane.md 1.7, with one rule more (1.16): when both sides initiated at
 * once and both sessions came up, the one initiated by the smaller public key stays. */
#ifndef MN_WG_SESSION_H
#define MN_WG_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../crypto/aead.h"
#include "noise.h"
#include "replay.h"

#define MN_SECOND_NS 1000000000ULL
#define MN_REKEY_AFTER_MESSAGES (1ULL << 60)
#define MN_REKEY_AFTER_NS (120 * MN_SECOND_NS)
#define MN_REJECT_AFTER_NS (180 * MN_SECOND_NS)

struct mn_session {
    uint32_t local_index, remote_index;
    bool is_initiator, can_send, can_receive;
    bool is_crossed; /* theirs, from a handshake that crossed the one our current comes from */
    uint64_t born_ns, send_counter;
    struct mn_aead seal, open;
    struct mn_replay replay;
};

struct mn_sessions {
    struct mn_session *previous, *current, *next;
};

/* NULL: no memory. Wipes keys either way. */
struct mn_session *mn_session_create(const struct mn_provider *p, struct mn_noise_keys *keys, bool is_initiator,
                                     uint32_t local_index, uint32_t remote_index, uint64_t now_ns);
void mn_session_free(struct mn_session *s);

bool mn_session_can_send(struct mn_session *s, uint64_t now_ns); /* NULL: no. Marks an expired one. */
bool mn_session_can_receive(struct mn_session *s, uint64_t now_ns);

/* msg: header, then text_len bytes (padded already), then room for the tag. The counter is taken whatever comes of it.
 * Returns the datagram's length, or -1. */
int mn_session_seal(struct mn_session *s, uint8_t *msg, size_t text_len);
/* msg of len bytes: the text length with the text at msg + 16, -1 not authentic (msg is garbage), -2 a replay. */
int mn_session_open(struct mn_session *s, uint8_t *msg, size_t len);
/* What mn_session_open called a replay: whether it is an authentic packet that the window remembers. msg is garbage. */
bool mn_session_is_copy(struct mn_session *s, uint8_t *msg, size_t len);

/* What rotation throws out: the owner frees the index, then the session. At most two. */
struct mn_session_dropped {
    struct mn_session *items[3];
    unsigned count;
};

/* A response was consumed: `made` is ours. asked_ns: when its initiation left. */
void mn_sessions_initiated(struct mn_sessions *t, struct mn_session *made, uint64_t asked_ns,
                           struct mn_session_dropped *dropped);
/* A response was sent: `made` is theirs, unconfirmed. */
void mn_sessions_responded(struct mn_sessions *t, struct mn_session *made, struct mn_session_dropped *dropped);
/* An authentic packet came under s. True: it was next and is current now. */
bool mn_sessions_confirm(struct mn_sessions *t, struct mn_session *s, struct mn_session_dropped *dropped);
/* The same, of the crossed previous; peer_is_smaller: by public key. True: current and previous changed places. */
bool mn_sessions_converge(struct mn_sessions *t, struct mn_session *s, bool peer_is_smaller);

#endif
