/* The list of packets that wait for a path. See waiting.h. */
#include "waiting.h"

#include <stdlib.h>
#include <string.h>

void mn_waiting_init(struct mn_waiting *w)
{
    *w = (struct mn_waiting){0};
    w->end = &w->first;
}

static struct mn_waiting_packet *unlink_at(struct mn_waiting *w, struct mn_waiting_packet **at)
{
    struct mn_waiting_packet *p = *at;
    *at = p->next;
    if (w->end == &p->next)
        w->end = at;
    w->count--;
    return p;
}

static void lose(struct mn_waiting *w, struct mn_waiting_packet **at)
{
    free(unlink_at(w, at));
    w->lost++;
}

static void lose_old(struct mn_waiting *w, uint64_t now_ns)
{
    while (w->first != NULL && now_ns - w->first->at >= MN_WAITING_NS)
        lose(w, &w->first);
}

void mn_waiting_destroy(struct mn_waiting *w)
{
    while (w->first != NULL)
        lose(w, &w->first);
}

static struct mn_waiting_packet **oldest_of(struct mn_waiting *w, uint32_t peer)
{
    struct mn_waiting_packet **at = &w->first;
    while (*at != NULL && (*at)->peer != peer)
        at = &(*at)->next;
    return at;
}

/* Room for one more packet of len bytes: the oldest of this peer make it. */
static void make_room(struct mn_waiting *w, uint32_t peer, size_t len)
{
    uint32_t packets = 0;
    size_t bytes = len;
    for (const struct mn_waiting_packet *p = w->first; p != NULL; p = p->next)
        if (p->peer == peer) {
            packets++;
            bytes += p->len;
        }
    for (; packets > 0 && (packets >= MN_WAITING_OF_PEER || bytes > MN_WAITING_PEER_BYTES); packets--) {
        struct mn_waiting_packet **at = oldest_of(w, peer);
        bytes -= (*at)->len;
        lose(w, at);
    }
    if (w->count >= MN_WAITING_MAX && w->first != NULL)
        lose(w, &w->first);
}

void mn_waiting_put(struct mn_waiting *w, uint32_t peer, const uint8_t *pkt, size_t len, uint64_t now_ns)
{
    lose_old(w, now_ns);
    make_room(w, peer, len);
    struct mn_waiting_packet *p = len <= MN_WAITING_PEER_BYTES ? malloc(sizeof *p + len) : NULL;
    if (p == NULL) {
        w->lost++;
        return;
    }
    *p = (struct mn_waiting_packet){.peer = peer, .len = len, .at = now_ns};
    memcpy(p->pkt, pkt, len);
    *w->end = p;
    w->end = &p->next;
    w->count++;
}

struct mn_waiting_packet *mn_waiting_take(struct mn_waiting *w, uint32_t peer, uint64_t now_ns)
{
    if (w->first == NULL)
        return NULL;
    lose_old(w, now_ns);
    struct mn_waiting_packet **at = oldest_of(w, peer);
    return *at != NULL ? unlink_at(w, at) : NULL;
}

void mn_waiting_forget(struct mn_waiting *w, uint32_t peer)
{
    struct mn_waiting_packet **at;
    while (*(at = oldest_of(w, peer)) != NULL)
        lose(w, at);
}
