/* Relay routing without sockets: delivery, lanes, notices, duplicate keys, watchers, neighbours. */
#include "../relay/hub.h"
#include "check.h"

static struct mn_hub g_hub;
static uint8_t g_out[256 << 10];
static const uint8_t DISCO[6] = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};

static void start(void)
{
    static const uint64_t seed[4] = {1, 2, 3, 4};
    CHECK(mn_hub_init(&g_hub, 64 << 20, seed));
}

static struct mn_hub_client *join(uint8_t name, uint8_t flags)
{
    struct mn_hub_client *c = calloc(1, sizeof *c);
    CHECK(c != NULL);
    memset(c->key, name, sizeof c->key);
    c->flags = flags == 0 ? MN_PRESENT_REGULAR : flags;
    c->may_mesh = (flags & MN_PRESENT_MESH) != 0;
    CHECK(mn_hub_join(&g_hub, c, 0));
    return c;
}

static void leave(struct mn_hub_client *c)
{
    mn_hub_leave(&g_hub, c, 0);
    free(c);
}

static void stop(void)
{
    CHECK_INT(g_hub.chunks.used, 0);
    CHECK_INT(g_hub.stats.met, 0);
    CHECK_INT(g_hub.stats.clients, 0);
    CHECK(g_hub.dirty_first == NULL);
    mn_hub_destroy(&g_hub);
}

static void send(struct mn_hub_client *from, uint8_t to, const void *data, size_t len)
{
    uint8_t key[MN_RELAY_KEY];
    memset(key, to, sizeof key);
    mn_hub_send(&g_hub, from, key, data, len, 0);
}

static void send_disco(struct mn_hub_client *from, uint8_t to)
{
    uint8_t packet[80] = {0};
    memcpy(packet, DISCO, sizeof DISCO);
    send(from, to, packet, sizeof packet);
}

/* Kinds of the frames that wait for c, in order; their payloads' first bytes behind. All are taken. */
struct seen {
    int count;
    uint8_t kind[64], first[64], last[64];
    uint32_t len[64];
};

static struct seen take(struct mn_hub_client *c)
{
    struct seen s = {0};
    struct mn_frame f;
    size_t n = mn_hub_take(&g_hub, c, g_out, sizeof g_out, 0);
    for (size_t at = 0; at < n; at += MN_FRAME_HEADER + f.len) {
        CHECK_INT(mn_frame_next(g_out + at, n - at, &f), MN_FRAME_WHOLE);
        CHECK(s.count < 64);
        s.kind[s.count] = f.kind;
        s.len[s.count] = f.len;
        s.first[s.count] = f.len > 0 ? f.payload[0] : 0;
        s.last[s.count++] = f.len > 0 ? f.payload[f.len - 1] : 0;
    }
    while (mn_hub_next_dirty(&g_hub) != NULL)
        continue;
    return s;
}

static void test_a_packet_arrives_with_its_sender(void)
{
    start();
    struct mn_hub_client *a = join('a', 0), *b = join('b', 0);
    send(a, 'b', "hello", 5);
    CHECK(mn_hub_next_dirty(&g_hub) == b);
    CHECK(mn_hub_next_dirty(&g_hub) == NULL);
    struct seen s = take(b);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_RECV_PACKET);
    CHECK_INT(s.len[0], 37);
    CHECK_INT(s.first[0], 'a');
    CHECK_INT(s.last[0], 'o');
    CHECK_INT(take(a).count, 0);
    leave(a);
    leave(b);
    stop();
}

static void test_disco_goes_first(void)
{
    start();
    struct mn_hub_client *a = join('a', 0), *b = join('b', 0);
    send(a, 'b', "data", 4);
    send_disco(a, 'b');
    struct seen s = take(b);
    CHECK_INT(s.count, 2);
    CHECK_INT(s.len[0], 32 + 80);
    CHECK_INT(s.len[1], 36);
    leave(a);
    leave(b);
    stop();
}

