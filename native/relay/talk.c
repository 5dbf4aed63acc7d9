/* The two queues between a relay's thread and everybody else. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <openssl/ssl.h>

#include "internal.h"

int mn_talk_init(struct mn_relay_talk *t)
{
    t->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    t->command_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    t->events_end = &t->events;
    t->commands_end = &t->commands;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->answered, NULL);
    return t->event_fd >= 0 && t->command_fd >= 0 ? 0 : -errno;
}

static void drop_command(struct mn_relay_command *cmd)
{
    if (cmd->fd >= 0)
        close(cmd->fd);
    SSL_CTX_free(cmd->ctx);
    free(cmd);
}

void mn_talk_destroy(struct mn_relay_talk *t)
{
    while (t->events != NULL) {
        struct mn_relay_event *next = t->events->next;
        free(t->events);
        t->events = next;
    }
    while (t->commands != NULL) {
        struct mn_relay_command *next = t->commands->next;
        drop_command(t->commands);
        t->commands = next;
    }
    if (t->event_fd >= 0)
        close(t->event_fd);
    if (t->command_fd >= 0)
        close(t->command_fd);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->answered);
}

/* ---- events ---- */

struct mn_relay_event *mn_talk_event(uint8_t kind, const uint8_t *data, size_t len)
{
    struct mn_relay_event *ev = calloc(1, sizeof *ev + len);
    if (ev == NULL)
        return NULL;
    ev->kind = kind;
    ev->len = len;
    if (len > 0)
        memcpy(ev->data, data, len);
    return ev;
}

void mn_talk_post(struct mn_relay_talk *t, struct mn_relay_event *ev)
{
    pthread_mutex_lock(&t->lock);
    *t->events_end = ev;
    t->events_end = &ev->next;
    t->is_dirty = true;
    pthread_mutex_unlock(&t->lock);
}

void mn_talk_signal(struct mn_relay_talk *t)
{
    pthread_mutex_lock(&t->lock);
    bool wakes = t->is_dirty && !t->is_signalled;
    t->is_dirty = false;
    t->is_signalled |= wakes;
    pthread_mutex_unlock(&t->lock);
    if (wakes)
        (void)eventfd_write(t->event_fd, 1);
}

int mn_relay_fd(const struct mn_relay *r)
{
    return r->talk.event_fd;
}

struct mn_relay_event *mn_relay_take(struct mn_relay *r)
{
    struct mn_relay_talk *t = &r->talk;
    eventfd_t ignored;
    pthread_mutex_lock(&t->lock);
    struct mn_relay_event *first = t->events;
    t->events = NULL;
    t->events_end = &t->events;
    if (t->is_signalled)
        (void)eventfd_read(t->event_fd, &ignored);
    t->is_signalled = false;
    pthread_mutex_unlock(&t->lock);
    return first;
}

/* ---- commands ---- */

int mn_talk_push(struct mn_relay_talk *t, const struct mn_relay_command *like, const uint8_t *data, size_t len)
{
    struct mn_relay_command *cmd = malloc(sizeof *cmd + len);
    if (cmd == NULL)
        return -ENOMEM;
    *cmd = *like;
    cmd->next = NULL;
    cmd->len = len;
    if (len > 0)
        memcpy(cmd->data, data, len);
    pthread_mutex_lock(&t->lock);
    bool was_empty = t->commands == NULL;
    *t->commands_end = cmd;
    t->commands_end = &cmd->next;
    pthread_mutex_unlock(&t->lock);
    if (was_empty)
        (void)eventfd_write(t->command_fd, 1);
    return 0;
}

struct mn_relay_command *mn_talk_commands(struct mn_relay_talk *t)
{
    pthread_mutex_lock(&t->lock);
    struct mn_relay_command *first = t->commands;
    t->commands = NULL;
    t->commands_end = &t->commands;
    pthread_mutex_unlock(&t->lock);
    return first;
}

