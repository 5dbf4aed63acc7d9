/* Cryptokey routing against a linear search. WG-25. */
#include "check.h"
#include "wg/allowedips.h"

enum { MODEL = 6000, PEERS = 20 };

struct route {
    struct mn_ip ip;
    unsigned bits;
    uint32_t peer;
};

static struct route model[MODEL];
static unsigned model_count;

static struct mn_ip v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
    const uint8_t bytes[4] = {a, b, c, d};
    return mn_ip_from4(bytes);
}

static bool same_prefix(const struct mn_ip *a, const struct mn_ip *b, unsigned bits)
{
    return mn_ip_in_prefix(a, b, bits);
}

static void model_insert(const struct mn_ip *ip, unsigned bits, uint32_t peer)
{
    for (unsigned i = 0; i < model_count; i++) {
        if (model[i].bits == bits && same_prefix(&model[i].ip, ip, bits)) {
            model[i].peer = peer;
            return;
        }
    }
    CHECK(model_count < MODEL);
    model[model_count++] = (struct route){*ip, bits, peer};
}

static void model_remove_peer(uint32_t peer)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < model_count; i++)
        if (model[i].peer != peer)
            model[kept++] = model[i];
    model_count = kept;
}

/* An IPv6 prefix shorter than the mapped range does not hold IPv4. */
static uint32_t model_find(const struct mn_ip *ip)
{
    uint32_t best = MN_PEER_NONE;
    int longest = -1;
    for (unsigned i = 0; i < model_count; i++) {
        if (mn_ip_is4(ip) && model[i].bits < 96)
            continue;
        if ((int)model[i].bits > longest && same_prefix(ip, &model[i].ip, model[i].bits)) {
            longest = (int)model[i].bits;
            best = model[i].peer;
        }
    }
    return best;
}

/* Few distinct bits, so that prefixes nest and collide. */
static struct mn_ip some_ip(uint64_t *seed)
{
    static const uint8_t bytes[] = {0, 1, 0x80, 0xc0, 0xff, 0x64};
    uint8_t b[16];
    for (int i = 0; i < 16; i++)
        b[i] = bytes[test_random(seed) % (i < 8 ? 2 : 6)];
    if (test_random(seed) % 2 == 0)
        return mn_ip_from4(b + 12);
    b[0] = 0xfd;
    return mn_ip_from6(b);
}

static unsigned some_bits(uint64_t *seed, const struct mn_ip *ip)
{
    if (test_random(seed) % 3 == 0)
        return 128;
    return mn_ip_is4(ip) ? 96 + (unsigned)(test_random(seed) % 33) : (unsigned)(test_random(seed) % 129);
}

static void check_random_lookups(struct mn_allowedips *a, uint64_t *seed, int n)
{
    for (int i = 0; i < n; i++) {
        struct mn_ip ip = some_ip(seed);
        if (i % 3 == 0 && model_count > 0)
            ip = model[test_random(seed) % model_count].ip;
        CHECK_INT(mn_allowedips_find(a, &ip), model_find(&ip));
    }
}

static void run_random(uint64_t seed, unsigned inserts)
{
    struct mn_allowedips a;
    mn_allowedips_init(&a, seed);
    model_count = 0;
    for (unsigned i = 0; i < inserts; i++) {
        struct mn_ip ip = some_ip(&seed);
        unsigned bits = some_bits(&seed, &ip);
        uint32_t peer = (uint32_t)(test_random(&seed) % PEERS);
        CHECK_INT(mn_allowedips_insert(&a, &ip, bits, peer), 0);
        model_insert(&ip, bits, peer);
        if (i % 97 == 0)
            check_random_lookups(&a, &seed, 30);
        if (i % 401 == 400) {
            peer = (uint32_t)(test_random(&seed) % PEERS);
            mn_allowedips_remove_peer(&a, peer);
            model_remove_peer(peer);
            check_random_lookups(&a, &seed, 300);
        }
    }
    check_random_lookups(&a, &seed, 3000);
    for (uint32_t peer = 0; peer < PEERS; peer++) {
        mn_allowedips_remove_peer(&a, peer);
        model_remove_peer(peer);
        check_random_lookups(&a, &seed, 100);
    }
    CHECK_INT(a.host_count, 0);
    CHECK(a.root4 == UINT32_MAX && a.root6 == UINT32_MAX); /* every node went back */
    mn_allowedips_destroy(&a);
}

