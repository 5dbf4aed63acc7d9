/* The engine's type for CPython: methods, the GIL, exceptions; no protocol.
 *
 * One type, Engine, over struct mn_engine. Methods check their arguments, push a command and return; only close,
 * and the few that wait for an answer, let the GIL go. Events become tuples on the caller's thread:
 * the engine's thread never touches an object.
 * Limited API of 3.11, multi-phase init, no static Python objects. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "engine/engine.h"
#include "engine/tundev.h"
#include "module_events.h"
#include "module_links.h"
#include "module_relay.h"
#include "module_take.h"

enum { TAKE_BYTES = 2 * MN_EVENT_RECORD_MAX, KEY_LEN = 32, LIMIT_MAX = 65536 };

struct engine_object {
    PyObject_HEAD struct mn_engine *engine; /* NULL: __init__ failed, or abandoned */
    uint8_t *taken;                         /* where events are copied before they become objects */
    int is_closed;
};

struct mn_engine *mn_module_engine(PyObject *self, int may_be_closed)
{
    struct engine_object *o = (struct engine_object *)self;
    if (o->engine != NULL && mn_engine_state(o->engine) == MN_ENGINE_FORKED) {
        PyErr_SetString(PyExc_RuntimeError, "engine not usable after fork");
        return NULL;
    }
    if (o->engine == NULL || (o->is_closed && !may_be_closed)) {
        PyErr_SetString(PyExc_RuntimeError, "engine is closed");
        return NULL;
    }
    return o->engine;
}

static PyObject *push_failed(void)
{
    PyErr_Format(PyExc_RuntimeError, "engine: %d commands wait already; its thread does not keep up", MN_COMMANDS_MAX);
    return NULL;
}

PyObject *mn_module_push(struct mn_engine *e, const struct mn_command *cmd)
{
    if (mn_engine_push(e, cmd) >= 0)
        Py_RETURN_NONE;
    return push_failed();
}

/* Push and wait for the answer; negative errno of the command in out->err. -1: exception set. */
static int ask(struct mn_engine *e, struct mn_command *cmd, struct mn_answer *out)
{
    int err;
    Py_BEGIN_ALLOW_THREADS err = mn_engine_call(e, cmd, out);
    Py_END_ALLOW_THREADS if (err == 0) return 0;
    PyErr_Format(PyExc_RuntimeError, "engine: no answer (%s)", strerror(-err));
    return -1;
}

/* ---- life ---- */

static int engine_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct engine_object *o = (struct engine_object *)self;
    struct mn_engine_config config;
    int err = 0;
    memset(&config, 0, sizeof config);
    if (o->engine != NULL || o->is_closed) {
        PyErr_SetString(PyExc_RuntimeError, "engine is started already");
        return -1;
    }
    if (mn_take_config(&config, args, kwargs) != 0) {
        OPENSSL_cleanse(&config, sizeof config);
        return -1;
    }
    o->taken = malloc(TAKE_BYTES);
    if (o->taken == NULL)
        err = -ENOMEM;
    else
        o->engine = mn_engine_create(&config, &err);
    OPENSSL_cleanse(&config, sizeof config);
    if (o->engine != NULL) {
        err = mn_engine_start(o->engine);
        if (err == 0)
            return 0;
        mn_engine_destroy(o->engine);
        o->engine = NULL;
    }
    errno = -err;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static int stop_engine(struct engine_object *o, double timeout_s)
{
    bool ended;
    o->is_closed = 1;
    Py_BEGIN_ALLOW_THREADS ended = mn_engine_stop(o->engine, timeout_s);
    Py_END_ALLOW_THREADS return ended ? 0 : -1;
}

