if(CONFIG_NERVURE_@NAME@)
  zephyr_include_directories(${CMAKE_CURRENT_LIST_DIR}/../include)
  zephyr_library_import(@name@ ${CMAKE_CURRENT_LIST_DIR}/../lib/@library@)
endif()