static void test_a_slow_receiver_keeps_the_newest(void)
{
    start();
    struct mn_hub_client *a = join('a', 0), *b = join('b', 0);
    uint8_t packet[1000] = {0};
    for (int i = 0; i < 1000; i++) {
        packet[sizeof packet - 1] = (uint8_t)i;
        send(a, 'b', packet, sizeof packet);
    }
    CHECK(b->data.bytes <= MN_HUB_DATA_BYTES);
    CHECK_INT(b->data.count + b->dropped, 1000);
    CHECK_INT(g_hub.stats.drop_queue_head, b->dropped);
    send_disco(a, 'b');
    CHECK_INT(b->urgent.count, 1);
    size_t n = mn_hub_take(&g_hub, b, g_out, sizeof g_out, 0), last = 0;
    while (n > 0) {
        last = g_out[n - 1];
        n = mn_hub_take(&g_hub, b, g_out, sizeof g_out, 0);
    }
    CHECK_INT(last, (uint8_t)999);
    leave(a);
    leave(b);
    stop();
}

/* A client that asks and does not read: its answers have a bound, and the newest stay. */
static void test_pongs_are_bounded(void)
{
    start();
    struct mn_hub_client *a = join('a', 0);
    uint8_t token[MN_RELAY_PING] = {0};
    for (uint32_t i = 0; i < 100000; i++) {
        memcpy(token, &i, sizeof i);
        mn_hub_tell(&g_hub, a, MN_FRAME_PONG, token, sizeof token, 0);
        CHECK(a->urgent.bytes <= MN_HUB_URGENT_BYTES);
    }
    size_t n = mn_hub_take(&g_hub, a, g_out, sizeof g_out, 0);
    uint32_t last;
    CHECK(n > MN_FRAME_HEADER + sizeof token);
    memcpy(&last, g_out + n - sizeof token, sizeof last);
    CHECK_INT(last, 99999);
    CHECK(mn_hub_next_dirty(&g_hub) == a);
    leave(a);
    stop();
}

static void test_absent_peers_are_told_of_for_disco_only_and_not_too_often(void)
{
    start();
    struct mn_hub_client *a = join('a', 0);
    send(a, 'x', "data", 4);
    CHECK_INT(take(a).count, 0);
    for (int i = 0; i < 10; i++)
        send_disco(a, 'x');
    struct seen s = take(a);
    CHECK_INT(s.count, MN_HUB_GONE_BURST);
    CHECK_INT(s.kind[0], MN_FRAME_PEER_GONE);
    CHECK_INT(s.len[0], 33);
    CHECK_INT(s.last[0], MN_GONE_NOT_HERE);
    CHECK_INT(g_hub.stats.drop_unknown_dest, 11);
    uint8_t packet[80] = {0}, key[MN_RELAY_KEY] = {0};
    memcpy(packet, DISCO, sizeof DISCO);
    mn_hub_send(&g_hub, a, key, packet, sizeof packet, 2500);
    CHECK_INT(take(a).count, 1);
    leave(a);
    stop();
}

static void test_whoever_received_is_told_once_when_the_sender_goes(void)
{
    start();
    struct mn_hub_client *a = join('a', 0), *b = join('b', 0), *c = join('c', 0);
    send(a, 'b', "1", 1);
    send(a, 'b', "2", 1);
    CHECK_INT(g_hub.stats.met, 1);
    take(b);
    leave(a);
    struct seen s = take(b);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_PEER_GONE);
    CHECK_INT(s.first[0], 'a');
    CHECK_INT(s.last[0], MN_GONE_DISCONNECTED);
    CHECK_INT(take(c).count, 0);
    a = join('a', 0);
    send(b, 'a', "3", 1); /* b has sent to a, never received from it: nothing to tell */
    leave(a);
    CHECK_INT(take(b).count, 0);
    a = join('a', 0); /* what it sends from now on counts anew */
    send(a, 'b', "4", 1);
    take(b);
    leave(a);
    s = take(b);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_PEER_GONE);
    leave(b);
    leave(c);
    stop();
}

