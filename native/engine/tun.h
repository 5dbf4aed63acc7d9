/* A kernel interface beside the netstack: its packets cut, routed and sealed; what arrives for it, merged and written.
 *
 * Which arriving packets are the kernel's the stack decides (mn_stack_share_addresses). A batch of them is referred to
 * until mn_tun_flush writes it, which must come before the batch's memory is used anew.
 * A merged write that the kernel refuses is written again packet by packet; a kernel that refuses several in a row, as
 * some broken releases do, gets no more of that kind. */
#ifndef MN_ENGINE_TUN_H
#define MN_ENGINE_TUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "../ip/icmp.h"
#include "tundev.h"

struct mn_engine;
struct mn_stack_ops;
struct mn_merge;

#define MN_TUN_COUNTERS(X)                                                                                             \
    X(reads)                                                                                                           \
    X(read_bytes)                                                                                                      \
    X(sent)                                                                                                            \
    X(drop_malformed)                                                                                                  \
    X(drop_special)                                                                                                    \
    X(drop_loop)                                                                                                       \
    X(drop_unreachable)                                                                                                \
    X(drop_too_big) X(told_too_big) X(written) X(writes) X(written_bytes) X(write_errors) X(merge_refused)

struct mn_tun_stats {
#define X(name) uint64_t name;
    MN_TUN_COUNTERS(X)
#undef X
};

struct mn_tun {
    int fd; /* -1: there is none */
    bool is_ready;
    unsigned offered, wanted; /* MN_TUN_TCP, MN_TUN_UDP: by the kernel; by the owner */
    unsigned refused[2];      /* merged writes refused in a row, TCP and UDP */
    uint8_t *buf;             /* one super-packet read */
    struct mn_merge *merge;
    ssize_t (*writev)(int fd, const struct iovec *iov, int n); /* tests put one here that refuses */
    struct mn_bucket errors;                                   /* unreachable, told to the kernel */
    struct mn_tun_stats stats;
};

void mn_tun_init(struct mn_engine *e);
void mn_tun_set_stack_ops(struct mn_stack_ops *ops);
/* Take a descriptor over: one packet with its virtio header per read and write. 0 or a negative errno (-EBUSY: there is
 * one); it is then still the caller's. */
int mn_tun_attach(struct mn_engine *e, int fd, unsigned merge);
/* Which of the kernel's offloads are wanted: MN_TUN_TCP, MN_TUN_UDP. */
void mn_tun_set_merge(struct mn_engine *e, unsigned merge);
void mn_tun_close(struct mn_engine *e);

/* What the kernel sent, a turn's worth of it; true if there was something. */
bool mn_tun_read(struct mn_engine *e);
/* Write what the batch holds for the kernel. */
void mn_tun_flush(struct mn_engine *e);

#endif
