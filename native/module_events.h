/* Events of the engine as tuples. */
#ifndef MN_MODULE_EVENTS_H
#define MN_MODULE_EVENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>

/* Append the records in buf to list. Negative: an exception is set. */
int mn_module_append_events(PyObject *list, const uint8_t *buf, size_t used);

#endif
