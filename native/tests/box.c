/* The impairment box: forwards IP packets between two namespaces and loses, delays, reorders, doubles, damages and
 * queues them as told, from one seed.
 *
 *     box NAMESPACE:IFNAME NAMESPACE:IFNAME
 *
 * makes a TUN device in each and forwards between them. Commands on stdin, one a line, one line of answer each; it ends
 * with stdin. "set KEY=VALUE ..." changes the link and leaves what is under way alone; "clear" drops that and zeroes
 * the counters; "stats" answers with JSON. Keys, for both directions alike, or for one as "a.KEY" (what comes out of
 * the first namespace) and "b.KEY": loss, dup, reorder, corrupt (fractions of packets), delay_us (one way), late_us (a
 * reordered packet comes up to this much later), rate_mbit (0: none), queue_kb (what waits for the rate; more is
 * dropped), credit (bytes of each UDP packet that the rate does not count), seed.
 *
 * Why TUN: a kernel's TCP and the WireGuard datagrams of a user-space stack must meet the same impairment of the same
 * unit. Both cross as IP packets of at most one MTU: a TUN without offloads makes the kernel cut what TCP or UDP
 * segmentation put together before the box reads it, so "1 % loss" drops single packets and never a super-packet. A
 * longer one is counted as oversize, a piece of one as a fragment, and a measurement with such a count is void. A TUN
 * also keeps the order of what one socket sends, whichever core sends it; packet sockets on veth were tried and do not.
 * It lives here because it is plain C beside its like: `make -C native/tests box`.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum {
    SLOTS = 1 << 17, /* packets under way; more are dropped and counted */
    SLOT_BYTES = 1536,
    BATCH = 64,
    MOST = 1500, /* longer is no single packet */
    LATE_BINS = 32,
};

#define LINK_COUNTERS(X)                                                                                               \
    X(in)                                                                                                              \
    X(bytes) X(lost) X(doubled) X(reordered) X(damaged) X(queue_full) X(out) X(oversize) X(fragments) X(send_failed)

struct link {
    double loss, dup, reorder, corrupt, rate_mbit;
    uint64_t delay_us, late_us, queue_kb, credit;
    uint64_t busy_until; /* when the last byte that waits for the rate will have left */
    uint64_t rng;
#define X(name) uint64_t name;
    LINK_COUNTERS(X)
#undef X
};

struct packet {
    uint64_t at, order;
    uint32_t slot;
    uint16_t len;
    uint8_t from;
};

struct box {
    int fd[2];
    struct link link[2];
    uint8_t (*slots)[SLOT_BYTES];
    uint32_t *free_slots, free_count;
    struct packet *heap;
    uint32_t count;
    uint64_t order;
    uint64_t late[LATE_BINS]; /* by powers of two of microseconds: how much later than due packets left */
};

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static bool chance(struct link *l, double p)
{
    return p > 0 && (double)(test_random(&l->rng) >> 11) / 9007199254740992.0 < p;
}

/* ---- packets under way ---- */

static bool before(const struct packet *a, const struct packet *b)
{
    return a->at < b->at || (a->at == b->at && a->order < b->order);
}

static void push(struct box *x, struct packet p)
{
    uint32_t i = x->count++;
    while (i > 0 && before(&p, &x->heap[(i - 1) / 2])) {
        x->heap[i] = x->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    x->heap[i] = p;
}

static struct packet pop(struct box *x)
{
    struct packet top = x->heap[0], last = x->heap[--x->count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= x->count)
            break;
        if (child + 1 < x->count && before(&x->heap[child + 1], &x->heap[child]))
            child++;
        if (!before(&x->heap[child], &last))
            break;
        x->heap[i] = x->heap[child];
        i = child;
    }
    x->heap[i] = last;
    return top;
}

static void give_back(struct box *x, uint32_t slot)
{
    x->free_slots[x->free_count++] = slot;
}

/* When a packet that arrives now has passed the bottleneck; 0: its queue is full. */
static uint64_t pass_rate(struct link *l, const uint8_t *frame, size_t len, uint64_t now)
{
    if (l->rate_mbit <= 0)
        return now;
    double ns_per_byte = 8000.0 / l->rate_mbit;
    uint64_t start = l->busy_until > now ? l->busy_until : now;
    if ((double)(start - now) > (double)l->queue_kb * 1000.0 * ns_per_byte)
        return 0;
    size_t counted = len;
    if (l->credit > 0 && frame[0] >> 4 == 4 && frame[9] == IPPROTO_UDP)
        counted = counted > l->credit ? counted - l->credit : 1;
    l->busy_until = start + (uint64_t)((double)counted * ns_per_byte);
    return l->busy_until;
}

