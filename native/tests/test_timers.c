/* The five timers and what they lead to, in virtual time. WG-14 to WG-19, WG-29. */
#include "wg_pair.h"

/* Run a to `until`; returns when the next packet of this kind went out (its time), or 0. Others are skipped. */
static uint64_t run_until_kind(struct pair *t, struct node *n, enum mn_wg_kind kind, uint64_t until)
{
    for (;;) {
        for (struct packet *p; (p = take(n)) != NULL;)
            if (p->kind == kind)
                return t->now;
        uint64_t at = mn_wg_next_deadline(n->wg);
        if (at > until) {
            t->now = until;
            return 0;
        }
        if (at > t->now)
            t->now = at;
        mn_wg_on_deadline(n->wg, t->now);
    }
}

static bool within(uint64_t got, uint64_t from, uint64_t to)
{
    return got >= from && got <= to + 2 * MN_WHEEL_TICK_NS;
}

/* 20 initiations, 5 s + [0, 333] ms apart; then give up, purge, say so; the next packet starts over. */
static void test_retries_and_giving_up(void)
{
    struct pair *t = pair_start(50);
    struct packet p;
    uint64_t jitters = 0;
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &p), 0);
    uint64_t last = t->now;
    CHECK_INT(take_kind(&t->a, MN_WG_INITIATION)->attempt, 0);
    for (unsigned i = 1; i < 20; i++) {
        while (t->a.out_head == t->a.out_tail)
            run_to(&t->a, mn_wg_next_deadline(t->a.wg));
        struct packet *init = take_kind(&t->a, MN_WG_INITIATION);
        CHECK_INT(init->attempt, i);
        CHECK(within(t->now - last, 5 * SEC, 5 * SEC + 334 * MS));
        jitters += t->now - last - 5 * SEC;
        last = t->now;
    }
    CHECK(jitters > 19 * 60 * MS); /* it does spread */
    CHECK_INT(peer_a(t)->staged_count, 1);
    CHECK_INT(count_events(&t->a, MN_WG_HANDSHAKE_FAILED), 0);
    run_to(&t->a, last + 6 * SEC);
    check_silent(&t->a);
    CHECK_INT(count_events(&t->a, MN_WG_HANDSHAKE_FAILED), 1);
    CHECK_INT(peer_a(t)->staged_count, 0);
    CHECK(within(t->now, 1000 * SEC + 100 * SEC, 1000 * SEC + 113 * SEC));
    run_to(&t->a, t->now + 600 * SEC);
    check_silent(&t->a);
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &p), 0);
    CHECK_INT(take_kind(&t->a, MN_WG_INITIATION)->attempt, 0);
    pair_stop(t);
}

static void test_one_initiation_in_5s(void)
{
    struct pair *t = pair_start(51);
    struct packet p;
    for (int i = 0; i < 40; i++) {
        CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &p), 0);
        run_to(&t->a, t->now + 100 * MS);
    }
    (void)take_kind(&t->a, MN_WG_INITIATION);
    check_silent(&t->a);
    pair_stop(t);
}

/* Exchange data each second; only who initiated renews, at 120 s, and nobody notices. */
static void test_initiator_rekeys_at_120s(void)
{
    struct pair *t = pair_start(52);
    struct packet p;
    pair_connect(t);
    uint64_t born = t->now;
    unsigned rekeys = 0;
    for (uint64_t second = 1; second <= 400; second++) {
        run_to(&t->a, born + second * SEC);
        mn_wg_on_deadline(t->b.wg, t->now);
        CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
        CHECK_INT(deliver(&t->b, &p), 100);
        CHECK(send_data(&t->b, t->pb, 2, 1, 100, &p) > 0);
        CHECK_INT(deliver(&t->a, &p), 100);
        struct packet *init = take(&t->a);
        if (init == NULL)
            continue;
        CHECK_INT(init->kind, MN_WG_INITIATION);
        CHECK_INT(second, 120 * ++rekeys);
        CHECK_INT(deliver(&t->b, init), 0);
        CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), 0);
        CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_KEEPALIVE)), 0);
        check_silent(&t->b);
    }
    CHECK_INT(rekeys, 3);
    pair_stop(t);
}

/* An initiator that only receives renews at 165 s, once. */
static void test_receiver_rekeys_at_165s(void)
{
    struct pair *t = pair_start(53);
    struct packet p;
    pair_connect(t);
    uint64_t born = t->now;
    for (uint64_t second = 1; second < 180; second++) {
        t->now = born + second * SEC;
        CHECK(send_data(&t->b, t->pb, 2, 1, 100, &p) > 0);
        CHECK_INT(deliver(&t->a, &p), 100);
        mn_wheel_cancel(&peer_a(t)->timers[MN_TIMER_SEND_KEEPALIVE]); /* strictly only receiving */
        if (second < 165) {
            check_silent(&t->a);
        } else if (second == 165) {
            (void)take_kind(&t->a, MN_WG_INITIATION);
            mn_wheel_cancel(&peer_a(t)->timers[MN_TIMER_RETRANSMIT]);
        }
    }
    check_silent(&t->a); /* not asked again by every packet, although 5 s went by */
    pair_stop(t);
}

