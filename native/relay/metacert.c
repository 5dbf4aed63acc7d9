/* The meta-certificate: a relay's key, told within the TLS handshake by a last certificate that proves nothing itself.
 *
 * Its common name is "derpkey" and the key in hex, its serial number the protocol's version. It is worth what the
 * handshake around it is worth, and only TLS 1.3 hides it from who listens. Source: docs/protocol/paths.md 1.12. */
#include <openssl/asn1.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <string.h>

#include "tls.h"

enum { PROTOCOL_VERSION = 2 };
static const char PREFIX[] = "derpkey";
enum { PREFIX_LEN = sizeof PREFIX - 1, NAME_LEN = PREFIX_LEN + 2 * MN_TLS_RELAY_KEY };

static int digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool read_hex(const uint8_t *text, uint8_t key[static MN_TLS_RELAY_KEY])
{
    for (size_t i = 0; i < MN_TLS_RELAY_KEY; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        key[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool read_name(const X509 *cert, uint8_t key[static MN_TLS_RELAY_KEY])
{
    const X509_NAME *subject = X509_get_subject_name(cert);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    if (at < 0)
        return false;
    const ASN1_STRING *name = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
    const uint8_t *text = ASN1_STRING_get0_data(name);
    return ASN1_STRING_length(name) == NAME_LEN && memcmp(text, PREFIX, PREFIX_LEN) == 0 &&
           read_hex(text + PREFIX_LEN, key);
}

static bool read_cert(const X509 *cert, uint8_t key[static MN_TLS_RELAY_KEY])
{
    int64_t version = 0;
    return ASN1_INTEGER_get_int64(&version, X509_get0_serialNumber(cert)) == 1 && version == PROTOCOL_VERSION &&
           read_name(cert, key);
}

bool mn_metacert_key(const uint8_t *der, size_t len, uint8_t key[static MN_TLS_RELAY_KEY])
{
    const unsigned char *p = der;
    X509 *cert = d2i_X509(NULL, &p, (long)len);
    bool ok = cert != NULL && read_cert(cert, key);
    X509_free(cert);
    ERR_clear_error();
    return ok;
}

bool mn_tls_relay_key(const struct mn_tls *s, uint8_t key[static MN_TLS_RELAY_KEY])
{
    STACK_OF(X509) *chain = s->ssl != NULL && s->is_shaken ? SSL_get_peer_cert_chain(s->ssl) : NULL;
    int n = chain != NULL ? sk_X509_num(chain) : 0;
    bool ok = n > 1 && SSL_version(s->ssl) >= TLS1_3_VERSION && read_cert(sk_X509_value(chain, n - 1), key);
    ERR_clear_error();
    return ok;
}
