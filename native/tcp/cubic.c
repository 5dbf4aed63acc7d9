/* CUBIC (RFC 9438), with HyStart++ in the first slow start and the gentler answer to ECN marks of RFC 8511. All of it
 * in integers: windows are bytes, times of the cubic are in units of 2^-13 s (122 us).
 *
 * Ranges. A window is at most 2^28 bytes and a segment at least 2^6, so K is below 220 s, and 220 s behind the plateau
 * the curve has left the greatest window whatever the segment. That distance is below 2^20.8 units, its cube below
 * 2^63. */
#include "cc.h"

enum {
    BETA_TENTHS = 7,
    BETA_MARK_HUNDREDTHS = 85,
    UNITS_PER_S = 1 << 13,
    TIME_CLAMP = 220 * UNITS_PER_S,
};

#define KEEP_WINDOW_NS (300ULL * 1000000000U)

static uint32_t units_of(uint64_t ns)
{
    uint64_t units = ns / 1953125 * 16 + ns % 1953125 * 16 / 1953125; /* 2^13 / 10^9 = 2^4 / 5^9 */
    const uint32_t most = 2 * TIME_CLAMP;
    return units > most ? most : (uint32_t)units;
}

/* The greatest r with r^3 <= x. */
static uint32_t cube_root(uint64_t x)
{
    uint64_t r = 0;
    for (int shift = 63; shift >= 0; shift -= 3) {
        r *= 2;
        uint64_t step = 3 * r * (r + 1) + 1; /* (r + 1)^3 - r^3 */
        if (x >> shift >= step) {
            x -= step << shift;
            r++;
        }
    }
    return (uint32_t)r;
}

/* K: the time in which 0.4 segments/s^3 makes up for gap bytes. gap * 5 / (2 mss) is in s^3; a unit cubed 2^-39 s^3. */
static uint32_t time_to_regain(uint32_t gap, uint32_t mss)
{
    uint64_t cube = ((uint64_t)gap * 5 << 30) / (2 * (uint64_t)mss);
    uint32_t k = cube >> 55 != 0 ? TIME_CLAMP : cube_root(cube << 9);
    return k > TIME_CLAMP ? TIME_CLAMP : k;
}

/* 0.4 segments/s^3 * t^3 in bytes, t in units. */
static uint64_t cubic_bytes(uint32_t t, uint32_t mss)
{
    uint64_t d = t < TIME_CLAMP ? t : TIME_CLAMP, cube = d * d * d;
    return ((cube >> 20) * (2 * (uint64_t)mss) / 5) >> 19;
}

/* W_cubic of RFC 9438 4.2 at this age of the stage. */
static uint32_t window_at(const struct mn_cubic_stage *g, uint64_t age_ns, uint32_t mss)
{
    uint32_t t = units_of(age_ns);
    if (t >= g->k)
        return mn_cc_clamp(g->origin + cubic_bytes(t - g->k, mss));
    uint64_t below = cubic_bytes(g->k - t, mss);
    return below < g->origin ? (uint32_t)(g->origin - below) : 0;
}

static void begin_stage(struct mn_cc *cc, uint64_t now_ns)
{
    struct mn_cubic_stage *g = &cc->own.cubic.stage;
    g->start_ns = now_ns == 0 ? 1 : now_ns;
    g->w_est = cc->cwnd;
    g->est_rest = 0;
    g->origin = g->w_max > cc->cwnd ? g->w_max : cc->cwnd;
    g->k = time_to_regain(g->origin - cc->cwnd, cc->mss);
    cc->own.cubic.rest = 0;
}

/* Reno's window with the slope that gives it CUBIC's average, 3 (1 - 0.7) / (1 + 0.7) = 9/17, until it is back where
 * the last reduction was (RFC 9438 4.3). */
static void grow_estimate(struct mn_cc *cc, uint32_t acked)
{
    struct mn_cubic_stage *g = &cc->own.cubic.stage;
    uint64_t slope = g->w_est < g->prior ? 9 : 17, divisor = 17 * (uint64_t)cc->cwnd;
    g->est_rest += slope * acked * cc->mss;
    g->w_est = mn_cc_clamp(g->w_est + g->est_rest / divisor);
    g->est_rest %= divisor;
}

static void avoid(struct mn_cc *cc, const struct mn_cc_ack *ack, uint32_t acked)
{
    struct mn_cubic *q = &cc->own.cubic;
    if (q->stage.start_ns == 0)
        begin_stage(cc, ack->now_ns);
    grow_estimate(cc, acked);
    uint64_t age = ack->now_ns > q->stage.start_ns ? ack->now_ns - q->stage.start_ns : 0;
    if (window_at(&q->stage, age, cc->mss) < q->stage.w_est) {
        cc->cwnd = q->stage.w_est > cc->cwnd ? q->stage.w_est : cc->cwnd;
        return;
    }
    uint64_t target = window_at(&q->stage, age + ack->srtt_ns, cc->mss), most = (uint64_t)cc->cwnd + cc->cwnd / 2;
    target = target > most ? most : target;
    if (target <= cc->cwnd)
        return;
    q->rest += (target - cc->cwnd) * acked;
    cc->cwnd = mn_cc_clamp(cc->cwnd + q->rest / cc->cwnd);
    q->rest %= cc->cwnd;
}