/* One packet into the link. Takes the slot or gives it back. */
static void enter(struct box *x, int from, uint32_t slot, size_t len, uint64_t now)
{
    struct link *l = &x->link[from];
    uint8_t *frame = x->slots[slot];
    l->in++;
    l->bytes += len;
    if (frame[0] >> 4 == 4 && ((frame[6] & 0x3f) | frame[7]) != 0)
        l->fragments++;
    uint64_t at = pass_rate(l, frame, len, now);
    if (at == 0 || chance(l, l->loss)) {
        *(at == 0 ? &l->queue_full : &l->lost) += 1;
        give_back(x, slot);
        return;
    }
    at += l->delay_us * 1000;
    if (chance(l, l->reorder)) {
        l->reordered++;
        at += test_random(&l->rng) % (l->late_us * 1000 + 1);
    }
    if (chance(l, l->dup) && x->free_count > 0) {
        uint32_t twin = x->free_slots[--x->free_count];
        memcpy(x->slots[twin], frame, len);
        l->doubled++;
        push(x, (struct packet){at, x->order++, twin, (uint16_t)len, (uint8_t)from});
    }
    if (chance(l, l->corrupt)) {
        uint64_t bit = test_random(&l->rng) % (len * 8);
        frame[bit / 8] ^= (uint8_t)(1U << bit % 8);
        l->damaged++;
    }
    push(x, (struct packet){at, x->order++, slot, (uint16_t)len, (uint8_t)from});
}

/* ---- devices ---- */

static int receive(struct box *x, int from)
{
    struct link *l = &x->link[from];
    uint64_t now = clock_ns();
    int got = 0;
    while (got < BATCH && x->free_count > 0) {
        uint32_t slot = x->free_slots[x->free_count - 1];
        ssize_t len = read(x->fd[from], x->slots[slot], SLOT_BYTES);
        if (len <= 0)
            break;
        got++;
        if (len > MOST) {
            l->oversize++;
            continue;
        }
        x->free_count--;
        enter(x, from, slot, (size_t)len, now);
    }
    return got;
}

static void send_one(struct box *x, const struct packet *p)
{
    struct link *l = &x->link[p->from];
    if (write(x->fd[1 - p->from], x->slots[p->slot], p->len) == p->len)
        l->out++;
    else
        l->send_failed++;
    give_back(x, p->slot);
}

static void note_late(struct box *x, uint64_t ns)
{
    int bin = 0;
    for (uint64_t us = ns / 1000; us > 0 && bin < LATE_BINS - 1; us /= 2)
        bin++;
    x->late[bin]++;
}

/* What is due; no more than a batch or two, for more may have arrived meanwhile. */
static void release(struct box *x)
{
    uint64_t now = clock_ns();
    for (int n = 0; n < 2 * BATCH && x->count > 0 && x->heap[0].at <= now; n++) {
        struct packet p = pop(x);
        note_late(x, now - p.at);
        send_one(x, &p);
    }
}

/* NAMESPACE:IFNAME, made here; the caller gives it an address and a queue. */
static int open_side(const char *where)
{
    char path[64], space[32];
    struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    const char *colon = strchr(where, ':');
    CHECK(colon != NULL && (size_t)(colon - where) < sizeof space);
    memcpy(space, where, (size_t)(colon - where));
    space[colon - where] = '\0';
    snprintf(path, sizeof path, "/run/netns/%s", space);
    strncpy(r.ifr_name, colon + 1, sizeof r.ifr_name - 1);
    int ns = open(path, O_RDONLY | O_CLOEXEC), fd = -1;
    if (ns >= 0 && setns(ns, CLONE_NEWNET) == 0)
        fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &r) < 0) {
        fprintf(stderr, "box: %s: %s (root, and an existing namespace, are needed)\n", where, strerror(errno));
        exit(2);
    }
    close(ns);
    return fd;
}

/* ---- commands ---- */

static bool set_key(struct link *l, const char *key, double value)
{
    const struct {
        const char *name;
        double *number;
        uint64_t *count;
    } keys[] = {{"loss", &l->loss, NULL},           {"dup", &l->dup, NULL},
                {"reorder", &l->reorder, NULL},     {"corrupt", &l->corrupt, NULL},
                {"rate_mbit", &l->rate_mbit, NULL}, {"delay_us", NULL, &l->delay_us},
                {"late_us", NULL, &l->late_us},     {"queue_kb", NULL, &l->queue_kb},
                {"credit", NULL, &l->credit},       {"seed", NULL, &l->rng}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i].name, key) != 0)
            continue;
        if (keys[i].number != NULL)
            *keys[i].number = value;
        if (keys[i].count != NULL)
            *keys[i].count = (uint64_t)value;
        return value >= 0;
    }
    return false;
}

