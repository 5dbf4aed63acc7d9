/* The two rings between Python and the engine: order, bounds, what gives way, and two threads at once. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "../engine/command.h"
#include "../engine/event.h"
#include "check.h"

static uint8_t taken[4 * MN_EVENT_RECORD_MAX];

static bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static const uint8_t *record_at(size_t at, struct mn_event *ev)
{
    memcpy(ev, taken + at, sizeof *ev);
    return taken + at + sizeof *ev;
}

static void test_events_in_order_and_one_signal(void)
{
    struct mn_events q;
    struct mn_event ev;
    size_t n;
    CHECK_INT(mn_events_init(&q), 0);
    mn_events_signal(&q);
    CHECK(!is_readable(q.fd));
    for (uint64_t i = 0; i < 1000; i++) { /* more than the lane starts with: it grows */
        ev = (struct mn_event){.kind = MN_EV_FLOW_ENDED, .value = i};
        CHECK(mn_events_post(&q, &ev));
    }
    mn_events_signal(&q);
    CHECK(is_readable(q.fd));
    for (uint64_t i = 0; i < 1000; n = 0) {
        size_t used = mn_events_take(&q, taken, sizeof taken, 300, &n);
        CHECK(n > 0);
        for (size_t at = 0; at < used; at += mn_event_size(&ev)) {
            record_at(at, &ev);
            CHECK_INT(ev.value, i);
            i++;
        }
    }
    CHECK(!is_readable(q.fd));
    CHECK_INT(mn_events_take(&q, taken, sizeof taken, 10, &n), 0);
    mn_events_destroy(&q);
}

static void test_relay_lane_drops_the_oldest(void)
{
    struct mn_events q;
    struct mn_event ev;
    static uint8_t data[1400];
    size_t n = 1;
    CHECK_INT(mn_events_init(&q), 0);
    const uint32_t total = 5000;
    for (uint32_t i = 0; i < total; i++) {
        memcpy(data, &i, sizeof i);
        ev = (struct mn_event){.kind = MN_EV_RELAY_SEND};
        mn_events_post_data(&q, MN_LANE_RELAY, &ev, data, sizeof data - i % 100);
    }
    CHECK(q.lanes[MN_LANE_RELAY].cap <= MN_EVENT_RELAY_BYTES);
    uint32_t next = 0, got = 0;
    uint64_t lost = 0;
    while (n > 0) {
        size_t used = mn_events_take(&q, taken, sizeof taken, 64, &n);
        for (size_t at = 0; at < used; at += mn_event_size(&ev)) {
            const uint8_t *p = record_at(at, &ev);
            if (ev.kind == MN_EV_LOST) {
                lost += ev.value;
                continue;
            }
            uint32_t number;
            memcpy(&number, p, sizeof number);
            CHECK_INT(ev.len, sizeof data - number % 100);
            CHECK(got == 0 || number == next); /* the newest, without holes */
            next = number + 1;
            got++;
        }
    }
    CHECK_INT(next, total);
    CHECK(got > 600);
    CHECK_INT(lost, total - got);
    mn_events_destroy(&q);
}

static void test_hints_give_way_and_connections_do_not(void)
{
    struct mn_events q;
    struct mn_event hint = {.kind = MN_EV_PEER_RECV}, sure = {.kind = MN_EV_FLOW_ENDED};
    CHECK_INT(mn_events_init(&q), 0);
    for (int i = 0; i < MN_EVENT_HINT_MAX; i++)
        CHECK(mn_events_post_hint(&q, &hint));
    CHECK(!mn_events_post_hint(&q, &hint));
    CHECK(mn_events_has_room(&q));
    for (int i = 0; i < MN_EVENT_SURE_MAX; i++)
        CHECK(mn_events_post(&q, &sure));
    CHECK(!mn_events_has_room(&q));   /* no more connections are accepted ... */
    CHECK(mn_events_post(&q, &sure)); /* ... but the end of one is still told */
    CHECK_INT(q.lost_total, 1);
    mn_events_destroy(&q);
}

static void test_untaken_descriptors_are_closed(void)
{
    struct mn_events q;
    int pair[2];
    uint8_t byte;
    CHECK_INT(pipe(pair), 0);
    CHECK_INT(mn_events_init(&q), 0);
    struct mn_event ev = {.kind = MN_EV_ACCEPTED, .fd = pair[1]};
    CHECK(mn_events_post(&q, &ev));
    mn_events_destroy(&q);
    CHECK_INT(read(pair[0], &byte, 1), 0);
    close(pair[0]);
}

static struct mn_command blob_command(uint8_t kind, size_t len)
{
    struct mn_command cmd = {.kind = kind, .len = len, .blob = malloc(len)};
    CHECK(cmd.blob != NULL);
    return cmd;
}

