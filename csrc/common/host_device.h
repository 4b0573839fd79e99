// Marks functions that run on the host and, where the file is compiled by nvcc, on the device.
#pragma once

#if defined(__CUDACC__)
#define PL_HOST_DEVICE __host__ __device__
#else
#define PL_HOST_DEVICE
#endif
