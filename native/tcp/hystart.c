/* The rounds and samples of HyStart++, for ACKs that come one per segment as well as one per batch.
 *
 * The limit of 8 segments' growth per ACK (RFC 9406 4.3, L) is for senders that burst; ours paces wherever a queue
 * could suffer, and one ACK here may stand for a hundred segments. */
#include "hystart.h"

#include "cc.h"

#define MIN_THRESHOLD_NS 4000000ULL
#define MAX_THRESHOLD_NS 16000000ULL

enum {
    THRESHOLD_DIVISOR = 8,
    ROUND_SAMPLES = 8,
    SLOW_ROUNDS = 5,
    BATCH_SEGMENTS = 4, /* an ACK of so many segments, and of twice, three times that, counts as that many samples */
    BATCH_MAX = 4,
};

static bool later(uint32_t a, uint32_t b) /* a at or behind b, in sequence numbers */
{
    return a - b < 0x80000000U;
}

/* True if the slow rounds are over. */
static bool begin_round(struct mn_hystart *h, const struct mn_cc_ack *ack)
{
    bool was_slow = h->has_round && h->baseline_ns != 0;
    if (h->round_min_ns != 0)
        h->last_min_ns = h->round_min_ns;
    h->round_min_ns = 0;
    h->samples = 0;
    h->round_end = ack->nxt;
    h->has_round = true;
    return was_slow && ++h->rounds >= SLOW_ROUNDS;
}

/* A batch's sample is its newest segment's, which is its shortest: the minimum of several. So it may count for several,
 * but never alone for a round. */
static void take_sample(struct mn_hystart *h, const struct mn_cc_ack *ack, uint32_t mss)
{
    if (h->round_min_ns == 0 || ack->rtt_ns < h->round_min_ns)
        h->round_min_ns = ack->rtt_ns;
    uint32_t worth = ack->bytes / (BATCH_SEGMENTS * mss);
    worth = worth < 1 ? 1 : worth > BATCH_MAX ? BATCH_MAX : worth;
    h->samples = (uint8_t)(h->samples + worth > ROUND_SAMPLES ? ROUND_SAMPLES : h->samples + worth);
}

static bool is_longer(const struct mn_hystart *h)
{
    uint64_t threshold = h->last_min_ns / THRESHOLD_DIVISOR;
    threshold = threshold < MIN_THRESHOLD_NS ? MIN_THRESHOLD_NS : threshold;
    threshold = threshold > MAX_THRESHOLD_NS ? MAX_THRESHOLD_NS : threshold;
    return h->last_min_ns != 0 && h->round_min_ns >= h->last_min_ns + threshold;
}

enum mn_hystart_advice mn_hystart_on_ack(struct mn_hystart *h, const struct mn_cc_ack *ack, uint32_t mss)
{
    if (!h->has_round || later(ack->una, h->round_end))
        if (begin_round(h, ack))
            return MN_HYSTART_DONE;
    if (ack->rtt_ns != 0)
        take_sample(h, ack, mss);
    if (h->samples >= ROUND_SAMPLES) {
        if (h->baseline_ns == 0 && is_longer(h)) {
            h->baseline_ns = h->round_min_ns;
            h->rounds = 0;
        } else if (h->baseline_ns != 0 && h->round_min_ns < h->baseline_ns) {
            h->baseline_ns = 0; /* it was jitter */
        }
    }
    return h->baseline_ns == 0 ? MN_HYSTART_FAST : MN_HYSTART_SLOW;
}
