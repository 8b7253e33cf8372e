# Writes the PTX in FROM to TO for every driver that has what it needs. nvcc asks for the driver of
# its own release, the code for no more than PTX 7.0: products of bfloat16 matrices.
file(READ "${FROM}" text)
string(REGEX REPLACE "\\.version [0-9]+\\.[0-9]+" ".version 7.0" text "${text}")
file(WRITE "${TO}" "${text}")
