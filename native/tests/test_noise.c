/* Handshake messages: exact shapes, both roles, and every way to be refused. WG-02, WG-04, WG-05, WG-06, WG-07, WG-10.
 */
#include "wg_pair.h"
#include "wg_vectors.h"

static void start_noise(struct mn_noise *n, const uint8_t priv[32])
{
    CHECK_INT(mn_noise_init(n), 0);
    CHECK_INT(mn_noise_set_key(n, priv), 0);
}

static void know(struct mn_noise *n, const struct mn_noise *other, struct mn_noise_remote *remote)
{
    memcpy(remote->pub, other->pub, 32);
    memcpy(remote->psk, vector_psk, 32);
    CHECK_INT(mn_noise_shared(n, remote), 0);
}

static void check_data(const struct mn_noise *n, struct mn_noise_keys *keys, uint32_t remote_index, uint64_t counter,
                       const uint8_t *want, size_t want_len)
{
    uint8_t msg[256];
    struct mn_session *s = mn_session_create(n->provider, keys, true, 1, remote_index, 0);
    CHECK(s != NULL);
    s->send_counter = counter;
    for (size_t i = 0; i < want_len - MN_WG_OVERHEAD; i++)
        msg[MN_WG_HEADER + i] = (uint8_t)i;
    CHECK_INT(mn_session_seal(s, msg, want_len - MN_WG_OVERHEAD), want_len);
    CHECK(memcmp(msg, want, want_len) == 0);
    mn_session_free(s);
}

/* A whole conversation, byte for byte, as other code computed it. */
static void test_vectors(void)
{
    struct mn_noise i, r;
    struct mn_noise_remote to_r = {0}, to_i = {0};
    struct mn_noise_initiator state;
    struct mn_noise_responder pending;
    struct mn_noise_keys keys_i, keys_r;
    struct mn_cookie_jar jar_i = {0}, jar_r = {0};
    uint8_t init[148], resp[92];
    const uint32_t index_i = mn_le32_get(vector_initiation + 4), index_r = mn_le32_get(vector_response + 4);
    start_noise(&i, vector_priv_i);
    start_noise(&r, vector_priv_r);
    know(&i, &r, &to_r);
    know(&r, &i, &to_i);
    CHECK(mn_cookie_jar_init(&jar_i, &i, r.pub) == 0 && mn_cookie_jar_init(&jar_r, &r, i.pub) == 0);

    CHECK_INT(mn_noise_create_initiation(&i, &to_r, vector_eph_i, vector_timestamp, index_i, &state, init), 0);
    CHECK_INT(mn_cookie_add_macs(&jar_i, &i, init, sizeof init, SEC), 0);
    CHECK(memcmp(init, vector_initiation, sizeof init) == 0);

    CHECK_INT(mn_noise_read_static(&r, init, &pending), 0);
    CHECK(memcmp(pending.pub, i.pub, 32) == 0);
    CHECK_INT(mn_noise_read_timestamp(&r, &to_i, init, &pending), 0);
    CHECK(memcmp(pending.timestamp, vector_timestamp, 12) == 0);
    CHECK_INT(mn_noise_create_response(&r, &to_i, &pending, vector_eph_r, index_r, &keys_r, resp), 0);
    CHECK_INT(mn_cookie_add_macs(&jar_r, &r, resp, sizeof resp, SEC), 0);
    CHECK(memcmp(resp, vector_response, sizeof resp) == 0);

    CHECK_INT(mn_noise_consume_response(&i, &to_r, &state, resp, &keys_i), 0);
    CHECK(memcmp(keys_i.send, vector_key_i, 32) == 0 && memcmp(keys_i.receive, vector_key_r, 32) == 0);
    CHECK(memcmp(keys_r.send, vector_key_r, 32) == 0 && memcmp(keys_r.receive, vector_key_i, 32) == 0);
    struct mn_noise_keys again = keys_i;
    check_data(&i, &again, index_r, 0, vector_data_i, sizeof vector_data_i);
    check_data(&i, &keys_i, index_r, 1, vector_keepalive_i, sizeof vector_keepalive_i);
    check_data(&r, &keys_r, index_i, 0x0102030405060708, vector_data_r, sizeof vector_data_r);
    mn_noise_wipe(&i);
    mn_noise_wipe(&r);
}

static void vector_nonce(void *ctx, uint8_t *p, size_t n)
{
    (void)ctx;
    memcpy(p, n == 32 ? vector_cookie_secret : vector_cookie_nonce, n);
}