static void test_silence_leads_to_handshake(void)
{
    struct pair *t = pair_start(54);
    struct packet p;
    pair_connect(t);
    t->now += 20 * SEC;
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    uint64_t sent = t->now;
    uint64_t at = run_until_kind(t, &t->a, MN_WG_INITIATION, t->now + 60 * SEC);
    CHECK(within(at - sent, 15 * SEC, 15 * SEC + 334 * MS));
    pair_stop(t);

    t = pair_start(55);
    pair_connect(t);
    t->now += 20 * SEC;
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    CHECK_INT(deliver(&t->b, &p), 100);
    uint64_t ka = run_until_kind(t, &t->b, MN_WG_KEEPALIVE, t->now + 12 * SEC); /* b's passive keepalive is enough */
    CHECK(ka != 0);
    t->b.out_head--;
    CHECK_INT(deliver(&t->a, take(&t->b)), 0);
    CHECK_INT(run_until_kind(t, &t->a, MN_WG_INITIATION, t->now + 60 * SEC), 0);
    pair_stop(t);
}

/* Passive keepalive: 10 s after data with nothing sent; another 10 s later only if more data came meanwhile. */
static void test_passive_keepalive(void)
{
    struct pair *t = pair_start(56);
    struct packet p, q;
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0 && send_data(&t->a, t->pa, 1, 2, 100, &q) > 0);
    CHECK_INT(deliver(&t->b, &p), 100);
    uint64_t got = t->now, at = run_until_kind(t, &t->b, MN_WG_KEEPALIVE, t->now + 60 * SEC);
    CHECK(within(at - got, 10 * SEC, 10 * SEC));
    CHECK_INT(run_until_kind(t, &t->b, MN_WG_KEEPALIVE, t->now + 60 * SEC), 0);

    CHECK_INT(deliver(&t->b, &q), 100);
    got = t->now;
    run_to(&t->b, got + 3 * SEC);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    CHECK_INT(deliver(&t->b, &p), 100);
    at = run_until_kind(t, &t->b, MN_WG_KEEPALIVE, t->now + 60 * SEC);
    CHECK(within(at - got, 10 * SEC, 10 * SEC));
    at = run_until_kind(t, &t->b, MN_WG_KEEPALIVE, t->now + 60 * SEC);
    CHECK(within(at - got, 20 * SEC, 20 * SEC));
    CHECK_INT(run_until_kind(t, &t->b, MN_WG_KEEPALIVE, t->now + 30 * SEC), 0);
    pair_stop(t);
}

static void test_no_keepalive_when_answered(void)
{
    struct pair *t = pair_start(57);
    struct packet p;
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    CHECK_INT(deliver(&t->b, &p), 100);
    t->now += SEC;
    CHECK(send_data(&t->b, t->pb, 2, 1, 100, &p) > 0);
    CHECK_INT(run_until_kind(t, &t->b, MN_WG_KEEPALIVE, t->now + 14 * SEC), 0);
    pair_stop(t);
}

static void test_persistent_keepalive(void)
{
    struct pair *t = pair_start(58);
    struct packet p;
    pair_connect(t);
    t->now += 7 * SEC;
    CHECK_INT(mn_wg_peer_set_keepalive(t->a.wg, t->pa, 25, t->now), 0);
    (void)take_kind(&t->a, MN_WG_KEEPALIVE); /* 0 to 25: at once */
    CHECK_INT(mn_wg_peer_set_keepalive(t->a.wg, t->pa, 25, t->now), 0);
    check_silent(&t->a);
    uint64_t last = t->now;
    for (int i = 0; i < 3; i++) {
        uint64_t at = run_until_kind(t, &t->a, MN_WG_KEEPALIVE, t->now + 60 * SEC);
        CHECK(within(at - last, 25 * SEC, 25 * SEC));
        last = at;
    }
    run_to(&t->a, last + 20 * SEC);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0); /* anything sent puts it off */
    last = t->now;
    CHECK_INT(deliver(&t->b, &p), 100);
    mn_wheel_cancel(&peer_a(t)->timers[MN_TIMER_NEW_HANDSHAKE]);
    uint64_t at = run_until_kind(t, &t->a, MN_WG_KEEPALIVE, t->now + 60 * SEC);
    CHECK(within(at - last, 25 * SEC, 25 * SEC));
    CHECK_INT(mn_wg_peer_set_keepalive(t->a.wg, t->pa, 0, t->now), 0);
    CHECK_INT(run_until_kind(t, &t->a, MN_WG_KEEPALIVE, t->now + 100 * SEC), 0);
    pair_stop(t);
}

