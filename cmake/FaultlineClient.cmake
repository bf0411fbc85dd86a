# What is linked or loaded into VMMs: libfaultline, shared and static, and the preload library.

file(GLOB client_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/client/*.c)
list(REMOVE_ITEM client_sources ${PROJECT_SOURCE_DIR}/src/client/preload.c)

add_library(libfaultline-objects OBJECT ${client_sources})
faultline_flags(libfaultline-objects)
set_target_properties(libfaultline-objects PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_compile_definitions(libfaultline-objects PRIVATE FAULTLINE_VERSION="${PROJECT_VERSION}")

# As files and not as targets: what hotlist and base are linked with is no business of a VMM's.
set(client_archives $<TARGET_FILE:hotlist> $<TARGET_FILE:base>)
set(client_map ${PROJECT_SOURCE_DIR}/src/client/libfaultline.map)

add_library(libfaultline SHARED $<TARGET_OBJECTS:libfaultline-objects>)
faultline_flags(libfaultline)
set_target_properties(libfaultline PROPERTIES OUTPUT_NAME faultline VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR} LINK_DEPENDS "${client_map};${client_archives}" LINKER_LANGUAGE C)
target_link_options(libfaultline PRIVATE -Wl,--version-script=${client_map})
target_link_libraries(libfaultline PRIVATE ${client_archives} PkgConfig::ZLIB Threads::Threads)
target_include_directories(libfaultline INTERFACE ${PROJECT_SOURCE_DIR}/include)
add_dependencies(libfaultline hotlist base)

# One object, in which all that is not public is local: a static library has no map file, and a VMM may have a hotlist_load of its own.
set(client_object ${CMAKE_CURRENT_BINARY_DIR}/libfaultline.o)
add_custom_command(OUTPUT ${client_object}
  COMMAND ${CMAKE_C_COMPILER} -r -nostdlib -o ${client_object} $<TARGET_OBJECTS:libfaultline-objects> ${client_archives}
  COMMAND ${CMAKE_OBJCOPY} --localize-hidden ${client_object}
  DEPENDS libfaultline-objects $<TARGET_OBJECTS:libfaultline-objects> hotlist base ${client_archives}
  COMMAND_EXPAND_LISTS VERBATIM)
add_library(libfaultline-static STATIC ${client_object})
set_target_properties(libfaultline-static PROPERTIES OUTPUT_NAME faultline LINKER_LANGUAGE C)
set_source_files_properties(${client_object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
target_link_libraries(libfaultline-static INTERFACE PkgConfig::ZLIB Threads::Threads)
target_include_directories(libfaultline-static INTERFACE ${PROJECT_SOURCE_DIR}/include)

# The preload library's part of the above, which must be without sanitizers. Not for clang-tidy: it has met these files already.
add_library(preload-parts OBJECT src/client/handover.c src/client/memory.c src/client/result.c)
set_target_properties(preload-parts PROPERTIES POSITION_INDEPENDENT_CODE ON EXPORT_COMPILE_COMMANDS OFF)
add_library(faultline-preload MODULE src/client/preload.c $<TARGET_OBJECTS:preload-parts>)
foreach(target preload-parts faultline-preload)
  faultline_flags(${target} FOREIGN)
  target_compile_definitions(${target} PRIVATE FAULTLINE_VERSION="${PROJECT_VERSION}" FAULTLINE_API=)
endforeach()
target_link_libraries(faultline-preload PRIVATE ${CMAKE_DL_LIBS})

# From the folder of faultline.pc up to the prefix: one step for each part of its path.
string(REGEX REPLACE "[^/]+" ".." FAULTLINE_PC_UP ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
configure_file(src/client/faultline.pc.in faultline.pc @ONLY)

install(TARGETS faultline-preload LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/faultline)
install(TARGETS libfaultline libfaultline-static)
install(DIRECTORY include/faultline DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY examples DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/faultline.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
