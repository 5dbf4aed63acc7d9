/* What other threads ask of a relay's thread: done between its turns, in order; some wait for the answer. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"

static void adopt(struct mn_relay *r, struct mn_relay_command *cmd)
{
    (void)fcntl(cmd->fd, F_SETFL, fcntl(cmd->fd, F_GETFL) | O_NONBLOCK);
    struct mn_relay_conn *c =
        mn_relay_conn_adopt(r, cmd->fd, cmd->ctx, cmd->len > 0 ? (const char *)cmd->data : NULL, cmd->conn);
    if (c == NULL)
        return;
    cmd->fd = -1;
    if (c->phase == MN_PHASE_SHAKING) {
        r->wires.owner = NULL;
        if (mn_tls_shake(&c->stream) == MN_TLS_BROKEN)
            mn_relay_conn_stop(r, c, MN_WHY_TLS);
        else
            mn_relay_conn_watch(r, c);
        return;
    }
    struct mn_relay_event *ev = mn_talk_event(MN_RELAY_EV_DIALLED, NULL, 0);
    if (ev != NULL) {
        ev->conn = c->id;
        mn_talk_post(&r->talk, ev);
    }
}

static void resume(struct mn_relay *r, struct mn_relay_conn *c)
{
    c->is_waiting = false;
    mn_relay_conn_watch(r, c);
}

static void start_websocket(struct mn_relay *r, struct mn_relay_conn *c, struct mn_relay_command *cmd)
{
    if (c->websocket != NULL || c->phase != MN_PHASE_RAW)
        return;
    c->websocket = malloc(sizeof *c->websocket);
    if (c->websocket == NULL) {
        mn_relay_conn_stop(r, c, MN_WHY_NO_MEMORY);
        return;
    }
    mn_ws_start(c->websocket, true);
    r->stats.websockets++;
    ptrdiff_t n = mn_ws_decode(c->websocket, cmd->data, cmd->len);
    struct mn_relay_event *ev = n > 0 ? mn_talk_event(MN_RELAY_EV_DATA, cmd->data, (size_t)n) : NULL;
    if (n < 0) {
        mn_relay_conn_stop(r, c, MN_WHY_PROTOCOL);
    } else if (ev != NULL) {
        ev->conn = c->id;
        ev->source = c->client.source;
        ev->role = c->role;
        mn_talk_post(&r->talk, ev);
    } else {
        resume(r, c);
    }
}

static void close_conn(struct mn_relay *r, struct mn_relay_conn *c, bool at_once)
{
    if (c->phase == MN_PHASE_OPEN && !at_once) {
        /* What it was told last leaves with what waits, as far as the kernel takes it now. */
        mn_hub_mark_dirty(&r->hub, &c->client);
        mn_relay_conn_flush_dirty(r);
    }
    if (c->stream.fd < 0)
        return;
    if (at_once || c->stream.left == NULL) {
        mn_relay_conn_stop(r, c, MN_WHY_ASKED);
        return;
    }
    mn_hub_leave(&r->hub, &c->client, (uint32_t)r->now_ms);
    c->phase = MN_PHASE_CLOSING;
    c->ends_by_ms = r->now_ms + r->cfg.write_stall_ms;
    mn_relay_conn_watch(r, c);
    mn_relay_conn_arm(r, c);
}

static void tell_all(struct mn_relay *r, const struct mn_relay_command *cmd)
{
    for (uint32_t i = 0; i < r->by_id_size; i++)
        for (struct mn_relay_conn *c = r->by_id[i]; c != NULL; c = c->next_id)
            if (c->phase == MN_PHASE_OPEN && !c->client.is_neighbour)
                mn_hub_tell(&r->hub, &c->client, (uint8_t)cmd->number, cmd->data, cmd->len, (uint32_t)r->now_ms);
}

struct listing {
    struct mn_relay_client_info *out;
    uint32_t max, count;
};

static void list_clients(struct mn_relay *r, struct listing *l)
{
    for (uint32_t i = 0; i < r->by_id_size; i++) {
        for (struct mn_relay_conn *c = r->by_id[i]; c != NULL && l->count < l->max; c = c->next_id) {
            const struct mn_hub_client *k = &c->client;
            if (c->phase != MN_PHASE_OPEN)
                continue;
            struct mn_relay_client_info *o = &l->out[l->count++];
            *o = (struct mn_relay_client_info){
                .conn = c->id,
                .source = k->source,
                .rx_packets = k->rx_packets,
                .rx_bytes = k->rx_bytes,
                .tx_packets = k->tx_packets,
                .tx_bytes = k->tx_bytes,
                .dropped = k->dropped,
                .waits = k->data.bytes + k->urgent.bytes,
                .age_s = (uint32_t)((r->now_ms - c->accepted_ms) / 1000),
                .flags = k->flags,
                .is_home = k->is_home,
                .is_live = mn_hub_find(&r->hub, k->key) == k,
            };
            memcpy(o->key, k->key, MN_RELAY_KEY);
        }
    }
}

