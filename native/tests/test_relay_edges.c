/* The small units of the relay: frames out of bytes, WebSocket framing, and what one address may ask. */
#include "../relay/frame.h"
#include "../relay/guard.h"
#include "../relay/websocket.h"
#include "check.h"

static void test_frames(void)
{
    struct mn_frame f;
    const uint8_t ping[] = {0x12, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0x99};
    for (size_t n = 0; n < 13; n++)
        CHECK_INT(mn_frame_next(ping, n, &f), MN_FRAME_MORE);
    CHECK_INT(mn_frame_next(ping, sizeof ping, &f), MN_FRAME_WHOLE);
    CHECK_INT(f.kind, MN_FRAME_PING);
    CHECK_INT(f.len, 8);
    CHECK(f.payload == ping + 5);
    const uint8_t huge[] = {0x04, 0xff, 0xff, 0xff, 0xff};
    CHECK_INT(mn_frame_next(huge, sizeof huge, &f), MN_FRAME_TOO_BIG);
    const uint8_t unknown[] = {0x7f, 0, 1, 0, 0}, unknown_huge[] = {0x7f, 0, 0x10, 0, 1};
    CHECK_INT(mn_frame_next(unknown, sizeof unknown, &f), MN_FRAME_SKIP);
    CHECK_INT(f.len, 65536);
    CHECK_INT(mn_frame_next(unknown_huge, sizeof unknown_huge, &f), MN_FRAME_TOO_BIG);
}

/* Frames of a stream that comes in two pieces, cut at `cut`, or in many of `cut` bytes: kinds and last bytes, added up
 * so that order counts. */
static uint64_t frames_of(const uint8_t *stream, size_t n, size_t cut, bool is_once, uint64_t *skipped)
{
    static uint8_t buf[1 << 20];
    struct mn_frame_reader r = {0};
    uint64_t sum = 0;
    for (size_t from = 0; from < n;) {
        size_t k = from == 0 || !is_once ? cut : n, kept = mn_frame_reader_front(&r, buf), at = 0;
        struct mn_frame f;
        k = k < n - from ? k : n - from;
        CHECK(kept + k <= sizeof buf);
        memcpy(buf + kept, stream + from, k);
        while (mn_frame_reader_next(&r, buf, kept + k, &at, &f) == MN_FRAME_WHOLE)
            sum = sum * 31 + f.kind * 256U + (f.len > 0 ? f.payload[f.len - 1] : 0) + f.len;
        CHECK(mn_frame_reader_keep(&r, buf + at, kept + k - at));
        CHECK(kept + k - at < MN_FRAME_HEADER + MN_RELAY_FRAME_MAX); /* of an unknown frame nothing is kept */
        from += k;
    }
    *skipped = r.skipped;
    mn_frame_reader_free(&r);
    return sum;
}

static size_t put(uint8_t *out, uint8_t kind, uint32_t len, uint8_t fill)
{
    mn_frame_write_header(out, kind, len);
    memset(out + MN_FRAME_HEADER, fill, len);
    return MN_FRAME_HEADER + (size_t)len;
}

