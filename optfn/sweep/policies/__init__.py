"""Which trials of a sweep go on, wait or end: functions of scores, on NumPy arrays alone."""