static void test_two_connections_of_one_key(void)
{
    start();
    struct mn_hub_client *old = join('k', 0), *new = join('k', 0), *a = join('a', 0);
    CHECK_INT(g_hub.stats.dup_keys, 1);
    send(a, 'k', "x", 1);
    CHECK_INT(take(new).count, 1);
    CHECK_INT(take(old).count, 0);
    mn_hub_note_activity(&g_hub, old, 1);
    send(a, 'k', "x", 1);
    CHECK_INT(take(old).count, 1);
    mn_hub_note_activity(&g_hub, new, 2);
    mn_hub_note_activity(&g_hub, old, 3); /* the third time within ten seconds: a fight */
    struct seen s = take(new);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_HEALTH);
    CHECK(s.len[0] > 0);
    take(old);
    leave(new);
    s = take(old);
    CHECK_INT(s.count, 1); /* healthy again: an empty text */
    CHECK_INT(s.kind[0], MN_FRAME_HEALTH);
    CHECK_INT(s.len[0], 0);
    CHECK_INT(g_hub.stats.dup_keys, 0);
    leave(old);
    leave(a);
    stop();
}

/* However slowly they take it from each other: who only answers pings speaks once a minute. */
static void test_slow_thieves_are_told_too(void)
{
    start();
    struct mn_hub_client *x = join('k', 0), *y = join('k', 0);
    for (uint32_t i = 0; i < 2; i++)
        mn_hub_note_activity(&g_hub, i % 2 == 0 ? x : y, i * 60000);
    CHECK_INT(take(x).count + take(y).count, 0);
    mn_hub_note_activity(&g_hub, x, 120000);
    CHECK_INT(g_hub.stats.fights, 1);
    CHECK_INT(take(x).kind[0], MN_FRAME_HEALTH);
    CHECK_INT(take(y).kind[0], MN_FRAME_HEALTH);
    struct mn_hub_client *z = join('k', 0); /* who comes into a fight hears of it at once */
    CHECK_INT(take(z).kind[0], MN_FRAME_HEALTH);
    leave(z);
    CHECK_INT(take(x).count + take(y).count, 0); /* two are left: it goes on */
    leave(x);
    leave(y);
    stop();
}

/* A client that dials anew while its last connection still speaks: two changes each time, and then it is alone again.
 */
static void test_a_client_that_dials_anew_is_no_fight(void)
{
    start();
    struct mn_hub_client *x = join('k', 0);
    for (uint32_t i = 0; i < 10; i++) {
        struct mn_hub_client *y = join('k', 0);
        mn_hub_note_activity(&g_hub, x, i);
        mn_hub_note_activity(&g_hub, y, i);
        leave(x);
        x = y;
    }
    CHECK_INT(g_hub.stats.fights, 0);
    CHECK_INT(take(x).count, 0);
    leave(x);
    stop();
}

static void test_watchers_hear_of_all(void)
{
    start();
    struct mn_hub_client *a = join('a', 0), *w = join('w', MN_PRESENT_MESH);
    mn_hub_watch(&g_hub, w, 0);
    mn_hub_watch(&g_hub, w, 0);
    struct seen s = take(w);
    CHECK_INT(s.count, 2); /* a and the watcher itself */
    CHECK_INT(s.kind[0], MN_FRAME_PEER_PRESENT);
    CHECK_INT(s.len[0], 51);
    struct mn_hub_client *b = join('b', MN_PRESENT_PROBER), *again = join('b', 0);
    s = take(w);
    CHECK_INT(s.count, 2);
    CHECK_INT(s.last[0], MN_PRESENT_PROBER);
    leave(b);
    CHECK_INT(take(w).count, 0); /* the key is still here */
    leave(again);
    s = take(w);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_PEER_GONE);
    CHECK_INT(g_hub.stats.watchers, 1);
    leave(w);
    CHECK_INT(g_hub.stats.watchers, 0);
    leave(a);
    stop();
}

