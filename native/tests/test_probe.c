/* The test of segmentation: this kernel passes it; one that loses, shortens, reorders or alters segments does not;
 * where nothing can be said nothing is given up. */
#include "../udp/probe.h"

#include <errno.h>

#include "check.h"

static enum { HONEST, EIO_FOR_SEGMENTS, TOO_OLD, NO_WAY, DROPS_ALL, ONLY_PLAIN, SHORTENS, ALTERS, ONE_LESS } fault;

static bool is_segmented(const struct mmsghdr *m)
{
    return m->msg_hdr.msg_controllen > 0;
}

static int fake_send(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    static uint8_t copy[65536];
    struct mmsghdr m = *msgs;
    struct iovec iov = *msgs->msg_hdr.msg_iov;
    CHECK_INT(n, 1);
    if (fault == NO_WAY || (fault == EIO_FOR_SEGMENTS && is_segmented(msgs)) ||
        (fault == TOO_OLD && is_segmented(msgs))) {
        errno = fault == NO_WAY ? ENETUNREACH : fault == TOO_OLD ? EINVAL : EIO;
        return -1;
    }
    if (fault == DROPS_ALL || (fault == ONLY_PLAIN && is_segmented(msgs)))
        return 1;
    m.msg_hdr.msg_iov = &iov;
    if (is_segmented(msgs) && fault == SHORTENS)
        iov.iov_len--;
    if (is_segmented(msgs) && fault == ONE_LESS)
        iov.iov_len -= iov.iov_len / 5;
    if (is_segmented(msgs) && fault == ALTERS) {
        memcpy(copy, iov.iov_base, iov.iov_len);
        copy[2000] ^= 1;
        iov.iov_base = copy;
    }
    return sendmmsg(fd, &m, 1, flags);
}

static int real_receive(int fd, struct mmsghdr *msgs, unsigned n, int flags)
{
    return recvmmsg(fd, msgs, n, flags, NULL);
}

static void expect(int with, enum mn_probe_result result)
{
    struct mn_sock_calls calls = {.sendmmsg = fake_send, .recvmmsg = real_receive};
    fault = with;
    CHECK_INT(mn_probe_offload(&calls), result);
}

static void test_this_kernel(void)
{
    expect(HONEST, MN_PROBE_WHOLE);
}

static void test_broken_kernels(void)
{
    expect(EIO_FOR_SEGMENTS, MN_PROBE_BROKEN);
    expect(ONLY_PLAIN, MN_PROBE_BROKEN);
    expect(SHORTENS, MN_PROBE_BROKEN);
    expect(ONE_LESS, MN_PROBE_BROKEN);
    expect(ALTERS, MN_PROBE_BROKEN);
}

static void test_nothing_to_judge(void)
{
    expect(TOO_OLD, MN_PROBE_UNKNOWN);
    expect(NO_WAY, MN_PROBE_UNKNOWN);
    expect(DROPS_ALL, MN_PROBE_UNKNOWN);
}

int main(void)
{
    RUN(test_this_kernel);
    RUN(test_broken_kernels);
    RUN(test_nothing_to_judge);
    return 0;
}