int mn_relay_set_tls(struct mn_relay *r, SSL_CTX *ctx)
{
    return mn_talk_push(&r->talk, &(struct mn_relay_command){.kind = MN_RELAY_CMD_TLS, .fd = -1, .ctx = ctx}, NULL, 0);
}

int mn_relay_listen(struct mn_relay *r, int fd, bool has_tls, uint8_t role)
{
    return mn_talk_push(
        &r->talk, &(struct mn_relay_command){.kind = MN_RELAY_CMD_LISTEN, .fd = fd, .flag = has_tls, .number = role},
        NULL, 0);
}

int mn_relay_unlisten_all(struct mn_relay *r)
{
    return mn_talk_push(&r->talk, &(struct mn_relay_command){.kind = MN_RELAY_CMD_UNLISTEN, .fd = -1}, NULL, 0);
}

int mn_relay_adopt(struct mn_relay *r, int fd, SSL_CTX *ctx, const char *host, uint64_t *conn)
{
    struct mn_relay_command cmd = {.kind = MN_RELAY_CMD_ADOPT, .fd = fd, .ctx = ctx};
    cmd.conn = *conn = atomic_fetch_add(&r->ids, 1);
    return mn_talk_push(&r->talk, &cmd, (const uint8_t *)host, host != NULL ? strlen(host) + 1 : 0);
}

int mn_relay_write(struct mn_relay *r, uint64_t conn, const uint8_t *data, size_t len)
{
    return mn_talk_push(&r->talk, &(struct mn_relay_command){.kind = MN_RELAY_CMD_WRITE, .fd = -1, .conn = conn}, data,
                        len);
}

int mn_relay_resume(struct mn_relay *r, uint64_t conn)
{
    return mn_talk_push(&r->talk, &(struct mn_relay_command){.kind = MN_RELAY_CMD_RESUME, .fd = -1, .conn = conn}, NULL,
                        0);
}

int mn_relay_websocket(struct mn_relay *r, uint64_t conn, const uint8_t *rest, size_t len)
{
    return mn_talk_push(&r->talk, &(struct mn_relay_command){.kind = MN_RELAY_CMD_WEBSOCKET, .fd = -1, .conn = conn},
                        rest, len);
}

int mn_relay_open(struct mn_relay *r, uint64_t conn, const uint8_t key[MN_RELAY_KEY], uint32_t flags,
                  const uint8_t *greeting, size_t greeting_len, const uint8_t *rest, size_t len)
{
    struct mn_relay_command cmd = {
        .kind = MN_RELAY_CMD_OPEN, .fd = -1, .conn = conn, .number = flags, .greeting_len = greeting_len};
    memcpy(cmd.key, key, MN_RELAY_KEY);
    uint8_t *both = malloc(greeting_len + len + 1);
    if (both == NULL)
        return -ENOMEM;
    if (greeting_len > 0)
        memcpy(both, greeting, greeting_len);
    if (len > 0)
        memcpy(both + greeting_len, rest, len);
    int err = mn_talk_push(&r->talk, &cmd, both, greeting_len + len);
    free(both);
    return err;
}

int mn_relay_close(struct mn_relay *r, uint64_t conn, bool at_once)
{
    return mn_talk_push(&r->talk,
                        &(struct mn_relay_command){.kind = MN_RELAY_CMD_CLOSE, .fd = -1, .conn = conn, .flag = at_once},
                        NULL, 0);
}

int mn_relay_close_key(struct mn_relay *r, const uint8_t key[MN_RELAY_KEY])
{
    struct mn_relay_command cmd = {.kind = MN_RELAY_CMD_CLOSE_KEY, .fd = -1};
    memcpy(cmd.key, key, MN_RELAY_KEY);
    return mn_talk_push(&r->talk, &cmd, NULL, 0);
}

int mn_relay_tell(struct mn_relay *r, uint64_t conn, uint8_t kind, const uint8_t *payload, size_t len)
{
    return mn_talk_push(&r->talk,
                        &(struct mn_relay_command){.kind = MN_RELAY_CMD_TELL, .fd = -1, .conn = conn, .number = kind},
                        payload, len);
}
