/* Events, engine → Python: three bounded lanes behind one mutex, and an eventfd that tells of them.
 *
 * SURE holds what must not be lost: connections accepted, connected, failed, ended; answers to
 * requests. It grows; the engine stops accepting connections while more than MN_EVENT_SURE_MAX wait.
 * Hints (paths, send errors) share that lane but are dropped, counted, beyond MN_EVENT_HINT_MAX.
 * RELAY and DATAGRAM are byte rings of packets where the oldest gives way, counted: a fresh packet is
 * worth more than a stale one.
 * The eventfd is written at most once until the reader has emptied every lane. */
#ifndef MN_ENGINE_EVENT_H
#define MN_ENGINE_EVENT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/addr.h"

enum mn_event_kind {
    MN_EV_ACCEPTED = 1,
    MN_EV_CONNECTED,
    MN_EV_CONNECT_FAILED,
    MN_EV_FLOW_ENDED,
    MN_EV_LISTENING,
    MN_EV_RELAY_SEND,
    MN_EV_DISCO,
    MN_EV_STUN,
    MN_EV_PEER_SEND,
    MN_EV_PEER_RECV,
    MN_EV_SEND_ERROR,
    MN_EV_HANDSHAKE,
    MN_EV_PING,
    MN_EV_UDP,
    MN_EV_LOST,
    MN_EV_UDP_ERROR,
    MN_EV_TUN_LOST,
    MN_EV_REBOUND,
    MN_EV_KEYS, /* what: enum mn_keys_notice */
    MN_EV_LINK_READY,
    MN_EV_LINK_DATA,
    MN_EV_LINK_FRAME,
    MN_EV_LINK_PULSE,
    MN_EV_LINK_ENDED,
    MN_EV_DISCO_KEY,
};

enum mn_keys_notice { MN_KEYS_GONE = 1, MN_KEYS_CLOCK_BEHIND = 2 };

enum mn_event_lane { MN_LANE_SURE, MN_LANE_RELAY, MN_LANE_DATAGRAM, MN_LANES };

enum {
    MN_EVENT_SURE_MAX = 32768,
    MN_EVENT_HINT_MAX = 4096,
    MN_EVENT_RELAY_BYTES = 1 << 20,
    MN_EVENT_DATAGRAM_BYTES = 512 << 10,
};

struct mn_event {
    uint8_t kind;
    uint8_t what; /* PEER_RECV's kind of packet, PEER_SEND's wanted, HANDSHAKE's ok */
    uint16_t region;
    int32_t err;
    int32_t fd;
    uint32_t len; /* bytes of data behind the struct */
    uint64_t req;
    uint64_t value; /* flow id, round-trip time, how many were lost */
    struct mn_ep local, remote;
    uint8_t key[32];
};

struct mn_lane {
    uint8_t *buf; /* allocated at first use: an idle engine pays nothing */
    size_t cap, head, used, count;
};

struct mn_events {
    pthread_mutex_t lock;
    int fd;
    bool is_dirty; /* posted since the last mn_events_signal; the engine's alone */
    bool is_signalled;
    uint64_t lost, lost_total;
    struct mn_lane lanes[MN_LANES];
};

/* 0 or a negative errno. */
int mn_events_init(struct mn_events *q);
/* Closes descriptors of events nobody took. */
void mn_events_destroy(struct mn_events *q);

/* Engine side. False: no memory, or (SURE with is_hint) too many wait. */
bool mn_events_post(struct mn_events *q, const struct mn_event *ev);
bool mn_events_post_hint(struct mn_events *q, const struct mn_event *ev);
/* Packets: never fails, the oldest of the lane gives way. ev->len is set here. */
void mn_events_post_data(struct mn_events *q, enum mn_event_lane lane, struct mn_event *ev, const uint8_t *data,
                         size_t len);
/* Whether another connection may be announced. */
bool mn_events_has_room(struct mn_events *q);
/* Once per turn: wake the reader if something was posted. */
void mn_events_signal(struct mn_events *q);

/* Reader side: copy out whole records (struct and data, padded to 8) until cap or max; returns bytes,
 * *count records. cap must hold the largest record, MN_EVENT_RECORD_MAX. */
enum { MN_EVENT_RECORD_MAX = 65536 + 256 };
size_t mn_events_take(struct mn_events *q, uint8_t *out, size_t cap, size_t max, size_t *count);
static inline size_t mn_event_size(const struct mn_event *ev)
{
    return (sizeof *ev + ev->len + 7) & ~(size_t)7;
}

#endif
