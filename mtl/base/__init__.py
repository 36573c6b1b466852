"""What every room builds on: types, arithmetic on parameters, named randomness, whole files, memory, compiling."""
