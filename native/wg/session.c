/* Sessions and their rotation. See session.h. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>

enum { HEADER = 16, COUNTER = 8 };

struct mn_session *mn_session_create(const struct mn_provider *p, struct mn_noise_keys *keys, bool is_initiator,
                                     uint32_t local_index, uint32_t remote_index, uint64_t now_ns)
{
    struct mn_session *s = calloc(1, sizeof *s);
    if (s != NULL &&
        (mn_aead_init(&s->seal, p, keys->send, true) != 0 || mn_aead_init(&s->open, p, keys->receive, false) != 0)) {
        mn_session_free(s);
        s = NULL;
    }
    OPENSSL_cleanse(keys, sizeof *keys);
    if (s == NULL)
        return NULL;
    s->is_initiator = is_initiator;
    s->local_index = local_index;
    s->remote_index = remote_index;
    s->born_ns = now_ns;
    s->can_send = s->can_receive = true;
    return s;
}

void mn_session_free(struct mn_session *s)
{
    if (s == NULL)
        return;
    mn_aead_wipe(&s->seal);
    mn_aead_wipe(&s->open);
    OPENSSL_cleanse(s, sizeof *s);
    free(s);
}

bool mn_session_can_send(struct mn_session *s, uint64_t now_ns)
{
    if (s == NULL || !s->can_send)
        return false;
    if (now_ns - s->born_ns < MN_REJECT_AFTER_NS && s->send_counter < MN_REJECT_AFTER_MESSAGES)
        return true;
    s->can_send = false;
    return false;
}

bool mn_session_can_receive(struct mn_session *s, uint64_t now_ns)
{
    if (!s->can_receive)
        return false;
    if (now_ns - s->born_ns < MN_REJECT_AFTER_NS)
        return true;
    s->can_receive = false;
    return false;
}

int mn_session_seal(struct mn_session *s, uint8_t *msg, size_t text_len)
{
    uint64_t counter = s->send_counter++;
    msg[0] = 4;
    msg[1] = msg[2] = msg[3] = 0;
    mn_le32_put(msg + 4, s->remote_index);
    mn_le32_put(msg + COUNTER, (uint32_t)counter);
    mn_le32_put(msg + COUNTER + 4, (uint32_t)(counter >> 32));
    if (mn_aead_seal(&s->seal, counter, msg + HEADER, text_len) != 0)
        return -1;
    return (int)(HEADER + text_len + MN_AEAD_TAG);
}

static uint64_t counter_of(const uint8_t *msg)
{
    return mn_le32_get(msg + COUNTER) | (uint64_t)mn_le32_get(msg + COUNTER + 4) << 32;
}

int mn_session_open(struct mn_session *s, uint8_t *msg, size_t len)
{
    uint64_t counter = counter_of(msg);
    if (!mn_replay_is_new(&s->replay, counter))
        return -2;
    int text = mn_aead_open(&s->open, counter, msg + HEADER, len - HEADER);
    if (text < 0)
        return -1;
    return mn_replay_commit(&s->replay, counter) ? text : -2;
}

bool mn_session_is_copy(struct mn_session *s, uint8_t *msg, size_t len)
{
    uint64_t counter = counter_of(msg);
    return mn_replay_is_copy(&s->replay, counter) && mn_aead_open(&s->open, counter, msg + HEADER, len - HEADER) >= 0;
}

static void drop(struct mn_session **slot, struct mn_session_dropped *dropped)
{
    if (*slot != NULL)
        dropped->items[dropped->count++] = *slot;
    *slot = NULL;
}

void mn_sessions_initiated(struct mn_sessions *t, struct mn_session *made, uint64_t asked_ns,
                           struct mn_session_dropped *dropped)
{
    drop(&t->previous, dropped);
    if (t->next != NULL) {
        drop(&t->current, dropped);
        t->previous = t->next;
        t->next = NULL;
    } else {
        t->previous = t->current;
    }
    if (t->previous != NULL)
        t->previous->is_crossed = !t->previous->is_initiator && t->previous->born_ns >= asked_ns;
    t->current = made;
}

void mn_sessions_responded(struct mn_sessions *t, struct mn_session *made, struct mn_session_dropped *dropped)
{
    drop(&t->next, dropped);
    drop(&t->previous, dropped);
    t->next = made;
}

bool mn_sessions_confirm(struct mn_sessions *t, struct mn_session *s, struct mn_session_dropped *dropped)
{
    if (s != t->next)
        return false;
    drop(&t->previous, dropped);
    t->previous = t->current;
    t->current = t->next;
    t->next = NULL;
    return true;
}

bool mn_sessions_converge(struct mn_sessions *t, struct mn_session *s, bool peer_is_smaller)
{
    if (s != t->previous || !s->is_crossed)
        return false;
    s->is_crossed = false;
    if (!peer_is_smaller || !s->can_send)
        return false;
    t->previous = t->current;
    t->current = s;
    return true;
}
