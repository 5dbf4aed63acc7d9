/* Packet buffers and secret memory. */
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "mem/arena.h"
#include "mem/pool.h"

static void test_pool_bounds(void)
{
    enum { COUNT = 100, SIZE = 1340 };
    struct mn_pool p;
    uint8_t *held[COUNT];
    CHECK_INT(mn_pool_init(&p, SIZE, COUNT), 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) {
            held[i] = mn_pool_get(&p);
            CHECK(held[i] != NULL && (uintptr_t)held[i] % 64 == 0);
            memset(held[i], i, SIZE);
        }
        CHECK(mn_pool_get(&p) == NULL);
        CHECK_INT(p.empty, (uint64_t)round + 1);
        CHECK_INT(p.in_use, COUNT);
        for (int i = 0; i < COUNT; i++) {
            CHECK(held[i][0] == i && held[i][SIZE - 1] == i); /* none overlaps another */
            mn_pool_put(&p, held[i]);
        }
        CHECK_INT(p.in_use, 0);
    }
    mn_pool_destroy(&p);
    CHECK_INT(mn_pool_init(&p, SIZE, 0), 0);
    CHECK(mn_pool_get(&p) == NULL);
    mn_pool_destroy(&p);
}

static bool is_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0)
            return false;
    return true;
}

static void test_arena_wipes(void)
{
    enum { COUNT = 2000, SIZE = 416 };
    struct mn_arena a;
    static uint8_t *held[COUNT];
    CHECK_INT(mn_arena_init(&a, SIZE), 0);
    for (int i = 0; i < COUNT; i++) {
        held[i] = mn_arena_get(&a);
        CHECK(held[i] != NULL && is_zero(held[i], SIZE));
        memset(held[i], 0xee, SIZE);
    }
    for (int i = 0; i < COUNT; i += 2) {
        mn_arena_put(&a, held[i]);
        CHECK(is_zero(held[i] + sizeof(void *), SIZE - sizeof(void *))); /* but for the free chain */
    }
    for (int i = 0; i < COUNT; i += 2)
        CHECK(is_zero(held[i] = mn_arena_get(&a), SIZE));
    CHECK(held[1][0] == 0xee && held[1][SIZE - 1] == 0xee);
    mn_arena_destroy(&a);
}

/* A child finds nothing but zeros and can get no more; the parent is as before. WG-28, its C half. */
static void test_arena_fork(void)
{
    struct mn_arena a;
    int status;
    CHECK_INT(mn_arena_init(&a, 64), 0);
    uint8_t *p = mn_arena_get(&a);
    CHECK(p != NULL && !mn_arena_forked(&a));
    memset(p, 0x77, 64);
    pid_t pid = fork();
    if (pid == 0)
        _exit(mn_arena_forked(&a) && is_zero(p, 64) && mn_arena_get(&a) == NULL ? 0 : 1);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(!mn_arena_forked(&a) && p[63] == 0x77);
    mn_arena_destroy(&a);
}

int main(void)
{
    RUN(test_pool_bounds);
    RUN(test_arena_wipes);
    RUN(test_arena_fork);
    return 0;
}
