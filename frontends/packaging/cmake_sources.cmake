# @name@, a network as portable C99. Written by nervure; do not edit.
#
#   find_package(@name@ CONFIG REQUIRED PATHS path/to/this/folder NO_DEFAULT_PATH)   or   add_subdirectory(this/folder)
#   target_link_libraries(firmware PRIVATE @name@::@name@)
if(NOT TARGET @name@::@name@)
  add_library(@name@ STATIC "${CMAKE_CURRENT_LIST_DIR}/src/@source@")
  add_library(@name@::@name@ ALIAS @name@)
  set_target_properties(@name@ PROPERTIES C_STANDARD 99 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF)
  target_include_directories(@name@ PUBLIC "${CMAKE_CURRENT_LIST_DIR}/include")
  if(NOT MSVC)
    target_link_libraries(@name@ PUBLIC m)
  endif()
endif()
