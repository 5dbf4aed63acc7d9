/* A steady transfer between two engines costs no allocation at all and system calls by the batch, not by the packet.
 *
 * The engines run in a child whose system calls the parent counts with ptrace, between two marks. The applications'
 * ends are read and written with readv and writev, which the engines do not use. Allocations are counted in the child,
 * libcrypto's and the C library's among them. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_pair.h"

enum { WARM_UP = (32 << 20) / MN_TEST_SLOW, STEADY = (32 << 20) / MN_TEST_SLOW, CALLS_MAX = 1024, CHUNK = 256 << 10 };
enum { MARK_FROM = 12345678, MARK_TO };

/* ---- allocations ---- */

static volatile bool counts;
static volatile uint64_t allocations;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));

static void on_malloc(const volatile void *p, size_t n)
{
    (void)p, (void)n;
    allocations = allocations + counts;
}

static void on_free(const volatile void *p)
{
    (void)p;
}

static void count_allocations(void)
{
    CHECK(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) != 0);
}
#else
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

void *malloc(size_t n)
{
    allocations = allocations + counts;
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    allocations = allocations + counts;
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    allocations = allocations + counts;
    return __libc_realloc(p, n);
}

static void count_allocations(void)
{
    void *(*volatile get)(size_t) = malloc; /* or the compiler would do without */
    uint64_t before = allocations;
    counts = true;
    void *p = get(1);
    counts = false;
    free(p);
    CHECK_INT(allocations - before, 1); /* it does count */
}
#endif

/* ---- the child ---- */

static struct engine_pair pair;
static uint8_t taken[2 * MN_EVENT_RECORD_MAX];

static int take_fd(int side, uint8_t kind)
{
    int fd = -1;
    size_t n = 1;
    while (n > 0) {
        size_t used = mn_events_take(&pair.e[side]->events, taken, sizeof taken, 64, &n);
        for (size_t at = 0; at < used;) {
            struct mn_event ev;
            memcpy(&ev, taken + at, sizeof ev);
            if (ev.kind == kind)
                fd = ev.fd;
            at += mn_event_size(&ev);
        }
    }
    return fd;
}

static void turn(void)
{
    for (int side = 0; side < 2; side++)
        mn_engine_turn(pair.e[side], 0);
}

static void transfer(int from, int to, size_t total)
{
    static uint8_t out[CHUNK], in[CHUNK];
    uint64_t limit = mn_clock_ns() + 60 * MN_NS_PER_S;
    struct iovec iov = {out, CHUNK}, into = {in, CHUNK};
    for (size_t sent = 0, got = 0; got < total;) {
        CHECK(mn_clock_ns() < limit);
        iov.iov_len = total - sent < CHUNK ? total - sent : CHUNK;
        ssize_t n = iov.iov_len > 0 ? writev(from, &iov, 1) : 0;
        sent += n > 0 ? (size_t)n : 0;
        turn();
        while ((n = readv(to, &into, 1)) > 0)
            got += (size_t)n;
        for (int side = 0; side < 2; side++)
            (void)take_fd(side, 0); /* hints, as Python would */
    }
    for (int i = 0; i < 50; i++) /* the last acknowledgements */
        turn();
}

static uint64_t packets(void)
{
    uint64_t n = 0;
    for (int side = 0; side < 2; side++)
        n += pair.e[side]->socks.stats.tx_datagrams + pair.e[side]->socks.stats.rx_datagrams;
    return n;
}

/* Writes packets and allocations of the steady part to `report`. */
static void run_child(int report)
{
    int client = -1, server = -1;
    count_allocations();
    engine_pair_start(&pair);
    pair_connect_to_b(&pair, 1);
    uint64_t limit = mn_clock_ns() + 10 * MN_NS_PER_S;
    while (client < 0 || server < 0) {
        CHECK(mn_clock_ns() < limit);
        turn();
        int c = take_fd(PAIR_A, MN_EV_CONNECTED), s = take_fd(PAIR_B, MN_EV_ACCEPTED);
        client = c >= 0 ? c : client;
        server = s >= 0 ? s : server;
    }
    uint64_t words[2] = {0};
    allocations = 0;
    for (int way = 0; way < 2; way++) {
        int from = way == 0 ? client : server, to = way == 0 ? server : client;
        transfer(from, to, WARM_UP); /* until the rings have grown to what this link needs */
        uint64_t before = packets();
        counts = true;
        (void)syscall(SYS_getpgid, MARK_FROM);
        transfer(from, to, STEADY);
        (void)syscall(SYS_getpgid, MARK_TO);
        counts = false;
        words[0] += packets() - before;
    }
    words[1] = allocations;
    CHECK_INT(write(report, words, sizeof words), sizeof words);
    _exit(0);
}

/* ---- the parent ---- */

static uint64_t calls[CALLS_MAX];

static void on_stop(pid_t child, bool *inside)
{
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) <= 0 || info.op != PTRACE_SYSCALL_INFO_ENTRY)
        return;
    if (info.entry.nr == SYS_getpgid && info.entry.args[0] == MARK_FROM)
        *inside = true;
    else if (info.entry.nr == SYS_getpgid && info.entry.args[0] == MARK_TO)
        *inside = false;
    else if (*inside && info.entry.nr < CALLS_MAX)
        calls[info.entry.nr]++;
}

static void trace(pid_t child)
{
    bool inside = false;
    int status;
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK(WIFSTOPPED(status));
    CHECK_INT(ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL), 0);
    for (int signal = 0;;) {
        CHECK_INT(ptrace(PTRACE_SYSCALL, child, NULL, signal), 0);
        CHECK_INT(waitpid(child, &status, 0), child);
        if (WIFEXITED(status)) {
            CHECK_INT(WEXITSTATUS(status), 0);
            return;
        }
        CHECK(WIFSTOPPED(status));
        bool is_call = WSTOPSIG(status) == (SIGTRAP | 0x80);
        signal = is_call ? 0 : WSTOPSIG(status);
        if (is_call)
            on_stop(child, &inside);
    }
}

static void test_steady_transfer(void)
{
    int report[2];
    uint64_t words[2], total = 0;
    CHECK_INT(pipe(report), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_INT(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
        raise(SIGSTOP);
        run_child(report[1]);
    }
    trace(child);
    CHECK_INT(read(report[0], words, sizeof words), sizeof words);
    for (size_t nr = 0; nr < CALLS_MAX; nr++) {
        if (calls[nr] == 0 || nr == SYS_writev || nr == SYS_readv)
            continue;
        printf("system call %3zu: %" PRIu64 "\n", nr, calls[nr]);
        total += calls[nr];
    }
    printf("%" PRIu64 " packets sent and received, %" PRIu64 " system calls, %" PRIu64 " allocations\n", words[0],
           total, words[1]);
    CHECK(words[0] >= 2u * 2u * (STEADY / 1240u));
    CHECK_INT(words[1], 0);
    CHECK(total * 5 < words[0]); /* a call for every packet would be five times as many */
    CHECK_INT(calls[SYS_mmap] + calls[SYS_brk] + calls[SYS_getrandom] + calls[SYS_futex], 0);
    /* The way that was busy first falls silent and gives its ring back a second later: once, on a slow machine here. */
    CHECK(calls[SYS_munmap] <= 1);
}

int main(void)
{
    RUN(test_steady_transfer);
    return 0;
}
