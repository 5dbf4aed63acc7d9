/* Between the kernel's socket addresses and ours. */
#ifndef MN_UDP_SOCKADDR_H
#define MN_UDP_SOCKADDR_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "../mem/addr.h"

enum { MN_SOCKADDR_MAX = 28 };
_Static_assert(sizeof(struct sockaddr_in6) <= MN_SOCKADDR_MAX, "room for the larger form");

/* Write `ep` as a sockaddr of the given family (IPv4's four bytes are the last of ours). */
static inline socklen_t mn_sockaddr_put_family(uint8_t out[MN_SOCKADDR_MAX], const struct mn_ep *ep, bool is4)
{
    if (is4) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(ep->port)};
        memcpy(&in.sin_addr, ep->ip.b + 12, 4);
        memcpy(out, &in, sizeof in);
        return sizeof in;
    }
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(ep->port)};
    memcpy(&in6.sin6_addr, ep->ip.b, 16);
    memcpy(out, &in6, sizeof in6);
    return sizeof in6;
}

static inline socklen_t mn_sockaddr_put(uint8_t out[MN_SOCKADDR_MAX], const struct mn_ep *ep)
{
    return mn_sockaddr_put_family(out, ep, mn_ip_is4(&ep->ip));
}

/* False if it is neither IPv4 nor IPv6. */
static inline bool mn_sockaddr_get(const uint8_t in[MN_SOCKADDR_MAX], struct mn_ep *ep)
{
    sa_family_t family;
    memcpy(&family, in, sizeof family);
    memset(ep, 0, sizeof *ep);
    if (family == AF_INET) {
        struct sockaddr_in a;
        memcpy(&a, in, sizeof a);
        ep->ip.b[10] = ep->ip.b[11] = 0xff;
        memcpy(ep->ip.b + 12, &a.sin_addr, 4);
        ep->port = ntohs(a.sin_port);
        return true;
    }
    if (family == AF_INET6) {
        struct sockaddr_in6 a;
        memcpy(&a, in, sizeof a);
        memcpy(ep->ip.b, &a.sin6_addr, 16);
        ep->port = ntohs(a.sin6_port);
        return true;
    }
    return false;
}

#endif
