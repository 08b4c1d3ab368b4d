"""Export and deployment toolchain for ParNet ("Non-deep Networks")."""

__version__ = "0.1.0"
