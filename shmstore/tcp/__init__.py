"""The store on the wire: c10d's TCPStore protocol.

As bytes (`codec`), over sockets (`connection`), as verbs (`verbs`), as a store (`client`).

The protocol has neither authentication nor encryption: whoever reaches the port may read and change every key.
"""
