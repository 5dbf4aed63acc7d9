/* TLS contexts: who a relay shows itself as, and how a relay that is dialled must prove who it is. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdio.h>

#include "tls.h"

static void explain(char why[static 256], const char *what)
{
    char reason[160] = "";
    unsigned long code = ERR_peek_last_error();
    if (code != 0)
        ERR_error_string_n(code, reason, sizeof reason);
    (void)snprintf(why, 256, "%s%s%s", what, code != 0 ? ": " : "", reason);
    ERR_clear_error();
}

static SSL_CTX *make_ctx(const SSL_METHOD *method)
{
    SSL_CTX *ctx = SSL_CTX_new(method);
    if (ctx == NULL)
        return NULL;
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_AUTO_RETRY);
    SSL_CTX_set_options(ctx, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
    /* AES-GCM first: in bulk it is the cheaper one wherever the processor knows AES. */
    SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
    return ctx;
}

static int no_password(char *buf, int size, int rwflag, void *ctx)
{
    (void)buf;
    (void)size;
    (void)rwflag;
    (void)ctx;
    return -1;
}

static bool use_chain(SSL_CTX *ctx, BIO *pem)
{
    X509 *cert = PEM_read_bio_X509_AUX(pem, NULL, no_password, NULL);
    bool ok = cert != NULL && SSL_CTX_use_certificate(ctx, cert) == 1;
    X509_free(cert);
    while (ok && (cert = PEM_read_bio_X509(pem, NULL, no_password, NULL)) != NULL)
        ok = SSL_CTX_add0_chain_cert(ctx, cert) == 1;
    ERR_clear_error();
    return ok;
}

static bool add_extra(SSL_CTX *ctx, const uint8_t *der, size_t len)
{
    const unsigned char *p = der;
    if (len == 0)
        return true;
    X509 *cert = d2i_X509(NULL, &p, (long)len);
    if (cert == NULL)
        return false;
    if (SSL_CTX_add0_chain_cert(ctx, cert) == 1)
        return true;
    X509_free(cert);
    return false;
}

static bool use_key(SSL_CTX *ctx, const char *pem, size_t len)
{
    BIO *bio = BIO_new_mem_buf(pem, (int)len);
    EVP_PKEY *key = bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
    bool ok = key != NULL && SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1;
    EVP_PKEY_free(key);
    BIO_free(bio);
    return ok;
}

SSL_CTX *mn_tls_server_ctx(const char *pem, size_t pem_len, const uint8_t *extra, size_t extra_len,
                           char why[static 256])
{
    static const unsigned char session_id[] = "meshnode relay";
    SSL_CTX *ctx = make_ctx(TLS_server_method());
    BIO *bio = BIO_new_mem_buf(pem, (int)pem_len);
    const char *failed = NULL;
    if (ctx == NULL || bio == NULL)
        failed = "TLS cannot be set up";
    else if (!use_chain(ctx, bio))
        failed = "no certificate chain";
    else if (!use_key(ctx, pem, pem_len))
        failed = "no private key that fits the certificate";
    else if (!add_extra(ctx, extra, extra_len))
        failed = "the relay's own certificate cannot be appended";
    BIO_free(bio);
    if (failed != NULL) {
        explain(why, failed);
        SSL_CTX_free(ctx);
        return NULL;
    }
    SSL_CTX_set_num_tickets(ctx, 0); /* connections are long-lived: a ticket is only bytes */
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_session_id_context(ctx, session_id, sizeof session_id);
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE);
    return ctx;
}

SSL_CTX *mn_tls_client_ctx(const char *ca_file, enum mn_tls_verify verify, char why[static 256])
{
    SSL_CTX *ctx = make_ctx(TLS_client_method());
    if (ctx == NULL) {
        explain(why, "TLS cannot be set up");
        return NULL;
    }
    bool ok = verify == MN_VERIFY_NONE || SSL_CTX_set_default_verify_paths(ctx) == 1;
    ok = ok && (ca_file == NULL || SSL_CTX_load_verify_file(ctx, ca_file) == 1);
    if (!ok) {
        explain(why, ca_file != NULL ? ca_file : "the system's certificate roots");
        SSL_CTX_free(ctx);
        return NULL;
    }
    SSL_CTX_set_verify(ctx, verify == MN_VERIFY_NAME ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
    return ctx;
}