/* Whoever sends DISCO to a watcher's key must not push out what it has still to hear. */
static void test_disco_leaves_a_watcher_its_notices(void)
{
    enum { CROWD = 2000 };
    static struct mn_hub_client *crowd[CROWD];
    uint8_t packet[MN_RELAY_PACKET_MAX] = {0};
    start();
    struct mn_hub_client *w = join('w', MN_PRESENT_MESH), *a = join('a', 0);
    mn_hub_watch(&g_hub, w, 0);
    for (uint32_t i = 0; i < CROWD; i++) {
        crowd[i] = calloc(1, sizeof *crowd[i]);
        CHECK(crowd[i] != NULL);
        memcpy(crowd[i]->key, &i, sizeof i);
        CHECK(mn_hub_join(&g_hub, crowd[i], 0));
    }
    memcpy(packet, DISCO, sizeof DISCO);
    send(a, 'w', packet, sizeof packet);
    CHECK_INT(w->urgent.count, 2 + CROWD + 1);
    CHECK_INT(g_hub.stats.drop_disco_queue_head, 0);
    for (uint32_t i = 0; i < CROWD; i++)
        leave(crowd[i]);
    leave(w);
    leave(a);
    stop();
}

static void test_what_was_too_old_was_not_sent(void)
{
    start();
    struct mn_hub_client *a = join('a', 0), *b = join('b', 0);
    send(a, 'b', "x", 1);
    CHECK_INT(mn_hub_take(&g_hub, b, g_out, sizeof g_out, MN_HUB_DATA_AGE_MS + 1), 0);
    CHECK_INT(g_hub.stats.drop_age, 1);
    CHECK_INT(g_hub.stats.packets_sent, 0);
    CHECK_INT(b->tx_packets, 0);
    leave(a);
    leave(b);
    stop();
}

static void test_neighbours_carry_what_is_not_here(void)
{
    uint8_t key[MN_RELAY_KEY], from[MN_RELAY_KEY];
    start();
    struct mn_hub_client *a = join('a', 0), *n = calloc(1, sizeof *n), *peer = join('m', MN_PRESENT_MESH);
    CHECK(n != NULL);
    n->is_neighbour = true;
    memset(n->key, 'n', sizeof n->key);
    CHECK(mn_hub_join(&g_hub, n, 0));
    memset(key, 'f', sizeof key);
    mn_hub_route_add(&g_hub, n, key);
    mn_hub_route_add(&g_hub, n, key);
    CHECK_INT(g_hub.stats.keys_remote, 1);
    send(a, 'f', "far", 3);
    struct seen s = take(n);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_FORWARD_PACKET);
    CHECK_INT(s.len[0], 67);
    CHECK_INT(s.first[0], 'a');
    /* The other way: what a neighbour forwards is delivered here or nowhere. */
    memset(from, 'f', sizeof from);
    mn_hub_forward(&g_hub, peer, from, a->key, (const uint8_t *)"back", 4, 0);
    s = take(a);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_RECV_PACKET);
    CHECK_INT(s.first[0], 'f');
    mn_hub_forward(&g_hub, peer, a->key, from, (const uint8_t *)"loop", 4, 0);
    CHECK_INT(take(n).count, 0);
    CHECK_INT(g_hub.stats.drop_unknown_dest_on_fwd, 1);
    s = take(peer);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.last[0], MN_GONE_NOT_HERE);
    /* The neighbour breaks: its keys are gone, and those who heard from them are told. */
    mn_hub_leave(&g_hub, n, 0);
    free(n);
    s = take(a);
    CHECK_INT(s.count, 1);
    CHECK_INT(s.kind[0], MN_FRAME_PEER_GONE);
    CHECK_INT(g_hub.stats.keys_remote, 0);
    leave(a);
    leave(peer);
    stop();
}

