/* Flows: the stack's TCP upcalls on one side, the socketpair on the other. See bridges.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

enum { SLOTS = MN_FLOWS_MAX, BUCKETS = 2 * SLOTS, SLOT_MASK = SLOTS - 1 };
_Static_assert(1 << MN_FLOW_SLOT_BITS == SLOTS, "a flow's id holds its slot");

int mn_bridges_init(struct mn_bridges *f)
{
    memset(f, 0, sizeof *f);
    f->table = calloc(SLOTS, sizeof *f->table);
    f->by_conn = calloc(BUCKETS, sizeof *f->by_conn);
    f->free_head = f->queue_head = f->queue_tail = f->wait_head = MN_FLOW_NONE;
    return f->table != NULL && f->by_conn != NULL ? 0 : -ENOMEM;
}

void mn_bridges_destroy(struct mn_bridges *f)
{
    free(f->table);
    free(f->by_conn);
}

/* ---- the index from connection to flow ---- */

static uint32_t bucket_of(uint32_t conn)
{
    return (conn * 2654435761u) >> (32 - MN_FLOW_SLOT_BITS - 1);
}

static void index_put(struct mn_bridges *f, uint32_t conn, uint16_t slot)
{
    uint32_t b = bucket_of(conn);
    while (f->by_conn[b] != 0)
        b = (b + 1) % BUCKETS;
    f->by_conn[b] = (uint16_t)(slot + 1);
}

static uint32_t index_find(const struct mn_bridges *f, uint32_t conn)
{
    uint32_t b = bucket_of(conn);
    while (f->by_conn[b] != 0 && f->table[f->by_conn[b] - 1].conn != conn)
        b = (b + 1) % BUCKETS;
    return b;
}

/* Linear probing without tombstones: what follows the hole moves up if its own bucket allows. */
static void index_remove(struct mn_bridges *f, uint32_t conn)
{
    uint32_t hole = index_find(f, conn);
    if (f->by_conn[hole] == 0)
        return;
    for (uint32_t b = (hole + 1) % BUCKETS; f->by_conn[b] != 0; b = (b + 1) % BUCKETS) {
        uint32_t home = bucket_of(f->table[f->by_conn[b] - 1].conn);
        if ((b - home) % BUCKETS >= (b - hole) % BUCKETS) {
            f->by_conn[hole] = f->by_conn[b];
            hole = b;
        }
    }
    f->by_conn[hole] = 0;
}

static struct mn_bridge *find_by_conn(struct mn_bridges *f, uint32_t conn)
{
    uint16_t entry = f->by_conn[index_find(f, conn)];
    return entry != 0 ? &f->table[entry - 1] : NULL;
}

static struct mn_bridge *find_by_id(struct mn_bridges *f, uint64_t id)
{
    struct mn_bridge *flow = &f->table[id & SLOT_MASK];
    return flow->id == id ? flow : NULL;
}

/* ---- slots and queues ---- */

static uint16_t slot_of(const struct mn_bridges *f, const struct mn_bridge *flow)
{
    return (uint16_t)(flow - f->table);
}

static struct mn_bridge *take_slot(struct mn_bridges *f, uint32_t conn)
{
    uint16_t slot;
    if (f->free_head != MN_FLOW_NONE) {
        slot = f->free_head;
        f->free_head = f->table[slot].next;
    } else if (f->high < SLOTS) {
        slot = (uint16_t)f->high++;
    } else {
        return NULL;
    }
    struct mn_bridge *flow = &f->table[slot];
    memset(flow, 0, sizeof *flow);
    flow->id = (++f->counter << MN_FLOW_SLOT_BITS) | slot;
    flow->conn = conn;
    flow->stream.fd = -1;
    flow->next = flow->next_wait = flow->prev_wait = MN_FLOW_NONE;
    index_put(f, conn, slot);
    f->count++;
    return flow;
}

static void wait_list_add(struct mn_bridges *f, struct mn_bridge *flow)
{
    flow->is_connecting = true;
    flow->next_wait = f->wait_head;
    if (f->wait_head != MN_FLOW_NONE)
        f->table[f->wait_head].prev_wait = slot_of(f, flow);
    f->wait_head = slot_of(f, flow);
}