static void test_commands_are_bounded(void)
{
    struct mn_commands q;
    struct mn_command out[64], cmd = {.kind = MN_CMD_KICK};
    CHECK_INT(mn_commands_init(&q), 0);
    for (uint64_t i = 0; i < MN_COMMANDS_MAX; i++) {
        cmd.req = i;
        CHECK_INT(mn_commands_push(&q, &cmd), 0);
    }
    CHECK_INT(mn_commands_push(&q, &cmd), -EAGAIN);
    struct mn_command packet = blob_command(MN_CMD_INJECT, 100);
    CHECK_INT(mn_commands_push(&q, &packet), MN_COMMAND_DROPPED); /* a packet may be lost */
    CHECK_INT(q.packets_dropped, 1);
    uint64_t next = 0;
    for (unsigned n; (n = mn_commands_pop(&q, out, 64)) > 0;)
        for (unsigned i = 0; i < n; i++)
            CHECK_INT(out[i].req, next++);
    CHECK_INT(next, MN_COMMANDS_MAX);
    unsigned kept = 0;
    for (int i = 0; i < 100; i++) {
        packet = blob_command(MN_CMD_INJECT, 60000);
        CHECK_INT(mn_commands_push(&q, &packet), i < MN_COMMAND_PACKET_BYTES / 60000 ? 0 : MN_COMMAND_DROPPED);
    }
    for (unsigned n; (n = mn_commands_pop(&q, out, 64)) > 0; kept += n)
        for (unsigned i = 0; i < n; i++)
            mn_command_done(&out[i]);
    CHECK_INT(kept, MN_COMMAND_PACKET_BYTES / 60000);
    CHECK_INT(q.packet_bytes, 0);
    packet = blob_command(MN_CMD_UPSERT_PEER, 32);
    CHECK_INT(mn_commands_push(&q, &packet), 0); /* left inside: freed with the ring */
    mn_commands_destroy(&q);
}

static void test_wake_only_when_asleep(void)
{
    struct mn_commands q;
    struct mn_command out[4], cmd = {.kind = MN_CMD_KICK};
    CHECK_INT(mn_commands_init(&q), 0);
    CHECK_INT(mn_commands_push(&q, &cmd), 0);
    CHECK(!is_readable(q.fd));
    CHECK(!mn_commands_sleep(&q)); /* something waits: no sleep */
    CHECK_INT(mn_commands_pop(&q, out, 4), 1);
    CHECK(mn_commands_sleep(&q));
    CHECK_INT(mn_commands_push(&q, &cmd), 0);
    CHECK(is_readable(q.fd));
    mn_commands_awake(&q);
    mn_commands_destroy(&q);
}

enum { MANY = 200000 / MN_TEST_SLOW };

static void *push_many(void *arg)
{
    struct mn_commands *q = arg;
    for (uint64_t i = 0; i < MANY;) {
        struct mn_command cmd = {.kind = MN_CMD_KICK, .req = i};
        if (mn_commands_push(q, &cmd) == 0)
            i++;
    }
    return NULL;
}

static void test_commands_from_another_thread(void)
{
    struct mn_commands q;
    struct mn_command out[64];
    pthread_t thread;
    CHECK_INT(mn_commands_init(&q), 0);
    CHECK_INT(pthread_create(&thread, NULL, push_many, &q), 0);
    for (uint64_t next = 0; next < MANY;) {
        if (mn_commands_sleep(&q)) {
            struct pollfd p = {.fd = q.fd, .events = POLLIN};
            uint64_t ignored;
            CHECK_INT(poll(&p, 1, 10000), 1); /* a lost wake-up would end here */
            CHECK_INT(read(q.fd, &ignored, 8), 8);
        }
        mn_commands_awake(&q);
        unsigned n = mn_commands_pop(&q, out, 64);
        for (unsigned i = 0; i < n; i++)
            CHECK_INT(out[i].req, next++);
    }
    pthread_join(thread, NULL);
    mn_commands_destroy(&q);
}

static void *post_many(void *arg)
{
    struct mn_events *q = arg;
    for (uint64_t i = 0; i < MANY; i++) {
        struct mn_event ev = {.kind = MN_EV_PING, .value = i};
        CHECK(mn_events_post(q, &ev));
        if (i % 7 == 0)
            mn_events_signal(q);
    }
    mn_events_signal(q);
    return NULL;
}

static void test_events_to_another_thread(void)
{
    struct mn_events q;
    pthread_t thread;
    CHECK_INT(mn_events_init(&q), 0);
    CHECK_INT(pthread_create(&thread, NULL, post_many, &q), 0);
    for (uint64_t next = 0; next < MANY;) {
        struct pollfd p = {.fd = q.fd, .events = POLLIN};
        struct mn_event ev;
        size_t n;
        CHECK_INT(poll(&p, 1, 10000), 1);
        size_t used = mn_events_take(&q, taken, sizeof taken, 256, &n);
        for (size_t at = 0; at < used; at += mn_event_size(&ev)) {
            record_at(at, &ev);
            CHECK_INT(ev.value, next);
            next++;
        }
    }
    pthread_join(thread, NULL);
    mn_events_destroy(&q);
}

int main(void)
{
    RUN(test_events_in_order_and_one_signal);
    RUN(test_relay_lane_drops_the_oldest);
    RUN(test_hints_give_way_and_connections_do_not);
    RUN(test_untaken_descriptors_are_closed);
    RUN(test_commands_are_bounded);
    RUN(test_wake_only_when_asleep);
    RUN(test_commands_from_another_thread);
    RUN(test_events_to_another_thread);
    return 0;
}
