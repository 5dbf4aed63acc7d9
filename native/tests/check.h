/* The least a test program needs: a check that says what failed and ends it. */
#ifndef MN_TESTS_CHECK_H
#define MN_TESTS_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How much smaller random tests run under sanitizers. */
#ifndef MN_TEST_SLOW
#define MN_TEST_SLOW 1
#endif

#define CHECK(claim)                                                                                                   \
    do {                                                                                                               \
        if (!(claim)) {                                                                                                \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #claim);                        \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_INT(got, want)                                                                                           \
    do {                                                                                                               \
        int64_t got_ = (int64_t)(got), want_ = (int64_t)(want);                                                        \
        if (got_ != want_) {                                                                                           \
            fprintf(stderr, "%s:%d: %s: %s is %" PRId64 ", want %" PRId64 "\n", __FILE__, __LINE__, __func__, #got,    \
                    got_, want_);                                                                                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Run a test function and name it in the log. */
#define RUN(test)                                                                                                      \
    do {                                                                                                               \
        printf("%s\n", #test);                                                                                         \
        fflush(stdout);                                                                                                \
        test();                                                                                                        \
    } while (0)

/* splitmix64: seeded, so that a failure repeats. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

static inline void test_random_bytes(uint64_t *state, uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)test_random(state);
}

/* Hex text to bytes; spaces are skipped. Returns how many bytes. */
static inline size_t test_hex(const char *text, uint8_t *out, size_t max)
{
    size_t n = 0;
    for (unsigned v; *text != '\0';) {
        if (*text == ' ' || *text == '\n') {
            text++;
            continue;
        }
        CHECK(n < max && sscanf(text, "%2x", &v) == 1);
        out[n++] = (uint8_t)v;
        text += 2;
    }
    return n;
}

#endif
