/* One TCP connection of the tunnel as a pair of AF_UNIX stream sockets.
 *
 * The engine's end is non-blocking and watched edge-triggered; the application's end is an ordinary
 * connected socket. This unit knows descriptors only: no connection, no epoll, no engine.
 * Back-pressure: what the application does not read fills the pair; then delivery takes less, and the
 * window of the connection shrinks. A pair that fills up again and again gets a larger buffer, up to
 * MN_STREAM_SNDBUF_MAX. */
#ifndef MN_BRIDGE_STREAM_H
#define MN_BRIDGE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { MN_STREAM_SNDBUF_FIRST = 208 << 10, MN_STREAM_SNDBUF_MAX = 1 << 20, MN_STREAM_IOV_MAX = 256 };

struct mn_stream {
    int fd;          /* the engine's end; -1: none */
    uint32_t sndbuf; /* of the engine's end: what the application may leave unread */
};

/* 0 and both ends, or a negative errno (EMFILE, ENFILE, ENOMEM). */
int mn_stream_open(struct mn_stream *s, int *app_fd);
/* Closing without reading what the application wrote lets it see a reset, where the kernel can say so. */
void mn_stream_close(struct mn_stream *s);

/* Give bytes to the application; returns how many it took, -EPIPE when it reads no more. */
ssize_t mn_stream_deliver(struct mn_stream *s, const struct iovec *iov, int n);
/* Take bytes the application wrote: > 0 bytes, 0 its end of stream, -EAGAIN nothing now, -ECONNRESET it
 * closed leaving bytes unread, other negative errno. */
ssize_t mn_stream_take(struct mn_stream *s, uint8_t *to, size_t room);
/* The application reads end of stream after what it has. */
void mn_stream_end(struct mn_stream *s);
/* Whether the application has closed (or shut down both ways). */
bool mn_stream_is_hung_up(const struct mn_stream *s);
/* The application closed leaving bytes unread; asking clears it. */
bool mn_stream_was_reset(const struct mn_stream *s);

#endif
