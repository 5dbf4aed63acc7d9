"""Many nodes in virtual time with seeds; a failure prints its seed."""
