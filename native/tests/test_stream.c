/* The bridge: delivery under back-pressure, both half-closes, and what closing says to the other side. */
#include "../bridge/stream.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

static size_t deliver(struct mn_stream *s, size_t total)
{
    static uint8_t data[1 << 20];
    struct iovec iov[64];
    for (size_t i = 0; i < total; i++)
        data[i] = (uint8_t)(i * 7);
    int n = 0;
    for (size_t at = 0; at < total; n++) {
        size_t len = total - at < 20000 ? total - at : 20000;
        iov[n] = (struct iovec){data + at, len};
        at += len;
    }
    ssize_t sent = mn_stream_deliver(s, iov, n);
    CHECK(sent >= 0);
    return (size_t)sent;
}

static size_t read_checked(int fd, size_t from, size_t want)
{
    static uint8_t buf[1 << 20];
    size_t got = 0;
    while (got < want) {
        ssize_t n = read(fd, buf, want - got);
        if (n <= 0)
            break;
        for (ssize_t i = 0; i < n; i++)
            CHECK_INT(buf[i], (uint8_t)((from + got + (size_t)i) * 7));
        got += (size_t)n;
    }
    return got;
}

static void test_delivery_and_back_pressure(void)
{
    struct mn_stream s;
    int app;
    CHECK_INT(mn_stream_open(&s, &app), 0);
    CHECK_INT(deliver(&s, 100000), 100000);
    CHECK_INT(read_checked(app, 0, 100000), 100000);
    uint32_t before = s.sndbuf;
    size_t took = deliver(&s, 1 << 20); /* more than fits: part of it, and a larger buffer from now on */
    CHECK(took > 100000 && took < 1 << 20);
    CHECK(s.sndbuf > before);
    CHECK_INT(read_checked(app, 0, took), took);
    for (int i = 0; i < 10; i++)
        (void)deliver(&s, 1 << 20);
    CHECK(s.sndbuf <= MN_STREAM_SNDBUF_MAX);
    mn_stream_close(&s);
    close(app);
}

static void test_half_close_of_the_application(void)
{
    struct mn_stream s;
    uint8_t buf[16];
    int app;
    CHECK_INT(mn_stream_open(&s, &app), 0);
    CHECK_INT(mn_stream_take(&s, buf, sizeof buf), -EAGAIN);
    CHECK_INT(write(app, "bye", 3), 3);
    CHECK_INT(shutdown(app, SHUT_WR), 0);
    CHECK_INT(mn_stream_take(&s, buf, sizeof buf), 3);
    CHECK_INT(mn_stream_take(&s, buf, sizeof buf), 0);
    CHECK(!mn_stream_is_hung_up(&s));
    CHECK_INT(deliver(&s, 1000), 1000); /* the other way goes on */
    CHECK_INT(read_checked(app, 0, 1000), 1000);
    close(app);
    CHECK(mn_stream_is_hung_up(&s));
    CHECK(!mn_stream_was_reset(&s));
    mn_stream_close(&s);
}

static void test_our_end_of_stream(void)
{
    struct mn_stream s;
    uint8_t buf[16];
    int app;
    CHECK_INT(mn_stream_open(&s, &app), 0);
    CHECK_INT(deliver(&s, 10), 10);
    mn_stream_end(&s);
    CHECK_INT(read_checked(app, 0, 10), 10);
    CHECK_INT(read(app, buf, sizeof buf), 0);
    CHECK_INT(write(app, "more", 4), 4);
    CHECK_INT(mn_stream_take(&s, buf, sizeof buf), 4);
    mn_stream_close(&s);
    close(app);
}

static void test_closing_with_unread_bytes_is_a_reset(void)
{
    struct mn_stream s;
    uint8_t buf[16];
    int app;
    CHECK_INT(mn_stream_open(&s, &app), 0);
    CHECK_INT(write(app, "last", 4), 4);
    CHECK_INT(deliver(&s, 10), 10);
    close(app); /* ten bytes unread */
    CHECK(mn_stream_is_hung_up(&s));
    CHECK_INT(mn_stream_take(&s, buf, sizeof buf), 4);
    CHECK_INT(mn_stream_take(&s, buf, sizeof buf), -ECONNRESET);
    mn_stream_close(&s);

    CHECK_INT(mn_stream_open(&s, &app), 0); /* and the other way round */
    CHECK_INT(write(app, "lost", 4), 4);
    mn_stream_close(&s);
    CHECK_INT(read(app, buf, sizeof buf), -1);
    CHECK_INT(errno, ECONNRESET);
    close(app);
}

static void test_delivery_to_nobody(void)
{
    struct mn_stream s;
    struct iovec iov = {(uint8_t[]){1}, 1};
    int app;
    CHECK_INT(mn_stream_open(&s, &app), 0);
    close(app);
    CHECK_INT(mn_stream_deliver(&s, &iov, 1), -EPIPE);
    mn_stream_close(&s);
    mn_stream_close(&s);
}

int main(void)
{
    RUN(test_delivery_and_back_pressure);
    RUN(test_half_close_of_the_application);
    RUN(test_our_end_of_stream);
    RUN(test_closing_with_unread_bytes_is_a_reset);
    RUN(test_delivery_to_nobody);
    return 0;
}
