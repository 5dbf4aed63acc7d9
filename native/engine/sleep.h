/* Waiting for descriptors with a limit in nanoseconds, or in milliseconds rounded up where the kernel knows no better.
 *
 * epoll_pwait2 came with Linux 5.11; without it (ENOSYS, or EPERM of a filter that does not know the call) it is not
 * tried again. Pacing and loss timers of fast links are shorter than a millisecond. */
#ifndef MN_ENGINE_SLEEP_H
#define MN_ENGINE_SLEEP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>

#define MN_SLEEP_FOR_EVER UINT64_MAX

/* The system calls; tests put their own here. */
struct mn_sleep {
    int (*fine)(int fd, struct epoll_event *ready, int max, const struct timespec *limit);
    int (*coarse)(int fd, struct epoll_event *ready, int max, int limit_ms);
    bool is_coarse; /* `fine` is not to be had */
};

void mn_sleep_init(struct mn_sleep *s);
/* As epoll_wait: how many are ready, 0 after limit_ns (0: at once), -1 with errno. */
int mn_sleep(struct mn_sleep *s, int epoll_fd, struct epoll_event *ready, int max, uint64_t limit_ns);
/* Let this thread's timers be exact: by default the kernel may delay each by 50 us to save wake-ups. */
void mn_sleep_exactly(void);

#endif
