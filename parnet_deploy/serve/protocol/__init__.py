"""The Open Inference Protocol (KServe v2): bytes to requests, answers to bytes.

Reference: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol.
"""
