/* The netstack of one node: own addresses, TCP, UDP, ICMP and the packet filter over decrypted inner packets.
 *
 * Owns no socket, thread or clock: packets and `now_ns` (boot time) come in, packets leave by out_begin/out_commit,
 * everything for the application leaves by the other upcalls.
 *
 * Rules of the joint
 * - One thread. Upcalls may call any function here except mn_stack_input, mn_stack_flush, mn_stack_on_deadline and
 *   mn_stack_destroy. What an upcall asks for is sent before the outermost call returns.
 * - Packets given to mn_stack_input stay valid and unchanged until the next mn_stack_flush returns: a batch is
 *   input, input, ..., flush. Call flush as well after a turn that only made API calls: it also serves the loopback.
 * - Handles (conn, listener, udp) are never 0 and carry a generation: a dead one is refused with -EBADF, never
 * confused.
 * - After mn_tcp_abort or mn_tcp_close on a conn there is no further upcall for it. tcp_failed and tcp_closed are the
 *   last upcall of a conn; its id is dead when they return.
 * - Errors are negative errno values.
 */
#ifndef MN_TCP_STACK_H
#define MN_TCP_STACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "../mem/addr.h"

struct mn_stack;
struct mn_packet;

/* The peer of packets that never left this node. */
#define MN_PEER_SELF 0xfffffffeU

#define MN_STACK_MAX_ADDRESSES 32
#define MN_DEADLINE_NONE UINT64_MAX

struct mn_stack_ops {
    void *ctx;
    void (*random)(void *ctx, uint8_t *p, size_t n);
    /* Where to write one inner IP packet of at most max bytes towards dst. NULL with *err set: ENOBUFS (try again
     * later: the packet is kept or retransmitted), EHOSTUNREACH/ENETUNREACH (no peer owns dst). Every begin that
     * returned memory is followed by exactly one commit, before the next begin. */
    uint8_t *(*out_begin)(void *ctx, const struct mn_ip *dst, size_t max, int *err);
    void (*out_commit)(void *ctx, size_t len); /* len <= max; 0: nothing was written after all */
    /* The peer that owns dst, MN_PEER_NONE when nobody does (connect then fails at once). */
    uint32_t (*route)(void *ctx, const struct mn_ip *dst);
    /* The largest packet that the way to dst is known to carry. May be NULL: the configured mtu. */
    size_t (*path_mtu)(void *ctx, const struct mn_ip *dst);

    /* Could the application take one more from this listener? If not, the handshake stays as it is and the peer asks
     * again. May be NULL: always. */
    bool (*tcp_may_accept)(void *ctx, uint32_t listener);
    void (*tcp_accepted)(void *ctx, uint32_t conn, uint32_t listener); /* handshake done on a passive open */
    void (*tcp_connected)(void *ctx, uint32_t conn);
    void (*tcp_failed)(void *ctx, uint32_t conn, int err); /* ECONNREFUSED ETIMEDOUT EHOSTUNREACH EACCES ECONNABORTED */
    /* In-order bytes; returns how many were taken now (0..sum of iov). The rest stays queued, shrinks the window, and
     * is offered again by mn_tcp_recv_resume. */
    size_t (*tcp_deliver)(void *ctx, uint32_t conn, const struct iovec *iov, int n);
    void (*tcp_peer_fin)(void *ctx, uint32_t conn);        /* after every byte was taken */
    void (*tcp_writable)(void *ctx, uint32_t conn);        /* a reserve that found no room would find some now */
    void (*tcp_closed)(void *ctx, uint32_t conn, int err); /* 0 ECONNRESET ETIMEDOUT ECONNABORTED */

    void (*udp_deliver)(void *ctx, uint32_t udp, const struct mn_ep *from, const struct mn_ep *to, const uint8_t *data,
                        size_t len);
    void (*udp_error)(void *ctx, uint32_t udp, const struct mn_ep *to, int err); /* ICMP said so; may be NULL */
    void (*ping_reply)(void *ctx, uint16_t id, uint16_t seq, const struct mn_ip *from, const uint8_t *payload,
                       size_t len);
    /* The peer's DISCO key, as it says inside the tunnel; for whoever seals DISCO. May be NULL. */
    void (*disco_key)(void *ctx, uint32_t peer, const uint8_t key[32]);
    /* A packet that the rules let in and that nobody here owns, while mn_stack_share_addresses says that a kernel has
     * our addresses too. It lives as long as the input it came by. May be NULL if nothing is ever shared. */
    void (*to_kernel)(void *ctx, const struct mn_packet *p);
};

