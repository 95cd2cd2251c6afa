"""Kill a training many times, resume it, and compare its result with an uninterrupted one."""
