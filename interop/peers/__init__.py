"""Real programs, one file each: start it in a host of the lab, ask it things, stop it."""
