"""One base matrix, N adapters, one product for all lane rows."""
