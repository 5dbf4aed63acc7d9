/* A relay without thread, peers or clock, driven by steps from standard input: what tests/sim/hub_steps.py compares.
 *
 *   begin MEMORY        a new relay; answers with the bucket of each key, which is 32 times one byte
 *   join I KEY FLAGS    connection I logs in, enum mn_relay_open_flags
 *   leave I             its peer closes it
 *   say I PIECE…        bytes of its frames, in one read; a piece is hex, or COUNT*BYTE
 *   take I CAP          what waits for it, for a write of CAP bytes
 *   dirty               who is to be written to next
 *   time MS             the clock goes on, timers are looked at
 *   end                 all are closed and nothing may be left
 *
 * Each step is answered by one line: numbers in the order of the first line | what Python hears | what came of the
 * step. Frames are told by type, length and CRC-32. A step for a connection that is not there does nothing. */
#include <sys/eventfd.h>
#include <unistd.h>

#include "../relay/hub_internal.h"
#include "../relay/internal.h"
#include "check.h"

enum { SECONDS = 60, CONNS = 32, KEYS = 64, LINE = 1 << 20, TAKE = 1 << 18 };

struct world {
    struct mn_relay *relay;
    uint64_t ids[CONNS];
    uint8_t said[5 * MN_RELAY_PLAIN], taken[TAKE];
};

static struct mn_relay_conn *conn_of(const struct world *w, int i)
{
    return w->ids[i] != 0 ? mn_relay_conn_of(w->relay, w->ids[i]) : NULL;
}

static int index_of(const struct world *w, const struct mn_hub_client *k)
{
    for (int i = 0; i < CONNS; i++)
        if (conn_of(w, i) == (const struct mn_relay_conn *)k)
            return i;
    return -1;
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320U & (0U - (crc & 1)));
    }
    return ~crc;
}

/* ---- numbers ---- */

#define RELAY_NUMBERS(X)                                                                                               \
    X(logins)                                                                                                          \
    X(pings_received)                                                                                                  \
    X(pongs_sent)                                                                                                      \
    X(protocol_errors)                                                                                                 \
    X(unknown_frames)                                                                                                  \
    X(mesh_refused)                                                                                                    \
    X(silent)
#define HUB_GAUGES(X)                                                                                                  \
    X(clients)                                                                                                         \
    X(keys_local)                                                                                                      \
    X(keys_remote)                                                                                                     \
    X(watchers)                                                                                                        \
    X(homes)                                                                                                           \
    X(not_ideal)                                                                                                       \
    X(dup_keys)                                                                                                        \
    X(dup_conns)                                                                                                       \
    X(met)

static void print_names(void)
{
#define X(name) printf(#name " ");
    MN_HUB_COUNTERS(X)
    HUB_GAUGES(X)
    RELAY_NUMBERS(X)
#undef X
    printf("lane_chunks keys\n");
}

static void print_numbers(const struct mn_relay *r)
{
#define X(name) printf("%" PRIu64 " ", (uint64_t)r->hub.stats.name);
    MN_HUB_COUNTERS(X)
    HUB_GAUGES(X)
#undef X
#define X(name) printf("%" PRIu64 " ", (uint64_t)r->stats.name);
    RELAY_NUMBERS(X)
#undef X
    printf("%u %u |", r->hub.chunks.used, r->hub.count);
}

static void print_events(struct world *w)
{
    for (struct mn_relay_event *ev = mn_relay_take(w->relay), *next; ev != NULL; ev = next) {
        int i = 0;
        next = ev->next;
        while (w->ids[i] != ev->conn)
            i++;
        if (ev->kind == MN_RELAY_EV_ENDED)
            printf(" ended:%d:%d:%d", i, ev->why, ev->key[0]);
        else
            printf(" notice:%d:%d:%08x", i, ev->frame, crc32_of(ev->data, ev->len));
        free(ev);
    }
    printf(" |");
}

static void print_frames(const uint8_t *p, size_t n)
{
    struct mn_frame f;
    for (size_t at = 0; at < n; at += MN_FRAME_HEADER + f.len) {
        CHECK_INT(mn_frame_next(p + at, n - at, &f), MN_FRAME_WHOLE);
        printf(" %d:%u:%08x", f.kind, f.len, crc32_of(f.payload, f.len));
    }
}

/* ---- steps ---- */

static void begin(struct world *w, size_t memory)
{
    static const uint64_t seed[4] = {0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89};
    int err = 0;
    struct mn_relay_config config = {.memory_max = memory};
    *w = (struct world){.relay = mn_relay_create(&config, &err)};
    CHECK(w->relay != NULL);
    w->relay->now_ms = 1000;
    w->relay->now_ns = 1000000000;
    mn_wheel_init(&w->relay->wheel, w->relay->now_ns);
    struct mn_hub *h = &w->relay->hub;
    memcpy(h->seed, seed, sizeof seed);
    for (int i = 0; i < KEYS; i++) {
        uint8_t key[MN_RELAY_KEY];
        memset(key, i, sizeof key);
        struct mn_hub_key *k = mn_hub_key_need(h, key);
        CHECK(k != NULL);
        printf("%u ", (unsigned)(k->hash & (h->size - 1)));
        mn_hub_key_drop(h, k, 0);
    }
    printf("\n");
}

