/* mac1, cookies, under load, the limiter, the budget. WG-20, WG-21. */
#include "wg_pair.h"

/* An initiation of a, made anew each time and never the same. */
static struct packet initiation(struct pair *t)
{
    CHECK_INT(mn_wg_peer_expire(t->a.wg, t->pa), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    return *take_kind(&t->a, MN_WG_INITIATION);
}

/* b under load: a flood with valid mac1 from many sources, its answers thrown away. */
static void flood(struct pair *t, unsigned n)
{
    struct packet p = initiation(t);
    for (unsigned i = 0; i < n; i++) {
        struct mn_path from = path_of((uint8_t)(i % 200 + 20), (uint16_t)(1000 + i));
        (void)deliver_from(&t->b, &p, &from);
    }
    while (take(&t->b) != NULL)
        ;
}

static bool has_mac2(const struct packet *p)
{
    static const uint8_t zero[16];
    return memcmp(p->buf + p->len - 16, zero, 16) != 0;
}

static void test_cookie_round_trip(void)
{
    struct pair *t = pair_start(70);
    flood(t, 60);
    CHECK(t->b.wg->load.under_load_until > t->now);
    run_to(&t->b, t->now + 50 * MS);
    while (take(&t->b) != NULL)
        ;
    t->now += 100 * MS;
    struct packet first = initiation(t);
    CHECK(!has_mac2(&first));
    CHECK_INT(deliver(&t->b, &first), -MN_WG_DROP_COOKIE_SENT);
    struct packet reply = *take_kind(&t->b, MN_WG_COOKIE);
    struct mn_path want = path_of(1, 41641);
    CHECK(reply.len == 64 && reply.peer == MN_PEER_NONE && reply.has_to && mn_path_equal(&reply.to, &want));
    CHECK(memcmp(reply.buf + 4, first.buf + 4, 4) == 0);

    struct packet bad = reply;
    for (size_t at = 8; at < 64; at += 5) { /* not authentic: ignored, the true one still taken */
        bad = reply;
        bad.buf[at] ^= 1;
        CHECK_INT(deliver(&t->a, &bad), -MN_WG_DROP_AUTH);
    }
    CHECK_INT(deliver(&t->a, &reply), 0);
    CHECK_INT(deliver(&t->a, &reply), -MN_WG_DROP_STATE);
    check_silent(&t->a); /* no retry because of it */

    t->now += 100 * MS;
    CHECK_INT(mn_wg_peer_expire(t->a.wg, t->pa), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet second = *take_kind(&t->a, MN_WG_INITIATION), other = second;
    CHECK(has_mac2(&second));
    struct mn_path elsewhere = path_of(9, 41641), port = path_of(1, 41642);
    CHECK_INT(deliver_from(&t->b, &second, &elsewhere), -MN_WG_DROP_COOKIE_SENT);
    CHECK_INT(deliver_from(&t->b, &second, &port), -MN_WG_DROP_COOKIE_SENT);
    other.buf[140] ^= 1;
    CHECK_INT(deliver(&t->b, &other), -MN_WG_DROP_COOKIE_SENT);
    while (take(&t->b) != NULL)
        ;
    CHECK_INT(deliver(&t->b, &second), 0);
    (void)take_kind(&t->b, MN_WG_RESPONSE);
    pair_stop(t);
}

/* Relayed senders are told apart by their key, not by the region they share. */
static void test_cookie_by_relay(void)
{
    struct pair *t = pair_start(71);
    struct mn_path one = {.region = 7}, two = {.region = 7};
    one.ep.ip.b[0] = 1;
    two.ep.ip.b[0] = 2;
    flood(t, 60);
    run_to(&t->b, t->now + 50 * MS);
    while (take(&t->b) != NULL)
        ;
    struct packet p = initiation(t);
    CHECK_INT(deliver_from(&t->b, &p, &one), -MN_WG_DROP_COOKIE_SENT);
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_COOKIE)), 0);
    t->now += 30 * MS;
    p = initiation(t);
    CHECK_INT(deliver_from(&t->b, &p, &two), -MN_WG_DROP_COOKIE_SENT);
    (void)take_kind(&t->b, MN_WG_COOKIE);
    CHECK_INT(deliver_from(&t->b, &p, &one), 0);
    pair_stop(t);
}

/* mac2 is nobody's business while there is no load. */
static void test_mac2_ignored_without_load(void)
{
    struct pair *t = pair_start(72);
    struct packet p = initiation(t);
    memset(p.buf + 132, 0xab, 16);
    CHECK_INT(deliver(&t->b, &p), 0);
    (void)take_kind(&t->b, MN_WG_RESPONSE);
    pair_stop(t);
}

