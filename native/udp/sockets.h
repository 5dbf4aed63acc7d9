/* The underlay's UDP sockets: one for IPv4 and one for IPv6 on the same port, in batches both ways.
 *
 * Reading hands out super-buffers: up to 64 KiB of equal datagrams that the kernel coalesced
 * (UDP_GRO), or one datagram, with the ECN bits they share and the local address they came to; valid until the next
 * read of the same struct.
 * Writing: the caller reserves room at the tail of the run for its destination, seals straight into
 * it and commits. A run is one destination's equal-sized datagrams of one source and ECN, the last may be shorter, so
 * that it leaves as one UDP_SEGMENT send. Runs keep their order per destination; a full run, or no free
 * one, sends everything.
 * Fall-backs, each remembered and counted: a kernel that does not pass mn_probe_offload's test gets no segments;
 * EIO turns segmentation off for that socket; EMSGSIZE or EINVAL for that destination for ten minutes (segments are
 * never fragmented, plain datagrams may be). A source address that the system refuses is given up at once, and the
 * run leaves without it.
 * Extra sockets are IPv4 on ports of their own, numbered from 1 by whoever opens them: behind a NAT that gives every
 * socket another address, they are other addresses of ours. An endpoint names the one that speaks with it (mn_ep.sock).
 * New sockets after a change of the network (rebind) are the two alone.
 * ICMP errors are drained from the error queue and told as hints; anybody may forge them. The error they leave on the
 * socket, whose own destination is another, costs no datagram.
 * A datagram that could not be sent is dropped, counted and reported through on_error; a full socket
 * buffer is waited for, at most MN_SOCK_STALL_MS per flush, which is the back-pressure of the underlay.
 * Source: docs/protocol/dataplane.md 2. */
#ifndef MN_UDP_SOCKETS_H
#define MN_UDP_SOCKETS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../mem/addr.h"

enum {
    MN_SOCK_V4 = 0,
    MN_SOCK_V6 = 1,
    MN_SOCK_EXTRA_MAX = 256,
    MN_SOCKS_MAX = 2 + MN_SOCK_EXTRA_MAX, /* extra socket n stands behind the two, at 1 + n */
    MN_SOCK_BUF = 65536,
    MN_SOCK_RX_MAX = 8,
    MN_SOCK_RUNS_MAX = 8,
    MN_SOCK_SEGS_MAX = 64,
    MN_SOCK_BYTES_MAX = 65507,
    MN_SOCK_PLAIN_MAX = 16, /* destinations remembered to take no segmentation */
    MN_SOCK_STALL_MS = 5,
};

/* Segmented sends. NEVER_EQUAL works around drivers that corrupt batches whose segments are all of one length: such a
 * batch gets a last datagram of one byte, which every receiver ignores; short ones leave as plain datagrams. */
enum mn_gso { MN_GSO_AUTO, MN_GSO_OFF, MN_GSO_NEVER_EQUAL, MN_GSO_MODES };

struct mn_sock_config {
    uint16_t port;             /* 0: any */
    bool use4, use6;           /* which families to try */
    struct mn_ip bind4, bind6; /* local addresses; all zero: any */
    enum mn_gso gso;
    bool is_gro_off;
};

/* The system calls that can fail in interesting ways; tests put their own here. */
struct mn_sock_calls {
    int (*sendmmsg)(int fd, struct mmsghdr *msgs, unsigned n, int flags);
    int (*recvmmsg)(int fd, struct mmsghdr *msgs, unsigned n, int flags);
    int (*wait_writable)(int fd, int timeout_ms);
};

#define MN_SOCK_COUNTERS(X)                                                                                            \
    X(rx_calls)                                                                                                        \
    X(rx_buffers)                                                                                                      \
    X(rx_datagrams)                                                                                                    \
    X(rx_bytes)                                                                                                        \
    X(rx_truncated)                                                                                                    \
    X(rx_kernel_drops)                                                                                                 \
    X(rx_icmp_errors)                                                                                                  \
    X(tx_calls)                                                                                                        \
    X(tx_runs)                                                                                                         \
    X(tx_datagrams)                                                                                                    \
    X(tx_bytes)                                                                                                        \
    X(tx_dropped)                                                                                                      \
    X(tx_stalls)                                                                                                       \
    X(tx_fallbacks)   /* segmented sends that had to be repeated plainly */                                            \
    X(tx_gso_refused) /* sockets: EIO, or not passed by the probe */                                                   \
    X(tx_plain_paths) /* destinations: EMSGSIZE or EINVAL */                                                           \
    X(tx_sentinels)                                                                                                    \
    X(tx_unpinned)                                                                                                     \
    X(rebinds)

