/* Proof for an ACME server that this relay answers for a name (RFC 8737). See tls.h. */
#include <openssl/ssl.h>
#include <string.h>

#include "tls.h"

static const unsigned char protocol[] = {10, 'a', 'c', 'm', 'e', '-', 't', 'l', 's', '/', '1'};

/* A list of names, each behind its length: those of the ALPN extension. */
static bool has_protocol(const unsigned char *p, size_t n)
{
    while (n > 0 && p[0] < n) {
        size_t len = 1 + (size_t)p[0];
        if (len == sizeof protocol && memcmp(p, protocol, len) == 0)
            return true;
        p += len;
        n -= len;
    }
    return false;
}

static int on_hello(SSL *ssl, int *alert, void *challenge)
{
    const unsigned char *p;
    size_t n;
    (void)alert;
    if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &p, &n) == 1 && n > 2 &&
        has_protocol(p + 2, n - 2))
        (void)SSL_set_SSL_CTX(ssl, challenge);
    return SSL_CLIENT_HELLO_SUCCESS;
}

static int on_protocols(SSL *ssl, const unsigned char **chosen, unsigned char *len, const unsigned char *p,
                        unsigned int n, void *arg)
{
    (void)ssl;
    (void)arg;
    if (!has_protocol(p, n))
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *chosen = protocol + 1;
    *len = sizeof protocol - 1;
    return SSL_TLSEXT_ERR_OK;
}

static void forget(void *parent, void *challenge, CRYPTO_EX_DATA *data, int index, long argl, void *argp)
{
    (void)parent;
    (void)data;
    (void)index;
    (void)argl;
    (void)argp;
    SSL_CTX_free(challenge);
}

/* Where a context keeps its challenge, which ends with it. Made once per process. */
static int place(void)
{
    static int made = -1; /* constant once set; callers hold the interpreter's lock */
    if (made < 0)
        made = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, forget);
    return made;
}

bool mn_tls_set_challenge(SSL_CTX *ctx, SSL_CTX *challenge)
{
    int index = place();
    if (index < 0 || SSL_CTX_set_ex_data(ctx, index, challenge) != 1)
        return false;
    SSL_CTX_set_alpn_select_cb(challenge, on_protocols, NULL);
    SSL_CTX_set_client_hello_cb(ctx, on_hello, challenge);
    return true;
}
