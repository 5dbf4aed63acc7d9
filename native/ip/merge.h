/* A batch of packets for a kernel interface, neighbours of one flow merged into super-packets.
 *
 * Only what a kernel's own receive offload would merge is merged, so that cutting the result gives the packets back:
 * equal headers but for length, numbers and checksum; TCP in sequence with equal acknowledgement, window and options,
 * onto full segments without PSH; datagrams of equal size onto the newest of their flow. The last may be shorter.
 * Checksums of what is merged are verified here, since the kernel then no longer looks. Packets are referred to, not
 * copied: they must stay as they are until the batch is cleared. The order within a flow is kept.
 * Source: docs/protocol/dataplane.md 5.3 and 8. */
#ifndef MN_IP_MERGE_H
#define MN_IP_MERGE_H

#include <sys/uio.h>

#include "packet.h"
#include "vnet.h"

enum {
    MN_MERGE_ITEMS = 64,
    MN_MERGE_PIECES = 64,
    MN_MERGE_HEAD = MN_VNET_SIZE + MN_IP6_HEADER + 60, /* virtio, IP and TCP headers of a super-packet */
    MN_MERGE_BYTES_MAX = 65535,
};

struct mn_merge_item {
    struct iovec iov[MN_MERGE_PIECES + 1]; /* [0] is the super-packet's head, or a lone packet's virtio header */
    uint32_t flow;                         /* hash of the flow; 0: never merged */
    uint32_t len;                          /* of the packet to be */
    uint32_t next_seq;
    uint16_t head, seg; /* header bytes and payload of the first */
    uint16_t count;     /* packets in it */
    uint8_t l4_at, proto, version;
    bool is_closed, is_checked, has_psh;
};

struct mn_merge {
    bool tcp, udp; /* what may be merged */
    unsigned count;
    struct mn_merge_item items[MN_MERGE_ITEMS];
};

static inline void mn_merge_clear(struct mn_merge *m)
{
    m->count = 0;
}

/* Take one packet in. False: the batch is full; write and clear it first. */
bool mn_merge_add(struct mn_merge *m, const struct mn_packet *p);
/* Make item ready for one writev of count pieces from iov; head is where its headers are built. */
struct iovec *mn_merge_build(struct mn_merge_item *item, uint8_t head[MN_MERGE_HEAD], int *count);
/* The i-th packet of an item as it came. */
const uint8_t *mn_merge_packet(const struct mn_merge_item *item, unsigned i, size_t *len);

#endif
