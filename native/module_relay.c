/* The relay's type for CPython: arguments, the GIL, exceptions; no protocol.
 *
 * Methods push a command and return; only stats, clients and close wait, with the GIL let go. Events become tuples on
 * the caller's thread. Limited API of 3.11, no static Python objects. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/ssl.h>

#include "module_relay.h"
#include "relay/relay.h"
#include "relay/tls.h"

enum { CLIENTS_MAX = 65536 };

struct relay_object {
    PyObject_HEAD struct mn_relay *relay; /* NULL: __init__ failed, or closed */
    int fd;
};

static struct mn_relay *relay_of(PyObject *self)
{
    struct relay_object *o = (struct relay_object *)self;
    if (o->relay == NULL)
        PyErr_SetString(PyExc_RuntimeError, "relay is closed");
    return o->relay;
}

static PyObject *done(int err)
{
    if (err == 0)
        Py_RETURN_NONE;
    errno = -err;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static int take_key(uint8_t out[MN_RELAY_KEY], const char *p, Py_ssize_t len)
{
    if (len != MN_RELAY_KEY) {
        PyErr_Format(PyExc_ValueError, "a key has 32 bytes, not %zd", len);
        return -1;
    }
    memcpy(out, p, MN_RELAY_KEY);
    return 0;
}

/* ---- life ---- */

static int relay_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory_max",     "conns_max",    "pending_max",  "per_ip_max",
                            "per_ip_rate",    "per_ip_burst", "login_ms",     "keep_alive_ms",
                            "write_stall_ms", "client_rate",  "client_burst", NULL};
    struct relay_object *o = (struct relay_object *)self;
    struct mn_relay_config c;
    unsigned long long memory_max = 0, client_rate = 0, client_burst = 0;
    unsigned conns = 0, pending = 0, ip_max = 0, ip_rate = 0, ip_burst = 0, login = 0, keep_alive = 0, stall = 0;
    int err = 0;
    if (o->relay != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "relay is started already");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$KIIIIIIIIKK:Relay", names, &memory_max, &conns, &pending, &ip_max,
                                     &ip_rate, &ip_burst, &login, &keep_alive, &stall, &client_rate, &client_burst))
        return -1;
    memset(&c, 0, sizeof c);
    c.memory_max = (size_t)memory_max;
    c.conns_max = conns;
    c.pending_max = pending;
    c.per_ip_max = ip_max;
    c.per_ip_rate = ip_rate;
    c.per_ip_burst = ip_burst;
    c.login_ms = login;
    c.keep_alive_ms = keep_alive;
    c.write_stall_ms = stall;
    c.client_rate = client_rate;
    c.client_burst = client_burst;
    o->relay = mn_relay_create(&c, &err);
    if (o->relay != NULL && (err = mn_relay_start(o->relay)) == 0)
        return 0;
    if (o->relay != NULL)
        mn_relay_destroy(o->relay);
    o->relay = NULL;
    errno = -err;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static void stop(struct relay_object *o)
{
    struct mn_relay *r = o->relay;
    o->relay = NULL;
    if (r == NULL)
        return;
    Py_BEGIN_ALLOW_THREADS mn_relay_stop(r);
    Py_END_ALLOW_THREADS mn_relay_destroy(r);
}