static void test_cookie_vectors(void)
{
    struct mn_noise i, r;
    struct mn_cookie_checker checker = {0};
    struct mn_cookie_jar jar = {0};
    struct mn_path from = path_of(1, 41641);
    uint8_t init[148], reply[64];
    start_noise(&i, vector_priv_i);
    start_noise(&r, vector_priv_r);
    CHECK(mn_cookie_checker_init(&checker, &r, r.pub) == 0 && mn_cookie_jar_init(&jar, &i, r.pub) == 0);
    memcpy(init, vector_initiation, sizeof init);
    CHECK(mn_cookie_check_mac1(&checker, &r, init, sizeof init));
    CHECK_INT(mn_cookie_add_macs(&jar, &i, init, sizeof init, SEC), 0);
    CHECK_INT(mn_cookie_create_reply(&checker, &r, init, sizeof init, &from, SEC, vector_nonce, NULL, reply), 0);
    CHECK(memcmp(reply, vector_cookie_reply, sizeof reply) == 0);
    CHECK_INT(mn_cookie_consume_reply(&jar, &i, reply, SEC), 0);
    CHECK_INT(mn_cookie_add_macs(&jar, &i, init, sizeof init, SEC), 0);
    CHECK(memcmp(init, vector_initiation_mac2, sizeof init) == 0);
    CHECK(mn_cookie_check_mac2(&checker, &r, init, sizeof init, &from, SEC));
    mn_noise_wipe(&i);
    mn_noise_wipe(&r);
}

static void test_handshake_and_data(void)
{
    struct pair *t = pair_start(1);
    struct packet p;
    uint8_t *inner, buf[PACKET];
    uint32_t peer;
    struct mn_path from = path_of(1, 1);
    pair_connect(t);
    for (size_t len = 20; len <= 1280; len += 63) {
        CHECK_INT(send_data(&t->a, t->pa, 1, 2, len, &p), 32 + (len + 15) / 16 * 16);
        memcpy(buf, p.buf, p.len);
        CHECK_INT(mn_wg_input(t->b.wg, buf, p.len, &from, t->now, &inner, &peer), len);
        CHECK_INT(peer, t->pb);
        CHECK(inner == buf + 16);
        CHECK_INT(send_data(&t->b, t->pb, 2, 1, len, &p), 32 + (len + 15) / 16 * 16);
        CHECK_INT(deliver(&t->a, &p), len);
    }
    CHECK_INT(count_events(&t->a, MN_WG_SESSION_UP), 1);
    CHECK_INT(count_events(&t->b, MN_WG_SESSION_UP), 1);
    pair_stop(t);
}

/* Where answers go: a response names the path the initiation came by, everything else the peer's own. */
static void test_paths_of_answers(void)
{
    struct pair *t = pair_start(2);
    struct mn_path from = path_of(77, 4321);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet *init = take_kind(&t->a, MN_WG_INITIATION);
    CHECK(!init->has_to && init->attempt == 0 && init->peer == t->pa);
    CHECK_INT(deliver_from(&t->b, init, &from), 0);
    CHECK(t->b.heard_count == 1 && mn_path_equal(&t->b.heard_from, &from));
    struct packet *resp = take_kind(&t->b, MN_WG_RESPONSE);
    CHECK(resp->has_to && mn_path_equal(&resp->to, &from) && resp->peer == t->pb);
    CHECK_INT(deliver(&t->a, resp), 0);
    struct packet *ka = take_kind(&t->a, MN_WG_KEEPALIVE);
    CHECK(!ka->has_to);
    CHECK_INT(ka->len, 32);
    pair_stop(t);
}

static void test_shapes(void)
{
    struct pair *t = pair_start(3);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet init = *take_kind(&t->a, MN_WG_INITIATION), bad;
    CHECK_INT(init.len, 148);
    for (unsigned type = 0; type < 256; type++) {
        for (size_t len = 0; len < 200; len++) {
            bool known = (type == 1 && len == 148) || (type == 2 && len == 92) || (type == 3 && len == 64) ||
                         (type == 4 && len >= 32);
            bad = init;
            bad.buf[0] = (uint8_t)type;
            bad.len = len;
            if (!known)
                CHECK_INT(deliver(&t->b, &bad), -MN_WG_DROP_MALFORMED);
        }
    }
    for (int i = 1; i < 4; i++) {
        bad = init;
        bad.buf[i] = 1;
        CHECK_INT(deliver(&t->b, &bad), -MN_WG_DROP_MALFORMED);
    }
    check_silent(&t->b);
    CHECK_INT(deliver(&t->b, &init), 0);
    struct packet *resp = take_kind(&t->b, MN_WG_RESPONSE);
    CHECK_INT(resp->len, 92);
    CHECK(memcmp(resp->buf + 8, init.buf + 4, 4) == 0);
    pair_stop(t);
}