static void engine_dealloc(PyObject *self)
{
    struct engine_object *o = (struct engine_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (o->engine != NULL && mn_engine_state(o->engine) != MN_ENGINE_FORKED && stop_engine(o, 1.0) == 0)
        mn_engine_destroy(o->engine);
    free(o->taken);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *engine_close(PyObject *self, PyObject *args)
{
    struct engine_object *o = (struct engine_object *)self;
    double timeout_s;
    if (!PyArg_ParseTuple(args, "d:close", &timeout_s))
        return NULL;
    if (o->engine == NULL || mn_engine_state(o->engine) == MN_ENGINE_FORKED)
        Py_RETURN_NONE;
    if (stop_engine(o, timeout_s) != 0) {
        PyErr_Format(PyExc_RuntimeError, "engine: its thread did not end in time and is left behind");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* After close and the last poll: descriptors and memory go now, not when the garbage collector comes. */
static PyObject *engine_release(PyObject *self, PyObject *unused)
{
    struct engine_object *o = (struct engine_object *)self;
    (void)unused;
    if (o->engine != NULL && mn_engine_state(o->engine) == MN_ENGINE_STOPPED) {
        mn_engine_destroy(o->engine);
        o->engine = NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *engine_poll_events(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"limit", NULL};
    struct mn_engine *e = mn_module_engine(self, 1);
    int limit = 256;
    if (e == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "|i:poll_events", names, &limit))
        return NULL;
    if (limit < 1 || limit > LIMIT_MAX) {
        PyErr_Format(PyExc_ValueError, "limit %d is outside 1..%d", limit, LIMIT_MAX);
        return NULL;
    }
    PyObject *list = PyList_New(0);
    uint8_t *buf = ((struct engine_object *)self)->taken;
    size_t left = (size_t)limit, got = 1;
    while (list != NULL && left > 0 && got > 0) {
        size_t used = mn_events_take(mn_engine_events(e), buf, TAKE_BYTES, left, &got);
        left -= got;
        if (mn_module_append_events(list, buf, used) != 0)
            Py_CLEAR(list);
    }
    return list;
}

/* ---- commands: the node and its peers ---- */

static PyObject *engine_set_private_key(PyObject *self, PyObject *args)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_SET_PRIVATE_KEY};
    struct mn_answer answer;
    const char *key;
    Py_ssize_t len;
    if (e == NULL || !PyArg_ParseTuple(args, "y#:set_private_key", &key, &len) || mn_take_key(cmd.key, key, len) != 0)
        return NULL;
    int asked = ask(e, &cmd, &answer);
    OPENSSL_cleanse(cmd.key, sizeof cmd.key);
    if (asked != 0)
        return NULL;
    if (answer.err != 0) {
        PyErr_SetString(PyExc_ValueError, "not a usable private key");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *engine_set_addresses(PyObject *self, PyObject *args)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_SET_ADDRESSES};
    PyObject *list;
    if (e == NULL || !PyArg_ParseTuple(args, "O:set_addresses", &list))
        return NULL;
    Py_ssize_t n = PyList_Size(list);
    if (n < 0)
        return NULL;
    cmd.len = (size_t)n * sizeof(struct mn_ip);
    cmd.blob = malloc(cmd.len > 0 ? cmd.len : 1);
    if (cmd.blob == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        char *p;
        Py_ssize_t len;
        struct mn_ip ip;
        if (PyBytes_AsStringAndSize(PyList_GetItem(list, i), &p, &len) != 0 || mn_take_ip(&ip, p, len, 0) != 0) {
            free(cmd.blob);
            return NULL;
        }
        memcpy(cmd.blob + (size_t)i * sizeof ip, &ip, sizeof ip);
    }
    return mn_module_push(e, &cmd);
}

static PyObject *engine_upsert_peer(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"key", "prefixes", "psk", "keepalive_s", "roams", NULL};
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_UPSERT_PEER};
    const char *key, *psk = "";
    Py_ssize_t key_len, psk_len = 0;
    int keepalive_s = 0, roams = 0;
    PyObject *list;
    if (e == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "y#O|y#ip:upsert_peer", names, &key, &key_len, &list,
                                                  &psk, &psk_len, &keepalive_s, &roams))
        return NULL;
    if (mn_take_key(cmd.key, key, key_len) != 0)
        return NULL;
    if ((psk_len != 0 && psk_len != KEY_LEN) || keepalive_s < 0 || keepalive_s > 65535) {
        PyErr_SetString(PyExc_ValueError, "psk has 32 bytes or none, keepalive_s is 0..65535");
        return NULL;
    }
    Py_ssize_t n = PyList_Size(list);
    if (n < 0)
        return NULL;
    cmd.number = (uint32_t)keepalive_s;
    cmd.mode = roams != 0;
    cmd.len = KEY_LEN + (size_t)n * sizeof(struct mn_prefix);
    cmd.blob = calloc(1, cmd.len);
    if (cmd.blob == NULL)
        return PyErr_NoMemory();
    memcpy(cmd.blob, psk, (size_t)psk_len);
    for (Py_ssize_t i = 0; i < n; i++) {
        struct mn_prefix prefix;
        if (mn_take_prefix(&prefix, PyList_GetItem(list, i)) != 0) {
            mn_command_done(&cmd);
            return NULL;
        }
        memcpy(cmd.blob + KEY_LEN + (size_t)i * sizeof prefix, &prefix, sizeof prefix);
    }
    return mn_module_push(e, &cmd);
}

