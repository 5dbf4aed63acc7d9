/* What plain WireGuard networks ask of the device: peers that roam, points of small order, prefixes that move between
 * peers, configurations by the hundred thousand, a private key changed under way. */
#include "wg_pair.h"

/* Data from a, from and to the given hosts, delivered to b by `from`; what came of it. */
static int pass(struct pair *t, uint8_t source, const struct mn_path *from)
{
    struct packet p;
    CHECK(send_data(&t->a, t->pa, source, 2, 100, &p) > 0);
    return deliver_from(&t->b, &p, from);
}

static void expect_roamed(const struct node *n, unsigned count, const struct mn_path *to)
{
    CHECK_INT(n->roamed_count, count);
    CHECK(mn_path_equal(&n->roamed_to, to));
}

/* WG-26: every authentic message of a roaming peer tells its path; nothing else does. */
static void test_roaming_follows_what_is_authentic(void)
{
    struct pair *t = pair_start(1);
    struct mn_path one = path_of(1, 1), two = path_of(2, 2), three = path_of(3, 3), four = path_of(4, 4);
    CHECK_INT(mn_wg_peer_set_roaming(t->b.wg, t->pb, true), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet asked = *take_kind(&t->a, MN_WG_INITIATION);
    struct packet bad = asked;
    bad.buf[60] ^= 1;
    CHECK(deliver_from(&t->b, &bad, &four) < 0);
    CHECK_INT(t->b.roamed_count, 0);
    CHECK_INT(deliver_from(&t->b, &asked, &one), 0);
    expect_roamed(&t->b, 1, &one);
    CHECK(deliver_from(&t->b, &asked, &four) < 0); /* a copy of it moves nobody */
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), 0);
    CHECK_INT(deliver_from(&t->b, take_kind(&t->a, MN_WG_KEEPALIVE), &two), 0);
    expect_roamed(&t->b, 2, &two);
    CHECK_INT(pass(t, 1, &three), 100);
    expect_roamed(&t->b, 3, &three);
    struct packet p;
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    bad = p;
    bad.buf[40] ^= 1;
    CHECK_INT(deliver_from(&t->b, &bad, &four), -MN_WG_DROP_AUTH);
    CHECK_INT(deliver_from(&t->b, &p, &one), 100);
    CHECK_INT(deliver_from(&t->b, &p, &four), -MN_WG_DROP_REPLAY);
    expect_roamed(&t->b, 4, &one);
    CHECK_INT(t->a.roamed_count, 0); /* b does not roam in a's eyes */
    pair_stop(t);
}

/* A packet whose inner source belongs to somebody else is dropped, yet it is the peer who sent it. */
static void test_roaming_by_a_refused_source(void)
{
    struct pair *t = pair_start(2);
    struct mn_path there = path_of(9, 9);
    pair_connect(t);
    CHECK_INT(mn_wg_peer_set_roaming(t->b.wg, t->pb, true), 0);
    CHECK_INT(pass(t, 77, &there), -MN_WG_DROP_SOURCE);
    expect_roamed(&t->b, 1, &there);
    pair_stop(t);
}

static void test_response_moves_the_responder(void)
{
    struct pair *t = pair_start(3);
    struct mn_path there = path_of(8, 8);
    CHECK_INT(mn_wg_peer_set_roaming(t->a.wg, t->pa, true), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), 0);
    CHECK_INT(deliver_from(&t->a, take_kind(&t->b, MN_WG_RESPONSE), &there), 0);
    expect_roamed(&t->a, 1, &there);
    CHECK_INT(mn_wg_peer_set_roaming(t->a.wg, 99, true), MN_WG_E_PEER);
    pair_stop(t);
}

/* The points of small order on the curve and its twist, and one above the prime. Source: RFC 7748 6.1 and the
 * orders of Curve25519's cofactor subgroup. */
static const char *const small_order[] = {
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
};
enum { SMALL = sizeof small_order / sizeof *small_order };

/* With a keepalive on, such a peer must not make us send one packet, whether it came before our key or after it. */
static void test_points_of_small_order_stay_silent(void)
{
    uint64_t now = 1000 * SEC;
    struct node n = {.now = &now, .wall_ns = WALL * SEC, .seed = 4};
    struct mn_wg_ops ops = {
        .ctx = &n, .random = node_random, .wall_ns = node_wall, .send = node_send, .event = node_event};
    uint8_t key[32] = {8, [31] = 64}, point[32];
    n.wg = mn_wg_create(&ops, NULL, NULL, now);
    CHECK(n.wg != NULL);
    for (size_t i = 0; i < SMALL; i++) {
        uint32_t id;
        CHECK_INT(test_hex(small_order[i], point, sizeof point), 32);
        CHECK_INT(mn_wg_peer_add(n.wg, point, &id), 0);
        CHECK_INT(mn_wg_peer_set_keepalive(n.wg, id, 1, now), 0);
    }
    CHECK_INT(mn_wg_set_private_key(n.wg, key, now), 0);
    for (uint32_t id = 0; id < SMALL; id++) {
        struct packet p;
        CHECK_INT(mn_wg_kick(n.wg, id, now), MN_WG_E_KEY);
        CHECK_INT(send_data(&n, id, 1, 2, 100, &p), -MN_WG_DROP_NO_KEY);
    }
    run_to(&n, now + 300 * SEC);
    check_silent(&n);
    for (size_t i = 0; i < SMALL; i++) {
        uint32_t id;
        test_hex(small_order[i], point, sizeof point);
        CHECK_INT(mn_wg_peer_find(n.wg, point, &id), 0);
        CHECK_INT(mn_wg_peer_remove(n.wg, id), 0);
        CHECK_INT(mn_wg_peer_add(n.wg, point, &id), MN_WG_E_KEY);
    }
    node_stop(&n);
}