/* mac1 over a changed message, so that the change is what gets refused. */
static void fix_mac1(struct node *from, const struct node *to, struct packet *p)
{
    struct mn_cookie_jar jar = {0};
    CHECK(mn_cookie_jar_init(&jar, &from->wg->noise, to->pub) == 0);
    CHECK(mn_cookie_add_macs(&jar, &from->wg->noise, p->buf, p->len, *from->now) == 0);
}

/* Every bit of an initiation matters; nothing is answered, nothing changes, and the untouched one still works. */
static void test_bad_initiations(void)
{
    struct pair *t = pair_start(4);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet init = *take_kind(&t->a, MN_WG_INITIATION), bad;
    for (size_t at = 4; at < 132; at++) {
        bad = init;
        bad.buf[at] ^= 0x10;
        CHECK_INT(deliver(&t->b, &bad), -MN_WG_DROP_MAC1);
        t->now += 30 * MS;
    }
    for (size_t at = 8; at < 116; at += 5) {
        bad = init;
        bad.buf[at] ^= 0x10;
        fix_mac1(&t->a, &t->b, &bad);
        CHECK_INT(deliver(&t->b, &bad), -MN_WG_DROP_AUTH);
        t->now += 30 * MS;
    }
    bad = init;
    memset(bad.buf + 8, 0, 32); /* an ephemeral of small order */
    fix_mac1(&t->a, &t->b, &bad);
    CHECK_INT(deliver(&t->b, &bad), -MN_WG_DROP_AUTH);
    check_silent(&t->b);
    CHECK(peer_b(t)->sessions.next == NULL && peer_b(t)->last_accepted_ns == MN_LONG_AGO);
    CHECK_INT(drops(&t->b, MN_WG_DROP_MAC1), 128);
    CHECK_INT(deliver(&t->b, &init), 0);
    (void)take_kind(&t->b, MN_WG_RESPONSE);
    pair_stop(t);
}

static void test_unknown_peer(void)
{
    struct pair *t = pair_start(5);
    struct node c;
    node_start(&c, 99, &t->now, NULL);
    uint32_t id = node_peer(&c, &t->b, 2);
    CHECK_INT(mn_wg_kick(c.wg, id, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&c, MN_WG_INITIATION)), -MN_WG_DROP_UNKNOWN_PEER);
    check_silent(&t->b);
    CHECK_INT(mn_wg_peer_remove(t->b.wg, t->pb), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), -MN_WG_DROP_UNKNOWN_PEER);
    node_stop(&c);
    pair_stop(t);
}

/* Wrong preshared key on one side: the response does not verify, and the handshake stays usable. */
static void test_psk(void)
{
    struct pair *t = pair_start(6);
    uint8_t psk[32] = {1, 2, 3};
    CHECK_INT(mn_wg_peer_set_psk(t->a.wg, t->pa, psk), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), 0);
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), -MN_WG_DROP_AUTH);
    CHECK(!mn_wg_has_session(t->a.wg, t->pa, t->now));
    CHECK_INT(mn_wg_peer_set_psk(t->b.wg, t->pb, psk), 0);
    t->now += 6 * SEC;
    pair_connect(t);
    pair_stop(t);
}

/* Responses with the right indices but not from the peer leave the handshake as it was. */
static void test_forged_response(void)
{
    struct pair *t = pair_start(7);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), 0);
    struct packet resp = *take_kind(&t->b, MN_WG_RESPONSE), bad;
    /* From 8: the sender index before it is not authenticated by the handshake, only by what then arrives or not. */
    for (size_t at = 8; at < 60; at += 3) {
        bad = resp;
        bad.buf[at] ^= 1;
        fix_mac1(&t->b, &t->a, &bad);
        CHECK_INT(deliver(&t->a, &bad), at < 12 ? -MN_WG_DROP_INDEX : -MN_WG_DROP_AUTH);
        t->now += 30 * MS;
    }
    check_silent(&t->a);
    CHECK_INT(deliver(&t->a, &resp), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_KEEPALIVE)), 0);
    CHECK_INT(deliver(&t->a, &resp), -MN_WG_DROP_STATE); /* twice is once too often */
    CHECK(mn_wg_has_session(t->b.wg, t->pb, t->now));
    pair_stop(t);
}