static void test_random_against_model(void)
{
    for (uint64_t seed = 1; seed <= 12; seed++)
        run_random(seed, 8000 / MN_TEST_SLOW);
}

static void test_moves_and_defaults(void)
{
    struct mn_allowedips a;
    struct mn_ip host = v4(100, 64, 0, 7), net = v4(10, 1, 0, 0), any4 = v4(0, 0, 0, 0), any6 = {{0}};
    struct mn_ip in_net = v4(10, 1, 2, 3), far = v4(8, 8, 8, 8), far6 = {{0x20, 1}};
    mn_allowedips_init(&a, 3);
    uint64_t before = a.generation;
    CHECK_INT(mn_allowedips_insert(&a, &host, 128, 1), 0);
    CHECK(a.generation != before);
    before = a.generation;
    CHECK_INT(mn_allowedips_insert(&a, &host, 128, 1), 0);
    CHECK(a.generation == before); /* nothing changed */
    CHECK_INT(mn_allowedips_insert(&a, &net, 96 + 16, 1), 0);
    CHECK_INT(mn_allowedips_find(&a, &host), 1);
    CHECK_INT(mn_allowedips_find(&a, &in_net), 1);
    CHECK_INT(mn_allowedips_insert(&a, &host, 128, 2), 0);
    CHECK_INT(mn_allowedips_insert(&a, &in_net, 96 + 16, 2), 0); /* host bits are ignored: the same prefix */
    CHECK_INT(mn_allowedips_find(&a, &host), 2);
    CHECK_INT(mn_allowedips_find(&a, &in_net), 2);
    mn_allowedips_remove_peer(&a, 1); /* owns nothing any more */
    CHECK_INT(mn_allowedips_find(&a, &host), 2);
    CHECK_INT(mn_allowedips_find(&a, &in_net), 2);
    CHECK_INT(mn_allowedips_find(&a, &far), MN_PEER_NONE);
    CHECK_INT(mn_allowedips_insert(&a, &any6, 0, 3), 0);
    CHECK_INT(mn_allowedips_find(&a, &far6), 3);
    CHECK_INT(mn_allowedips_find(&a, &far), MN_PEER_NONE); /* ::/0 is IPv6 only */
    CHECK_INT(mn_allowedips_insert(&a, &any4, 96, 4), 0);
    CHECK_INT(mn_allowedips_find(&a, &far), 4);
    CHECK_INT(mn_allowedips_find(&a, &host), 2);
    mn_allowedips_remove_peer(&a, 4);
    CHECK_INT(mn_allowedips_find(&a, &far), MN_PEER_NONE);
    CHECK_INT(mn_allowedips_insert(&a, &any4, 129, 4), -2);
    mn_allowedips_destroy(&a);
}

/* A tailnet's shape: very many host routes, each peer its two. */
static void test_many_hosts(void)
{
    enum { N = 20000 };
    struct mn_allowedips a;
    mn_allowedips_init(&a, 77);
    for (uint32_t i = 0; i < N; i++) {
        struct mn_ip ip = v4(100, (uint8_t)(64 + (i >> 16)), (uint8_t)(i >> 8), (uint8_t)i), ip6 = ip;
        ip6.b[0] = 0xfd;
        CHECK_INT(mn_allowedips_insert(&a, &ip, 128, i), 0);
        CHECK_INT(mn_allowedips_insert(&a, &ip6, 128, i), 0);
    }
    for (uint32_t i = 0; i < N; i += 3)
        mn_allowedips_remove_peer(&a, i);
    for (uint32_t i = 0; i < N; i++) {
        struct mn_ip ip = v4(100, (uint8_t)(64 + (i >> 16)), (uint8_t)(i >> 8), (uint8_t)i);
        CHECK_INT(mn_allowedips_find(&a, &ip), i % 3 == 0 ? MN_PEER_NONE : i);
    }
    mn_allowedips_destroy(&a);
}

int main(void)
{
    RUN(test_random_against_model);
    RUN(test_moves_and_defaults);
    RUN(test_many_hosts);
    return 0;
}
