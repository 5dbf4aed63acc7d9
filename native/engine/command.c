/* The command ring. See command.h. */
#include "command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/ssl.h>

int mn_commands_init(struct mn_commands *q)
{
    memset(q, 0, sizeof *q);
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->fd < 0)
        return -errno;
    q->ring = calloc(MN_COMMANDS_MAX, sizeof *q->ring);
    if (q->ring == NULL) {
        close(q->fd);
        return -ENOMEM;
    }
    pthread_mutex_init(&q->lock, NULL);
    return 0;
}

static bool is_packet(const struct mn_command *cmd)
{
    return cmd->kind == MN_CMD_INJECT || cmd->kind == MN_CMD_SEND_RAW || cmd->kind == MN_CMD_UDP_SEND;
}

void mn_command_done(struct mn_command *cmd)
{
    if (cmd->blob != NULL && cmd->kind == MN_CMD_UPSERT_PEER)
        OPENSSL_cleanse(cmd->blob, cmd->len);
    free(cmd->blob);
    cmd->blob = NULL;
    if (cmd->kind == MN_CMD_LINK_ADOPT) {
        if (cmd->fd >= 0)
            close(cmd->fd);
        SSL_CTX_free(cmd->ctx);
        cmd->fd = -1;
        cmd->ctx = NULL;
    }
    if (cmd->kind == MN_CMD_SET_PRIVATE_KEY)
        OPENSSL_cleanse(cmd->key, sizeof cmd->key);
}

void mn_commands_destroy(struct mn_commands *q)
{
    for (; q->count > 0; q->count--, q->head = (q->head + 1) % MN_COMMANDS_MAX)
        mn_command_done(&q->ring[q->head]);
    free(q->ring);
    close(q->fd);
    pthread_mutex_destroy(&q->lock);
}

/* Under the lock: 0 taken, -EAGAIN full, -ENOBUFS a packet too many. */
static int admit(struct mn_commands *q, const struct mn_command *cmd)
{
    if (is_packet(cmd) &&
        (q->packet_bytes + cmd->len > MN_COMMAND_PACKET_BYTES || q->count > MN_COMMANDS_MAX * 3 / 4)) {
        q->packets_dropped++;
        return -ENOBUFS;
    }
    if (q->count == MN_COMMANDS_MAX) {
        q->refused++;
        return -EAGAIN;
    }
    q->ring[(q->head + q->count) % MN_COMMANDS_MAX] = *cmd;
    q->count++;
    if (is_packet(cmd))
        q->packet_bytes += cmd->len;
    return 0;
}

int mn_commands_push(struct mn_commands *q, const struct mn_command *cmd)
{
    pthread_mutex_lock(&q->lock);
    int err = admit(q, cmd);
    bool wake = err == 0 && q->is_sleeping;
    if (wake)
        q->is_sleeping = false;
    pthread_mutex_unlock(&q->lock);
    if (wake)
        (void)eventfd_write(q->fd, 1);
    if (err != 0) {
        struct mn_command gone = *cmd;
        mn_command_done(&gone);
    }
    return err == -ENOBUFS ? MN_COMMAND_DROPPED : err;
}

void mn_commands_wake(struct mn_commands *q)
{
    (void)eventfd_write(q->fd, 1);
}

unsigned mn_commands_pop(struct mn_commands *q, struct mn_command *out, unsigned max)
{
    unsigned n = 0;
    pthread_mutex_lock(&q->lock);
    for (; n < max && q->count > 0; n++) {
        struct mn_command *slot = &q->ring[q->head];
        out[n] = *slot;
        if (is_packet(slot))
            q->packet_bytes -= slot->len;
        if (slot->kind == MN_CMD_SET_PRIVATE_KEY)
            OPENSSL_cleanse(slot->key, sizeof slot->key);
        slot->blob = NULL;
        q->head = (q->head + 1) % MN_COMMANDS_MAX;
        q->count--;
    }
    pthread_mutex_unlock(&q->lock);
    return n;
}

bool mn_commands_sleep(struct mn_commands *q)
{
    pthread_mutex_lock(&q->lock);
    bool may = q->count == 0;
    q->is_sleeping = may;
    pthread_mutex_unlock(&q->lock);
    return may;
}

void mn_commands_awake(struct mn_commands *q)
{
    pthread_mutex_lock(&q->lock);
    q->is_sleeping = false;
    pthread_mutex_unlock(&q->lock);
}