static void test_frames_cut_anywhere(void)
{
    static uint8_t stream[3 << 20];
    uint64_t skipped, seed = 5;
    size_t n = put(stream, MN_FRAME_PING, 8, 1);
    n += put(stream + n, 0x7f, 0, 0);
    n += put(stream + n, 0x7f, 100, 0x12);
    n += put(stream + n, MN_FRAME_KEEP_ALIVE, 0, 0);
    n += put(stream + n, 0x0b, 3, 0x12);
    n += put(stream + n, MN_FRAME_SEND_PACKET, 33, 2);
    uint64_t whole = frames_of(stream, n, n, true, &skipped);
    CHECK_INT(skipped, 3);
    for (size_t cut = 1; cut < n; cut++) {
        CHECK(frames_of(stream, n, cut, true, &skipped) == whole && skipped == 3);
        CHECK(frames_of(stream, n, cut, false, &skipped) == whole && skipped == 3);
    }
    n = put(stream, 0x7f, MN_RELAY_SKIP_MAX, 0x12);
    n += put(stream + n, MN_FRAME_PONG, 8, 3);
    whole = frames_of(stream, n, 4096, false, &skipped);
    CHECK_INT(skipped, 1);
    CHECK_INT(whole, MN_FRAME_PONG * 256 + 3 + 8);
    /* Random frames, known and not, in pieces of random size. */
    for (int round = 0; round < 200 / MN_TEST_SLOW; round++) {
        static const uint8_t kinds[] = {0x04, 0x12, 0x06, 0x7f, 0x0b, 0x00, 0xff, 0x14};
        static const uint32_t sizes[] = {0, 1, 31, 1400, 65568, 100000};
        n = 0;
        while (n < (1 << 20)) {
            uint8_t kind = kinds[test_random(&seed) % sizeof kinds];
            uint32_t len = sizes[test_random(&seed) % 6];
            bool is_known = kind == 0x04 || kind == 0x12 || kind == 0x06 || kind == 0x14;
            n += put(stream + n, kind, is_known && len > MN_RELAY_FRAME_MAX ? 7 : len, (uint8_t)round);
        }
        whole = frames_of(stream, n, 200000, false, &skipped);
        CHECK(frames_of(stream, n, 1 + test_random(&seed) % 100000, false, &skipped) == whole);
    }
}

static void test_disco_is_known_by_magic_and_length(void)
{
    uint8_t p[62] = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};
    CHECK(mn_frame_is_disco(p, 62));
    CHECK(!mn_frame_is_disco(p, 61));
    p[5] = 0;
    CHECK(!mn_frame_is_disco(p, 62));
}

/* A client's message: masked. */
static size_t masked(uint8_t *out, uint8_t opcode, const char *text, size_t n)
{
    static const uint8_t mask[4] = {9, 8, 7, 6};
    size_t at = mn_ws_header(out, opcode, n, mask);
    memcpy(out + at, text, n);
    mn_ws_mask(out + at, n, mask);
    return at + n;
}

static void test_websocket_pieces(void)
{
    uint8_t wire[1000], buf[1000];
    size_t n = masked(wire, 2, "hello ", 6);
    n += masked(wire + n, 9, "are you there", 13);
    n += masked(wire + n, 2, "world", 5);
    for (size_t step = 1; step <= n; step++) {
        struct mn_websocket w;
        char got[32] = "";
        size_t len = 0;
        mn_ws_start(&w, true);
        for (size_t at = 0; at < n; at += step) {
            size_t k = n - at < step ? n - at : step;
            memcpy(buf, wire + at, k);
            ptrdiff_t d = mn_ws_decode(&w, buf, k);
            CHECK(d >= 0 && len + (size_t)d < sizeof got);
            memcpy(got + len, buf, (size_t)d);
            len += (size_t)d;
        }
        CHECK_INT(len, 11);
        CHECK(memcmp(got, "hello world", 11) == 0);
        CHECK(w.owes_pong && w.pong_len == 13 && memcmp(w.pong, "are you there", 13) == 0);
        CHECK(!w.is_closed);
    }
}

static void test_websocket_sizes(void)
{
    static uint8_t wire[70100];
    static char text[70000];
    static const size_t sizes[] = {0, 1, 125, 126, 65535, 65536, 70000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct mn_websocket w;
        size_t n = masked(wire, 2, text, sizes[i]);
        mn_ws_start(&w, true);
        CHECK_INT(mn_ws_decode(&w, wire, n), (int64_t)sizes[i]);
        CHECK(!w.has_header && w.have == 0);
    }
}

