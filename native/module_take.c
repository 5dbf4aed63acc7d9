/* Arguments of the engine's methods: checked, and copied into the values of C. */
#include "module_take.h"

#include <stdlib.h>
#include <string.h>

#include "tcp/cc.h"
#include "tcp/stack.h"
#include "udp/geneve.h"

enum { KEY_LEN = 32, PACKET_MAX = 65507, TCP_MEMORY_MIN = 1 << 20 };

int mn_take_key(uint8_t out[KEY_LEN], const char *p, Py_ssize_t len)
{
    if (len != KEY_LEN) {
        PyErr_Format(PyExc_ValueError, "a key has 32 bytes, not %zd", len);
        return -1;
    }
    memcpy(out, p, KEY_LEN);
    return 0;
}

int mn_take_ip(struct mn_ip *out, const char *p, Py_ssize_t len, int may_be_empty)
{
    if (len == 4) {
        *out = mn_ip_from4((const uint8_t *)p);
    } else if (len == 16) {
        *out = mn_ip_from6((const uint8_t *)p);
    } else if (len == 0 && may_be_empty) {
        memset(out, 0, sizeof *out);
    } else {
        PyErr_Format(PyExc_ValueError, "a packed address has 4 or 16 bytes, not %zd", len);
        return -1;
    }
    return 0;
}

int mn_take_port(uint16_t *out, int port)
{
    if (port < 0 || port > 65535) {
        PyErr_Format(PyExc_ValueError, "port %d is outside 0..65535", port);
        return -1;
    }
    *out = (uint16_t)port;
    return 0;
}

int mn_take_blob(struct mn_command *cmd, const char *p, Py_ssize_t len)
{
    cmd->len = (size_t)len;
    cmd->blob = malloc(len > 0 ? (size_t)len : 1);
    if (cmd->blob == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(cmd->blob, p, (size_t)len);
    return 0;
}

int mn_take_packet(struct mn_command *cmd, const char *p, Py_ssize_t len)
{
    if (len > PACKET_MAX) {
        PyErr_Format(PyExc_ValueError, "a datagram has at most %d bytes, not %zd", PACKET_MAX, len);
        return -1;
    }
    return mn_take_blob(cmd, p, len);
}

int mn_take_prefix(struct mn_prefix *out, PyObject *item)
{
    const char *p;
    Py_ssize_t len;
    int bits;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a prefix is a tuple (packed address, bits)");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "y#i", &p, &len, &bits) || mn_take_ip(&out->ip, p, len, 0) != 0)
        return -1;
    if (bits < 0 || bits > len * 8) {
        PyErr_Format(PyExc_ValueError, "a prefix of %d bits does not fit its address", bits);
        return -1;
    }
    out->bits = (uint8_t)(len == 4 ? bits + 96 : bits);
    return 0;
}

static long number_max(char letter)
{
    switch (letter) {
    case 'm':
        return MN_MODES - 1;
    case 'v':
        return MN_GENEVE_VNI_MAX;
    case 's':
        return MN_SOCK_EXTRA_MAX;
    default:
        return 65535;
    }
}

int mn_take_field(struct mn_command *cmd, char letter, PyObject *arg)
{
    char *p = NULL;
    Py_ssize_t len = 0;
    if (strchr("kiIbo", letter) != NULL) {
        if (PyBytes_AsStringAndSize(arg, &p, &len) != 0)
            return -1;
        switch (letter) {
        case 'k':
            return mn_take_key(cmd->key, p, len);
        case 'b':
            return mn_take_packet(cmd, p, len);
        case 'o':
            return len > 0 ? mn_take_blob(cmd, p, len) : 0;
        default:
            return mn_take_ip(&cmd->ep.ip, p, len, letter == 'I');
        }
    }
    if (letter == 'r') {
        cmd->req = PyLong_AsUnsignedLongLong(arg);
        return PyErr_Occurred() != NULL ? -1 : 0;
    }
    long number = PyLong_AsLong(arg);
    if (PyErr_Occurred() != NULL)
        return -1;
    if (number < 0 || number > number_max(letter)) {
        PyErr_Format(PyExc_ValueError, "%ld is no %s", number,
                     letter == 'p'   ? "port"
                     : letter == 'v' ? "VNI"
                     : letter == 's' ? "extra socket"
                     : letter == 'g' ? "relay region"
                     : letter == 'm' ? "path mode"
                                     : "number of 0..65535");
        return -1;
    }
    if (letter == 'p')
        cmd->ep.port = (uint16_t)number;
    else if (letter == 'v')
        cmd->ep.vni = (uint32_t)number;
    else if (letter == 's')
        cmd->ep.sock = (uint16_t)number;
    else if (letter == 'g')
        cmd->region = (uint16_t)number;
    else if (letter == 'm')
        cmd->mode = (uint8_t)number;
    else
        cmd->number = (uint32_t)number;
    return 0;
}

static int take_ecn(uint8_t *mode, const char *name)
{
    static const char *const names[] = {[MN_ECN_ACCEPT] = "accept", [MN_ECN_OFF] = "off", [MN_ECN_ASK] = "ask"};
    for (uint8_t i = 0; name != NULL && i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i]) == 0) {
            *mode = i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "tcp_ecn %s is none of accept, off, ask", name != NULL ? name : "None");
    return -1;
}

