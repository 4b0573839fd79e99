if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90") # 90: machine code and PTX for what comes after
endif()
set(CMAKE_CUDA_STANDARD 17)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
add_library(_C_cuda MODULE binding/cuda.cpp cuda/plan.cpp
  cuda/directions.cu cuda/perturb.cu cuda/resident.cu cuda/wide.cu
  cuda/fold.cu cuda/layers.cu cuda/basis.cu cuda/eigenvalues.cu
  cuda/products.cu cuda/slopes.cu cuda/group_slopes.cu
  cuda/pool_slopes.cu cuda/hessians.cu)
set_target_properties(_C_cuda PROPERTIES PREFIX "" CUDA_RUNTIME_LIBRARY Static)
target_include_directories(_C_cuda PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
set_source_files_properties(cuda/directions.cu cuda/perturb.cu cuda/fold.cu
  PROPERTIES COMPILE_OPTIONS "--fmad=false")
if(PYLANDSCAPE_WERROR) # a spill is a warning too
  target_compile_options(_C_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings;SHELL:-Xptxas --warn-on-spills>")
endif()
target_link_options(_C_cuda PRIVATE LINKER:--exclude-libs,ALL)
target_link_libraries(_C_cuda PRIVATE torch_stable pl_flags CUDA::cudart_static ${CMAKE_DL_LIBS})
install(TARGETS _C_cuda LIBRARY DESTINATION pylandscape)
