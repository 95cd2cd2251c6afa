"""Kill a training many times, and compare its end with an undisturbed one."""