int mn_take_config(struct mn_engine_config *c, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"private_key", "port", "mtu", "bind4",      "bind6",   "timestamp_floor",
                            "congestion",  "gso",  "gro", "tcp_memory", "tcp_ecn", NULL};
    const char *key = "", *bind4 = NULL, *bind6 = NULL, *floor = "", *ecn = "accept";
    Py_ssize_t key_len = 0, bind4_len = 0, bind6_len = 0, floor_len = 0;
    int port = 0, mtu = 1280, gso = MN_GSO_AUTO, gro = 1;
    long long memory = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$y#iiz#z#y#zipLz:Engine", names, &key, &key_len, &port, &mtu,
                                     &bind4, &bind4_len, &bind6, &bind6_len, &floor, &floor_len, &c->cc, &gso, &gro,
                                     &memory, &ecn))
        return -1;
    if (mn_take_key(c->private_key, key, key_len) != 0 || mn_take_port(&c->sockets.port, port) != 0)
        return -1;
    if (mn_take_ip(&c->sockets.bind4, bind4 != NULL ? bind4 : "", bind4_len, 1) != 0 ||
        mn_take_ip(&c->sockets.bind6, bind6 != NULL ? bind6 : "", bind6_len, 1) != 0)
        return -1;
    if (bind4_len == 16 || bind6_len == 4 || (floor_len != 0 && floor_len != sizeof c->timestamp_floor)) {
        PyErr_SetString(PyExc_ValueError, "bind4 has 4 bytes, bind6 16, timestamp_floor 12 or none");
        return -1;
    }
    if (mtu < MN_MTU_MIN || mtu > MN_MTU_MAX) {
        PyErr_Format(PyExc_ValueError, "mtu %d is outside %d..%d", mtu, MN_MTU_MIN, MN_MTU_MAX);
        return -1;
    }
    if (mn_cc_find(c->cc) == NULL) {
        PyErr_Format(PyExc_ValueError, "congestion control %s is unknown; there are forbearing, cubic and newreno",
                     c->cc);
        return -1;
    }
    if (gso < 0 || gso >= MN_GSO_MODES) {
        PyErr_Format(PyExc_ValueError, "gso %d is none of GSO_AUTO, GSO_OFF, GSO_NEVER_EQUAL", gso);
        return -1;
    }
    if (memory != 0 && memory < TCP_MEMORY_MIN) {
        PyErr_Format(PyExc_ValueError, "tcp_memory %lld is below %d bytes; 0 lets the engine choose", memory,
                     (int)TCP_MEMORY_MIN);
        return -1;
    }
    if (take_ecn(&c->tcp_ecn, ecn) != 0)
        return -1;
    c->tcp_memory = (uint64_t)memory;
    c->sockets.gso = (enum mn_gso)gso;
    c->sockets.is_gro_off = gro == 0;
    c->sockets.use4 = c->sockets.use6 = true;
    c->mtu = (size_t)mtu;
    c->has_floor = floor_len != 0;
    memcpy(c->timestamp_floor, floor, (size_t)floor_len);
    return 0;
}
