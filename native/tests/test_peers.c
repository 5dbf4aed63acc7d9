/* The tables of the device: receiver indices (WG-24), peers and their ids, staged packets. */
#include "wg_pair.h"

static void test_index_no_stale_hit(void)
{
    enum { LIVE = 500, OLD = 4096 };
    struct mn_indices t;
    static uint32_t live[LIVE], old[OLD];
    uint64_t seed = 5;
    uint8_t keys[16];
    int marks[LIVE];
    test_random_bytes(&seed, keys, sizeof keys);
    CHECK_INT(mn_indices_init(&t, keys), 0);
    CHECK_INT(mn_indices_reserve(&t, LIVE), 0);
    for (uint32_t i = 0; i < LIVE; i++)
        CHECK_INT(mn_index_alloc(&t, MN_INDEX_SESSION, i, &marks[i], &live[i]), 0);
    for (uint32_t n = 0; n < 1000000 / MN_TEST_SLOW; n++) {
        uint32_t i = (uint32_t)(test_random(&seed) % LIVE);
        struct mn_index_slot *s = mn_index_find(&t, live[i]);
        CHECK(s != NULL && s->peer == i && s->what == &marks[i]);
        old[n % OLD] = live[i];
        mn_index_free(&t, live[i]);
        CHECK(mn_index_find(&t, live[i]) == NULL);
        mn_index_free(&t, live[i]); /* twice is harmless */
        CHECK_INT(mn_index_alloc(&t, MN_INDEX_SESSION, i, &marks[i], &live[i]), 0);
        if (n >= OLD)
            CHECK(mn_index_find(&t, old[test_random(&seed) % OLD]) == NULL);
    }
    CHECK_INT(t.count, LIVE);
    mn_indices_destroy(&t);
}

/* Every byte of the index looks random: chi square over 256 bins, and garbage hits as rarely as it should. */
static void test_index_distribution(void)
{
    enum { N = 200000 };
    struct mn_indices t;
    static unsigned bins[4][256];
    uint64_t seed = 11;
    uint8_t keys[16];
    uint32_t index, hits = 0;
    test_random_bytes(&seed, keys, sizeof keys);
    CHECK_INT(mn_indices_init(&t, keys), 0);
    memset(bins, 0, sizeof bins);
    for (int i = 0; i < N; i++) {
        CHECK_INT(mn_index_alloc(&t, MN_INDEX_SESSION, 0, NULL, &index), 0);
        for (int b = 0; b < 4; b++)
            bins[b][index >> (8 * b) & 0xff]++;
        mn_index_free(&t, index);
    }
    for (int b = 0; b < 4; b++) {
        double chi = 0, want = N / 256.0;
        for (int i = 0; i < 256; i++)
            chi += (bins[b][i] - want) * (bins[b][i] - want) / want;
        printf("byte %d: chi square %.1f over 255 degrees\n", b, chi);
        CHECK(chi < 400); /* p < 1e-8 */
    }
    for (int i = 0; i < 500; i++)
        CHECK_INT(mn_index_alloc(&t, MN_INDEX_SESSION, 0, NULL, &index), 0);
    for (int i = 0; i < N; i++)
        hits += mn_index_find(&t, (uint32_t)test_random(&seed)) != NULL;
    CHECK(hits <= 5); /* 500 of 2^32 */
    mn_indices_destroy(&t);
}

static void test_index_grows(void)
{
    struct mn_indices t;
    static uint32_t live[5000];
    uint8_t keys[16] = {9};
    CHECK_INT(mn_indices_init(&t, keys), 0);
    for (uint32_t i = 0; i < 5000; i++) {
        CHECK_INT(mn_indices_reserve(&t, i + 1), 0);
        CHECK_INT(mn_index_alloc(&t, MN_INDEX_SESSION, i, NULL, &live[i]), 0);
    }
    for (uint32_t i = 0; i < 5000; i++)
        CHECK(mn_index_find(&t, live[i]) != NULL && mn_index_find(&t, live[i])->peer == i);
    CHECK(mn_indices_reserve(&t, 1U << 20) != 0);
    mn_indices_destroy(&t);
}

