/* Keys leave no trace: after a peer is removed, after nine silent minutes, after the engine's end, and in a child
 * forked in the middle of a transfer, no memory that can be written holds a key that was in use.
 *
 * Every key libcrypto was given is noted masked, so that the note itself is not found. WG-18, WG-28. */
#include <dlfcn.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_pair.h"
#include "wg_pair.h"

enum { KEYS_MAX = 256, WORDS = 4, LINE = 512 };
#define MASK 0x5bd1e995a3c4f10dULL

static uint64_t noted[KEYS_MAX][WORDS];
static unsigned n_noted;
static pthread_mutex_t note_lock = PTHREAD_MUTEX_INITIALIZER;

static void note(const uint8_t key[32])
{
    static const uint8_t zero[32];
    if (memcmp(key, zero, 32) == 0)
        return;
    pthread_mutex_lock(&note_lock);
    for (unsigned w = 0; n_noted < KEYS_MAX && w < WORDS; w++) {
        uint64_t v;
        memcpy(&v, key + 8 * w, 8);
        noted[n_noted][w] = v ^ MASK;
    }
    n_noted += n_noted < KEYS_MAX;
    pthread_mutex_unlock(&note_lock);
}

/* In the place of libcrypto's: what aead.c gives a context when it makes it, the keys of sessions among it. */
int EVP_CipherInit_ex2(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, const unsigned char *key, const unsigned char *iv,
                       int enc, const OSSL_PARAM params[])
{
    typedef int (*init)(EVP_CIPHER_CTX *, const EVP_CIPHER *, const unsigned char *, const unsigned char *, int,
                        const OSSL_PARAM *);
    init real = NULL;
    void *symbol = dlsym(RTLD_NEXT, "EVP_CipherInit_ex2");
    memcpy(&real, &symbol, sizeof real);
    if (cipher != NULL && key != NULL)
        note(key);
    return real(ctx, cipher, key, iv, enc, params);
}

/* How many places in [at, end) hold a noted key. */
__attribute__((no_sanitize("address", "undefined", "thread"))) static unsigned scan(const uint8_t *at,
                                                                                    const uint8_t *end)
{
    unsigned found = 0;
    for (; at + 32 <= end; at += 4) {
        uint64_t first = *(const volatile uint64_t *)(const volatile void *)at ^ MASK;
        for (unsigned i = 0; i < n_noted; i++) {
            if (first != noted[i][0])
                continue;
            bool same = true;
            for (unsigned w = 1; w < WORDS; w++)
                same = same && (*(const volatile uint64_t *)(const volatile void *)(at + 8 * w) ^ MASK) == noted[i][w];
            found += same;
        }
    }
    return found;
}

/* Everything writable of this process that is not a sanitizer's own. */
static unsigned keys_in_memory(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[LINE], rights[8];
    unsigned found = 0;
    uintptr_t from, to;
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s", &from, &to, rights) != 3 || rights[0] != 'r' ||
            rights[1] != 'w')
            continue;
        if (to - from > (256u << 20))
            continue; /* shadow memory */
        unsigned here = scan((const uint8_t *)from, (const uint8_t *)to);
        if (here > 0)
            printf("  %u in %s", here, line);
        found += here;
    }
    fclose(maps);
    return found;
}

static void forget_notes(void)
{
    n_noted = 0;
    memset(noted, 0, sizeof noted);
}

/* ---- the device ---- */

static struct pair *connected_pair(uint64_t seed)
{
    forget_notes();
    struct pair *t = pair_start(seed);
    forget_notes(); /* keys of handshakes: not what this is about */
    pair_connect(t);
    return t;
}

static void test_keys_are_there_while_used(void)
{
    struct pair *t = connected_pair(1);
    CHECK_INT(n_noted, 4);
    CHECK(keys_in_memory() >= 4); /* or the search would prove nothing */
    pair_stop(t);
    CHECK_INT(keys_in_memory(), 0);
}

static void test_removed_peer(void)
{
    struct pair *t = connected_pair(2);
    uint8_t psk[32];
    test_random_bytes(&t->a.seed, psk, sizeof psk);
    note(psk);
    CHECK_INT(mn_wg_peer_set_psk(t->a.wg, t->pa, psk), 0);
    memset(psk, 0, sizeof psk);
    CHECK(keys_in_memory() >= 5);
    CHECK_INT(mn_wg_peer_remove(t->a.wg, t->pa), 0);
    CHECK_INT(mn_wg_peer_remove(t->b.wg, t->pb), 0);
    CHECK_INT(keys_in_memory(), 0);
    pair_stop(t);
}

static void test_nine_silent_minutes(void)
{
    struct pair *t = connected_pair(3);
    uint64_t until = t->now + 541 * SEC;
    run_to(&t->a, until);
    run_to(&t->b, until);
    CHECK_INT(count_events(&t->a, MN_WG_SESSION_GONE), 1);
    CHECK_INT(keys_in_memory(), 0);
    pair_stop(t);
}

