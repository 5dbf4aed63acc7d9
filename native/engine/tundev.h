/* A kernel interface (TUN) made or taken over, with the offloads its kernel has. Knows no engine.
 *
 * The interface is never persistent: it, its addresses and its routes vanish when the last descriptor is closed, be
 * it by a crash. Source: docs/protocol/dataplane.md 8. */
#ifndef MN_ENGINE_TUNDEV_H
#define MN_ENGINE_TUNDEV_H

#include <stdbool.h>

enum {
    MN_TUN_NAME_MAX = 15,
    /* What may be merged into super-packets; also the mode of MN_CMD_TUN_ATTACH and MN_CMD_TUN_MERGE. */
    MN_TUN_TCP = 1,
    MN_TUN_UDP = 2,
};

struct mn_tundev {
    int fd;
    unsigned merge; /* MN_TUN_TCP, MN_TUN_UDP: super-packets this kernel hands out and takes */
    char name[MN_TUN_NAME_MAX + 1];
};

enum mn_tundev_step { MN_TUNDEV_NAME, MN_TUNDEV_OPEN, MN_TUNDEV_MAKE, MN_TUNDEV_SHAPE };

/* 0, or a negative errno and where it came from: NAME (-EINVAL: no name for an interface), OPEN (/dev/net/tun), MAKE
 * (-EPERM: no CAP_NET_ADMIN, -EBUSY: the name is taken), SHAPE (its headers or offloads). Nothing stays open then. */
int mn_tundev_open(struct mn_tundev *d, const char *name, enum mn_tundev_step *step);
/* The same over a descriptor that somebody else opened and attached; it stays theirs until this succeeds. -EINVAL: not
 * a TUN with virtio headers and without packet information. */
int mn_tundev_adopt(struct mn_tundev *d, int fd, enum mn_tundev_step *step);

#endif
