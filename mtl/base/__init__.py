"""What every room stands on: types, arithmetic on parameters, named randomness, whole files, memory, compiling."""
