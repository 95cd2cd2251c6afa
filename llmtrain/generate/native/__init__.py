"""One token of every sequence in C++: as fast as the weights can be read from memory."""