static void relay_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    stop((struct relay_object *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *relay_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    stop((struct relay_object *)self);
    Py_RETURN_NONE;
}

/* ---- events ---- */

static PyObject *source_of(const struct mn_ep *ep)
{
    bool is4 = mn_ip_is4(&ep->ip);
    return Py_BuildValue("(y#i)", (const char *)ep->ip.b + (is4 ? 12 : 0), (Py_ssize_t)(is4 ? 4 : 16), (int)ep->port);
}

static PyObject *tuple_of(const struct mn_relay_event *ev)
{
    unsigned long long conn = ev->conn;
    switch (ev->kind) {
    case MN_RELAY_EV_DATA:
        return Py_BuildValue("(iKNOiy#i)", ev->kind, conn, source_of(&ev->source), ev->has_tls ? Py_True : Py_False,
                             (int)ev->tls_version, (const char *)ev->data, (Py_ssize_t)ev->len, (int)ev->role);
    case MN_RELAY_EV_ENDED:
        return Py_BuildValue("(iKiOy#N)", ev->kind, conn, (int)ev->why, ev->was_open ? Py_True : Py_False,
                             (const char *)ev->key, (Py_ssize_t)MN_RELAY_KEY, source_of(&ev->source));
    case MN_RELAY_EV_NOTICE:
        return Py_BuildValue("(iKiy#)", ev->kind, conn, (int)ev->frame, (const char *)ev->data, (Py_ssize_t)ev->len);
    default:
        return Py_BuildValue("(iK)", ev->kind, conn);
    }
}

static PyObject *relay_take(PyObject *self, PyObject *unused)
{
    struct mn_relay *r = relay_of(self);
    (void)unused;
    PyObject *list = r != NULL ? PyList_New(0) : NULL;
    struct mn_relay_event *ev = list != NULL ? mn_relay_take(r) : NULL;
    while (ev != NULL) {
        struct mn_relay_event *next = ev->next;
        PyObject *item = list != NULL ? tuple_of(ev) : NULL;
        if (list != NULL && (item == NULL || PyList_Append(list, item) != 0))
            Py_CLEAR(list);
        Py_XDECREF(item);
        free(ev);
        ev = next;
    }
    return list;
}

/* ---- commands ---- */

static PyObject *relay_set_tls(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    const char *pem, *extra, *proof = NULL;
    Py_ssize_t pem_len, extra_len, proof_len = 0;
    char why[256];
    if (r == NULL || !PyArg_ParseTuple(args, "y#y#|y#:set_tls", &pem, &pem_len, &extra, &extra_len, &proof, &proof_len))
        return NULL;
    SSL_CTX *ctx = mn_tls_server_ctx(pem, (size_t)pem_len, (const uint8_t *)extra, (size_t)extra_len, why);
    if (ctx == NULL) {
        PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    if (proof_len > 0) {
        SSL_CTX *challenge = mn_tls_server_ctx(proof, (size_t)proof_len, NULL, 0, why);
        if (challenge == NULL || !mn_tls_set_challenge(ctx, challenge)) {
            PyErr_SetString(PyExc_ValueError, challenge == NULL ? why : "the challenge cannot be kept");
            SSL_CTX_free(challenge);
            SSL_CTX_free(ctx);
            return NULL;
        }
    }
    int err = mn_relay_set_tls(r, ctx);
    if (err != 0)
        SSL_CTX_free(ctx);
    return done(err);
}

static PyObject *relay_listen(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    int fd, has_tls;
    unsigned char role;
    if (r == NULL || !PyArg_ParseTuple(args, "ipb:listen", &fd, &has_tls, &role))
        return NULL;
    return done(mn_relay_listen(r, fd, has_tls != 0, role));
}

static PyObject *relay_unlisten(PyObject *self, PyObject *unused)
{
    struct mn_relay *r = relay_of(self);
    (void)unused;
    return r != NULL ? done(mn_relay_unlisten_all(r)) : NULL;
}

static PyObject *relay_adopt(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    const char *host;
    PyObject *tls;
    int fd;
    uint64_t conn = 0;
    SSL_CTX *ctx = NULL;
    if (r == NULL || !PyArg_ParseTuple(args, "iOs:adopt", &fd, &tls, &host))
        return NULL;
    if (tls != Py_None && (ctx = mn_module_tls_of(tls)) == NULL)
        return NULL;
    int err = mn_relay_adopt(r, fd, ctx, host, &conn);
    if (err != 0) {
        SSL_CTX_free(ctx);
        return done(err);
    }
    return PyLong_FromUnsignedLongLong(conn);
}

static PyObject *relay_write(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    unsigned long long conn;
    const char *data;
    Py_ssize_t len;
    if (r == NULL || !PyArg_ParseTuple(args, "Ky#:write", &conn, &data, &len))
        return NULL;
    return done(mn_relay_write(r, conn, (const uint8_t *)data, (size_t)len));
}

static PyObject *relay_resume(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    unsigned long long conn;
    if (r == NULL || !PyArg_ParseTuple(args, "K:resume", &conn))
        return NULL;
    return done(mn_relay_resume(r, conn));
}

static PyObject *relay_websocket(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    unsigned long long conn;
    const char *rest;
    Py_ssize_t len;
    if (r == NULL || !PyArg_ParseTuple(args, "Ky#:websocket", &conn, &rest, &len))
        return NULL;
    return done(mn_relay_websocket(r, conn, (const uint8_t *)rest, (size_t)len));
}

static PyObject *relay_open(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    unsigned long long conn;
    const char *key, *greeting, *rest;
    Py_ssize_t key_len, greeting_len, len;
    unsigned flags;
    uint8_t raw[MN_RELAY_KEY];
    if (r == NULL ||
        !PyArg_ParseTuple(args, "Ky#Iy#y#:open", &conn, &key, &key_len, &flags, &greeting, &greeting_len, &rest,
                          &len) ||
        take_key(raw, key, key_len) != 0)
        return NULL;
    return done(mn_relay_open(r, conn, raw, flags, (const uint8_t *)greeting, (size_t)greeting_len,
                              (const uint8_t *)rest, (size_t)len));
}

static PyObject *relay_end(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    unsigned long long conn;
    int at_once;
    if (r == NULL || !PyArg_ParseTuple(args, "Kp:end", &conn, &at_once))
        return NULL;
    return done(mn_relay_close(r, conn, at_once != 0));
}

static PyObject *relay_end_key(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    const char *key;
    Py_ssize_t len;
    uint8_t raw[MN_RELAY_KEY];
    if (r == NULL || !PyArg_ParseTuple(args, "y#:end_key", &key, &len) || take_key(raw, key, len) != 0)
        return NULL;
    return done(mn_relay_close_key(r, raw));
}

static PyObject *relay_tell(PyObject *self, PyObject *args)
{
    struct mn_relay *r = relay_of(self);
    unsigned long long conn;
    int kind;
    const char *payload;
    Py_ssize_t len;
    if (r == NULL || !PyArg_ParseTuple(args, "Kiy#:tell", &conn, &kind, &payload, &len))
        return NULL;
    return done(mn_relay_tell(r, conn, (uint8_t)kind, (const uint8_t *)payload, (size_t)len));
}

/* ---- questions ---- */

static int set_number(PyObject *dict, const char *name, unsigned long long value)
{
    PyObject *v = PyLong_FromUnsignedLongLong(value);
    int err = v == NULL ? -1 : PyDict_SetItemString(dict, name, v);
    Py_XDECREF(v);
    return err;
}

static PyObject *relay_stats(PyObject *self, PyObject *unused)
{
    struct mn_relay *r = relay_of(self);
    struct mn_relay_stats s;
    int err;
    (void)unused;
    if (r == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS err = mn_relay_stats(r, &s);
    Py_END_ALLOW_THREADS if (err != 0) return done(err);
    PyObject *dict = PyDict_New();
    if (dict == NULL)
        return NULL;
    int bad = 0;
#define X(name) bad |= set_number(dict, #name, s.hub.name);
    MN_HUB_COUNTERS(X)
    X(clients)
    X(keys_local)
    X(keys_remote)
    X(watchers)
    X(homes)
    X(not_ideal)
    X(dup_keys)
    X(dup_conns)
    X(met)
#undef X
#define X(name) bad |= set_number(dict, #name, s.name);
    X(accepts)
    X(accept_refused)
    X(per_ip_refused)
    X(accept_errors)
    X(accept_pauses)
    X(lobby_waits)
    X(crowded_out)
    X(tls_failed)
    X(login_late)
    X(logins)
    X(stalled)
    X(silent)
    X(protocol_errors)
    X(pings_received)
    X(pongs_sent)
    X(rx_bytes)
    X(tx_bytes)
    X(unknown_frames)
    X(throttled)
    X(turns)
    X(slow_turns)
    X(turn_max_us)
    X(websockets)
    X(conns)
    X(pending)
    X(half_open)
    X(lane_chunks)
    X(mesh_refused)
#undef X
    bad |= set_number(dict, "tls12", s.tls_versions[0]) | set_number(dict, "tls13", s.tls_versions[1]);
    if (bad != 0)
        Py_CLEAR(dict);
    return dict;
}

static PyObject *relay_clients(PyObject *self, PyObject *unused)
{
    struct mn_relay *r = relay_of(self);
    (void)unused;
    if (r == NULL)
        return NULL;
    struct mn_relay_client_info *info = malloc(CLIENTS_MAX * sizeof *info);
    int n = -ENOMEM;
    Py_BEGIN_ALLOW_THREADS if (info != NULL) n = mn_relay_clients(r, info, CLIENTS_MAX);
    Py_END_ALLOW_THREADS PyObject *list = n >= 0 ? PyList_New(0) : NULL;
    for (int i = 0; i < n && list != NULL; i++) {
        const struct mn_relay_client_info *c = &info[i];
        PyObject *item = Py_BuildValue("(Ky#NKKKKKKIiOO)", (unsigned long long)c->conn, (const char *)c->key,
                                       (Py_ssize_t)MN_RELAY_KEY, source_of(&c->source),
                                       (unsigned long long)c->rx_packets, (unsigned long long)c->rx_bytes,
                                       (unsigned long long)c->tx_packets, (unsigned long long)c->tx_bytes,
                                       (unsigned long long)c->dropped, (unsigned long long)c->waits, (unsigned)c->age_s,
                                       (int)c->flags, c->is_home ? Py_True : Py_False, c->is_live ? Py_True : Py_False);
        if (item == NULL || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    free(info);
    return n < 0 ? done(n) : list;
}

static PyObject *get_event_fd(PyObject *self, void *unused)
{
    struct mn_relay *r = relay_of(self);
    (void)unused;
    return r != NULL ? PyLong_FromLong(mn_relay_fd(r)) : NULL;
}

static PyMethodDef relay_methods[] = {
    {"take", relay_take, METH_NOARGS, "Events that wait; never blocks."},
    {"set_tls", relay_set_tls, METH_VARARGS,
     "Chain and key (PEM) of connections from now on, a certificate (DER) to append."},
    {"listen", relay_listen, METH_VARARGS, "Take a listening socket over."},
    {"unlisten", relay_unlisten, METH_NOARGS, "Close every listening socket."},
    {"adopt", relay_adopt, METH_VARARGS, "Take a connected socket to a neighbour over; returns its connection."},
    {"write", relay_write, METH_VARARGS, "Bytes to a raw connection."},
    {"resume", relay_resume, METH_VARARGS, "Read a raw connection again."},
    {"websocket", relay_websocket, METH_VARARGS, "From now on it speaks WebSocket."},
    {"open", relay_open, METH_VARARGS, "Log a connection in."},
    {"end", relay_end, METH_VARARGS, "End a connection, at once or after what was written."},
    {"end_key", relay_end_key, METH_VARARGS, "End every connection of a key."},
    {"tell", relay_tell, METH_VARARGS, "One frame to a connection, or (0) to all."},
    {"stats", relay_stats, METH_NOARGS, "Counters."},
    {"clients", relay_clients, METH_NOARGS, "Open connections."},
    {"close", relay_close, METH_NOARGS, "End everything and stop the thread."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef relay_getset[] = {
    {"event_fd", get_event_fd, NULL, "Readable when events wait.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot relay_slots[] = {
    {Py_tp_doc, "One relay: a thread, its connections and the routes between them."},
    {Py_tp_init, relay_init},
    {Py_tp_dealloc, relay_dealloc},
    {Py_tp_methods, relay_methods},
    {Py_tp_getset, relay_getset},
    {0, NULL},
};

static PyType_Spec relay_spec = {
    .name = "meshnode.engine._native.Relay",
    .basicsize = sizeof(struct relay_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = relay_slots,
};

/* ---- contexts of relays we dial ---- */

static const char TLS_NAME[] = "meshnode.tls_context";

static void drop_tls(PyObject *capsule)
{
    SSL_CTX_free(PyCapsule_GetPointer(capsule, TLS_NAME));
}

/* (CA file or None, whether OpenSSL verifies chain and name) → a context, made once for many connections. */
static PyObject *tls_context(PyObject *module, PyObject *args)
{
    const char *ca_file;
    int verifies;
    char why[256];
    (void)module;
    if (!PyArg_ParseTuple(args, "zp:tls_context", &ca_file, &verifies))
        return NULL;
    SSL_CTX *ctx = mn_tls_client_ctx(ca_file, verifies ? MN_VERIFY_NAME : MN_VERIFY_NONE, why);
    if (ctx == NULL) {
        PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    PyObject *capsule = PyCapsule_New(ctx, TLS_NAME, drop_tls);
    if (capsule == NULL)
        SSL_CTX_free(ctx);
    return capsule;
}

/* The relay's key that a certificate at the end of a chain tells, b'' for any other certificate. */
static PyObject *relay_key_of(PyObject *module, PyObject *args)
{
    const uint8_t *der;
    Py_ssize_t len;
    uint8_t key[MN_TLS_RELAY_KEY];
    (void)module;
    if (!PyArg_ParseTuple(args, "y#:relay_key_of", &der, &len))
        return NULL;
    bool ok = mn_metacert_key(der, (size_t)len, key);
    return PyBytes_FromStringAndSize((const char *)key, ok ? (Py_ssize_t)sizeof key : 0);
}

SSL_CTX *mn_module_tls_of(PyObject *capsule)
{
    SSL_CTX *ctx = PyCapsule_GetPointer(capsule, TLS_NAME);
    if (ctx != NULL)
        SSL_CTX_up_ref(ctx);
    return ctx;
}

static PyMethodDef functions[] = {
    {"tls_context", tls_context, METH_VARARGS, "How relays we dial prove who they are."},
    {"relay_key_of", relay_key_of, METH_VARARGS, "The relay's key that a meta-certificate tells."},
    {NULL, NULL, 0, NULL},
};

int mn_module_add_relay(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &relay_spec, NULL);
    int err = type == NULL ? -1 : PyModule_AddObjectRef(module, "Relay", type);
    if (err == 0)
        err = PyModule_AddFunctions(module, functions);
    Py_XDECREF(type);
    static const struct {
        const char *name;
        int value;
    } constants[] = {
        {"RELAY_DATA", MN_RELAY_EV_DATA},
        {"RELAY_ENDED", MN_RELAY_EV_ENDED},
        {"RELAY_DIALLED", MN_RELAY_EV_DIALLED},
        {"RELAY_NOTICE", MN_RELAY_EV_NOTICE},
    };
    for (size_t i = 0; err == 0 && i < sizeof constants / sizeof constants[0]; i++)
        err = PyModule_AddIntConstant(module, constants[i].name, constants[i].value);
    PyObject *why = err == 0 ? Py_BuildValue("(sssssssssssss)", "", "the other side closed it", "the connection broke",
                                             "TLS failed", "no login in time", "crowded out before its login",
                                             "it does not read", "it went silent", "it broke the protocol",
                                             "closed by us", "closed by a relay of the region", "no memory", "")
                             : NULL;
    if (why == NULL || PyModule_AddObjectRef(module, "RELAY_WHY", why) != 0)
        err = -1;
    Py_XDECREF(why);
    return err;
}