/* ECN of our own connections (RFC 3168). */
enum mn_ecn_mode {
    /* Agree when asked, never ask. Most paths between members mark nothing, and a network on the way that drops or
     * mangles marked packets then does no harm that the other side did not choose. */
    MN_ECN_ACCEPT,
    MN_ECN_OFF,
    MN_ECN_ASK, /* ask on every first SYN */
};

/* 0 in a field: the default. */
struct mn_stack_config {
    size_t mtu;             /* 1280; at least 576 */
    uint32_t max_conns;     /* 16384; at most 131072 */
    uint32_t max_half_open; /* 4096 over all listeners */
    uint32_t max_time_wait; /* 32768 */
    uint32_t rcvbuf_max;    /* 8 MiB: the largest window, 840 Mb/s at 80 ms */
    uint32_t sndbuf_max;    /* 8 MiB: what is in flight, as rcvbuf_max */
    const char *cc;         /* congestion control: "forbearing", the default; "cubic"; "newreno" */
    uint8_t ecn;            /* enum mn_ecn_mode */
    uint64_t memory_max;    /* 256 MiB for what all connections hold; at least 1 MiB */
};

/* NULL: no memory, or nobody has that congestion control. */
struct mn_stack *mn_stack_create(const struct mn_stack_ops *ops, const struct mn_stack_config *config, uint64_t now_ns);
void mn_stack_destroy(struct mn_stack *s); /* silent: no packet, no upcall */

int mn_stack_set_addresses(struct mn_stack *s, const struct mn_ip *addresses, size_t n);
/* Replace the rules; takes effect before the next packet. Flows that peers opened and that no rule allows any more
 * are reset at the next input, flush or deadline (which is then due at once). -EINVAL: malformed, the old rules stay.
 */
int mn_stack_set_filter(struct mn_stack *s, const uint8_t *blob, size_t len);
/* A kernel interface has our addresses too: it gets what no listener, connection or flow of ours owns, and answers
 * pings and closed ports itself. */
void mn_stack_share_addresses(struct mn_stack *s, bool with_kernel);
/* The kernel sent this packet: remember which answers may come in. */
void mn_stack_kernel_sent(struct mn_stack *s, const struct mn_packet *p, uint64_t now_ns);
void mn_stack_peer_gone(struct mn_stack *s, uint32_t peer, uint64_t now_ns);   /* its connections: ECONNABORTED */
void mn_stack_path_failed(struct mn_stack *s, uint32_t peer, uint64_t now_ns); /* its connecting ones: EHOSTUNREACH */
void mn_stack_nudge(struct mn_stack *s, uint32_t peer, uint64_t now_ns);       /* there is another way: ACK, repeat */
/* The way to this peer carries packets of at most mtu: its connections send smaller segments from now on, and the peer
 * is told by ICMP to do so as well. */
void mn_stack_path_shrunk(struct mn_stack *s, uint32_t peer, size_t mtu, uint64_t now_ns);

/* Packets for this peer go another way from now on: retransmissions that have backed off are tried there soon. */
void mn_stack_path_changed(struct mn_stack *s, uint32_t peer, uint64_t now_ns);

/* One decrypted inner packet; padding behind the IP length is ignored. */
void mn_stack_input(struct mn_stack *s, uint32_t peer, const uint8_t *pkt, size_t len, uint64_t now_ns);
void mn_stack_flush(struct mn_stack *s, uint64_t now_ns);
uint64_t mn_stack_next_deadline(const struct mn_stack *s); /* boot ns; 0: at once; MN_DEADLINE_NONE */
void mn_stack_on_deadline(struct mn_stack *s, uint64_t now_ns);

