/* Super-packets of a kernel interface cut into the packets they stand for, checksums completed.
 *
 * Each piece is written straight to where the caller wants it (a send buffer), one pass over its bytes. Nothing is
 * kept of the super-packet but a view; it must stay as it is until the last piece is written. */
#ifndef MN_IP_CUT_H
#define MN_IP_CUT_H

#include "packet.h"
#include "vnet.h"

struct mn_cut {
    struct mn_packet packet; /* the super-packet */
    size_t head;             /* bytes before the payload; the whole packet if it is not to be cut */
    size_t l4_at;
    size_t step; /* payload per piece */
    size_t at;   /* payload cut so far */
    unsigned count;
    bool is_done, is_whole;
};

/* Take what one read of the interface gave: a virtio header and a packet. Completes the checksum of a packet that is
 * not to be cut, in place. 0, or MN_PACKET_MALFORMED or MN_PACKET_CHECKSUM with nothing to write. */
int mn_cut_begin(struct mn_cut *c, uint8_t *buf, size_t len);
/* Bytes of the next piece; 0: there is none. */
size_t mn_cut_next(const struct mn_cut *c);
/* Write it. */
void mn_cut_write(struct mn_cut *c, uint8_t *out);
/* Leave it out. */
void mn_cut_skip(struct mn_cut *c);

#endif