/* A cookie for the response: a under load answers b's response with one; b's next response carries mac2. */
static void test_cookie_for_response(void)
{
    struct pair *t = pair_start(73);
    struct packet init = initiation(t);
    CHECK_INT(deliver(&t->b, &init), 0);
    struct packet resp = *take_kind(&t->b, MN_WG_RESPONSE);
    t->a.wg->load.under_load_until = t->now + SEC;
    CHECK_INT(deliver(&t->a, &resp), -MN_WG_DROP_COOKIE_SENT);
    struct packet cookie = *take_kind(&t->a, MN_WG_COOKIE);
    CHECK_INT(deliver(&t->b, &cookie), 0); /* the receiver index is that of an unconfirmed session */
    t->now += 30 * MS;
    init = initiation(t);
    CHECK_INT(deliver(&t->b, &init), 0);
    resp = *take_kind(&t->b, MN_WG_RESPONSE);
    CHECK(has_mac2(&resp));
    CHECK_INT(deliver(&t->a, &resp), 0);
    CHECK(mn_wg_has_session(t->a.wg, t->pa, t->now));
    pair_stop(t);
}

static struct mn_noise noise;
static uint64_t seed = 77;

static void some_random(void *ctx, uint8_t *p, size_t n)
{
    (void)ctx;
    test_random_bytes(&seed, p, n);
}

/* The two ages: a receiver takes a cookie's secret for 120 s, a sender uses it for 115. */
static void test_ages(void)
{
    struct mn_cookie_checker checker = {0};
    struct mn_cookie_jar jar = {0};
    uint8_t pub[32] = {5}, msg[148] = {1}, reply[64];
    struct mn_path from = path_of(1, 1);
    uint64_t start = 100 * SEC;
    CHECK_INT(mn_noise_init(&noise), 0);
    CHECK(mn_cookie_checker_init(&checker, &noise, pub) == 0 && mn_cookie_jar_init(&jar, &noise, pub) == 0);
    CHECK(!mn_cookie_check_mac2(&checker, &noise, msg, 148, &from, start)); /* no secret yet */
    CHECK_INT(mn_cookie_add_macs(&jar, &noise, msg, 148, start), 0);
    CHECK(mn_cookie_check_mac1(&checker, &noise, msg, 148));
    CHECK_INT(mn_cookie_create_reply(&checker, &noise, msg, 148, &from, start, some_random, NULL, reply), 0);
    CHECK_INT(mn_cookie_consume_reply(&jar, &noise, reply, start), 0);
    CHECK(mn_cookie_consume_reply(&jar, &noise, reply, start) != 0); /* nobody asked twice */
    CHECK_INT(mn_cookie_add_macs(&jar, &noise, msg, 148, start + 115 * SEC - 1), 0);
    CHECK(mn_cookie_check_mac2(&checker, &noise, msg, 148, &from, start + 120 * SEC - 1));
    CHECK(!mn_cookie_check_mac2(&checker, &noise, msg, 148, &from, start + 120 * SEC));
    CHECK_INT(mn_cookie_add_macs(&jar, &noise, msg, 148, start + 115 * SEC), 0);
    static const uint8_t zero[16];
    CHECK(memcmp(msg + 132, zero, 16) == 0);
    uint8_t secret[32];
    memcpy(secret, checker.secret, 32);
    CHECK_INT(mn_cookie_create_reply(&checker, &noise, msg, 148, &from, start + 119 * SEC, some_random, NULL, reply),
              0);
    CHECK(memcmp(secret, checker.secret, 32) == 0);
    CHECK_INT(mn_cookie_create_reply(&checker, &noise, msg, 148, &from, start + 120 * SEC, some_random, NULL, reply),
              0);
    CHECK(memcmp(secret, checker.secret, 32) != 0);
    mn_noise_wipe(&noise);
}

/* 5 at once, then 20 a second, each source for itself; an IPv6 source is its /64; a full neighbourhood refuses. */
static void test_limiter(void)
{
    struct mn_limiter l = {.key = {3}};
    struct mn_path a = path_of(1, 1), a2 = path_of(1, 2), b = path_of(2, 1);
    struct mn_path six = {.ep = {.ip = {{0xfd, 1, 2, 3, 4, 5, 6, 7, 8}}, .port = 1}}, six2 = six, six3 = six;
    uint64_t now = 100 * SEC;
    CHECK_INT(mn_noise_init(&noise), 0);
    for (int i = 0; i < 5; i++)
        CHECK(mn_limiter_allow(&l, &noise, i % 2 ? &a : &a2, now));
    CHECK(!mn_limiter_allow(&l, &noise, &a, now));
    CHECK(mn_limiter_allow(&l, &noise, &b, now));
    unsigned allowed = 0;
    for (int i = 0; i < 1000; i++) {
        now += 10 * MS;
        allowed += mn_limiter_allow(&l, &noise, &a, now);
    }
    CHECK(allowed >= 199 && allowed <= 201);
    six2.ep.ip.b[15] = 9;
    six3.ep.ip.b[7] = 9;
    for (int i = 0; i < 5; i++)
        CHECK(mn_limiter_allow(&l, &noise, i % 2 ? &six : &six2, now));
    CHECK(!mn_limiter_allow(&l, &noise, &six, now));
    CHECK(mn_limiter_allow(&l, &noise, &six3, now));
    unsigned refused = 0;
    for (uint32_t i = 0; i < 8000; i++) {
        struct mn_path p = path_of(0, 1);
        mn_le32_put(p.ep.ip.b + 12, i + 1000);
        refused += !mn_limiter_allow(&l, &noise, &p, now);
    }
    CHECK(refused >= 8000 - MN_LIMITER_ENTRIES);
    now += 2 * SEC; /* forgotten */
    CHECK(mn_limiter_allow(&l, &noise, &a, now));
    mn_limiter_destroy(&l);
    mn_noise_wipe(&noise);
}