static void wait_list_remove(struct mn_bridges *f, struct mn_bridge *flow)
{
    if (!flow->is_connecting)
        return;
    flow->is_connecting = false;
    if (flow->prev_wait != MN_FLOW_NONE)
        f->table[flow->prev_wait].next_wait = flow->next_wait;
    else
        f->wait_head = flow->next_wait;
    if (flow->next_wait != MN_FLOW_NONE)
        f->table[flow->next_wait].prev_wait = flow->prev_wait;
    flow->next_wait = flow->prev_wait = MN_FLOW_NONE;
}

static void queue_flow(struct mn_bridges *f, struct mn_bridge *flow)
{
    if (flow->is_queued || !flow->is_readable || flow->has_ended)
        return;
    flow->is_queued = true;
    flow->next = MN_FLOW_NONE;
    if (f->queue_tail != MN_FLOW_NONE)
        f->table[f->queue_tail].next = slot_of(f, flow);
    else
        f->queue_head = slot_of(f, flow);
    f->queue_tail = slot_of(f, flow);
    f->queue_count++;
}

static struct mn_bridge *dequeue_flow(struct mn_bridges *f)
{
    if (f->queue_head == MN_FLOW_NONE)
        return NULL;
    struct mn_bridge *flow = &f->table[f->queue_head];
    f->queue_head = flow->next;
    if (f->queue_head == MN_FLOW_NONE)
        f->queue_tail = MN_FLOW_NONE;
    flow->is_queued = false;
    f->queue_count--;
    return flow;
}

static void unqueue_flow(struct mn_bridges *f, struct mn_bridge *flow)
{
    if (!flow->is_queued)
        return;
    uint16_t slot = slot_of(f, flow), before = MN_FLOW_NONE;
    for (uint16_t at = f->queue_head; at != slot; at = f->table[at].next)
        before = at;
    if (before == MN_FLOW_NONE)
        f->queue_head = flow->next;
    else
        f->table[before].next = flow->next;
    if (f->queue_tail == slot)
        f->queue_tail = before;
    flow->is_queued = false;
    f->queue_count--;
}

static void release_flow(struct mn_bridges *f, struct mn_bridge *flow)
{
    wait_list_remove(f, flow);
    unqueue_flow(f, flow);
    index_remove(f, flow->conn);
    mn_stream_close(&flow->stream);
    flow->id = 0;
    flow->next = f->free_head;
    f->free_head = slot_of(f, flow);
    f->count--;
}

/* ---- telling Python ---- */

static void tell_failed(struct mn_engine *e, uint64_t req, int err)
{
    struct mn_event ev = {.kind = MN_EV_CONNECT_FAILED, .req = req, .err = err};
    (void)mn_events_post(&e->events, &ev);
}

/* Told first, closed second: a reader that meets the end can already learn why. */
static void end_flow(struct mn_engine *e, struct mn_bridge *flow, int err)
{
    struct mn_event ev = {.kind = MN_EV_FLOW_ENDED, .value = flow->id, .err = err};
    if (flow->stream.fd >= 0)
        (void)mn_events_post(&e->events, &ev);
    else if (flow->is_connecting)
        tell_failed(e, flow->req, err != 0 ? err : ECONNABORTED);
    release_flow(&e->flows, flow);
}

static void abort_flow(struct mn_engine *e, struct mn_bridge *flow, int err)
{
    mn_tcp_abort(e->stack, flow->conn, e->now_ns);
    end_flow(e, flow, err);
}

/* Open the socketpair of an established connection and announce the application's end. */
static bool announce(struct mn_engine *e, struct mn_bridge *flow, uint8_t kind, uint64_t req)
{
    int app_fd = -1;
    uint32_t peer = MN_PEER_NONE;
    struct mn_event ev = {.kind = kind, .req = req, .value = flow->id};
    if (mn_stream_open(&flow->stream, &app_fd) != 0)
        return false;
    struct epoll_event watch = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u64 = flow->id};
    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, flow->stream.fd, &watch) == 0) {
        (void)mn_tcp_addrs(e->stack, flow->conn, &ev.local, &ev.remote, &peer);
        memcpy(ev.key, mn_tunnel_key(e, peer), sizeof ev.key);
        ev.fd = app_fd;
        if (mn_events_post(&e->events, &ev)) {
            e->stats.flows_opened++;
            return true;
        }
    }
    close(app_fd);
    mn_stream_close(&flow->stream);
    return false;
}

/* ---- upcalls ---- */

static bool on_may_accept(void *ctx, uint32_t listener)
{
    struct mn_engine *e = ctx;
    return mn_events_has_room(&e->events) && e->flows.count < MN_FLOWS_MAX && mn_requests_may_accept(e, listener);
}