static void give_stats(struct mn_relay *r, struct mn_relay_stats *out)
{
    *out = r->stats;
    out->hub = r->hub.stats;
    out->lane_chunks = r->hub.chunks.used;
    for (uint32_t i = 0; i < r->by_id_size; i++) {
        for (const struct mn_relay_conn *c = r->by_id[i]; c != NULL; c = c->next_id) {
            out->rx_bytes += c->stream.rx_bytes;
            out->tx_bytes += c->stream.tx_bytes;
        }
    }
}

/* Somebody waits for it. */
struct question {
    void *out;
    bool is_answered;
};

static void answer(struct mn_relay *r, struct question *q)
{
    pthread_mutex_lock(&r->talk.lock);
    q->is_answered = true;
    pthread_cond_broadcast(&r->talk.answered);
    pthread_mutex_unlock(&r->talk.lock);
}

static void run_for_conn(struct mn_relay *r, struct mn_relay_conn *c, struct mn_relay_command *cmd)
{
    switch (cmd->kind) {
    case MN_RELAY_CMD_WRITE:
        mn_relay_conn_send_raw(r, c, cmd->data, cmd->len);
        break;
    case MN_RELAY_CMD_RESUME:
        resume(r, c);
        break;
    case MN_RELAY_CMD_WEBSOCKET:
        start_websocket(r, c, cmd);
        break;
    case MN_RELAY_CMD_OPEN:
        mn_relay_conn_start_frames(r, c, cmd);
        break;
    case MN_RELAY_CMD_CLOSE:
        close_conn(r, c, cmd->flag);
        break;
    case MN_RELAY_CMD_TELL:
        if (c->phase == MN_PHASE_OPEN)
            mn_hub_tell(&r->hub, &c->client, (uint8_t)cmd->number, cmd->data, cmd->len, (uint32_t)r->now_ms);
        break;
    default:
        break;
    }
}

static void run_command(struct mn_relay *r, struct mn_relay_command *cmd)
{
    struct mn_relay_conn *c;
    switch (cmd->kind) {
    case MN_RELAY_CMD_TLS:
        SSL_CTX_free(r->ctx);
        r->ctx = cmd->ctx;
        cmd->ctx = NULL;
        break;
    case MN_RELAY_CMD_LISTEN:
        if (mn_lobby_listen(r, cmd->fd, cmd->flag, (uint8_t)cmd->number))
            cmd->fd = -1;
        break;
    case MN_RELAY_CMD_UNLISTEN:
        mn_lobby_unlisten(r);
        break;
    case MN_RELAY_CMD_ADOPT:
        adopt(r, cmd);
        break;
    case MN_RELAY_CMD_CLOSE_KEY:
        for (struct mn_hub_client *k; (k = mn_hub_find(&r->hub, cmd->key)) != NULL;)
            mn_relay_conn_stop(r, (struct mn_relay_conn *)k, MN_WHY_ASKED);
        break;
    case MN_RELAY_CMD_STATS:
        give_stats(r, ((struct question *)cmd->out)->out);
        answer(r, cmd->out);
        break;
    case MN_RELAY_CMD_CLIENTS:
        list_clients(r, ((struct question *)cmd->out)->out);
        answer(r, cmd->out);
        break;
    default:
        c = mn_relay_conn_of(r, cmd->conn);
        if (c != NULL)
            run_for_conn(r, c, cmd);
        else if (cmd->kind == MN_RELAY_CMD_TELL && cmd->conn == 0)
            tell_all(r, cmd);
    }
}

void mn_relay_run_commands(struct mn_relay *r)
{
    eventfd_t ignored;
    (void)eventfd_read(r->talk.command_fd, &ignored);
    for (struct mn_relay_command *cmd = mn_talk_commands(&r->talk), *next; cmd != NULL; cmd = next) {
        next = cmd->next;
        run_command(r, cmd);
        if (cmd->fd >= 0)
            close(cmd->fd);
        SSL_CTX_free(cmd->ctx);
        OPENSSL_cleanse(cmd->data, cmd->len);
        free(cmd);
    }
}

/* ---- questions ---- */

static int ask(struct mn_relay *r, uint8_t kind, void *out)
{
    struct mn_relay_talk *t = &r->talk;
    struct question q = {out, false};
    if (!atomic_load(&r->is_started))
        return -ESHUTDOWN;
    int err = mn_talk_push(t, &(struct mn_relay_command){.kind = kind, .fd = -1, .out = &q}, NULL, 0);
    if (err != 0)
        return err;
    pthread_mutex_lock(&t->lock);
    while (!q.is_answered && !t->is_over)
        pthread_cond_wait(&t->answered, &t->lock);
    pthread_mutex_unlock(&t->lock);
    return q.is_answered ? 0 : -ESHUTDOWN;
}

int mn_relay_stats(struct mn_relay *r, struct mn_relay_stats *out)
{
    return ask(r, MN_RELAY_CMD_STATS, out);
}

int mn_relay_clients(struct mn_relay *r, struct mn_relay_client_info *out, uint32_t max)
{
    struct listing l = {out, max, 0};
    int err = ask(r, MN_RELAY_CMD_CLIENTS, &l);
    return err != 0 ? err : (int)l.count;
}
