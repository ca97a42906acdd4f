"""Operations with a fused GPU kernel beside a torch reference of the same signature; chosen at call time."""
