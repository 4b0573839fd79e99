// Eigenvalues of one symmetric tridiagonal matrix, and some rows of its eigenvectors: the residuals
// of Ritz pairs and the weights of a quadrature need one row each, so O(n^2) operations and not the
// O(n^3) of all vectors.
#pragma once
#include <cstdint>

namespace pylandscape {

// values (n,): the diagonal, which becomes the eigenvalues, ascending. beside (n,): what stands beside
// it, the last one unused; overwritten. turned (n, rows): the transpose of a matrix R (rows, n), which
// becomes that of R V with the unit eigenvectors V in columns; R = 1 gives them, a row of 1 the
// vectors' components there. Signs are arbitrary. False where the matrix is not finite.
bool tridiagonal_eigen(int64_t n, double* values, double* beside, int64_t rows, double* turned);

}  // namespace pylandscape
