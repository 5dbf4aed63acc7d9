/* Two engines over loopback that know each other and allow everything: for programs that let them run. */
#ifndef MN_TESTS_ENGINE_PAIR_H
#define MN_TESTS_ENGINE_PAIR_H

#include "../engine/internal.h"
#include "check.h"

enum { PAIR_A, PAIR_B, PAIR_PORT = 80, PAIR_LISTEN = 77 };

struct engine_pair {
    struct mn_engine *e[2];
};

static inline struct mn_ip pair_v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
    const uint8_t raw[4] = {a, b, c, d};
    return mn_ip_from4(raw);
}

static inline struct mn_ip pair_address(int side)
{
    return pair_v4(100, 64, 0, (uint8_t)(1 + side));
}

static inline void pair_key(const struct engine_pair *p, int side, uint8_t out[32])
{
    memcpy(out, p->e[side]->tunnel.own_key, 32); /* before the threads run: later it may change */
}

static inline struct mn_command pair_blob(uint8_t kind, const void *data, size_t len)
{
    struct mn_command cmd = {.kind = kind, .len = len, .blob = malloc(len)};
    CHECK(cmd.blob != NULL);
    memcpy(cmd.blob, data, len);
    return cmd;
}

static inline void pair_push(const struct engine_pair *p, int side, struct mn_command cmd)
{
    CHECK_INT(mn_engine_push(p->e[side], &cmd), 0);
}

static inline struct mn_command pair_upsert(const uint8_t key[32], int side)
{
    uint8_t peer[32 + sizeof(struct mn_prefix)] = {0};
    struct mn_prefix prefix = {.ip = pair_address(side), .bits = 128};
    memcpy(peer + 32, &prefix, sizeof prefix);
    struct mn_command cmd = pair_blob(MN_CMD_UPSERT_PEER, peer, sizeof peer);
    memcpy(cmd.key, key, 32);
    return cmd;
}

static inline struct mn_command pair_path(const uint8_t key[32], uint16_t port)
{
    struct mn_command cmd = {.kind = MN_CMD_SET_PATH, .mode = MN_MODE_DIRECT};
    memcpy(cmd.key, key, 32);
    cmd.ep = (struct mn_ep){.ip = pair_v4(127, 0, 0, 1), .port = port};
    return cmd;
}

/* One rule: everyone, IPv4, the usual protocols. */
static inline struct mn_command pair_filter(void)
{
    uint8_t blob[128] = {'M', 'N', 'F', '1', 1, 0, 0, 0, 4, 1, 0, 1, 0, 6, 17, 1, 58}, *p = blob + 17;
    for (int i = 0; i < 2; i++) {
        memset(p, 0, 17);
        p[10] = p[11] = 0xff;
        p[16] = 96;
        p += 17;
    }
    memcpy(p, "\0\0\xff\xff\0\0\0\0", 8);
    return pair_blob(MN_CMD_SET_FILTER, blob, (size_t)(p + 8 - blob));
}

static inline struct mn_engine *pair_make(uint8_t key)
{
    struct mn_engine_config config = {.mtu = 1280};
    int err = 0;
    config.private_key[0] = key;
    config.private_key[31] = 64;
    config.sockets.use4 = true;
    config.sockets.bind4 = pair_v4(127, 0, 0, 1);
    struct mn_engine *made = mn_engine_create(&config, &err);
    CHECK_INT(err, 0);
    CHECK(made != NULL);
    return made;
}

/* B listens on PAIR_PORT under the request PAIR_LISTEN. */
static inline void engine_pair_start(struct engine_pair *p)
{
    p->e[PAIR_A] = pair_make(8);
    p->e[PAIR_B] = pair_make(16);
    for (int side = PAIR_A; side <= PAIR_B; side++) {
        struct mn_ip own = pair_address(side);
        uint8_t other[32];
        pair_key(p, 1 - side, other);
        pair_push(p, side, pair_blob(MN_CMD_SET_ADDRESSES, &own, sizeof own));
        pair_push(p, side, pair_filter());
        pair_push(p, side, pair_upsert(other, 1 - side));
        pair_push(p, side, pair_path(other, mn_engine_port(p->e[1 - side], MN_SOCK_V4)));
    }
    struct mn_command listen = {.kind = MN_CMD_LISTEN, .req = PAIR_LISTEN, .ep.port = PAIR_PORT};
    pair_push(p, PAIR_B, listen);
}

static inline void pair_connect_to_b(const struct engine_pair *p, uint64_t req)
{
    struct mn_command cmd = {.kind = MN_CMD_CONNECT, .req = req, .ep = {.ip = pair_address(PAIR_B), .port = PAIR_PORT}};
    pair_push(p, PAIR_A, cmd);
}

#endif