static void test_websocket_rules(void)
{
    struct mn_websocket w;
    uint8_t unmasked[] = {0x82, 1, 'x'}, text[] = {0x81, 0x81, 0, 0, 0, 0, 'x'}, reserved[] = {0xc2, 0x80, 0, 0, 0, 0};
    uint8_t long_ping[] = {0x89, 0xfe, 0, 126, 0, 0, 0, 0}, split_ping[] = {0x09, 0x80, 0, 0, 0, 0};
    mn_ws_start(&w, true);
    CHECK_INT(mn_ws_decode(&w, unmasked, sizeof unmasked), -1);
    mn_ws_start(&w, true);
    CHECK_INT(mn_ws_decode(&w, text, sizeof text), -1);
    mn_ws_start(&w, true);
    CHECK_INT(mn_ws_decode(&w, reserved, sizeof reserved), -1);
    mn_ws_start(&w, true);
    CHECK_INT(mn_ws_decode(&w, long_ping, sizeof long_ping), -1);
    mn_ws_start(&w, true);
    CHECK_INT(mn_ws_decode(&w, split_ping, sizeof split_ping), -1);
    uint8_t close[] = {0x88, 0x80, 0, 0, 0, 0, 0x82};
    mn_ws_start(&w, true);
    CHECK_INT(mn_ws_decode(&w, close, sizeof close), 0);
    CHECK(w.is_closed);
}

/* A client's end: what arrives is not masked, and what leaves the other end understands. */
static void test_websocket_client(void)
{
    struct mn_websocket client, server;
    uint8_t wire[64], refused[] = {0x82, 0x81, 0, 0, 0, 0, 'x'};
    size_t n = mn_ws_header(wire, 9, 2, NULL);
    memcpy(wire + n, "hi", 2);
    n += 2;
    n += mn_ws_header(wire + n, 2, 5, NULL);
    memcpy(wire + n, "frame", 5);
    n += 5;
    mn_ws_start(&client, false);
    CHECK_INT(mn_ws_decode(&client, wire, n), 5);
    CHECK(memcmp(wire, "frame", 5) == 0);
    CHECK(client.owes_pong && client.pong_len == 2 && memcmp(client.pong, "hi", 2) == 0);
    mn_ws_start(&client, false);
    CHECK_INT(mn_ws_decode(&client, refused, sizeof refused), -1);
    mn_ws_start(&server, true);
    n = masked(wire, 10, "hi", 2);
    CHECK_INT(mn_ws_decode(&server, wire, n), 0);
    CHECK(!server.owes_pong && !server.is_closed);
}

static void test_guard(void)
{
    static struct mn_guard g;
    uint8_t four[4] = {192, 0, 2, 1}, six[16] = {0x20, 1, 0xd, 0xb8};
    struct mn_ip a = mn_ip_from4(four), b = mn_ip_from6(six);
    mn_guard_init(&g, 3, 10, 5, 42, 1000);
    CHECK(mn_guard_enter(&g, &a, 1000) && mn_guard_enter(&g, &a, 1000) && mn_guard_enter(&g, &a, 1000));
    CHECK(!mn_guard_enter(&g, &a, 1000)); /* three at once */
    mn_guard_leave(&g, &a);
    CHECK(mn_guard_enter(&g, &a, 1000));
    for (int i = 0; i < 3; i++)
        mn_guard_leave(&g, &a);
    CHECK(mn_guard_enter(&g, &a, 1000));
    mn_guard_leave(&g, &a);
    CHECK(!mn_guard_enter(&g, &a, 1000)); /* five in a burst */
    CHECK(!mn_guard_enter(&g, &a, 1099));
    CHECK(mn_guard_enter(&g, &a, 1200)); /* ten a second */
    /* IPv6 counts by /64. */
    for (uint8_t i = 0; i < 3; i++) {
        b.b[15] = i;
        CHECK(mn_guard_enter(&g, &b, 1000));
    }
    CHECK(!mn_guard_enter(&g, &b, 1000));
    CHECK_INT(g.refused, 4);
    mn_guard_init(&g, 0, 0, 0, 42, 0);
    for (int i = 0; i < 10000; i++)
        CHECK(mn_guard_enter(&g, &a, 0));
}

int main(void)
{
    RUN(test_frames);
    RUN(test_frames_cut_anywhere);
    RUN(test_disco_is_known_by_magic_and_length);
    RUN(test_websocket_pieces);
    RUN(test_websocket_sizes);
    RUN(test_websocket_rules);
    RUN(test_websocket_client);
    RUN(test_guard);
    return 0;
}