static void join(struct world *w, int i, int key_byte, uint32_t flags)
{
    if (conn_of(w, i) != NULL)
        return;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(fd >= 0);
    w->ids[i] = atomic_fetch_add(&w->relay->ids, 1);
    struct mn_relay_conn *c = mn_relay_conn_adopt(w->relay, fd, NULL, NULL, w->ids[i]);
    CHECK(c != NULL);
    c->client.source.ip.b[15] = (uint8_t)i;
    c->client.source.port = (uint16_t)(1000 + i);
    struct mn_relay_command login = {.number = flags, .fd = -1};
    memset(login.key, key_byte, sizeof login.key);
    w->relay->random = 0; /* keep-alives without jitter */
    mn_relay_conn_start_frames(w->relay, c, &login);
}

/* The pieces of a line into p; returns how many bytes. */
static size_t read_pieces(char *words, uint8_t *p, size_t max)
{
    size_t n = 0;
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) {
        char *star = strchr(word, '*');
        if (star == NULL) {
            n += test_hex(word, p + n, max - n);
            continue;
        }
        size_t count = strtoul(word, NULL, 10);
        CHECK(count <= max - n);
        memset(p + n, (int)strtoul(star + 1, NULL, 16), count);
        n += count;
    }
    return n;
}

static void say(struct world *w, int i, char *words)
{
    struct mn_relay_conn *c = conn_of(w, i);
    if (c == NULL)
        return;
    size_t kept = mn_frame_reader_front(&c->reader, w->said);
    size_t n = kept + read_pieces(words, w->said + kept, sizeof w->said - kept);
    mn_relay_conn_take_frames(w->relay, c, w->said, n);
}

static size_t take(struct world *w, int i, size_t cap)
{
    struct mn_relay_conn *c = conn_of(w, i);
    CHECK(cap <= sizeof w->taken);
    return c != NULL ? mn_hub_take(&w->relay->hub, &c->client, w->taken, cap, (uint32_t)w->relay->now_ms) : 0;
}

static void pass_time(struct world *w, uint64_t ms)
{
    struct mn_relay *r = w->relay;
    r->now_ms += ms;
    r->now_ns = r->now_ms * 1000000;
    for (int i = 0; i < CONNS; i++)
        if (conn_of(w, i) != NULL)
            mn_relay_conn_on_timer(r, conn_of(w, i));
}

static void finish(struct world *w)
{
    for (int i = 0; i < CONNS; i++)
        if (conn_of(w, i) != NULL)
            mn_relay_conn_stop(w->relay, conn_of(w, i), MN_WHY_ASKED);
    mn_relay_conn_free_dead(w->relay);
    const struct mn_hub *h = &w->relay->hub;
    CHECK_INT(w->relay->stats.conns, 0);
    CHECK_INT(h->stats.clients, 0);
    CHECK_INT(h->stats.met, 0);
    CHECK_INT(h->stats.watchers, 0);
    CHECK_INT(h->stats.homes, 0);
    CHECK_INT(h->stats.dup_conns, 0);
    CHECK_INT(h->chunks.used, 0);
    CHECK_INT(h->count, 0);
    CHECK(h->dirty_first == NULL);
    mn_relay_destroy(w->relay);
    w->relay = NULL;
    printf("done\n");
}

static void step(struct world *w, const char *what, int i, char *words)
{
    size_t taken = 0;
    int dirty = -1;
    if (strcmp(what, "join") == 0) {
        char *flags = words;
        int key = (int)strtol(words, &flags, 10);
        join(w, i, key, (uint32_t)strtoul(flags, NULL, 10));
    } else if (strcmp(what, "leave") == 0 && conn_of(w, i) != NULL) {
        mn_relay_conn_stop(w->relay, conn_of(w, i), MN_WHY_CLOSED_BY_PEER);
    } else if (strcmp(what, "say") == 0) {
        say(w, i, words);
    } else if (strcmp(what, "take") == 0) {
        taken = take(w, i, strtoul(words, NULL, 10));
    } else if (strcmp(what, "dirty") == 0) {
        struct mn_hub_client *k = mn_hub_next_dirty(&w->relay->hub);
        dirty = k != NULL ? index_of(w, k) : -1;
    } else if (strcmp(what, "time") == 0) {
        pass_time(w, (uint64_t)i);
    }
    mn_relay_conn_free_dead(w->relay);
    print_numbers(w->relay);
    print_events(w);
    if (strcmp(what, "dirty") == 0)
        printf(" %d", dirty);
    print_frames(w->taken, taken);
    printf("\n");
}

int main(void)
{
    static struct world w;
    static char line[LINE];
    print_names();
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        char what[16] = "";
        int used = 0;
        long i = 0;
        line[strcspn(line, "\n")] = 0;
        CHECK(sscanf(line, "%15s %ld %n", what, &i, &used) >= 1);
        alarm(SECONDS); /* a step that hangs is a failure, not a wait */
        if (strcmp(what, "begin") == 0)
            begin(&w, (size_t)i);
        else if (strcmp(what, "end") == 0)
            finish(&w);
        else
            step(&w, what, (int)i, line + used);
        fflush(stdout);
    }
    return 0;
}