struct mn_sock_stats {
#define X(name) uint64_t name;
    MN_SOCK_COUNTERS(X)
#undef X
};

struct mn_sock_rx {
    uint8_t *buf;
    size_t len;
    size_t seg; /* size of each datagram in buf; the last may be shorter */
    struct mn_ep from;
    struct mn_ip local; /* the address they were sent to; all zero: not known, or bound to one */
    uint8_t ecn;        /* of the outer headers */
};

struct mn_sock_run {
    struct mn_ep to;
    struct mn_ip source; /* to send from; all zero: the system chooses */
    uint8_t addr[28];    /* `to` as a sockaddr */
    uint8_t addr_len, ecn;
    uint16_t sock;            /* which sends it */
    bool is_closed, is_plain; /* took its short tail; must not be segmented by the kernel */
    uint16_t count;
    uint32_t seg, len;
};

struct mn_sock_plain {
    struct mn_ep to;
    uint64_t until_ns;
};

struct mn_socks {
    int fd[MN_SOCKS_MAX]; /* -1: this family is not available, this extra one not open */
    uint16_t port[MN_SOCKS_MAX];
    bool has_gso[MN_SOCKS_MAX], has_gro[MN_SOCKS_MAX];
    bool is_gso_broken; /* the probe said so */
    struct mn_sock_config config;
    uint32_t rcvbuf, sndbuf; /* what the kernel granted, of the first socket */
    uint32_t kernel_drops[MN_SOCKS_MAX];
    uint64_t now_ns;
    struct mn_sock_calls calls;
    void *ctx;
    void (*on_error)(void *ctx, const struct mn_ep *to, int err);
    /* Somebody on the way says that a datagram to `to` did not arrive: a hint. May be NULL, like the next. */
    void (*on_hint)(void *ctx, const struct mn_ep *to, int err);
    void (*on_unpinned)(void *ctx, const struct mn_ep *to); /* the source given for `to` is none of ours any more */
    struct mn_sock_stats stats;
    uint8_t *rx_slab, *tx_slab;
    unsigned rx_want; /* buffers to post: few when idle, all when the last read filled them */
    unsigned n_runs;
    unsigned reserved; /* the run the last reserve was made in */
    uint8_t *reserved_at;
    struct mn_sock_run runs[MN_SOCK_RUNS_MAX];
    struct mn_sock_plain plain[MN_SOCK_PLAIN_MAX];
};

/* Bind; 0 or a negative errno with nothing left open. IPv6 missing or refused is not an error unless
 * it is the only family asked for. */
int mn_sock_open(struct mn_socks *s, const struct mn_sock_config *config);
void mn_sock_close(struct mn_socks *s);

/* All closed, nothing allocated: what mn_sock_close may be given. */
void mn_sock_clear(struct mn_socks *s);

/* Open extra socket n (1..MN_SOCK_EXTRA_MAX) anew; 0 or a negative errno. */
int mn_sock_open_extra(struct mn_socks *s, unsigned n);
void mn_sock_close_extra(struct mn_socks *s, unsigned n);

/* New sockets on the same port if it is to be had, else on another; 0 or a negative errno with none open. */
int mn_sock_rebind(struct mn_socks *s);
void mn_sock_set_offloads(struct mn_socks *s, enum mn_gso gso, bool is_gro_off);

/* Empty the error queue, as far as it is worth; returns how many errors there were. */
unsigned mn_sock_drain_errors(struct mn_socks *s, int sock);

/* Read what is there without waiting; returns how many super-buffers, 0 when nothing waits. */
int mn_sock_read(struct mn_socks *s, int sock, struct mn_sock_rx out[MN_SOCK_RX_MAX]);

/* Room for one datagram of at most `need` bytes (<= MN_SOCK_BYTES_MAX, less MN_GENEVE_LEN by a peer relay) from
 * `source` (all zero: whichever); NULL: no socket to send it by. What goes by a peer relay is WireGuard, and gets its
 * header here. A reserve without a commit changes nothing. */
uint8_t *mn_sock_reserve(struct mn_socks *s, const struct mn_ep *to, const struct mn_ip *source, size_t need);
/* The datagram at the last reserve is `len` long, carries these ECN bits and goes out with the next flush. */
void mn_sock_commit(struct mn_socks *s, size_t len, uint8_t ecn);
/* Copy one datagram in. */
void mn_sock_put(struct mn_socks *s, const struct mn_ep *to, const struct mn_ip *source, const uint8_t *data,
                 size_t len);
void mn_sock_flush(struct mn_socks *s);

#endif