static PyObject *engine_set_offloads(PyObject *self, PyObject *args)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_SET_OFFLOADS};
    int gso, gro;
    if (e == NULL || !PyArg_ParseTuple(args, "ip:set_offloads", &gso, &gro))
        return NULL;
    if (gso < 0 || gso >= MN_GSO_MODES) {
        PyErr_Format(PyExc_ValueError, "gso %d is none of GSO_AUTO, GSO_OFF, GSO_NEVER_EQUAL", gso);
        return NULL;
    }
    cmd.mode = (uint8_t)gso;
    cmd.number = gro == 0;
    return mn_module_push(e, &cmd);
}

static PyObject *engine_set_filter(PyObject *self, PyObject *args)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_SET_FILTER};
    struct mn_answer answer;
    const char *p;
    Py_ssize_t len;
    if (e == NULL || !PyArg_ParseTuple(args, "y#:set_filter", &p, &len) || mn_take_blob(&cmd, p, len) != 0)
        return NULL;
    if (ask(e, &cmd, &answer) != 0)
        return NULL;
    if (answer.err == 0)
        Py_RETURN_NONE;
    if (answer.err == -ENOMEM)
        return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, "the packet filter is malformed; the one in force stays");
    return NULL;
}

/* ---- commands made of plain fields ---- */

static PyObject *push_fields(PyObject *self, PyObject *args, enum mn_command_kind kind, const char *fields)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = (uint8_t)kind};
    Py_ssize_t n = (Py_ssize_t)strlen(fields);
    if (e == NULL)
        return NULL;
    if (PyTuple_Size(args) != n) {
        PyErr_Format(PyExc_TypeError, "takes %zd arguments, not %zd", n, PyTuple_Size(args));
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (mn_take_field(&cmd, fields[i], PyTuple_GetItem(args, i)) != 0) {
            mn_command_done(&cmd);
            return NULL;
        }
    }
    if (kind == MN_CMD_INJECT && cmd.region == 0) {
        mn_command_done(&cmd);
        PyErr_SetString(PyExc_ValueError, "0 is no relay region");
        return NULL;
    }
    return mn_module_push(e, &cmd);
}

#define COMMAND(name, kind, fields)                                                                                    \
    static PyObject *engine_##name(PyObject *self, PyObject *args)                                                     \
    {                                                                                                                  \
        return push_fields(self, args, kind, fields);                                                                  \
    }
COMMAND(remove_peer, MN_CMD_REMOVE_PEER, "k")
COMMAND(kick, MN_CMD_KICK, "k")
COMMAND(tell_disco_key, MN_CMD_DISCO_KEY, "ik")
COMMAND(nudge, MN_CMD_NUDGE, "k")
COMMAND(set_path, MN_CMD_SET_PATH, "kIpvsgmno")
COMMAND(inject, MN_CMD_INJECT, "gkb")
COMMAND(send_raw, MN_CMD_SEND_RAW, "ipb")
COMMAND(send_extra, MN_CMD_SEND_RAW, "sipb")
COMMAND(set_extra, MN_CMD_EXTRA, "snm")
COMMAND(rebind, MN_CMD_REBIND, "")
COMMAND(connect, MN_CMD_CONNECT, "rip")
COMMAND(abort, MN_CMD_ABORT, "r")
COMMAND(listen, MN_CMD_LISTEN, "rIpn")
COMMAND(taken, MN_CMD_TAKEN, "rn")
COMMAND(unlisten, MN_CMD_UNLISTEN, "r")
COMMAND(ping, MN_CMD_PING, "rin")
COMMAND(udp_open, MN_CMD_UDP_OPEN, "rIp")
COMMAND(udp_close, MN_CMD_UDP_CLOSE, "r")

