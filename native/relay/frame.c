/* Frames out of a byte stream. */
#include "frame.h"

#include <stdlib.h>
#include <string.h>

static bool is_known(uint8_t kind)
{
    return (kind >= MN_FRAME_SERVER_KEY && kind <= MN_FRAME_FORWARD_PACKET) ||
           (kind >= MN_FRAME_WATCH_CONNS && kind <= MN_FRAME_RESTARTING);
}

enum mn_frame_found mn_frame_next(const uint8_t *p, size_t n, struct mn_frame *f)
{
    if (n < MN_FRAME_HEADER)
        return MN_FRAME_MORE;
    f->kind = p[0];
    f->len = mn_frame_length(p);
    f->payload = p + MN_FRAME_HEADER;
    if (!is_known(f->kind))
        return f->len <= MN_RELAY_SKIP_MAX ? MN_FRAME_SKIP : MN_FRAME_TOO_BIG;
    if (f->len > MN_RELAY_FRAME_MAX)
        return MN_FRAME_TOO_BIG;
    return n - MN_FRAME_HEADER < f->len ? MN_FRAME_MORE : MN_FRAME_WHOLE;
}

bool mn_frame_is_disco(const uint8_t *packet, size_t len)
{
    static const uint8_t magic[6] = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};
    return len >= MN_RELAY_DISCO_MIN && memcmp(packet, magic, sizeof magic) == 0;
}

size_t mn_frame_reader_front(const struct mn_frame_reader *r, uint8_t *p)
{
    if (r->kept != NULL)
        memcpy(p, r->kept, r->kept_len);
    return r->kept_len;
}

enum mn_frame_found mn_frame_reader_next(struct mn_frame_reader *r, const uint8_t *p, size_t n, size_t *at,
                                         struct mn_frame *f)
{
    for (;;) {
        size_t k = n - *at < r->skip ? n - *at : r->skip;
        r->skip -= (uint32_t)k;
        *at += k;
        enum mn_frame_found found = mn_frame_next(p + *at, n - *at, f);
        if (found == MN_FRAME_WHOLE)
            *at += MN_FRAME_HEADER + (size_t)f->len;
        if (found != MN_FRAME_SKIP)
            return found;
        r->skipped++;
        r->skip = f->len;
        *at += MN_FRAME_HEADER;
    }
}

bool mn_frame_reader_keep(struct mn_frame_reader *r, const uint8_t *p, size_t n)
{
    free(r->kept);
    r->kept = n > 0 ? malloc(n) : NULL;
    r->kept_len = r->kept != NULL ? (uint32_t)n : 0;
    if (r->kept != NULL)
        memcpy(r->kept, p, n);
    return n == 0 || r->kept != NULL;
}

void mn_frame_reader_free(struct mn_frame_reader *r)
{
    free(r->kept);
    r->kept = NULL;
    r->kept_len = 0;
}