static struct mn_ip prefix_of(uint32_t v4)
{
    const uint8_t raw[4] = {(uint8_t)(v4 >> 24), (uint8_t)(v4 >> 16), (uint8_t)(v4 >> 8), (uint8_t)v4};
    return mn_ip_from4(raw);
}

/* Two peers given the same ranges in turn: the last one has them, and nothing of the first remains. */
static void test_overlapping_ranges_replaced_again_and_again(void)
{
    struct pair *t = pair_start(5);
    uint32_t two[2] = {t->pa, 0};
    struct node c;
    node_start(&c, 99, &t->now, NULL);
    CHECK_INT(mn_wg_peer_add(t->a.wg, c.pub, &two[1]), 0);
    for (unsigned round = 0; round < 50; round++) {
        uint32_t winner = two[round % 2], loser = two[1 - round % 2];
        CHECK_INT(mn_wg_disallow_all(t->a.wg, winner), 0);
        for (uint32_t i = 0; i < 64; i++) {
            struct mn_ip wide = prefix_of(0x0a000000u + (i << 16)), narrow = prefix_of(0x0a000000u + (i << 16) + 256);
            CHECK_INT(mn_wg_allow(t->a.wg, &wide, 96 + 16, winner), 0);
            CHECK_INT(mn_wg_allow(t->a.wg, &narrow, 96 + 24, loser), 0);
        }
        for (uint32_t i = 0; i < 64; i++) {
            struct mn_ip in_wide = prefix_of(0x0a000000u + (i << 16) + 7);
            struct mn_ip in_narrow = prefix_of(0x0a000000u + (i << 16) + 256 + 7);
            CHECK_INT(mn_wg_route(t->a.wg, &in_wide), winner);
            CHECK_INT(mn_wg_route(t->a.wg, &in_narrow), loser);
        }
    }
    node_stop(&c);
    pair_stop(t);
}

enum { HUGE = 130560, MANY_PEERS = 40, EACH = 52, ALONE = 197 };

/* Every prefix of a very large configuration answers, and all are gone with their peers. */
static void test_very_large_configurations(void)
{
    struct pair *t = pair_start(6);
    for (uint32_t i = 0; i < HUGE; i++) {
        struct mn_ip ip = prefix_of(0x0b000000u + i * 4);
        CHECK_INT(mn_wg_allow(t->a.wg, &ip, 96 + (i % 2 == 0 ? 32 : 31), t->pa), 0);
    }
    for (uint32_t i = 0; i < HUGE; i++) {
        struct mn_ip first = prefix_of(0x0b000000u + i * 4), second = prefix_of(0x0b000000u + i * 4 + 1);
        CHECK_INT(mn_wg_route(t->a.wg, &first), t->pa);
        CHECK_INT(mn_wg_route(t->a.wg, &second), i % 2 == 0 ? MN_PEER_NONE : t->pa);
    }
    uint32_t ids[MANY_PEERS + 1];
    uint64_t seed = 6;
    for (uint32_t k = 0; k <= MANY_PEERS; k++) {
        uint8_t key[32];
        test_random_bytes(&seed, key, sizeof key);
        CHECK_INT(mn_wg_peer_add(t->a.wg, key, &ids[k]), 0);
        for (uint32_t i = 0; i < (k < MANY_PEERS ? EACH : ALONE); i++) {
            struct mn_ip ip = {.b = {0xfd, (uint8_t)k, (uint8_t)i}};
            CHECK_INT(mn_wg_allow(t->a.wg, &ip, 64, ids[k]), 0);
        }
    }
    for (uint32_t k = 0; k <= MANY_PEERS; k++)
        for (uint32_t i = 0; i < (k < MANY_PEERS ? EACH : ALONE); i++) {
            struct mn_ip ip = {.b = {0xfd, (uint8_t)k, (uint8_t)i, [15] = 1}};
            CHECK_INT(mn_wg_route(t->a.wg, &ip), ids[k]);
        }
    CHECK_INT(mn_wg_peer_remove(t->a.wg, t->pa), 0);
    for (uint32_t i = 0; i < HUGE; i++) {
        struct mn_ip ip = prefix_of(0x0b000000u + i * 4);
        CHECK_INT(mn_wg_route(t->a.wg, &ip), MN_PEER_NONE);
    }
    pair_stop(t);
}

/* A new private key under way: the old sessions are void at once and the next packet makes new ones. */
static void test_private_key_changed_under_way(void)
{
    struct pair *t = pair_start(7);
    struct packet p;
    uint8_t key[32], pub[32];
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    test_random_bytes(&t->a.seed, key, sizeof key);
    CHECK_INT(mn_wg_set_private_key(t->a.wg, key, t->now), 0);
    mn_wg_public_key(t->a.wg, pub);
    CHECK(!mn_wg_has_session(t->a.wg, t->pa, t->now));
    uint32_t renewed;
    struct mn_ip one = inner_of(1);
    CHECK_INT(mn_wg_peer_add(t->b.wg, pub, &renewed), 0);
    CHECK_INT(mn_wg_allow(t->b.wg, &one, 128, renewed), 0);
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &p), 0); /* at once, however young the last handshake */
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), 0);
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_DATA)), 100);
    pair_stop(t);
}

int main(void)
{
    RUN(test_roaming_follows_what_is_authentic);
    RUN(test_roaming_by_a_refused_source);
    RUN(test_response_moves_the_responder);
    RUN(test_points_of_small_order_stay_silent);
    RUN(test_overlapping_ranges_replaced_again_and_again);
    RUN(test_very_large_configurations);
    RUN(test_private_key_changed_under_way);
    return 0;
}
