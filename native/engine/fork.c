/* What a fork leaves behind in the child: memory of engines whose threads stayed in the parent.
 *
 * The one list of engines in the process; it exists because pthread_atfork takes no argument. In the child each
 * engine is marked dead, its keys are wiped, and its descriptors are closed, so that a long-lived child keeps no
 * connection of its parent half open. The applications' ends belong to Python.
 * Long-lived secrets are zero already, their memory is wiped on fork. Session keys live in libcrypto's contexts, which
 * only their owner can take apart: so a fork waits until no engine is in the middle of a turn, and finds every device
 * in good order. A turn takes milliseconds at worst; an engine asleep is not waited for. */
#include <sched.h>
#include <unistd.h>

#include "internal.h"

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t hooked = PTHREAD_ONCE_INIT;
static struct mn_engine *first_live;

static void close_one(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void disown(struct mn_engine *e)
{
    atomic_store(&e->is_forked, true);
    if (e->wg != NULL)
        mn_wg_destroy(e->wg);
    e->wg = NULL;
    for (int sock = 0; sock < MN_SOCKS_MAX; sock++)
        close_one(&e->socks.fd[sock]);
    close_one(&e->epoll_fd);
    close_one(&e->commands.fd);
    close_one(&e->events.fd);
    close_one(&e->tun.fd);
    for (uint32_t i = 0; i < e->flows.high && i < MN_FLOWS_MAX; i++)
        if (e->flows.table[i].id != 0)
            mn_stream_close(&e->flows.table[i].stream);
}

/* The mutex alone would do for safety; but an engine in full flow takes it again sooner than a waiter wakes. */
void mn_fork_enter(struct mn_engine *e)
{
    while (atomic_load_explicit(&e->fork_waits, memory_order_relaxed))
        sched_yield();
    pthread_mutex_lock(&e->in_turn);
}

void mn_fork_leave(struct mn_engine *e)
{
    pthread_mutex_unlock(&e->in_turn);
}

static void before_fork(void)
{
    pthread_mutex_lock(&list_lock);
    for (struct mn_engine *e = first_live; e != NULL; e = e->next_live) {
        atomic_store(&e->fork_waits, true);
        pthread_mutex_lock(&e->in_turn);
    }
}

static void after_fork(void)
{
    for (struct mn_engine *e = first_live; e != NULL; e = e->next_live) {
        pthread_mutex_unlock(&e->in_turn);
        atomic_store(&e->fork_waits, false);
    }
}

static void in_parent(void)
{
    after_fork();
    pthread_mutex_unlock(&list_lock);
}

static void in_child(void)
{
    after_fork();
    for (struct mn_engine *e = first_live; e != NULL; e = e->next_live)
        disown(e);
    first_live = NULL;
    pthread_mutex_unlock(&list_lock);
}

static void hook(void)
{
    (void)pthread_atfork(before_fork, in_parent, in_child);
}

void mn_fork_register(struct mn_engine *e)
{
    (void)pthread_once(&hooked, hook);
    pthread_mutex_lock(&list_lock);
    e->next_live = first_live;
    first_live = e;
    pthread_mutex_unlock(&list_lock);
}

void mn_fork_forget(struct mn_engine *e)
{
    pthread_mutex_lock(&list_lock);
    for (struct mn_engine **at = &first_live; *at != NULL; at = &(*at)->next_live) {
        if (*at == e) {
            *at = e->next_live;
            break;
        }
    }
    pthread_mutex_unlock(&list_lock);
}