/* The one that runs per datagram: says whether the engine took it. */
static PyObject *engine_udp_send(PyObject *self, PyObject *args)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_UDP_SEND};
    const char *ip, *from, *data;
    Py_ssize_t ip_len, from_len, len;
    int port;
    if (e == NULL ||
        !PyArg_ParseTuple(args, "Ky#iy#y#:udp_send", &cmd.req, &ip, &ip_len, &port, &from, &from_len, &data, &len))
        return NULL;
    if (mn_take_ip(&cmd.ep.ip, ip, ip_len, 0) != 0 || mn_take_port(&cmd.ep.port, port) != 0 ||
        mn_take_ip(&cmd.from, from, from_len, 1) != 0 || mn_take_packet(&cmd, data, len) != 0)
        return NULL;
    int pushed = mn_engine_push(e, &cmd);
    if (pushed < 0)
        return push_failed();
    return PyBool_FromLong(pushed == 0);
}

COMMAND(set_tun_merge, MN_CMD_TUN_MERGE, "m")

/* ---- a kernel interface ---- */

/* The engine owns what it was given. -ETIMEDOUT: it may still take it, so that the descriptor must stay. */
static int attach_tun(struct mn_engine *e, const struct mn_tundev *d)
{
    struct mn_command cmd = {.kind = MN_CMD_TUN_ATTACH, .number = (uint32_t)d->fd, .mode = (uint8_t)d->merge};
    struct mn_answer answer = {.err = 0};
    int err = mn_engine_call(e, &cmd, &answer);
    if (err == 0)
        err = answer.err;
    if (err != 0 && err != -ETIMEDOUT)
        close(d->fd);
    return err;
}

static int make_tun(struct mn_tundev *d, const char *name, int fd, enum mn_tundev_step *step)
{
    if (fd < 0)
        return mn_tundev_open(d, name, step);
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    *step = MN_TUNDEV_OPEN;
    if (own < 0)
        return -errno;
    int err = mn_tundev_adopt(d, own, step);
    if (err != 0)
        close(own);
    return err;
}

static PyObject *engine_open_tun(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"name", "fd", NULL};
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_tundev d;
    enum mn_tundev_step step = MN_TUNDEV_NAME;
    const char *name = "";
    int fd = -1, err;
    if (e == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "|si:open_tun", names, &name, &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS err = make_tun(&d, name, fd, &step);
    if (err == 0)
        err = attach_tun(e, &d);
    Py_END_ALLOW_THREADS if (err == 0) return PyUnicode_FromString(d.name);
    if (err == -EINVAL && step == MN_TUNDEV_NAME) {
        PyErr_Format(PyExc_ValueError, "'%s' is no name for an interface", name);
        return NULL;
    }
    errno = -err;
    return PyErr_SetFromErrnoWithFilename(PyExc_OSError, step == MN_TUNDEV_OPEN ? "/dev/net/tun" : name);
}

/* ---- facts ---- */

static PyObject *dict_of(const char *const *names, const struct mn_answer *answer)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < answer->count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(answer->values[i]);
        if (value == NULL || PyDict_SetItemString(dict, names[i], value) != 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *engine_stats(PyObject *self, PyObject *unused)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_STATS};
    struct mn_answer answer;
    (void)unused;
    if (e == NULL || ask(e, &cmd, &answer) != 0)
        return NULL;
    return dict_of(mn_engine_stat_names, &answer);
}

static PyObject *engine_last_timestamp(PyObject *self, PyObject *unused)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_STATS};
    struct mn_answer answer;
    (void)unused;
    if (e == NULL || ask(e, &cmd, &answer) != 0)
        return NULL;
    return PyBytes_FromStringAndSize((const char *)answer.timestamp, sizeof answer.timestamp);
}

static PyObject *engine_peer_stats(PyObject *self, PyObject *args)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_PEER_STATS};
    struct mn_answer answer;
    const char *key;
    Py_ssize_t len;
    if (e == NULL || !PyArg_ParseTuple(args, "y#:peer_stats", &key, &len) || mn_take_key(cmd.key, key, len) != 0 ||
        ask(e, &cmd, &answer) != 0)
        return NULL;
    if (answer.err != 0) {
        PyErr_SetString(PyExc_KeyError, "the engine knows no such peer");
        return NULL;
    }
    return dict_of(mn_peer_stat_names, &answer);
}

static PyObject *get_event_fd(PyObject *self, void *unused)
{
    struct mn_engine *e = mn_module_engine(self, 1);
    (void)unused;
    return e != NULL ? PyLong_FromLong(mn_engine_events(e)->fd) : NULL;
}