/* TCP. local_or_null: source address (port by us). The SYN leaves before connect returns. */
int mn_tcp_connect(struct mn_stack *s, const struct mn_ep *remote, const struct mn_ip *local_or_null, uint32_t *conn,
                   uint64_t now_ns);
/* addr_or_null: every own address. port 0: one is chosen (mn_tcp_listener_port). backlog: half-open bound, 0 = 1024.
 * Beyond it, and for a peer that holds more than a quarter of it, SYNs are answered without being remembered (RFC 4987
 * 3.6): such connections have large windows, SACK and ECN only if the peer sends timestamps. */
int mn_tcp_listen(struct mn_stack *s, const struct mn_ip *addr_or_null, uint16_t port, unsigned backlog,
                  uint32_t *listener);
void mn_tcp_unlisten(struct mn_stack *s, uint32_t listener); /* accepted connections live on */
uint16_t mn_tcp_listener_port(const struct mn_stack *s, uint32_t listener);

/* Bytes that could be written now, < 0 if the conn is dead or shut down for sending. */
ssize_t mn_tcp_send_space(struct mn_stack *s, uint32_t conn);
/* Contiguous room in the send ring for a readv target: NULL if there is none (tcp_writable will come) or the conn is
 * dead (*room 0 either way). The ring may hold a second piece: reserve again after commit. */
uint8_t *mn_tcp_send_reserve(struct mn_stack *s, uint32_t conn, size_t *room);
void mn_tcp_send_commit(struct mn_stack *s, uint32_t conn, size_t n, uint64_t now_ns);
void mn_tcp_recv_resume(struct mn_stack *s, uint32_t conn, uint64_t now_ns);
void mn_tcp_shutdown(struct mn_stack *s, uint32_t conn,
                     uint64_t now_ns);                                 /* FIN after what is queued; receiving goes on */
void mn_tcp_abort(struct mn_stack *s, uint32_t conn, uint64_t now_ns); /* RST */
/* The application is gone: FIN after what is queued, later data is answered by RST; bytes it never took: RST now. */
void mn_tcp_close(struct mn_stack *s, uint32_t conn, uint64_t now_ns);
int mn_tcp_addrs(const struct mn_stack *s, uint32_t conn, struct mn_ep *local, struct mn_ep *remote, uint32_t *peer);

/* What kept a connection from sending more when it last could. */
enum mn_tcp_limit {
    MN_LIMIT_APPLICATION,
    MN_LIMIT_PEER, /* its window */
    MN_LIMIT_CONGESTION,
    MN_LIMIT_PACING,
};

/* Windows and amounts in bytes, rates in bytes per second. */
struct mn_tcp_info {
    int state;
    enum mn_tcp_limit limit;
    bool is_recovering;
    uint8_t reordering; /* quarters of the shortest round trip that a segment may be late; 0: none has been */
    uint32_t in_network, sacked, lost;
    uint64_t min_rtt_ns, pacing_rate, delivery_rate, delivered;
    uint32_t mss, cwnd, ssthresh, snd_wnd, rcv_wnd, flight, unsent, unread;
    uint64_t srtt_ns, rttvar_ns, rto_ns, retransmits, timeouts, bytes_in, bytes_out;
};
int mn_tcp_info(const struct mn_stack *s, uint32_t conn, struct mn_tcp_info *info);
/* How many closed connections still have bytes or their FIN unacknowledged; those that only wait for the peer's end
 * are not among them. */
uint32_t mn_tcp_count_delivering(const struct mn_stack *s);

/* UDP. addr_or_null: every own address; port 0: one is chosen. */
int mn_udp_open(struct mn_stack *s, const struct mn_ip *addr_or_null, uint16_t port, uint32_t *udp);
uint16_t mn_udp_port(const struct mn_stack *s, uint32_t udp);
/* from_or_null: source address when the flow is open on every address. -EMSGSIZE above mtu - 28 (IPv6: - 48). */
int mn_udp_send(struct mn_stack *s, uint32_t udp, const struct mn_ip *from_or_null, const struct mn_ep *to,
                const uint8_t *data, size_t len, uint64_t now_ns);
void mn_udp_close(struct mn_stack *s, uint32_t udp);

