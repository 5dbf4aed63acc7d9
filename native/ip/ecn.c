/* ECN across a tunnel. See ecn.h. */
#include "ecn.h"

enum { CHECKSUM = 10 };

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

/* RFC 1624: the sum less the old word plus the new one. */
static void fix_checksum(uint8_t *packet, uint16_t before, uint16_t after)
{
    uint32_t sum = (uint32_t)(uint16_t)~get16(packet + CHECKSUM) + (uint16_t)~before + after;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    packet[CHECKSUM] = (uint8_t)(~sum >> 8);
    packet[CHECKSUM + 1] = (uint8_t)~sum;
}

void mn_ecn_set(uint8_t *packet, uint8_t ecn)
{
    if (packet[0] >> 4 != 4) {
        packet[1] = (uint8_t)((packet[1] & ~0x30) | ecn << 4);
        return;
    }
    uint16_t before = get16(packet);
    packet[1] = (uint8_t)((packet[1] & ~3) | ecn);
    fix_checksum(packet, before, get16(packet));
}

bool mn_ecn_decapsulate(uint8_t *inner, uint8_t outer)
{
    uint8_t own = mn_ecn_get(inner);
    if (outer == MN_ECN_CE && own == MN_ECN_NONE)
        return false;
    if (outer == MN_ECN_CE && own != MN_ECN_CE)
        mn_ecn_set(inner, MN_ECN_CE);
    else if (outer == MN_ECN_ECT1 && own == MN_ECN_ECT0)
        mn_ecn_set(inner, MN_ECN_ECT1);
    return true;
}
