/* Control messages of outgoing datagrams: segment size, ECN, source address; each only where it says something. */
#ifndef MN_UDP_CONTROL_H
#define MN_UDP_CONTROL_H

#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#include "../mem/addr.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum {
    MN_CONTROL_MAX = CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in6_pktinfo))
};

struct mn_control {
    _Alignas(struct cmsghdr) uint8_t bytes[MN_CONTROL_MAX];
};

static inline void mn_control_add(struct mn_control *c, struct msghdr *h, int level, int type, const void *data,
                                  size_t len)
{
    struct cmsghdr head = {.cmsg_len = CMSG_LEN(len), .cmsg_level = level, .cmsg_type = type};
    uint8_t *at = c->bytes + h->msg_controllen;
    memset(at, 0, CMSG_SPACE(len));
    memcpy(at, &head, sizeof head);
    memcpy(at + CMSG_LEN(0), data, len);
    h->msg_control = c->bytes;
    h->msg_controllen += CMSG_SPACE(len);
}

static inline void mn_control_add_segment(struct mn_control *c, struct msghdr *h, uint16_t seg)
{
    mn_control_add(c, h, IPPROTO_UDP, UDP_SEGMENT, &seg, sizeof seg);
}

static inline void mn_control_add_ecn(struct mn_control *c, struct msghdr *h, bool is4, uint8_t ecn)
{
    int tos = ecn;
    mn_control_add(c, h, is4 ? IPPROTO_IP : IPPROTO_IPV6, is4 ? IP_TOS : IPV6_TCLASS, &tos, sizeof tos);
}

/* Only the address: which interface it leaves by is for routing to say. */
static inline void mn_control_add_source(struct mn_control *c, struct msghdr *h, const struct mn_ip *source)
{
    if (mn_ip_is4(source)) {
        struct in_pktinfo info = {0};
        memcpy(&info.ipi_spec_dst, source->b + 12, 4);
        mn_control_add(c, h, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
        return;
    }
    struct in6_pktinfo info = {0};
    memcpy(&info.ipi6_addr, source->b, 16);
    mn_control_add(c, h, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
}

#endif