static void set(struct box *x, char *words)
{
    for (char *word = strtok(words, " \n"); word != NULL; word = strtok(NULL, " \n")) {
        char *eq = strchr(word, '='), *end;
        double value = eq == NULL ? 0 : strtod(eq + 1, &end);
        bool is_one = word[0] != '\0' && word[1] == '.', ok = eq != NULL && eq[1] != '\0' && *end == '\0';
        if (ok) {
            *eq = '\0';
            for (int i = 0; i < 2; i++)
                if (!is_one || word[0] == "ab"[i])
                    ok = set_key(&x->link[i], is_one ? word + 2 : word, value) && ok;
        }
        if (ok && strcmp(word, "seed") == 0)
            x->link[1].rng = ~x->link[1].rng; /* the directions must not lose the same packets */
        if (!ok) {
            printf("error: %s: want KEY=NUMBER with a known key\n", word);
            return;
        }
    }
    printf("ok\n");
}

static void tell(const struct box *x)
{
    uint64_t total = 0, below = 0;
    uint32_t p99 = 0;
    for (int i = 0; i < LATE_BINS; i++)
        total += x->late[i];
    for (int i = 0; i < LATE_BINS && below * 100 < total * 99; i++) {
        below += x->late[i];
        p99 = 1U << i;
    }
    printf("{\"late_p99_below_us\": %u", p99);
    for (int i = 0; i < 2; i++) {
        const struct link *l = &x->link[i];
        const char *comma = "";
        printf(", \"%c\": {", "ab"[i]);
#define X(name)                                                                                                        \
    printf("%s\"" #name "\": %" PRIu64, comma, l->name);                                                               \
    comma = ", ";
        LINK_COUNTERS(X)
#undef X
        printf("}");
    }
    printf("}\n");
}

static void clear(struct box *x)
{
    while (x->count > 0)
        give_back(x, pop(x).slot);
    memset(x->late, 0, sizeof x->late);
    for (int i = 0; i < 2; i++) {
        struct link *l = &x->link[i];
        l->busy_until = 0;
#define X(name) l->name = 0;
        LINK_COUNTERS(X)
#undef X
    }
    printf("ok\n");
}

static bool obey(struct box *x)
{
    char line[512];
    if (fgets(line, sizeof line, stdin) == NULL)
        return false;
    if (strncmp(line, "set ", 4) == 0)
        set(x, line + 4);
    else if (strcmp(line, "stats\n") == 0)
        tell(x);
    else if (strcmp(line, "clear\n") == 0)
        clear(x);
    else
        printf("error: want set, stats or clear\n");
    fflush(stdout);
    return true;
}

int main(int argc, char **argv)
{
    static struct box x;
    if (argc != 3) {
        fprintf(stderr, "usage: box NAMESPACE:IFNAME NAMESPACE:IFNAME\n");
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, 9);
    setpriority(PRIO_PROCESS, 0, -10); /* what is late here is a delay nobody asked for */
    setvbuf(stdin, NULL, _IONBF, 0);   /* a line held back in a buffer would not wake poll */
    x.slots = malloc((size_t)SLOTS * SLOT_BYTES);
    x.heap = malloc(SLOTS * sizeof *x.heap);
    x.free_slots = malloc(SLOTS * sizeof *x.free_slots);
    CHECK(x.slots != NULL && x.heap != NULL && x.free_slots != NULL);
    for (uint32_t i = 0; i < SLOTS; i++)
        x.free_slots[x.free_count++] = SLOTS - 1 - i;
    for (int i = 0; i < 2; i++) {
        x.fd[i] = open_side(argv[1 + i]);
        x.link[i].rng = (uint64_t)i + 1;
        x.link[i].queue_kb = 128;
    }
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct pollfd p[3] = {{.fd = x.fd[0], .events = POLLIN}, {.fd = x.fd[1], .events = POLLIN}, {.events = POLLIN}};
        uint64_t now = clock_ns(), at = x.count > 0 ? x.heap[0].at : now + 1000000000;
        uint64_t wait = at > now ? at - now : 0;
        struct timespec t = {.tv_sec = (time_t)(wait / 1000000000), .tv_nsec = (long)(wait % 1000000000)};
        ppoll(p, 3, &t, NULL);
        for (int i = 0; i < 2; i++)
            if (p[i].revents != 0)
                receive(&x, i);
        release(&x);
        if (p[2].revents != 0 && !obey(&x))
            return 0;
    }
}