static void on_accepted(void *ctx, uint32_t conn, uint32_t listener)
{
    struct mn_engine *e = ctx;
    uint64_t req = mn_requests_listener(e, listener);
    struct mn_bridge *flow = req != 0 && mn_events_has_room(&e->events) ? take_slot(&e->flows, conn) : NULL;
    if (flow != NULL && announce(e, flow, MN_EV_ACCEPTED, req)) {
        mn_requests_announced(e, listener);
        return;
    }
    if (flow != NULL)
        release_flow(&e->flows, flow);
    e->stats.accept_refused++;
    mn_tcp_abort(e->stack, conn, e->now_ns);
}

static void on_connected(void *ctx, uint32_t conn)
{
    struct mn_engine *e = ctx;
    struct mn_bridge *flow = find_by_conn(&e->flows, conn);
    if (flow == NULL) {
        mn_tcp_abort(e->stack, conn, e->now_ns);
        return;
    }
    uint64_t req = flow->req;
    wait_list_remove(&e->flows, flow);
    if (announce(e, flow, MN_EV_CONNECTED, req))
        return;
    release_flow(&e->flows, flow);
    e->stats.flows_refused++;
    mn_tcp_abort(e->stack, conn, e->now_ns);
    tell_failed(e, req, EMFILE);
}

static void on_failed(void *ctx, uint32_t conn, int err)
{
    struct mn_engine *e = ctx;
    struct mn_bridge *flow = find_by_conn(&e->flows, conn);
    if (flow != NULL)
        end_flow(e, flow, err);
}

/* The application takes no more: closed, or only deaf. */
static size_t on_deliver_refused(struct mn_engine *e, struct mn_bridge *flow, size_t total)
{
    if (mn_stream_is_hung_up(&flow->stream)) {
        abort_flow(e, flow, 0);
        return total;
    }
    flow->is_deaf = true;
    return total;
}

static size_t on_deliver(void *ctx, uint32_t conn, const struct iovec *iov, int n)
{
    struct mn_engine *e = ctx;
    struct mn_bridge *flow = find_by_conn(&e->flows, conn);
    size_t total = 0, taken = 0;
    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    if (flow == NULL || flow->is_deaf)
        return total;
    for (int at = 0; at < n && !flow->is_blocked; at += MN_STREAM_IOV_MAX) {
        int chunk = n - at < MN_STREAM_IOV_MAX ? n - at : MN_STREAM_IOV_MAX;
        size_t wanted = 0;
        for (int i = at; i < at + chunk; i++)
            wanted += iov[i].iov_len;
        ssize_t sent = mn_stream_deliver(&flow->stream, iov + at, chunk);
        e->stats.app_writes++;
        if (sent < 0)
            return on_deliver_refused(e, flow, total);
        taken += (size_t)sent;
        flow->is_blocked = (size_t)sent < wanted;
    }
    e->stats.app_bytes_out += taken;
    return taken;
}

static void on_peer_fin(void *ctx, uint32_t conn)
{
    struct mn_engine *e = ctx;
    struct mn_bridge *flow = find_by_conn(&e->flows, conn);
    if (flow != NULL)
        mn_stream_end(&flow->stream);
}

static void on_writable(void *ctx, uint32_t conn)
{
    struct mn_engine *e = ctx;
    struct mn_bridge *flow = find_by_conn(&e->flows, conn);
    if (flow != NULL)
        queue_flow(&e->flows, flow);
}

static void on_closed(void *ctx, uint32_t conn, int err)
{
    struct mn_engine *e = ctx;
    struct mn_bridge *flow = find_by_conn(&e->flows, conn);
    if (flow != NULL)
        end_flow(e, flow, err);
}

void mn_bridges_set_ops(struct mn_stack_ops *ops)
{
    ops->tcp_may_accept = on_may_accept;
    ops->tcp_accepted = on_accepted;
    ops->tcp_connected = on_connected;
    ops->tcp_failed = on_failed;
    ops->tcp_deliver = on_deliver;
    ops->tcp_peer_fin = on_peer_fin;
    ops->tcp_writable = on_writable;
    ops->tcp_closed = on_closed;
}

/* ---- requests ---- */

