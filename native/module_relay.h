/* What module.c needs to know of the relay's type. */
#ifndef MN_MODULE_RELAY_H
#define MN_MODULE_RELAY_H

#include <Python.h>

#include <openssl/types.h>

int mn_module_add_relay(PyObject *module);
/* The context of a tls_context() object, referenced once more; NULL: exception set. */
SSL_CTX *mn_module_tls_of(PyObject *capsule);

#endif