/* Keys that are valid points: any 32 bytes but those of small order. */
static void test_peer_table(void)
{
    enum { N = 400 };
    struct pair *t = pair_start(20);
    static uint8_t keys[N][32];
    static uint32_t ids[N];
    uint64_t seed = 3;
    uint32_t id;
    uint8_t out[32];
    for (int i = 0; i < N; i++) {
        test_random_bytes(&seed, keys[i], 32);
        CHECK_INT(mn_wg_peer_add(t->a.wg, keys[i], &ids[i]), 0);
        CHECK_INT(mn_wg_peer_add(t->a.wg, keys[i], &id), 0); /* the same again */
        CHECK_INT(id, ids[i]);
    }
    CHECK_INT(mn_wg_stats(t->a.wg)->peers, N + 1);
    CHECK_INT(mn_wg_peer_remove(t->a.wg, ids[7]), 0);
    CHECK_INT(mn_wg_peer_add(t->a.wg, keys[7], &id), 0);
    CHECK(id != ids[7]); /* ids rest before they are used again */
    ids[7] = id;
    for (int i = 0; i < N; i += 2)
        CHECK_INT(mn_wg_peer_remove(t->a.wg, ids[i]), 0);
    for (int i = 0; i < N; i++) {
        int err = mn_wg_peer_find(t->a.wg, keys[i], &id);
        CHECK_INT(err, i % 2 == 0 ? MN_WG_E_PEER : 0);
        CHECK_INT(id, i % 2 == 0 ? MN_PEER_NONE : ids[i]);
        CHECK_INT(mn_wg_peer_key(t->a.wg, ids[i], out), i % 2 == 0 ? MN_WG_E_PEER : 0);
    }
    CHECK_INT(mn_wg_peer_remove(t->a.wg, ids[0]), MN_WG_E_PEER);
    CHECK_INT(mn_wg_peer_add(t->a.wg, keys[0], &id), 0);
    CHECK(id != ids[N - 2]); /* not the one that was freed last */
    pair_stop(t);
}

static void test_peer_limit(void)
{
    uint64_t now = SEC, seed = 4;
    struct node n;
    struct mn_wg_config config = {.max_peers = 3};
    uint8_t key[32], first[32];
    uint32_t id;
    node_start(&n, 1, &now, &config);
    for (int i = 0; i < 3; i++) {
        test_random_bytes(&seed, key, 32);
        memcpy(first, key, 32);
        CHECK_INT(mn_wg_peer_add(n.wg, key, &id), 0);
    }
    test_random_bytes(&seed, key, 32);
    CHECK_INT(mn_wg_peer_add(n.wg, key, &id), MN_WG_E_FULL);
    for (int i = 0; i < 500; i++) { /* ids go round, and stay bounded */
        CHECK_INT(mn_wg_peer_find(n.wg, first, &id), 0);
        CHECK_INT(mn_wg_peer_remove(n.wg, id), 0);
        test_random_bytes(&seed, first, 32);
        CHECK_INT(mn_wg_peer_add(n.wg, first, &id), 0);
        CHECK(id < 3 + MN_PEERS_FREE_MIN);
    }
    node_stop(&n);
}

/* Removal takes all of a peer with it: sessions, indices, prefixes, timers, staged packets. */
static void test_peer_removal(void)
{
    struct pair *t = pair_start(21);
    struct packet p;
    struct mn_ip ip = inner_of(2);
    pair_connect(t);
    CHECK_INT(mn_wg_peer_set_keepalive(t->a.wg, t->pa, 25, t->now), 0);
    CHECK_INT(deliver(&t->b, take_kind(&t->a, MN_WG_KEEPALIVE)), 0);
    CHECK(send_data(&t->b, t->pb, 2, 1, 100, &p) > 0);
    CHECK_INT(mn_wg_peer_expire(t->a.wg, t->pa), 0);
    struct packet own;
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &own), 0);
    CHECK_INT(t->a.wg->staging.in_use, 1);
    (void)take_kind(&t->a, MN_WG_INITIATION);
    CHECK_INT(mn_wg_route(t->a.wg, &ip), t->pa);
    CHECK_INT(mn_wg_peer_remove(t->a.wg, t->pa), 0);
    CHECK_INT(mn_wg_route(t->a.wg, &ip), MN_PEER_NONE);
    CHECK_INT(t->a.wg->staging.in_use, 0);
    CHECK_INT(t->a.wg->indices.count, 0);
    CHECK_INT(deliver(&t->a, &p), -MN_WG_DROP_INDEX);
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 100, &own), -MN_WG_DROP_NO_PEER);
    run_to(&t->a, t->now + 600 * SEC);
    check_silent(&t->a);
    pair_stop(t);
}

