"""Networks: arrays in, arrays out.  This room imports only mlx (and numpy for float64 tables)."""