static PyObject *get_port4(PyObject *self, void *unused)
{
    struct mn_engine *e = mn_module_engine(self, 1);
    (void)unused;
    return e != NULL ? PyLong_FromLong(mn_engine_port(e, MN_SOCK_V4)) : NULL;
}

static PyObject *get_port6(PyObject *self, void *unused)
{
    struct mn_engine *e = mn_module_engine(self, 1);
    (void)unused;
    return e != NULL ? PyLong_FromLong(mn_engine_port(e, MN_SOCK_V6)) : NULL;
}

/* ---- the module ---- */

#define KEYWORDS(f) ((PyCFunction)(void (*)(void))(f)), METH_VARARGS | METH_KEYWORDS

static PyMethodDef engine_methods[] = {
    {"poll_events", KEYWORDS(engine_poll_events), "Events that wait, at most `limit`; never blocks."},
    {"set_private_key", engine_set_private_key, METH_VARARGS, "Use another node key; every session ends."},
    {"set_addresses", engine_set_addresses, METH_VARARGS, "Our tailnet addresses, packed, all of them."},
    {"upsert_peer", KEYWORDS(engine_upsert_peer), "Add a peer or replace what is known of it."},
    {"remove_peer", engine_remove_peer, METH_VARARGS, "Forget a peer and end its connections."},
    {"set_path", engine_set_path, METH_VARARGS, "Where a peer's packets go."},
    {"set_filter", engine_set_filter, METH_VARARGS, "Replace the packet filter."},
    {"inject", engine_inject, METH_VARARGS, "WireGuard bytes that came by relay."},
    {"send_raw", engine_send_raw, METH_VARARGS, "A datagram from the WireGuard port."},
    {"send_extra", engine_send_extra, METH_VARARGS, "A datagram from an extra socket."},
    {"set_extra", engine_set_extra, METH_VARARGS, "Open or close extra sockets."},
    {"rebind", engine_rebind, METH_VARARGS, "New UDP sockets after a change of the network."},
    {"set_offloads", engine_set_offloads, METH_VARARGS, "Whether the kernel may segment and coalesce."},
    {"kick", engine_kick, METH_VARARGS, "Request a handshake."},
    {"tell_disco_key", engine_tell_disco_key, METH_VARARGS, "Say inside the tunnel what our DISCO key is."},
    {"nudge", engine_nudge, METH_VARARGS, "Let TCP repeat at once what it waits to repeat."},
    {"connect", engine_connect, METH_VARARGS, "Open a TCP connection."},
    {"abort", engine_abort, METH_VARARGS, "Give up a pending connect."},
    {"listen", engine_listen, METH_VARARGS, "Take TCP connections."},
    {"taken", engine_taken, METH_VARARGS, "So many accepted connections left the backlog."},
    {"unlisten", engine_unlisten, METH_VARARGS, "Take no more; those accepted live on."},
    {"ping", engine_ping, METH_VARARGS, "ICMP echo inside the tunnel."},
    {"udp_open", engine_udp_open, METH_VARARGS, "Open a UDP port inside the tunnel."},
    {"udp_send", engine_udp_send, METH_VARARGS, "Send one datagram inside the tunnel."},
    {"udp_close", engine_udp_close, METH_VARARGS, "Give a UDP port back."},
    {"open_tun", KEYWORDS(engine_open_tun), "Make a kernel interface, or take one over; returns its name."},
    {"set_tun_merge", engine_set_tun_merge, METH_VARARGS, "Which offloads of the interface are used."},
    {"link_adopt", mn_module_link_adopt, METH_VARARGS, "Take a connected socket to a relay over."},
    {"link_write", mn_module_link_write, METH_VARARGS, "Bytes, or once it is open whole frames, to a relay."},
    {"link_open", mn_module_link_open, METH_VARARGS, "It is logged in: it carries the packets of its region."},
    {"link_websocket", mn_module_link_websocket, METH_VARARGS, "It speaks WebSocket from here on."},
    {"link_close", mn_module_link_close, METH_VARARGS, "End a relay link; nothing is told of it any more."},
    {"stats", engine_stats, METH_NOARGS, "Counters of the engine."},
    {"peer_stats", engine_peer_stats, METH_VARARGS, "Counters of one peer."},
    {"last_timestamp", engine_last_timestamp, METH_NOARGS, "Newest handshake timestamp sent."},
    {"close", engine_close, METH_VARARGS, "Stop the thread, end the connections, wipe the keys."},
    {"release", engine_release, METH_NOARGS, "Give back what a closed engine still holds."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef engine_getset[] = {
    {"event_fd", get_event_fd, NULL, "Readable when events wait.", NULL},
    {"port4", get_port4, NULL, "UDP port on IPv4; 0: none.", NULL},
    {"port6", get_port6, NULL, "UDP port on IPv6; 0: none.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "One packet engine: a thread, UDP sockets, WireGuard and a netstack."},
    {Py_tp_init, engine_init},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_methods, engine_methods},
    {Py_tp_getset, engine_getset},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "meshnode.engine._native.Engine",
    .basicsize = sizeof(struct engine_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = engine_slots,
};

static const struct {
    const char *name;
    int value;
} constants[] = {
    {"PATH_NONE", MN_MODE_NONE},
    {"PATH_DIRECT", MN_MODE_DIRECT},
    {"PATH_RELAY", MN_MODE_RELAY},
    {"PATH_BOTH", MN_MODE_BOTH},
    {"PATH_DOUBTED", MN_MODE_DOUBTED},
    {"WHAT_KEEPALIVE", MN_WHAT_KEEPALIVE},
    {"WHAT_DATA", MN_WHAT_DATA},
    {"WHAT_HANDSHAKE", MN_WHAT_HANDSHAKE},
    {"EV_ACCEPTED", MN_EV_ACCEPTED},
    {"EV_CONNECTED", MN_EV_CONNECTED},
    {"EV_CONNECT_FAILED", MN_EV_CONNECT_FAILED},
    {"EV_FLOW_ENDED", MN_EV_FLOW_ENDED},
    {"EV_LISTENING", MN_EV_LISTENING},
    {"EV_RELAY_SEND", MN_EV_RELAY_SEND},
    {"EV_DISCO", MN_EV_DISCO},
    {"EV_DISCO_KEY", MN_EV_DISCO_KEY},
    {"EV_STUN", MN_EV_STUN},
    {"EV_PEER_SEND", MN_EV_PEER_SEND},
    {"EV_PEER_RECV", MN_EV_PEER_RECV},
    {"EV_SEND_ERROR", MN_EV_SEND_ERROR},
    {"EV_HANDSHAKE", MN_EV_HANDSHAKE},
    {"EV_PING", MN_EV_PING},
    {"EV_UDP", MN_EV_UDP},
    {"EV_LOST", MN_EV_LOST},
    {"EV_UDP_ERROR", MN_EV_UDP_ERROR},
    {"EV_TUN_LOST", MN_EV_TUN_LOST},
    {"TUN_TCP", MN_TUN_TCP},
    {"TUN_UDP", MN_TUN_UDP},
    {"EV_REBOUND", MN_EV_REBOUND},
    {"EV_KEYS", MN_EV_KEYS},
    {"KEYS_GONE", MN_KEYS_GONE},
    {"KEYS_CLOCK_BEHIND", MN_KEYS_CLOCK_BEHIND},
    {"EV_LINK_READY", MN_EV_LINK_READY},
    {"EV_LINK_DATA", MN_EV_LINK_DATA},
    {"EV_LINK_FRAME", MN_EV_LINK_FRAME},
    {"EV_LINK_PULSE", MN_EV_LINK_PULSE},
    {"EV_LINK_ENDED", MN_EV_LINK_ENDED},
    {"GSO_AUTO", MN_GSO_AUTO},
    {"GSO_OFF", MN_GSO_OFF},
    {"GSO_NEVER_EQUAL", MN_GSO_NEVER_EQUAL},
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &engine_spec, NULL);
    if (type == NULL)
        return -1;
    int err = PyModule_AddObjectRef(module, "Engine", type);
    if (err == 0)
        err = mn_module_add_relay(module);
    Py_DECREF(type);
    for (size_t i = 0; err == 0 && i < sizeof constants / sizeof *constants; i++)
        err = PyModule_AddIntConstant(module, constants[i].name, constants[i].value);
    return err;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "meshnode.engine._native",
    .m_doc = "The packet engine in C; meshnode.engine.engine is its face.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_def);
}