/* ICMP echo request; the answer comes by ping_reply with the same id and seq. */
int mn_ping_send(struct mn_stack *s, const struct mn_ip *dst, uint16_t id, uint16_t seq, const uint8_t *payload,
                 size_t len, uint64_t now_ns);

/* Tell the peer at `dst` our DISCO key, inside the tunnel: what comes from there is ours for certain. */
int mn_disco_key_send(struct mn_stack *s, const struct mn_ip *dst, const uint8_t key[32], uint64_t now_ns);

/* Every number of the stack that only grows, and the few that say how much there is now. */
#define MN_STACK_COUNTERS(X)                                                                                           \
    X(rx_packets)                                                                                                      \
    X(rx_bytes)                                                                                                        \
    X(tx_packets)                                                                                                      \
    X(tx_bytes)                                                                                                        \
    X(tx_no_buffer)                                                                                                    \
    X(tx_no_route)                                                                                                     \
    X(drop_malformed)                                                                                                  \
    X(drop_checksum)                                                                                                   \
    X(drop_source)                                                                                                     \
    X(drop_not_local)                                                                                                  \
    X(reassembled)                                                                                                     \
    X(drop_fragment)                                                                                                   \
    X(drop_protocol)                                                                                                   \
    X(filter_accept)                                                                                                   \
    X(filter_drop)                                                                                                     \
    X(filter_cut)                                                                                                      \
    X(tsmp_sent)                                                                                                       \
    X(tsmp_received)                                                                                                   \
    X(icmp_echo_in)                                                                                                    \
    X(icmp_echo_limited)                                                                                               \
    X(icmp_error_in)                                                                                                   \
    X(icmp_error_unmatched)                                                                                            \
    X(icmp_error_out)                                                                                                  \
    X(icmp_error_limited)                                                                                              \
    X(udp_in)                                                                                                          \
    X(udp_out)                                                                                                         \
    X(udp_no_port)                                                                                                     \
    X(loopback_full)                                                                                                   \
    X(tcp_in)                                                                                                          \
    X(tcp_out)                                                                                                         \
    X(tcp_runs)                                                                                                        \
    X(tcp_retransmits)                                                                                                 \
    X(tcp_timeouts)                                                                                                    \
    X(tcp_fast_retransmits)                                                                                            \
    X(tcp_losses_borne)                                                                                                \
    X(tcp_black_holes)                                                                                                 \
    X(tcp_ecn_marks)                                                                                                   \
    X(tcp_undone)                                                                                                      \
    X(tcp_tail_probes)                                                                                                 \
    X(tcp_ooo)                                                                                                         \
    X(tcp_ooo_reclaimed)                                                                                               \
    X(memory_refused)                                                                                                  \
    X(tcp_ooo_dropped)                                                                                                 \
    X(tcp_out_of_window)                                                                                               \
    X(tcp_paws)                                                                                                        \
    X(tcp_no_timestamp)                                                                                                \
    X(tcp_bad_ack)                                                                                                     \
    X(tcp_challenge)                                                                                                   \
    X(tcp_rst_in)                                                                                                      \
    X(tcp_rst_out)                                                                                                     \
    X(tcp_opened)                                                                                                      \
    X(tcp_accepted)                                                                                                    \
    X(to_kernel)                                                                                                       \
    X(tcp_half_open_full)                                                                                              \
    X(tcp_cookies_sent)                                                                                                \
    X(tcp_cookies_taken)                                                                                               \
    X(tcp_cookies_refused)                                                                                             \
    X(tcp_accept_full)                                                                                                 \
    X(tcp_ecn_ce)                                                                                                      \
    X(tcp_conns_full) X(tcp_time_wait_full) X(tcp_keepalives) X(tcp_probes) X(tcp_no_memory)

struct mn_stack_stats {
#define X(name) uint64_t name;
    MN_STACK_COUNTERS(X)
#undef X
    uint32_t tcp_conns, tcp_half_open, tcp_time_wait, udp_flows;
    uint64_t ring_bytes; /* memory of all connections' rings and lists; never above memory_max */
};
const struct mn_stack_stats *mn_stack_stats(const struct mn_stack *s);

#endif