static void slow_start(struct mn_cc *cc, const struct mn_cc_ack *ack, bool is_limited)
{
    struct mn_cubic *q = &cc->own.cubic;
    enum mn_hystart_advice advice = MN_HYSTART_FAST;
    if (cc->ssthresh >= MN_CC_MAX_WINDOW) /* the first one only: later ones have a threshold that was measured */
        advice = mn_hystart_on_ack(&q->hystart, ack, cc->mss);
    if (advice == MN_HYSTART_DONE) {
        cc->ssthresh = cc->cwnd;
        return;
    }
    if (is_limited)
        mn_cc_grow(cc, advice == MN_HYSTART_SLOW ? ack->bytes / MN_HYSTART_DIVISOR : ack->bytes);
}

static void start(struct mn_cc *cc)
{
    cc->own.cubic = (struct mn_cubic){0};
}

/* A window that was not needed says nothing of the path: it does not grow, and the time does not count (RFC 9438 5.8).
 * In slow start half of it in use is enough, or the ACKs of a burst that just fits would be lost for growing. */
static void on_ack(struct mn_cc *cc, const struct mn_cc_ack *ack)
{
    struct mn_cubic *q = &cc->own.cubic;
    uint64_t since = q->acked_at != 0 && ack->now_ns > q->acked_at ? ack->now_ns - q->acked_at : 0;
    uint32_t acked = ack->bytes < cc->cwnd ? ack->bytes : cc->cwnd;
    q->acked_at = ack->now_ns;
    mn_cc_note_path(cc, ack);
    bool is_full = mn_cc_is_full(cc, ack), is_limited = ack->is_limited && mn_cc_is_used(cc);
    if (mn_cc_in_slow_start(cc))
        slow_start(cc, ack, !is_full && (is_limited || ack->flight > cc->cwnd / 2));
    else if (is_limited && !is_full)
        avoid(cc, ack, acked);
    else if (q->stage.start_ns != 0)
        q->stage.start_ns += since;
}

/* Of a window less than half used, only what was in use (twice that) was tried. */
static uint32_t tried(const struct mn_cc *cc, uint32_t flight)
{
    return flight < cc->cwnd / 2 ? 2 * flight : cc->cwnd;
}

static void reduce(struct mn_cc *cc, uint32_t flight, uint32_t hundredths)
{
    struct mn_cubic *q = &cc->own.cubic;
    uint32_t window = tried(cc, flight);
    mn_cc_remember(cc);
    q->before = q->stage;
    uint64_t reduced = (uint64_t)window * hundredths / 100;
    uint32_t least = 2 * cc->mss;
    cc->ssthresh = reduced > least ? (uint32_t)reduced : least;
    /* Fast convergence: a window that did not come up to the last one gives way to a newcomer (RFC 9438 4.7). */
    q->stage.w_max = window < q->stage.w_max ? window / 20 * (10 + BETA_TENTHS) : window;
    q->stage.prior = window;
    q->stage.start_ns = 0;
}

static void on_loss(struct mn_cc *cc, uint32_t flight, uint64_t now_ns)
{
    (void)now_ns;
    reduce(cc, flight, 10 * BETA_TENTHS);
    cc->cwnd = cc->ssthresh;
}

static void on_mark(struct mn_cc *cc, uint32_t flight, uint64_t now_ns)
{
    (void)now_ns;
    reduce(cc, flight, BETA_MARK_HUNDREDTHS);
    cc->cwnd = cc->ssthresh;
}

static void on_recovered(struct mn_cc *cc, uint64_t now_ns)
{
    (void)now_ns;
    cc->cwnd = cc->ssthresh;
}

/* What follows a timeout climbs from where slow start ends, with no plateau to return to (RFC 9438 4.8). */
static void on_timeout(struct mn_cc *cc, uint32_t flight, bool is_first, uint64_t now_ns)
{
    (void)now_ns;
    if (is_first)
        reduce(cc, flight, 10 * BETA_TENTHS);
    cc->own.cubic.stage.w_max = 0;
    cc->cwnd = cc->mss;
}

/* Paced, a window that was not needed for a while starts nothing sudden, and is believed for five minutes (RFC 7661
 * 4.4.2). A path too short to pace grows it again in no time. */
static void on_idle(struct mn_cc *cc, uint64_t idle_ns, uint64_t now_ns)
{
    struct mn_cubic *q = &cc->own.cubic;
    uint32_t restart = MN_CC_INITIAL_SEGMENTS * cc->mss;
    (void)now_ns;
    q->acked_at = 0;
    q->hystart.has_round = false;
    if (q->stage.start_ns != 0)
        q->stage.start_ns += idle_ns;
    if (cc->cwnd <= restart || (idle_ns < KEEP_WINDOW_NS && !mn_cc_is_short(cc)))
        return;
    uint32_t known = cc->cwnd / 4 * 3; /* RFC 2861 3: slow start up to near where it was */
    cc->ssthresh = cc->ssthresh > known ? cc->ssthresh : known;
    cc->cwnd = restart;
    q->stage.start_ns = 0;
}

static void undo(struct mn_cc *cc, uint64_t now_ns)
{
    struct mn_cubic *q = &cc->own.cubic;
    (void)now_ns;
    if (mn_cc_restore(cc))
        q->stage = q->before;
}

#define CUBIC                                                                                                          \
    .start = start, .on_ack = on_ack, .on_loss = on_loss, .on_mark = on_mark, .on_recovered = on_recovered,            \
    .on_timeout = on_timeout, .on_idle = on_idle, .undo = undo, .pacing_rate = mn_cc_pace_window

const struct mn_cc_ops mn_cc_cubic = {.name = "cubic", CUBIC};
/* The same, with losses borne that are no sign of a full queue. */
const struct mn_cc_ops mn_cc_forbearing = {.name = "forbearing", CUBIC, .stands = mn_cc_is_sparse};
