"""What a server has to withstand: the bytes on the wire, and what is right afterwards."""
