/* The classifier: pure, no state. See classify.h. */
#include "classify.h"

#include <string.h>

#include "geneve.h"

enum {
    WG_INITIATION_LEN = 148,
    WG_RESPONSE_LEN = 92,
    WG_COOKIE_LEN = 64,
    WG_DATA_MIN = 32,
    DISCO_MIN = 6 + 32 + 24 + 16, /* magic, sender's key, nonce, tag of an empty box */
    STUN_HEADER = 20,
};

static const uint8_t disco_magic[6] = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};
static const uint8_t stun_cookie[4] = {0x21, 0x12, 0xa4, 0x42};

static enum mn_class classify_wireguard(const uint8_t *p, size_t len)
{
    switch (p[0]) {
    case 1:
        return len == WG_INITIATION_LEN ? MN_CLASS_WG_HANDSHAKE : MN_CLASS_UNKNOWN;
    case 2:
        return len == WG_RESPONSE_LEN ? MN_CLASS_WG_HANDSHAKE : MN_CLASS_UNKNOWN;
    case 3:
        return len == WG_COOKIE_LEN ? MN_CLASS_WG_HANDSHAKE : MN_CLASS_UNKNOWN;
    case 4:
        return len >= WG_DATA_MIN ? MN_CLASS_WG_DATA : MN_CLASS_UNKNOWN;
    default:
        return MN_CLASS_UNKNOWN;
    }
}

/* A binding request, success or error: method 1, attributes in whole words filling the datagram. */
static int is_stun(const uint8_t *p, size_t len)
{
    if (len < STUN_HEADER || p[0] > 1 || (p[1] & 0xef) != 0x01 || memcmp(p + 4, stun_cookie, 4) != 0)
        return 0;
    size_t attributes = ((size_t)p[2] << 8) | p[3];
    return attributes % 4 == 0 && attributes == len - STUN_HEADER;
}

static int is_disco(const uint8_t *p, size_t len)
{
    return len >= DISCO_MIN && memcmp(p, disco_magic, sizeof disco_magic) == 0;
}

static int is_wireguard(const uint8_t *p, size_t len)
{
    return len >= WG_DATA_MIN && p[1] == 0 && p[2] == 0 && p[3] == 0 && classify_wireguard(p, len) != MN_CLASS_UNKNOWN;
}

/* WireGuard carries no control bit: that is between a relay and its client alone. */
static enum mn_class classify_relayed(const uint8_t *p, size_t len)
{
    unsigned protocol = mn_geneve_protocol(p, len);
    if (protocol == MN_GENEVE_WIREGUARD && p[1] == 0 && is_wireguard(p + MN_GENEVE_LEN, len - MN_GENEVE_LEN))
        return MN_CLASS_RELAYED_WG;
    if (protocol == MN_GENEVE_DISCO && is_disco(p + MN_GENEVE_LEN, len - MN_GENEVE_LEN))
        return MN_CLASS_RELAYED_DISCO;
    return MN_CLASS_UNKNOWN;
}

enum mn_class mn_classify(const uint8_t *p, size_t len)
{
    if (len < STUN_HEADER)
        return MN_CLASS_UNKNOWN;
    if (p[1] == 0 && p[2] == 0 && p[3] == 0)
        return classify_wireguard(p, len);
    if (is_disco(p, len))
        return MN_CLASS_DISCO;
    return is_stun(p, len) ? MN_CLASS_STUN : classify_relayed(p, len);
}
