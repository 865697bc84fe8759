"""AMD GPUs through AMD's own library and its Python half, `amdsmi`."""
