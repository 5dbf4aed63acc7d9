"""Layer 1, values: one model for file, environment and command line.

`model` holds a frozen dataclass per section, help, unit and default beside each field; `load` turns
(file text, environment, flags) into a Config. Flag beats variable beats file beats default.
"""
