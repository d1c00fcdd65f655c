"""The bare limits: what nothing built on the same ground can be faster than. Compiled when they are first wanted."""
