# cuDNN 9, as CUDNN::cudnn. It may lie with CUDA, with the system's libraries, where CMAKE_PREFIX_PATH or CUDNN_ROOT say,
# in the Python package nvidia-cudnn-cu<version> of the python3 at hand, or where tools/setup puts that package.
execute_process(COMMAND python3 -c "import nvidia.cudnn; print(next(iter(nvidia.cudnn.__path__)))"
  OUTPUT_VARIABLE cudnn_python ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS}
  PATHS ${PROJECT_SOURCE_DIR}/build/third_party/cudnn/nvidia/cudnn ${cudnn_python} PATH_SUFFIXES include)
find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 PATHS "${CUDNN_INCLUDE_DIR}/../lib64" "${CUDNN_INCLUDE_DIR}/../lib"
  NO_DEFAULT_PATH)  # the one that the headers belong to
find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 HINTS ${CUDAToolkit_LIBRARY_DIR})
if(CUDNN_INCLUDE_DIR)
  file(STRINGS ${CUDNN_INCLUDE_DIR}/cudnn_version.h cudnn_numbers REGEX "define CUDNN_(MAJOR|MINOR|PATCHLEVEL) ")
  string(REGEX REPLACE "[^;0-9]" "" cudnn_numbers "${cudnn_numbers}")
  string(REPLACE ";" "." CUDNN_VERSION "${cudnn_numbers}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CUDNN REQUIRED_VARS CUDNN_LIBRARY CUDNN_INCLUDE_DIR VERSION_VAR CUDNN_VERSION
  REASON_FAILURE_MESSAGE "tools/setup fetches it, or -DCUDNN_ROOT=<folder> says where it is")
mark_as_advanced(CUDNN_LIBRARY CUDNN_INCLUDE_DIR)
if(CUDNN_FOUND AND NOT TARGET CUDNN::cudnn)
  add_library(CUDNN::cudnn UNKNOWN IMPORTED)
  set_target_properties(CUDNN::cudnn PROPERTIES
    IMPORTED_LOCATION ${CUDNN_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${CUDNN_INCLUDE_DIR})
endif()