/* ---- engines ---- */

static struct engine_pair engines;
static uint8_t taken[2 * MN_EVENT_RECORD_MAX];
static int fds[2];

static void take_fds(int side)
{
    size_t n = 1;
    while (n > 0) {
        size_t used = mn_events_take(mn_engine_events(engines.e[side]), taken, sizeof taken, 64, &n);
        for (size_t at = 0; at < used;) {
            struct mn_event ev;
            memcpy(&ev, taken + at, sizeof ev);
            if (ev.kind == MN_EV_CONNECTED || ev.kind == MN_EV_ACCEPTED)
                fds[side] = ev.fd;
            at += mn_event_size(&ev);
        }
    }
}

/* Two engines with their threads and a connection between them. */
static void start_engines(void)
{
    forget_notes();
    engine_pair_start(&engines);
    forget_notes();
    fds[0] = fds[1] = -1;
    for (int side = 0; side < 2; side++)
        CHECK_INT(mn_engine_start(engines.e[side]), 0);
    pair_connect_to_b(&engines, 1);
    for (int side = 0; side < 2; side++) {
        struct pollfd p = {.fd = mn_engine_events(engines.e[side])->fd, .events = POLLIN};
        while (fds[side] < 0) {
            CHECK_INT(poll(&p, 1, 10000), 1);
            take_fds(side);
        }
    }
}

static void stop_engines(void)
{
    for (int side = 0; side < 2; side++)
        close(fds[side]);
    for (int side = 0; side < 2; side++)
        CHECK(mn_engine_stop(engines.e[side], 10));
}

static void wait_for(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    CHECK_INT(poll(&p, 1, 10000), 1);
}

static void test_end_of_an_engine(void)
{
    start_engines();
    CHECK(keys_in_memory() >= 4);
    stop_engines();
    CHECK_INT(keys_in_memory(), 0); /* though the objects are still there */
    for (int side = 0; side < 2; side++)
        mn_engine_destroy(engines.e[side]);
}

/* What the child finds: nothing of the keys, no socket, nothing to send with. */
static int look_around(void)
{
    int wrong = keys_in_memory() != 0;
    for (int side = 0; side < 2; side++) {
        struct mn_engine *e = engines.e[side];
        wrong += mn_engine_state(e) != MN_ENGINE_FORKED;
        wrong += e->socks.fd[MN_SOCK_V4] != -1 || e->epoll_fd != -1;
        wrong += e->wg != NULL;
    }
    return wrong;
}

static pid_t fork_child(void)
{
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int wrong = look_around();
        fflush(stdout);
        _exit(wrong == 0 ? 0 : 1);
    }
    return pid;
}

/* Children are made again and again while bytes flow; each is blind, and the transfer is whole. */
static void test_fork_in_the_middle_of_a_transfer(void)
{
    enum { TOTAL = (8 << 20) / MN_TEST_SLOW, CHILDREN = 8 };
    static uint8_t buf[65536];
    size_t sent = 0, got = 0, forks = 0;
    start_engines();
    while (got < TOTAL) {
        for (size_t i = 0; i < sizeof buf; i++)
            buf[i] = (uint8_t)((sent + i) * 7 + (sent + i) / 509);
        size_t most = TOTAL - sent < sizeof buf ? TOTAL - sent : sizeof buf;
        ssize_t n = most > 0 ? send(fds[0], buf, most, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
        sent += n > 0 ? (size_t)n : 0;
        if (got * CHILDREN >= TOTAL * forks && forks < CHILDREN) {
            int status;
            pid_t pid = fork_child();
            CHECK_INT(waitpid(pid, &status, 0), pid);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            forks++;
        }
        if (n <= 0)
            wait_for(fds[1], POLLIN);
        n = recv(fds[1], buf, sizeof buf, MSG_DONTWAIT);
        for (ssize_t i = 0; i < n; i++)
            CHECK_INT(buf[i], (uint8_t)((got + (size_t)i) * 7 + (got + (size_t)i) / 509));
        got += n > 0 ? (size_t)n : 0;
    }
    CHECK_INT(forks, CHILDREN);
    CHECK(keys_in_memory() >= 4); /* the parent goes on with its own */
    stop_engines();
    for (int side = 0; side < 2; side++)
        mn_engine_destroy(engines.e[side]);
    CHECK_INT(keys_in_memory(), 0);
}

int main(void)
{
    RUN(test_keys_are_there_while_used);
    RUN(test_removed_peer);
    RUN(test_nine_silent_minutes);
    RUN(test_end_of_an_engine);
    RUN(test_fork_in_the_middle_of_a_transfer);
    return 0;
}
