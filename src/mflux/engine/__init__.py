"""A request becomes pictures: plan, encode, prepare, denoise, decode."""
