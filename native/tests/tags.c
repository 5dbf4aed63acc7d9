/* Position-tagged bytes for tests/soak/integrity.py: each eight bytes of a stream tell their own offset xor the
 * stream's seed, so that loss, doubling, reordering and mixing of streams all show. Built as a library that Python
 * loads: `make -C native/tests tags`. Offsets need not be multiples of eight. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void tags_fill(uint8_t *p, size_t n, uint64_t offset, uint64_t seed);
/* How many bytes from the start are right: n, if all are. */
size_t tags_check(const uint8_t *p, size_t n, uint64_t offset, uint64_t seed);

static uint8_t byte_at(uint64_t offset, uint64_t seed)
{
    uint64_t word = (offset & ~7ULL) ^ seed;
    return (uint8_t)(word >> 8 * (offset & 7));
}

void tags_fill(uint8_t *p, size_t n, uint64_t offset, uint64_t seed)
{
    size_t i = 0;
    for (; i < n && (offset + i) % 8 != 0; i++)
        p[i] = byte_at(offset + i, seed);
    for (; i + 8 <= n; i += 8) {
        uint64_t word = (offset + i) ^ seed;
        memcpy(p + i, &word, 8);
    }
    for (; i < n; i++)
        p[i] = byte_at(offset + i, seed);
}

size_t tags_check(const uint8_t *p, size_t n, uint64_t offset, uint64_t seed)
{
    size_t i = 0;
    for (; i < n && (offset + i) % 8 != 0; i++)
        if (p[i] != byte_at(offset + i, seed))
            return i;
    for (; i + 8 <= n; i += 8) {
        uint64_t word;
        memcpy(&word, p + i, 8);
        if (word != ((offset + i) ^ seed))
            break;
    }
    for (; i < n; i++)
        if (p[i] != byte_at(offset + i, seed))
            return i;
    return n;
}
