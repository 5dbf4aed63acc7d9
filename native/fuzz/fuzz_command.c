/* Every command with every content, in any order, through two engines that know each other over loopback.
 *
 * Each step of the input is a command: kind, which engine, and the rest of its fields taken from the bytes that follow.
 * Blobs are what module.c would make of them: sizes checked there are kept to here. */
#include "../engine/internal.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct reader {
    const uint8_t *p;
    size_t left;
};

static uint8_t byte_of(struct reader *r)
{
    if (r->left == 0)
        return 0;
    r->left--;
    return *r->p++;
}

static uint16_t short_of(struct reader *r)
{
    uint16_t high = byte_of(r);
    return (uint16_t)(high << 8 | byte_of(r));
}

static struct mn_engine *make(uint8_t key)
{
    struct mn_engine_config config = {.mtu = 1280};
    int err = 0;
    config.private_key[0] = key;
    config.sockets.use4 = true;
    config.sockets.bind4.b[10] = config.sockets.bind4.b[11] = 0xff;
    config.sockets.bind4.b[12] = 127;
    config.sockets.bind4.b[15] = 1;
    struct mn_engine *e = mn_engine_create(&config, &err);
    if (e == NULL)
        abort();
    return e;
}

/* Few distinct addresses, so that commands meet: tailnet ones, v4 and v6, and nobody's. */
static struct mn_ip ip_of(uint8_t choice)
{
    const uint8_t v4[4] = {100, 64, 0, (uint8_t)(choice % 4)};
    struct mn_ip ip = {{0xfd, 0x7a}};
    if (choice & 0x80)
        return mn_ip_from4(v4);
    if (choice & 0x40)
        return (struct mn_ip){{0}};
    ip.b[15] = choice % 4;
    return ip;
}

static size_t blob_size(uint8_t kind, struct reader *r)
{
    uint8_t n = byte_of(r);
    switch (kind) {
    case MN_CMD_SET_ADDRESSES:
        return (size_t)(n % 40) * sizeof(struct mn_ip);
    case MN_CMD_UPSERT_PEER:
        return 32 + (size_t)(n % 8) * sizeof(struct mn_prefix);
    default:
        return n;
    }
}

static void fill_blob(struct mn_command *cmd, struct reader *r)
{
    cmd->len = blob_size(cmd->kind, r);
    cmd->blob = calloc(1, cmd->len + 1);
    if (cmd->blob == NULL)
        abort();
    if (cmd->kind == MN_CMD_UPSERT_PEER) {
        for (size_t at = 32; at + sizeof(struct mn_prefix) <= cmd->len; at += sizeof(struct mn_prefix)) {
            struct mn_prefix prefix = {.ip = ip_of(byte_of(r)), .bits = (uint8_t)(byte_of(r) % 129)};
            memcpy(cmd->blob + at, &prefix, sizeof prefix);
        }
        return;
    }
    if (cmd->kind == MN_CMD_SET_ADDRESSES) {
        for (size_t at = 0; at + sizeof(struct mn_ip) <= cmd->len; at += sizeof(struct mn_ip)) {
            struct mn_ip ip = ip_of(byte_of(r));
            memcpy(cmd->blob + at, &ip, sizeof ip);
        }
        return;
    }
    for (size_t i = 0; i < cmd->len; i++)
        cmd->blob[i] = byte_of(r);
}

static bool has_blob(uint8_t kind)
{
    return kind == MN_CMD_SET_ADDRESSES || kind == MN_CMD_UPSERT_PEER || kind == MN_CMD_SET_FILTER ||
           kind == MN_CMD_INJECT || kind == MN_CMD_SEND_RAW || kind == MN_CMD_UDP_SEND || kind == MN_CMD_LINK_WRITE ||
           kind == MN_CMD_LINK_WEBSOCKET || kind == MN_CMD_LINK_OPEN;
}

enum { KERNELS_MAX = 64 };

/* The kernel's ends of the interfaces made in one run. */
static int kernels[KERNELS_MAX];
static unsigned kernel_count;

/* A socket in an interface's place: one packet per read and write, and nobody's descriptor but ours. */
static void attach(struct mn_engine *e, uint8_t mode)
{
    int fd[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd) != 0)
        abort();
    kernels[kernel_count++] = fd[1];
    struct mn_command cmd = {.kind = MN_CMD_TUN_ATTACH, .mode = mode, .number = (uint32_t)fd[0]};
    (void)mn_engine_push(e, &cmd);
    mn_engine_turn(e, 0);
    if (e->tun.fd != fd[0]) /* it has one already */
        close(fd[0]);
}

/* What a kernel would hand over: any bytes, to the newest interface. */
static void kernel_sends(struct reader *r)
{
    uint8_t packet[300];
    size_t n = byte_of(r) + 1U;
    for (size_t i = 0; i < n; i++)
        packet[i] = byte_of(r);
    if (kernel_count > 0)
        (void)send(kernels[kernel_count - 1], packet, n, MSG_NOSIGNAL);
}

enum { RELAYS_MAX = 64 };

/* The relays' ends of the links made in one run. */
static int relays[RELAYS_MAX];
static unsigned relay_count;