/* Staging keeps the newest, within packets and bytes, and hands them over in order. */
static void test_staging_bounds(void)
{
    struct pair *t = pair_start(22);
    struct packet p;
    for (uint32_t i = 0; i < 300; i++) {
        put_inner(p.buf, 1, 2, 100, i * 1000);
        CHECK_INT(mn_wg_seal(t->a.wg, t->pa, p.buf, 100, t->now), 0);
    }
    CHECK_INT(peer_a(t)->staged_count, 128);
    struct mn_wg_peer_stats stats;
    CHECK_INT(mn_wg_peer_stats(t->a.wg, t->pa, &stats), 0);
    CHECK(stats.staged_now == 128 && stats.staged_dropped == 172);
    struct packet *init = take_kind(&t->a, MN_WG_INITIATION); /* one, for all of them */
    check_silent(&t->a);
    CHECK_INT(deliver(&t->b, init), 0);
    CHECK_INT(deliver(&t->a, take_kind(&t->b, MN_WG_RESPONSE)), 0);
    for (uint32_t i = 172; i < 300; i++) {
        struct packet *d = take_kind(&t->a, MN_WG_DATA);
        uint8_t *inner;
        uint32_t peer;
        struct mn_path from = path_of(1, 1);
        CHECK_INT(mn_wg_input(t->b.wg, d->buf, d->len, &from, t->now, &inner, &peer), 100);
        CHECK_INT(mn_le32_get(inner + 20), i * 1000 + 20);
    }
    check_silent(&t->a);
    CHECK_INT(t->a.wg->staging.in_use, 0);
    pair_stop(t);
}

static void test_staging_bytes_and_pool(void)
{
    uint64_t now = 10 * SEC;
    struct node n, other;
    struct mn_wg_config config = {.staged_buffers = 10, .staged_packets = 8, .staged_bytes = 4000};
    struct packet p;
    node_start(&n, 1, &now, &config);
    node_start(&other, 2, &now, NULL);
    uint32_t first = node_peer(&n, &other, 2), second, third;
    uint8_t key[32] = {7}, key2[32] = {8};
    CHECK_INT(mn_wg_peer_add(n.wg, key, &second), 0);
    CHECK_INT(mn_wg_peer_add(n.wg, key2, &third), 0);
    for (int i = 0; i < 5; i++)
        CHECK_INT(send_data(&n, first, 1, 2, 1200, &p), 0);
    CHECK_INT(mn_peer_get(n.wg, first)->staged_count, 3);
    CHECK_INT(mn_peer_get(n.wg, first)->staged_bytes, 3600);
    for (int i = 0; i < 9; i++)
        CHECK_INT(send_data(&n, second, 1, 3, 64, &p), 0);
    CHECK_INT(mn_peer_get(n.wg, second)->staged_count, 7); /* the pool is empty: its own oldest goes */
    CHECK_INT(send_data(&n, third, 1, 4, 64, &p), -MN_WG_DROP_STAGE_FULL);
    CHECK_INT(send_data(&n, first, 1, 2, 1281, &p), -MN_WG_DROP_TOO_LONG);
    CHECK_INT(send_data(&n, first, 1, 2, 0, &p), -MN_WG_DROP_INNER);
    node_stop(&n);
    node_stop(&other);
}

static void test_drop_names(void)
{
    CHECK(strcmp(mn_wg_drop_name(-MN_WG_DROP_SOURCE), "SOURCE") == 0);
    CHECK(strcmp(mn_wg_drop_name(MN_WG_DROP_FORKED), "FORKED") == 0);
    CHECK(strcmp(mn_wg_drop_name(9999), "unknown") == 0);
}

int main(void)
{
    RUN(test_index_no_stale_hit);
    RUN(test_index_distribution);
    RUN(test_index_grows);
    RUN(test_peer_table);
    RUN(test_peer_limit);
    RUN(test_peer_removal);
    RUN(test_staging_bounds);
    RUN(test_staging_bytes_and_pool);
    RUN(test_drop_names);
    return 0;
}
