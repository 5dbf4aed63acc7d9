/* What Python hears of traffic: packets it must carry or read, and throttled hints for the path machine. */
#ifndef MN_ENGINE_TELL_H
#define MN_ENGINE_TELL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "event.h"

struct mn_engine;
struct mn_peer;

void mn_tell_relay_send(struct mn_engine *e, const uint8_t key[32], uint16_t region, const uint8_t *pkt, size_t len);
void mn_tell_datagram(struct mn_engine *e, enum mn_event_kind kind, const struct mn_ep *from, const uint8_t *data,
                      size_t len);
void mn_tell_handshake(struct mn_engine *e, const struct mn_peer *p, bool ok);
/* What the device says of a peer's keys and is worth a line in the log. */
void mn_tell_keys(struct mn_engine *e, const struct mn_peer *p, enum mn_keys_notice what);
/* What the peer says inside the tunnel its DISCO key is. */
void mn_tell_disco_key(struct mn_engine *e, const struct mn_peer *p, const uint8_t key[32]);
/* At most one per peer per 100 ms, at once after a pause or when the answer to "is there a path" changed. */
void mn_tell_peer_send(struct mn_engine *e, struct mn_peer *p, bool wanted);
/* At most one per peer, path and kind per 100 ms, at once when one of them is new. */
void mn_tell_peer_recv(struct mn_engine *e, struct mn_peer *p, const struct mn_path *from, uint8_t what);
/* Whether that would be told now. Remembers nothing: the packet is not proved to be anybody's yet. */
bool mn_tell_wants_recv(const struct mn_engine *e, const struct mn_peer *p, const struct mn_path *from, uint8_t what);
/* The sockets' on_error: at most one per destination and errno per second. */
void mn_tell_send_error(void *ctx, const struct mn_ep *to, int err);
/* The sockets' on_hint: an ICMP error, which anybody may forge. Told as ECONNREFUSED. */
void mn_tell_path_hint(void *ctx, const struct mn_ep *to, int err);
/* The sockets were made anew: err 0, or why there are none. */
void mn_tell_rebound(struct mn_engine *e, int err);

#endif