enum { CROWD = 40 };
static struct node server, crowd[CROWD];

/* What the server sent goes to whom it is for; returns how many were responses. */
static unsigned answer_crowd(void)
{
    unsigned responses = 0;
    for (struct packet *p; (p = take(&server)) != NULL;) {
        CHECK(p->kind == MN_WG_RESPONSE || p->kind == MN_WG_COOKIE);
        responses += p->kind == MN_WG_RESPONSE;
        CHECK_INT(deliver(&crowd[p->to.ep.ip.b[15]], p), 0);
    }
    return responses;
}

static void deliver_crowd(int *got)
{
    for (int i = 0; i < CROWD; i++) {
        struct mn_path from = path_of((uint8_t)i, 1);
        got[i] = 1;
        for (struct packet *p; (p = take(&crowd[i])) != NULL;)
            if (p->kind == MN_WG_INITIATION)
                got[i] = deliver_from(&server, p, &from);
    }
}

/* A burst beyond the budget: one waits in the queue, the rest are sent for a cookie and all come in with it. */
static void test_budget_and_queue(void)
{
    uint64_t now = 100 * SEC;
    int got[CROWD];
    unsigned served = 0;
    node_start(&server, 1, &now, NULL);
    for (int i = 0; i < CROWD; i++) {
        node_start(&crowd[i], 100 + (uint64_t)i, &now, NULL);
        CHECK_INT(mn_wg_kick(crowd[i].wg, node_peer(&crowd[i], &server, 1), now), 0);
        (void)node_peer(&server, &crowd[i], (uint8_t)(i + 2));
    }
    deliver_crowd(got);
    for (int i = 0; i < CROWD; i++)
        CHECK_INT(got[i], i <= 16 ? 0 : -MN_WG_DROP_COOKIE_SENT); /* a queue is load */
    CHECK_INT(answer_crowd(), 16);
    CHECK_INT(server.wg->load.count, 1);
    CHECK(mn_wg_next_deadline(server.wg) <= now + 2 * MS);
    run_to(&server, now + 2 * MS);
    CHECK_INT(server.heard_count, 17);
    CHECK_INT(server.heard_from.ep.ip.b[15], 16);
    served = 16 + answer_crowd();
    CHECK_INT(served, 17);
    server.wg->load.under_load_until = now + 60 * SEC; /* it goes on */
    for (int round = 0; round < 400 && served < CROWD; round++) {
        for (int i = 0; i < CROWD; i++)
            run_to(&crowd[i], now);
        deliver_crowd(got);
        run_to(&server, now + 20 * MS);
        served += answer_crowd();
    }
    CHECK_INT(served, CROWD);
    CHECK(now < 107 * SEC);
    CHECK_INT(drops(&server, MN_WG_DROP_OVERLOAD) + drops(&server, MN_WG_DROP_RATE), 0);
    for (int i = 0; i < CROWD; i++)
        node_stop(&crowd[i]);
    node_stop(&server);
}

/* Garbage costs a mac1 check and is never answered, nor does it put us under load. */
static void test_flood_of_garbage(void)
{
    struct pair *t = pair_start(75);
    struct packet p = {.len = 148};
    for (int i = 0; i < 20000 / MN_TEST_SLOW; i++) {
        test_random_bytes(&t->a.seed, p.buf, 148);
        memcpy(p.buf, (const uint8_t[4]){1, 0, 0, 0}, 4);
        CHECK_INT(deliver(&t->b, &p), -MN_WG_DROP_MAC1);
    }
    check_silent(&t->b);
    CHECK_INT(mn_wg_stats(t->b.wg)->under_load, 0);
    pair_connect(t);
    pair_stop(t);
}

int main(void)
{
    RUN(test_cookie_round_trip);
    RUN(test_cookie_by_relay);
    RUN(test_mac2_ignored_without_load);
    RUN(test_cookie_for_response);
    RUN(test_ages);
    RUN(test_limiter);
    RUN(test_budget_and_queue);
    RUN(test_flood_of_garbage);
    return 0;
}
