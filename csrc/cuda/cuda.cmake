if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90") # 90: machine code and PTX for what comes after
endif()
set(CMAKE_CUDA_STANDARD 17)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
add_library(_C_cuda MODULE csrc/binding/cuda.cpp csrc/cuda/plan.cpp
  csrc/cuda/directions.cu csrc/cuda/perturb.cu csrc/cuda/resident.cu csrc/cuda/wide.cu
  csrc/cuda/fold.cu csrc/cuda/layers.cu csrc/cuda/basis.cu csrc/cuda/eigenvalues.cu
  csrc/cuda/products.cu csrc/cuda/slopes.cu csrc/cuda/group_slopes.cu
  csrc/cuda/pool_slopes.cu csrc/cuda/hessians.cu)
set_target_properties(_C_cuda PROPERTIES PREFIX "" CUDA_RUNTIME_LIBRARY Static)
target_include_directories(_C_cuda PRIVATE csrc)
set_source_files_properties(csrc/cuda/directions.cu csrc/cuda/perturb.cu csrc/cuda/fold.cu
  PROPERTIES COMPILE_OPTIONS "--fmad=false")
if(PYLANDSCAPE_WERROR) # a spill is a warning too
  target_compile_options(_C_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings;SHELL:-Xptxas --warn-on-spills>")
endif()
target_link_options(_C_cuda PRIVATE LINKER:--exclude-libs,ALL)
target_link_libraries(_C_cuda PRIVATE torch_stable pl_flags CUDA::cudart_static ${CMAKE_DL_LIBS})
install(TARGETS _C_cuda LIBRARY DESTINATION pylandscape)
