"""What `precision_accuracy.py` consists of: the networks that are exported."""