void mn_bridge_connect(struct mn_engine *e, uint64_t req, const struct mn_ep *to)
{
    uint32_t conn = 0;
    if (e->flows.count >= MN_FLOWS_MAX || !mn_events_has_room(&e->events)) {
        e->stats.flows_refused++;
        tell_failed(e, req, EMFILE);
        return;
    }
    int err = mn_tcp_connect(e->stack, to, NULL, &conn, e->now_ns);
    if (err < 0) {
        tell_failed(e, req, -err);
        return;
    }
    struct mn_bridge *flow = take_slot(&e->flows, conn);
    flow->req = req;
    wait_list_add(&e->flows, flow);
}

void mn_bridge_abort_connect(struct mn_engine *e, uint64_t req)
{
    struct mn_bridges *f = &e->flows;
    for (uint16_t slot = f->wait_head; slot != MN_FLOW_NONE; slot = f->table[slot].next_wait) {
        if (f->table[slot].req == req) {
            mn_tcp_abort(e->stack, f->table[slot].conn, e->now_ns);
            release_flow(f, &f->table[slot]);
            return;
        }
    }
}

/* ---- the application's side ---- */

/* The application has closed; what it wrote has been read. Bytes it left unread make it a reset. */
static void app_is_gone(struct mn_engine *e, struct mn_bridge *flow, bool is_reset)
{
    if (is_reset)
        mn_tcp_abort(e->stack, flow->conn, e->now_ns);
    else
        mn_tcp_close(e->stack, flow->conn, e->now_ns);
    end_flow(e, flow, 0);
}

static void app_ended(struct mn_engine *e, struct mn_bridge *flow)
{
    if (flow->is_hung_up) {
        app_is_gone(e, flow, false);
        return;
    }
    flow->has_ended = true;
    flow->is_readable = false;
    mn_tcp_shutdown(e->stack, flow->conn, e->now_ns);
}

/* One read into the send ring; false when nothing more can be read now. */
static bool take_once(struct mn_engine *e, struct mn_bridge *flow, size_t *budget)
{
    size_t room = 0;
    uint8_t *to = mn_tcp_send_reserve(e->stack, flow->conn, &room);
    if (to == NULL || room == 0)
        return false;
    if (room > *budget)
        room = *budget;
    ssize_t n = mn_stream_take(&flow->stream, to, room);
    e->stats.app_reads++;
    if (n > 0) {
        *budget -= (size_t)n;
        e->stats.app_bytes_in += (uint64_t)n;
        mn_tcp_send_commit(e->stack, flow->conn, (size_t)n, e->now_ns);
        if ((size_t)n < room && !flow->is_ending) {
            flow->is_readable = false; /* the pair was emptied; the next byte is a new edge */
            return false;
        }
        return flow->id != 0;
    }
    if (n == 0)
        app_ended(e, flow);
    else if (n == -EAGAIN)
        flow->is_readable = false;
    else
        app_is_gone(e, flow, true);
    return false;
}

void mn_bridge_ready(struct mn_engine *e, uint64_t id, uint32_t events)
{
    struct mn_bridge *flow = find_by_id(&e->flows, id);
    if (flow == NULL)
        return;
    if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
        flow->is_readable = true;
    if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
        flow->is_ending = true;
    if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
        flow->is_hung_up = true;
        if (flow->has_ended) {
            app_is_gone(e, flow, mn_stream_was_reset(&flow->stream));
            return;
        }
    }
    if ((events & EPOLLOUT) != 0 && flow->is_blocked) {
        flow->is_blocked = false;
        mn_tcp_recv_resume(e->stack, flow->conn, e->now_ns);
        flow = find_by_id(&e->flows, id); /* delivering may have ended it */
    }
    if (flow != NULL)
        queue_flow(&e->flows, flow);
}

bool mn_bridges_serve(struct mn_engine *e)
{
    struct mn_bridges *f = &e->flows;
    for (uint32_t n = f->queue_count; n > 0; n--) {
        struct mn_bridge *flow = dequeue_flow(f);
        if (flow == NULL)
            break;
        uint64_t id = flow->id;
        size_t budget = MN_FLOW_BUDGET;
        while (budget > 0 && take_once(e, flow, &budget))
            continue;
        if (budget == 0 && flow->id == id)
            queue_flow(f, flow);
    }
    return f->queue_head != MN_FLOW_NONE;
}

void mn_bridges_stop(struct mn_engine *e)
{
    for (uint32_t i = 0; i < e->flows.high; i++)
        if (e->flows.table[i].id != 0)
            abort_flow(e, &e->flows.table[i], ENETDOWN);
}
