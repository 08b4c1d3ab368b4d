"""What a network costs on a device at least, and what a stage is expected to take there.

costs     operations and bytes of every block
devices   a device's peak figures: from a table with their sources, or measured
"""
