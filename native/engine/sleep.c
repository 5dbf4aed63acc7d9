/* Waiting for descriptors. See sleep.h. */
#include "sleep.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441 /* the same number on every architecture */
#endif

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull
#define SLACK_NS 1000ul

static int real_fine(int fd, struct epoll_event *ready, int max, const struct timespec *limit)
{
    return (int)syscall(SYS_epoll_pwait2, fd, ready, max, limit, NULL, (size_t)0);
}

static int real_coarse(int fd, struct epoll_event *ready, int max, int limit_ms)
{
    return epoll_wait(fd, ready, max, limit_ms);
}

void mn_sleep_init(struct mn_sleep *s)
{
    *s = (struct mn_sleep){.fine = real_fine, .coarse = real_coarse};
}

static int to_ms(uint64_t ns)
{
    uint64_t ms = ns / NS_PER_MS + (ns % NS_PER_MS != 0);
    return ms < INT_MAX ? (int)ms : INT_MAX;
}

int mn_sleep(struct mn_sleep *s, int epoll_fd, struct epoll_event *ready, int max, uint64_t limit_ns)
{
    if (limit_ns == 0)
        return s->coarse(epoll_fd, ready, max, 0);
    if (limit_ns == MN_SLEEP_FOR_EVER)
        return s->coarse(epoll_fd, ready, max, -1);
    if (!s->is_coarse) {
        struct timespec limit = {.tv_sec = (time_t)(limit_ns / NS_PER_S), .tv_nsec = (long)(limit_ns % NS_PER_S)};
        int n = s->fine(epoll_fd, ready, max, &limit);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM))
            return n;
        s->is_coarse = true;
    }
    return s->coarse(epoll_fd, ready, max, to_ms(limit_ns));
}

void mn_sleep_exactly(void)
{
    (void)prctl(PR_SET_TIMERSLACK, SLACK_NS);
}