/* With no session a persistent keepalive asks for one, and goes on asking after giving up. */
static void test_persistent_keepalive_makes_sessions(void)
{
    struct pair *t = pair_start(59);
    CHECK_INT(mn_wg_peer_set_keepalive(t->a.wg, t->pa, 25, t->now), 0);
    unsigned initiations = 0;
    for (int second = 0; second < 600; second++) {
        run_to(&t->a, t->now + SEC);
        while (take(&t->a) != NULL)
            initiations++;
    }
    CHECK(initiations > 60);
    pair_stop(t);
}

/* 540 s after the last session every secret is gone; peer and psk stay. */
static void test_zero_keys(void)
{
    struct pair *t = pair_start(60);
    static const struct mn_noise_initiator none;
    pair_connect(t);
    uint64_t born = t->now;
    t->now += 6 * SEC;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0); /* an initiation that nobody answers */
    CHECK(memcmp(&peer_a(t)->secret->initiator, &none, sizeof none) != 0);
    run_to(&t->a, born + 539 * SEC);
    CHECK(peer_a(t)->sessions.current != NULL);
    run_to(&t->a, born + 541 * SEC);
    CHECK(peer_a(t)->sessions.current == NULL && peer_a(t)->sessions.previous == NULL);
    CHECK(memcmp(&peer_a(t)->secret->initiator, &none, sizeof none) == 0);
    CHECK_INT(t->a.wg->indices.count, 0);
    CHECK_INT(count_events(&t->a, MN_WG_SESSION_GONE), 1);
    while (take(&t->a) != NULL)
        ;
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 64, &(struct packet){0}), 0);
    (void)take_kind(&t->a, MN_WG_INITIATION);
    pair_stop(t);
}

/* The clock jumps as over a suspend: old keys are not used, one packet makes new ones. */
static void test_suspend(void)
{
    struct pair *t = pair_start(61);
    struct packet p, old;
    pair_connect(t);
    CHECK(send_data(&t->b, t->pb, 2, 1, 100, &old) > 0);
    t->now += 7200 * SEC;
    CHECK_INT(deliver(&t->a, &old), -MN_WG_DROP_EXPIRED);
    CHECK(!mn_wg_has_session(t->a.wg, t->pa, t->now));
    mn_wg_on_deadline(t->a.wg, t->now);
    mn_wg_on_deadline(t->b.wg, t->now);
    while (take(&t->a) != NULL || take(&t->b) != NULL)
        ;
    t->now += 6 * SEC;
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &p), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), 0);
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_DATA)), 100);
    pair_stop(t);
}

/* A thousand peers lost at once do not retry at once. */
static void test_no_storm(void)
{
    enum { N = 1000 / MN_TEST_SLOW };
    uint64_t now = 50 * SEC, seed = 9;
    static struct node n;
    uint8_t key[32];
    uint32_t id, worst = 0, total = 0;
    struct packet p;
    node_start(&n, 1, &now, NULL);
    for (int i = 0; i < N; i++) {
        test_random_bytes(&seed, key, 32);
        CHECK_INT(mn_wg_peer_add(n.wg, key, &id), 0);
        CHECK_INT(send_data(&n, id, 1, 2, 40, &p), 0);
        (void)take_kind(&n, MN_WG_INITIATION);
    }
    for (uint64_t at; (at = mn_wg_next_deadline(n.wg)) < 56 * SEC;) {
        uint32_t sent = 0;
        now = at;
        mn_wg_on_deadline(n.wg, now);
        while (take(&n) != NULL)
            sent++;
        worst = sent > worst ? sent : worst;
        total += sent;
    }
    CHECK_INT(total, N);
    CHECK(worst < N / 15 + 10); /* 333 ms are 41 ticks */
    node_stop(&n);
}

int main(void)
{
    RUN(test_retries_and_giving_up);
    RUN(test_one_initiation_in_5s);
    RUN(test_initiator_rekeys_at_120s);
    RUN(test_receiver_rekeys_at_165s);
    RUN(test_silence_leads_to_handshake);
    RUN(test_passive_keepalive);
    RUN(test_no_keepalive_when_answered);
    RUN(test_persistent_keepalive);
    RUN(test_persistent_keepalive_makes_sessions);
    RUN(test_zero_keys);
    RUN(test_suspend);
    RUN(test_no_storm);
    return 0;
}
