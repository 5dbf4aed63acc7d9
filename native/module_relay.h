/* What module.c needs to know of the relay's type. */
#ifndef MN_MODULE_RELAY_H
#define MN_MODULE_RELAY_H

#include <Python.h>

int mn_module_add_relay(PyObject *module);

#endif