/* A message is for handshakes or for sessions, never for the other. */
static void test_index_kinds(void)
{
    struct pair *t = pair_start(8);
    struct packet p = {.len = 32};
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet init = *take_kind(&t->a, MN_WG_INITIATION);
    p.buf[0] = 4;
    memcpy(p.buf + 4, init.buf + 4, 4);
    CHECK_INT(deliver(&t->a, &p), -MN_WG_DROP_INDEX);
    CHECK_INT(deliver(&t->b, &init), 0);
    struct packet resp = *take_kind(&t->b, MN_WG_RESPONSE);
    memcpy(resp.buf + 8, resp.buf + 4, 4); /* b's own session index, sent to b */
    fix_mac1(&t->a, &t->b, &resp);
    CHECK_INT(deliver(&t->b, &resp), -MN_WG_DROP_STATE);
    pair_stop(t);
}

static void test_timestamps(void)
{
    struct pair *t = pair_start(9);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet first = *take_kind(&t->a, MN_WG_INITIATION);
    t->now += 600 * MS;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet second = *take_kind(&t->a, MN_WG_INITIATION);
    CHECK_INT(deliver(&t->b, &second), 0);
    (void)take_kind(&t->b, MN_WG_RESPONSE);
    t->now += SEC;
    CHECK_INT(deliver(&t->b, &second), -MN_WG_DROP_TIMESTAMP);
    CHECK_INT(deliver(&t->b, &first), -MN_WG_DROP_TIMESTAMP);
    t->now += 6 * SEC;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet third = *take_kind(&t->a, MN_WG_INITIATION);
    CHECK_INT(mn_wg_peer_expire(t->a.wg, t->pa), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet fourth = *take_kind(&t->a, MN_WG_INITIATION);
    CHECK_INT(deliver(&t->b, &third), 0);
    t->now += 19 * MS;
    CHECK_INT(deliver(&t->b, &fourth), -MN_WG_DROP_FLOOD);
    t->now += 1 * MS;
    CHECK_INT(deliver(&t->b, &fourth), 0);
    pair_stop(t);
}

/* Only what went out in the right steps: TAI64N, low bits clear, each later than the last. */
static void test_timestamp_format(void)
{
    struct pair *t = pair_start(10);
    uint8_t before[12], after[12];
    static const uint8_t none[12];
    mn_wg_get_last_timestamp(t->a.wg, before);
    CHECK(memcmp(before, none, 12) == 0);
    t->a.wall_ns = WALL * SEC - t->now + 999999999;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    mn_wg_get_last_timestamp(t->a.wg, before);
    uint8_t want[12];
    test_hex("400000006553f10a 3b000000", want, sizeof want);
    CHECK(memcmp(before, want, 12) == 0);
    for (int i = 0; i < 200; i++) {
        CHECK_INT(mn_wg_peer_expire(t->a.wg, t->pa), 0);
        CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
        mn_wg_get_last_timestamp(t->a.wg, after);
        CHECK(memcmp(after, before, 12) > 0);
        CHECK(after[9] == 0 && after[10] == 0 && after[11] == 0);
        memcpy(before, after, 12);
    }
    pair_stop(t);
}

/* The clock steps back an hour over a restart; the floor that was kept carries us past what the peer has seen. */
static void test_timestamp_floor(void)
{
    struct pair *t = pair_start(11);
    uint8_t floor[12], low[12] = {0};
    pair_connect(t);
    mn_wg_get_last_timestamp(t->a.wg, floor);
    node_stop(&t->a);
    node_start(&t->a, 11, &t->now, NULL);
    t->a.wall_ns -= 3600 * SEC;
    t->pa = node_peer(&t->a, &t->b, 2);
    t->now += SEC;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), -MN_WG_DROP_TIMESTAMP);
    mn_wg_set_timestamp_floor(t->a.wg, floor);
    mn_wg_set_timestamp_floor(t->a.wg, low); /* never down */
    CHECK_INT(mn_wg_peer_expire(t->a.wg, t->pa), 0);
    t->now += 6 * SEC;
    pair_connect(t);
    CHECK_INT(count_events(&t->a, MN_WG_CLOCK_BEHIND), 1); /* said once */
    pair_stop(t);
}

