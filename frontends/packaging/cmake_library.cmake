# @name@, a compiled network for @target@. Written by nervure; do not edit.
#
#   find_package(@name@ CONFIG REQUIRED PATHS path/to/this/folder NO_DEFAULT_PATH)   or   add_subdirectory(this/folder)
#   target_link_libraries(firmware PRIVATE @name@::@name@)
#
# The program must be compiled for the same core (@target@), with -mfloat-abi=hard or softfp.
if(NOT TARGET @name@::@name@)
  add_library(@name@::@name@ STATIC IMPORTED GLOBAL)
  set_target_properties(@name@::@name@ PROPERTIES
    IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/lib/@library@"
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}/include")
endif()
