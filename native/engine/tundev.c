/* Making a kernel interface. See tundev.h. */
#include "tundev.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../ip/vnet.h"

#ifndef TUN_F_USO4 /* Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

_Static_assert(MN_TUN_NAME_MAX + 1 == IFNAMSIZ, "room for the kernel's names");

static bool is_name(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > MN_TUN_NAME_MAX || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] <= ' ' || name[i] > '~' || strchr("/:%", name[i]) != NULL)
            return false;
    return true;
}

/* The most that this kernel offers; each step down is an older one. */
static int shape(struct mn_tundev *d)
{
    static const struct {
        unsigned flags, merge;
    } offers[] = {
        {TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6, MN_TUN_TCP | MN_TUN_UDP},
        {TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN, MN_TUN_TCP},
        {TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6, MN_TUN_TCP},
        {0, 0},
    };
    int size = MN_VNET_SIZE, err = 0;
    if (ioctl(d->fd, TUNSETVNETHDRSZ, &size) < 0)
        return -errno;
    for (size_t i = 0; i < sizeof offers / sizeof *offers; i++) {
        err = ioctl(d->fd, TUNSETOFFLOAD, (unsigned long)offers[i].flags) < 0 ? -errno : 0;
        d->merge = offers[i].merge;
        if (err == 0)
            break;
    }
    int flags = fcntl(d->fd, F_GETFL);
    if (err == 0 &&
        (flags < 0 || fcntl(d->fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(d->fd, F_SETFD, FD_CLOEXEC) < 0))
        err = -errno;
    return err;
}

int mn_tundev_open(struct mn_tundev *d, const char *name, enum mn_tundev_step *step)
{
    struct ifreq ifr = {.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL)};
    *d = (struct mn_tundev){.fd = -1};
    *step = MN_TUNDEV_NAME;
    if (!is_name(name))
        return -EINVAL;
    memcpy(ifr.ifr_name, name, strlen(name) + 1);
    *step = MN_TUNDEV_OPEN;
    d->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (d->fd < 0)
        return -errno;
    *step = MN_TUNDEV_MAKE;
    int err = ioctl(d->fd, TUNSETIFF, &ifr) < 0 ? -errno : 0;
    if (err == 0) {
        memcpy(d->name, ifr.ifr_name, sizeof d->name);
        *step = MN_TUNDEV_SHAPE;
        err = shape(d);
    }
    if (err != 0) {
        close(d->fd);
        d->fd = -1;
    }
    return err;
}

int mn_tundev_adopt(struct mn_tundev *d, int fd, enum mn_tundev_step *step)
{
    struct ifreq ifr = {0};
    *d = (struct mn_tundev){.fd = fd};
    *step = MN_TUNDEV_OPEN;
    if (ioctl(fd, TUNGETIFF, &ifr) < 0)
        return -errno;
    *step = MN_TUNDEV_MAKE;
    unsigned flags = (unsigned short)ifr.ifr_flags;
    if ((flags & IFF_TUN) == 0 || (flags & IFF_NO_PI) == 0 || (flags & IFF_VNET_HDR) == 0)
        return -EINVAL;
    memcpy(d->name, ifr.ifr_name, sizeof d->name);
    *step = MN_TUNDEV_SHAPE;
    return shape(d);
}