/* A responder stays silent under new keys until it heard them used; an initiator speaks at once. */
static void test_responder_waits(void)
{
    struct pair *t = pair_start(12);
    struct packet p;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_INITIATION)), 0);
    struct packet resp = *take_kind(&t->b, MN_WG_RESPONSE);
    CHECK(!mn_wg_has_session(t->b.wg, t->pb, t->now));
    CHECK_INT(send_data(&t->b, t->pb, 2, 1, 100, &p), 0); /* staged */
    check_silent(&t->b);                                  /* and no initiation within 5 s of the response */
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &p), 0);
    CHECK_INT(deliver(&t->a, &resp), 0);
    struct packet *data = take_kind(&t->a, MN_WG_DATA); /* staged data is what confirms */
    check_silent(&t->a);
    CHECK_INT(deliver(&t->b, data), 100);
    data = take_kind(&t->b, MN_WG_DATA);
    CHECK_INT(deliver(&t->a, data), 100);
    check_silent(&t->b);
    pair_stop(t);
}

static void test_private_key(void)
{
    struct pair *t = pair_start(13);
    struct node c;
    uint32_t id;
    uint8_t zero[32] = {0};
    CHECK_INT(mn_wg_peer_add(t->a.wg, t->a.pub, &id), MN_WG_E_KEY);
    CHECK_INT(mn_wg_peer_add(t->a.wg, zero, &id), MN_WG_E_KEY);
    memset(&c, 0, sizeof c);
    struct mn_wg_ops ops = {
        .ctx = &c, .random = node_random, .wall_ns = node_wall, .send = node_send, .event = node_event};
    c.now = &t->now;
    c.wg = mn_wg_create(&ops, NULL, NULL, t->now);
    CHECK(c.wg != NULL);
    CHECK_INT(mn_wg_peer_add(c.wg, t->b.pub, &id), 0);
    CHECK_INT(mn_wg_kick(c.wg, id, t->now), MN_WG_E_KEY);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(deliver(&c, take_kind(&t->a, MN_WG_INITIATION)), -MN_WG_DROP_NO_KEY);
    struct packet p;
    CHECK_INT(send_data(&c, id, 1, 2, 100, &p), -MN_WG_DROP_NO_KEY);
    CHECK_INT(mn_wg_set_private_key(c.wg, t->a.priv, t->now), 0); /* now it is a */
    t->now += 6 * SEC;
    CHECK_INT(mn_wg_kick(c.wg, id, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&c, MN_WG_INITIATION)), 0);
    CHECK_INT(deliver(&c, take_kind(&t->b, MN_WG_RESPONSE)), 0);
    CHECK(mn_wg_has_session(c.wg, id, t->now));
    CHECK_INT(mn_wg_set_private_key(c.wg, t->a.priv, t->now), 0); /* the same: nothing happens */
    CHECK(mn_wg_has_session(c.wg, id, t->now));
    CHECK_INT(mn_wg_set_private_key(c.wg, t->b.priv, t->now), 0); /* its peer is itself now, and gone */
    CHECK_INT(mn_wg_stats(c.wg)->peers, 0);
    node_stop(&c);
    pair_stop(t);
}

/* Kick: a copy within half a second, which the peer drops if it had the first; then a new one. */
static void test_kick(void)
{
    struct pair *t = pair_start(14);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet first = *take_kind(&t->a, MN_WG_INITIATION);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now + 50 * MS), MN_WG_E_LATER);
    t->now += 150 * MS;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    struct packet copy = *take_kind(&t->a, MN_WG_INITIATION);
    CHECK(copy.attempt == 1 && memcmp(first.buf, copy.buf, 148) == 0);
    CHECK_INT(deliver(&t->b, &first), 0);
    CHECK_INT(deliver(&t->b, &copy), -MN_WG_DROP_TIMESTAMP);
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), MN_WG_E_LATER); /* the session is young */
    t->now += 5 * SEC;
    CHECK_INT(mn_wg_kick(t->a.wg, t->pa, t->now), 0);
    CHECK_INT(mn_wg_kick(t->a.wg, 12345, t->now), MN_WG_E_PEER);
    pair_stop(t);
}

int main(void)
{
    RUN(test_vectors);
    RUN(test_cookie_vectors);
    RUN(test_handshake_and_data);
    RUN(test_paths_of_answers);
    RUN(test_shapes);
    RUN(test_bad_initiations);
    RUN(test_unknown_peer);
    RUN(test_psk);
    RUN(test_forged_response);
    RUN(test_index_kinds);
    RUN(test_timestamps);
    RUN(test_timestamp_format);
    RUN(test_timestamp_floor);
    RUN(test_responder_waits);
    RUN(test_private_key);
    RUN(test_kick);
    return 0;
}
