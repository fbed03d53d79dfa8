"""The other side of the wire: calls of processors, and the meaning of their answers."""