/* A link without TLS to a socket of ours. */
static void adopt(struct mn_engine *e, uint64_t req)
{
    int fd[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd) != 0)
        abort();
    relays[relay_count++] = fd[1];
    struct mn_command cmd = {.kind = MN_CMD_LINK_ADOPT, .req = req, .fd = fd[0], .len = 2, .blob = calloc(1, 2)};
    if (cmd.blob == NULL)
        abort();
    (void)mn_engine_push(e, &cmd);
}

/* What the newest relay says: any bytes; and it reads what was said to it. */
static void relay_talks(struct reader *r)
{
    uint8_t said[300], heard[4096];
    size_t n = byte_of(r) + 1U;
    for (size_t i = 0; i < n; i++)
        said[i] = byte_of(r);
    if (relay_count == 0)
        return;
    (void)send(relays[relay_count - 1], said, n, MSG_NOSIGNAL);
    while (recv(relays[relay_count - 1], heard, sizeof heard, 0) > 0)
        ;
}

static void step(struct reader *r, struct mn_engine *engines[2])
{
    uint8_t first = byte_of(r);
    struct mn_engine *e = engines[first >> 7], *other = engines[1 - (first >> 7)];
    struct mn_command cmd = {.kind = (uint8_t)(1 + first % (MN_CMDS - 1))};
    cmd.mode = byte_of(r) % MN_MODES;
    cmd.region = (uint16_t)(1 + byte_of(r) % 4);
    cmd.number = short_of(r);
    cmd.req = 1 + byte_of(r) % 8;
    cmd.ep.ip = ip_of(byte_of(r));
    cmd.ep.port = short_of(r);
    if (cmd.kind == MN_CMD_SET_PATH && (first & 0x40) != 0) {
        cmd.ep.ip = (struct mn_ip){{[10] = 0xff, 0xff, 127, 0, 0, 1}};
        cmd.ep.port = other->socks.port[MN_SOCK_V4];
    }
    if (cmd.kind == MN_CMD_EXTRA)
        cmd.number %= 5;
    if (cmd.kind == MN_CMD_EXTRA || (first & 0x20) != 0)
        cmd.ep.sock = (uint16_t)cmd.region;
    if (cmd.kind == MN_CMD_SEND_RAW) /* nothing leaves this machine */
        cmd.ep.ip = (struct mn_ip){{[10] = 0xff, 0xff, 127, 0, 0, 1}};
    if (cmd.kind == MN_CMD_TUN_MERGE)
        kernel_sends(r);
    if (cmd.kind == MN_CMD_TUN_ATTACH) {
        attach(e, cmd.mode);
        return;
    }
    if (cmd.kind == MN_CMD_LINK_ADOPT) {
        adopt(e, cmd.req);
        return;
    }
    if (cmd.kind == MN_CMD_LINK_WRITE || cmd.kind == MN_CMD_LINK_OPEN)
        relay_talks(r);
    mn_wg_public_key(other->wg, cmd.key);
    if ((first & 0x20) != 0)
        cmd.key[0] ^= 1;
    if (cmd.kind == MN_CMD_UDP_SEND && (first & 0x20) == 0)
        memset(&cmd.from, 0, sizeof cmd.from);
    if (cmd.kind == MN_CMD_SET_PATH && (first & 0x40) == 0)
        cmd.ep.port = 0;
    if (has_blob(cmd.kind))
        fill_blob(&cmd, r);
    (void)mn_engine_push(e, &cmd);
}

/* Sockets of connections are closed as the application would; relayed packets are carried across. */
static void take_events(struct mn_engine *e, struct mn_engine *other)
{
    static uint8_t out[2 * MN_EVENT_RECORD_MAX];
    size_t n = 1;
    while (n > 0) {
        size_t used = mn_events_take(&e->events, out, sizeof out, 64, &n);
        for (size_t at = 0; at < used;) {
            struct mn_event ev;
            memcpy(&ev, out + at, sizeof ev);
            if (ev.kind == MN_EV_ACCEPTED || ev.kind == MN_EV_CONNECTED)
                close(ev.fd);
            if (ev.kind == MN_EV_RELAY_SEND) {
                struct mn_command cmd = {.kind = MN_CMD_INJECT, .region = ev.region, .len = ev.len};
                cmd.blob = malloc(ev.len + 1);
                if (cmd.blob == NULL)
                    abort();
                memcpy(cmd.blob, out + at + sizeof ev, ev.len);
                memcpy(cmd.key, e->tunnel.own_key, sizeof cmd.key);
                (void)mn_engine_push(other, &cmd);
            }
            at += mn_event_size(&ev);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct reader r = {data, size};
    struct mn_engine *engines[2] = {make(8), make(16)};
    for (int i = 0; i < 64 && r.left > 0; i++) {
        step(&r, engines);
        for (int side = 0; side < 2; side++) {
            mn_engine_turn(engines[side], 0);
            take_events(engines[side], engines[1 - side]);
        }
    }
    mn_engine_destroy(engines[0]);
    mn_engine_destroy(engines[1]);
    while (kernel_count > 0)
        close(kernels[--kernel_count]);
    while (relay_count > 0)
        close(relays[--relay_count]);
    return 0;
}
