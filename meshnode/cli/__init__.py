"""Layer 6, the street: the `meshnode` command.

`main` reads the command line with options generated from `config.model` and turns errors into one
line and an exit code; `up` runs a node; `commands` ask a running one.
"""
