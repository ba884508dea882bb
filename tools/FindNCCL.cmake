# NCCL, as NCCL::nccl. It may lie with CUDA, with the system's libraries, where CMAKE_PREFIX_PATH or NCCL_ROOT say, in the
# Python package nvidia-nccl-cu<version> of the python3 at hand, or where tools/setup puts that package.
execute_process(COMMAND python3 -c "import nvidia.nccl; print(next(iter(nvidia.nccl.__path__)))"
  OUTPUT_VARIABLE nccl_python ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS}
  PATHS ${PROJECT_SOURCE_DIR}/build/third_party/nccl/nvidia/nccl ${nccl_python} PATH_SUFFIXES include)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 PATHS "${NCCL_INCLUDE_DIR}/../lib64" "${NCCL_INCLUDE_DIR}/../lib"
  NO_DEFAULT_PATH)  # the one that the headers belong to
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${CUDAToolkit_LIBRARY_DIR})
if(NCCL_INCLUDE_DIR)
  file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h nccl_numbers REGEX "define NCCL_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^;0-9]" "" nccl_numbers "${nccl_numbers}")
  string(REPLACE ";" "." NCCL_VERSION "${nccl_numbers}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR VERSION_VAR NCCL_VERSION
  REASON_FAILURE_MESSAGE "tools/setup fetches it, or -DNCCL_ROOT=<folder> says where it is")
mark_as_advanced(NCCL_LIBRARY NCCL_INCLUDE_DIR)
if(NCCL_FOUND AND NOT TARGET NCCL::nccl)
  add_library(NCCL::nccl UNKNOWN IMPORTED)
  set_target_properties(NCCL::nccl PROPERTIES
    IMPORTED_LOCATION ${NCCL_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
endif()