static void test_homes_are_counted(void)
{
    start();
    struct mn_hub_client *a = join('a', 0);
    mn_hub_set_home(&g_hub, a, true, 0);
    mn_hub_set_home(&g_hub, a, true, 0);
    CHECK_INT(g_hub.stats.homes, 1);
    mn_hub_set_home(&g_hub, a, false, 4999);
    CHECK_INT(g_hub.stats.homes, 0);
    CHECK_INT(g_hub.stats.home_moves_in + g_hub.stats.home_moves_out, 0); /* as it came: no move */
    mn_hub_set_home(&g_hub, a, true, 5000);
    mn_hub_set_home(&g_hub, a, false, 9000);
    mn_hub_set_home(&g_hub, a, true, 9001);
    CHECK_INT(g_hub.stats.home_moves_in, 2);
    CHECK_INT(g_hub.stats.home_moves_out, 1);
    leave(a);
    CHECK_INT(g_hub.stats.homes, 0);
    CHECK_INT(g_hub.stats.home_moves_out, 1);
    stop();
}

/* Any order of coming, going and sending: nothing is left behind, and nobody gets what is not for it. */
static void test_any_order(void)
{
    enum { CLIENTS = 40, KEYS = 24, STEPS = 200000 / MN_TEST_SLOW };
    struct mn_hub_client *c[CLIENTS] = {0};
    uint64_t seed = 11;
    start();
    for (uint32_t step = 0; step < STEPS; step++) {
        struct mn_hub_client **at = &c[test_random(&seed) % CLIENTS];
        uint64_t what = test_random(&seed) % 16;
        if (*at == NULL) {
            *at = join((uint8_t)(1 + test_random(&seed) % KEYS), what == 0 ? MN_PRESENT_MESH : 0);
            if (what == 0)
                mn_hub_watch(&g_hub, *at, step);
        } else if (what == 0) {
            leave(*at);
            *at = NULL;
        } else if (what < 10) {
            uint8_t to = (uint8_t)(1 + test_random(&seed) % KEYS);
            mn_hub_note_activity(&g_hub, *at, step);
            send(*at, to, &to, 1);
        } else {
            struct mn_frame f;
            size_t n = mn_hub_take(&g_hub, *at, g_out, sizeof g_out, step);
            for (size_t i = 0; i < n; i += MN_FRAME_HEADER + f.len) {
                CHECK_INT(mn_frame_next(g_out + i, n - i, &f), MN_FRAME_WHOLE);
                if (f.kind == MN_FRAME_RECV_PACKET)
                    CHECK_INT(f.payload[MN_RELAY_KEY], (*at)->key[0]);
            }
        }
    }
    for (int i = 0; i < CLIENTS; i++)
        if (c[i] != NULL)
            leave(c[i]);
    CHECK_INT(g_hub.count, 0);
    CHECK_INT(g_hub.stats.keys_local, 0);
    CHECK_INT(g_hub.stats.dup_keys, 0);
    CHECK_INT(g_hub.stats.dup_conns, 0);
    stop();
}

int main(void)
{
    RUN(test_a_packet_arrives_with_its_sender);
    RUN(test_disco_goes_first);
    RUN(test_a_slow_receiver_keeps_the_newest);
    RUN(test_pongs_are_bounded);
    RUN(test_absent_peers_are_told_of_for_disco_only_and_not_too_often);
    RUN(test_whoever_received_is_told_once_when_the_sender_goes);
    RUN(test_two_connections_of_one_key);
    RUN(test_slow_thieves_are_told_too);
    RUN(test_a_client_that_dials_anew_is_no_fight);
    RUN(test_watchers_hear_of_all);
    RUN(test_disco_leaves_a_watcher_its_notices);
    RUN(test_what_was_too_old_was_not_sent);
    RUN(test_neighbours_carry_what_is_not_here);
    RUN(test_homes_are_counted);
    RUN(test_any_order);
    return 0;
}
