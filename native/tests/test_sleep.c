/* Waiting: the limit handed to the kernel is exact where it can be and never shorter than asked for; a kernel or a
 * filter without epoll_pwait2 is asked for it once. */
#include "../engine/sleep.h"

#include <errno.h>
#include <limits.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"

static unsigned fine_calls, coarse_calls;
static struct timespec fine_limit;
static int coarse_limit, fine_result, fine_errno;

static int fake_fine(int fd, struct epoll_event *ready, int max, const struct timespec *limit)
{
    (void)fd, (void)ready, (void)max;
    fine_calls++;
    fine_limit = *limit;
    errno = fine_errno;
    return fine_result;
}

static int fake_coarse(int fd, struct epoll_event *ready, int max, int limit_ms)
{
    (void)fd, (void)ready, (void)max;
    coarse_calls++;
    coarse_limit = limit_ms;
    return 5;
}

static struct mn_sleep fakes(int result, int error)
{
    fine_calls = coarse_calls = 0;
    fine_result = result;
    fine_errno = error;
    return (struct mn_sleep){.fine = fake_fine, .coarse = fake_coarse};
}

static void test_limits_are_exact(void)
{
    struct mn_sleep s = fakes(0, 0);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, 1), 0);
    CHECK(fine_limit.tv_sec == 0 && fine_limit.tv_nsec == 1);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, 2000000123), 0);
    CHECK(fine_limit.tv_sec == 2 && fine_limit.tv_nsec == 123);
    CHECK_INT(fine_calls, 2);
    CHECK_INT(coarse_calls, 0);
}

static void test_at_once_and_for_ever(void)
{
    struct mn_sleep s = fakes(0, 0);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, 0), 5);
    CHECK_INT(coarse_limit, 0);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, MN_SLEEP_FOR_EVER), 5);
    CHECK_INT(coarse_limit, -1);
    CHECK_INT(fine_calls, 0);
}

static void without_the_call(int error)
{
    struct mn_sleep s = fakes(-1, error);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, 1), 5);
    CHECK_INT(coarse_limit, 1);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, 1000000), 5);
    CHECK_INT(coarse_limit, 1);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, 1000001), 5);
    CHECK_INT(coarse_limit, 2);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, MN_SLEEP_FOR_EVER - 1), 5);
    CHECK_INT(coarse_limit, INT_MAX);
    CHECK_INT(fine_calls, 1);
}

static void test_an_old_kernel(void)
{
    without_the_call(ENOSYS);
}

static void test_an_old_filter(void)
{
    without_the_call(EPERM);
}

static void test_interruptions_are_told(void)
{
    struct mn_sleep s = fakes(-1, EINTR);
    CHECK_INT(mn_sleep(&s, 3, NULL, 1, 1), -1);
    CHECK(!s.is_coarse);
}

static void test_the_real_calls(void)
{
    struct mn_sleep s;
    struct epoll_event ready, ev = {.events = EPOLLIN, .data.u64 = 7};
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC), fd = eventfd(0, EFD_CLOEXEC);
    mn_sleep_init(&s);
    CHECK_INT(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev), 0);
    CHECK_INT(mn_sleep(&s, epoll_fd, &ready, 1, 1000), 0);
    CHECK_INT(eventfd_write(fd, 1), 0);
    for (uint64_t limit = 0; limit < 2; limit++) {
        CHECK_INT(mn_sleep(&s, epoll_fd, &ready, 1, limit * 1000000000), 1);
        CHECK_INT(ready.data.u64, 7);
    }
    CHECK_INT(mn_sleep(&s, epoll_fd, &ready, 1, MN_SLEEP_FOR_EVER), 1);
    close(fd);
    close(epoll_fd);
}

int main(void)
{
    RUN(test_limits_are_exact);
    RUN(test_at_once_and_for_ever);
    RUN(test_an_old_kernel);
    RUN(test_an_old_filter);
    RUN(test_interruptions_are_told);
    RUN(test_the_real_calls);
    return 0;
}
